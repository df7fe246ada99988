"""The command line: `tlbvfi COMMAND`. Data on stdout, progress and messages on stderr.

Exit codes: 0 done, 1 failed with one sentence (traceback with -v), 2 usage, 130 interrupted, with
the command that resumes.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ... import __version__
from ...encoding.durable import FULL
from ...encoding.errors import VideoError
from ..errors import InterpolationError, SettingsError
from . import bench, comfy, inspect, interpolate, models, sessions
from .arguments import CommandParser
from .show import LogLines, say
from .streams import silence, standard_streams

if TYPE_CHECKING:
    from av.error import FFmpegError

COMMANDS = (interpolate, sessions, inspect, bench, models, comfy)
"""Each has `add_parsers(subparsers, shared)`, which sets `run`, called with parsed arguments."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Errors become one sentence on stderr."""
    with standard_streams():
        try:
            return _run(list(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt:  # before the first was awaited, or while it was told
            return 130


def _run(words: list[str]) -> int:
    parser = build_parser()
    arguments = parser.parse_args(words, argparse.Namespace(argv=words, parser=parser))
    _configure_logging(arguments.verbose)
    _stop_on_signals()
    try:
        _require_current_folder()
        code = arguments.run(arguments)
        print(end="", flush=True)  # now, while it can still be told that this fails
        return code
    except (VideoError, InterpolationError) as error:
        if arguments.verbose:
            logging.getLogger("tlbvfi").exception("%s failed", arguments.command)
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted.")
        return 130
    except BrokenPipeError:
        # The reader of our output has closed it (`tlbvfi ... | head`): nothing more to write.
        silence(sys.stdout)
        return 1
    except _ffmpeg_error() as error:
        if arguments.verbose:
            raise
        about = f"{error.filename}: " if error.filename else ""
        say(f"{about}FFmpeg failed ({error.strerror}): -v shows where.")
        return 1
    except (RuntimeError, MemoryError) as error:
        what = str(error).split("\n", 1)[0]
        advice = _advice_on_shortage(error)
        if arguments.verbose or advice is None:
            raise
        say(f"{advice}: {what}")
        return 1
    except ImportError as error:
        if arguments.verbose:
            raise
        say(_why_not_loaded(error))
        return 1
    except OSError as error:
        is_full = error.filename is None and error.errno in FULL
        if arguments.verbose:
            raise
        if is_full:
            say(f"standard output cannot be used: {error.strerror}.")
            silence(sys.stdout)
        elif error.filename is not None:
            say(f"{error.filename} cannot be used: {error.strerror}.")
        else:
            say(f"the system failed ({error.strerror or error}): -v shows where.")
        return 1


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; importing it loads neither torch nor PyAV."""
    # Allowed before the command and after it, where a default must not undo a value given before.
    general, shared = _shared_options(False), _shared_options(argparse.SUPPRESS)
    parser = argparse.ArgumentParser(
        prog="tlbvfi",
        parents=[general],
        description="Make video smoother: interpolate frames from file to file, resumable and exact.",
    )
    parser.add_argument("--version", action="version", version=f"tlbvfi {__version__}")
    kind: type[argparse.ArgumentParser] = CommandParser
    subparsers = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=kind
    )
    for command in COMMANDS:
        command.add_parsers(subparsers, shared)
    return parser


def _shared_options(default: object) -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, argument_default=default)
    shared.add_argument("-v", "--verbose", action="store_true", help="log more, show tracebacks")
    shared.add_argument("--json", action="store_true", help="print the result as JSON on stdout")
    return shared


def _ffmpeg_error() -> type[FFmpegError]:
    from av.error import FFmpegError  # needed only on an error: --help must not load PyAV

    return FFmpegError


def _require_current_folder() -> None:
    """Refuse to run in a folder that was removed, where libraries end the process in their own words.

    Raises:
        SettingsError: it was.
    """
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise SettingsError(
            "The current folder has been removed: change to another one."
        ) from error


def _advice_on_shortage(error: RuntimeError | MemoryError) -> str | None:
    """What to do if the system has no more of what was asked for; None if it is another error."""
    from ..memory import is_out_of_memory  # which loads torch

    if "start new thread" in str(error):
        return "too many processes, close other programs or raise the limit (ulimit -u)"
    if is_out_of_memory(error):
        return "out of memory, close other programs or scale the frames down"
    return None


def _why_not_loaded(error: ImportError) -> str:
    """What to do about a library that is missing, damaged, or lacks one of the system's."""
    headless = (
        ", or put opencv-python-headless in place of opencv-python where there is no libGL"
        if error.name == "cv2"
        else ""
    )
    return f"a library cannot be loaded ({error}): check its installation{headless}."


def _configure_logging(verbose: bool) -> None:
    logging.basicConfig(format="tlbvfi: %(message)s", handlers=[LogLines()])
    logging.getLogger("tlbvfi").setLevel(logging.DEBUG if verbose else logging.INFO)


def _stop_on_signals() -> None:
    """SIGTERM and a closed terminal end like Ctrl-C: nothing unfinished is left, and chunks stay."""
    ending = [signal.SIGTERM]
    if os.name != "nt" and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # else: nohup
        ending.append(signal.SIGHUP)

    def interrupt(signum: int, frame: object) -> None:
        for each in ending:  # `timeout` and shells send more than one, which would end the ending
            signal.signal(each, pass_over)
        raise KeyboardInterrupt

    def pass_over(signum: int, frame: object) -> None:
        """Python complains if a signal that has come is set to SIG_IGN."""

    try:
        for each in ending:
            signal.signal(each, interrupt)
    except ValueError:
        return  # not the main thread: the embedding program handles signals


if __name__ == "__main__":
    sys.exit(main())
