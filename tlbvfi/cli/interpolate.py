"""`tlbvfi interpolate` and `tlbvfi resume`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, cast

from ..methods import METHODS, MethodConfig
from .arguments import (
    Commands,
    add_encoder,
    add_network,
    add_root,
    encoder_settings,
    named_path,
    parse_size,
    session_place,
)
from .show import ProgressBar, command_line, say

if TYPE_CHECKING:
    from fractions import Fraction

    from ...encoding.profiles import EncoderSettings
    from ..batch import VideoOutcome
    from ..config import JobConfig
    from ..job import Destination, JobResult
    from ..method import Method
    from ..methods.tlbvfi import TlbvfiMethod


STDOUT = Path("-")
"""The output path that stands for standard output."""


def add_parsers(subparsers: Commands, shared: argparse.ArgumentParser) -> None:
    _add_interpolate(subparsers, shared)
    resume = subparsers.add_parser(
        "resume", parents=[shared], help="resume a session with the settings it was started with"
    )
    resume.add_argument("session", metavar="SESSION", help="session id, or its folder")
    add_root(resume)
    resume.set_defaults(run=run_resume)


def _add_interpolate(subparsers: Commands, shared: argparse.ArgumentParser) -> None:
    parser = subparsers.add_parser(
        "interpolate",
        parents=[shared],
        help="make one or more videos smoother",
        usage="%(prog)s INPUT OUTPUT [options]\n"
        "       %(prog)s --frames FOLDER OUTPUT [options]\n"
        "       %(prog)s INPUT [INPUT ...] --out-dir DIR [options]",
        description="Interpolate INPUT into OUTPUT, or several videos, or all videos in a folder, "
        "into DIR. The same command again resumes by itself.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="video file or folder of images, then what to write: a video file, a folder of images "
        "(frames/) or numbered images (frames/f_%%06d.png); with --out-dir all are inputs, and a "
        "folder stands for the videos in it",
    )
    parser.add_argument(
        "--frames",
        metavar="FOLDER",
        nargs=1,
        default=[],
        help="folder of images, in place of INPUT",
    )
    parser.add_argument(
        "--out-dir",
        type=named_path,
        metavar="DIR",
        help="write one file for each input, with its name",
    )
    add_job_options(parser)
    parser.set_defaults(run=run_paths, usage_error=parser.error)


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Everything that decides a job, except its source and its output."""
    _add_frames(parser)
    _add_method(parser)
    add_encoder(parser, codec="auto")
    _add_mezzanine(parser)
    _add_session(parser)


def _add_frames(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frames")
    group.add_argument("--times", type=int, metavar="K", help="2^K times the frames (default 1)")
    group.add_argument(
        "--fps", metavar="RATE", help="any output rate instead: 60, 60000/1001, 59.94"
    )
    group.add_argument(
        "--slowmo", default="1", metavar="X", help="output lasts X times as long, at the same rate"
    )
    group.add_argument(
        "--slowmo-sound",
        choices=("drop", "stretch"),
        default="drop",
        help="with --slowmo: leave the sound out (default), or stretch it at the same pitch",
    )
    group.add_argument(
        "--depth",
        type=int,
        default=3,
        metavar="K",
        help="tlbvfi with --fps or --slowmo: choose from 2^K - 1 mid frames per pair (default 3)",
    )
    group.add_argument(
        "--input-fps", metavar="RATE", help="rate of a source that has none: a folder of images"
    )
    group.add_argument(
        "--hwaccel",
        default="auto",
        metavar="DEVICE",
        help="decode the video on a GPU: auto (default: cuda where its frames equal software's), "
        "none, cuda, or another device of this FFmpeg",
    )
    group.add_argument("--start", metavar="TIME", help="seconds or hh:mm:ss.mmm, included")
    group.add_argument("--end", metavar="TIME", help="seconds or hh:mm:ss.mmm, excluded")
    group.add_argument(
        "--cuts",
        choices=("hold", "nearest", "ignore"),
        default="hold",
        help="what to show between two scenes: the last frame (default), the nearer one, or a mid "
        "frame as elsewhere",
    )
    group.add_argument(
        "--retime", action="store_true", help="turn repeated frames (animation on twos) into motion"
    )
    group.add_argument(
        "--alpha",
        choices=("straight", "premultiplied"),
        help="how colors relate to alpha, where the format does not say (ProRes, FFV1, UtVideo, TIFF; "
        "default there: premultiplied)",
    )
    group.add_argument("--no-audio", action="store_true", help="leave the sound out")


def _add_method(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--method", choices=METHODS, default="tlbvfi", help="default: tlbvfi")
    add_network(group)
    group.add_argument("--seed", type=int, default=0, help="tlbvfi: seed of the noise (default 0)")


def _add_mezzanine(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("mezzanine")
    group.add_argument(
        "--mezzanine",
        metavar="CODEC",
        help="make chunks with this codec (ffv1, h264-lossless, utvideo, prores, dnxhr, exr, or h264 or "
        "hevc with --mezzanine-crf) and encode them once with --codec at the end; with --keep-chunks, "
        "tlbvfi concat can encode them again without interpolating",
    )
    group.add_argument(
        "--mezzanine-crf",
        type=int,
        metavar="CRF",
        help="0 to 10, for an h264 or hevc mezzanine: smaller than lossless",
    )


def _add_session(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("session")
    group.add_argument("--session", metavar="ID", help="default: derived from source and settings")
    add_root(group, default="output/ beside the output file")
    length = group.add_mutually_exclusive_group()
    length.add_argument("--chunk-seconds", metavar="S", help="length of a chunk (default 2)")
    length.add_argument("--chunk-frames", type=int, metavar="N", help="output frames per chunk")
    length.add_argument("--chunk-size", metavar="SIZE", help="end a chunk at a size, such as 64M")
    group.add_argument("--keep-chunks", action="store_true", help="keep the chunks after the join")
    group.add_argument("--overwrite", action="store_true", help="start anew and replace the output")


def run_paths(arguments: argparse.Namespace) -> int:
    """Run one job, or with --out-dir one per input."""
    from ..errors import SettingsError

    if "" in (*arguments.frames, *arguments.paths):  # Path("") is this folder
        raise SettingsError("An empty name ('') is not a file: write INPUT and OUTPUT out.")
    if arguments.out_dir is not None:
        return _run_many(arguments)
    paths = [*arguments.frames, *arguments.paths]
    if len(paths) != 2:
        arguments.usage_error(
            f"interpolate takes an INPUT (or --frames FOLDER) and an OUTPUT, not {len(paths)} paths; "
            "with --out-dir DIR it takes any number of inputs"
        )
    arguments.input, arguments.output = paths
    return run_interpolate(arguments)


def run_interpolate(
    arguments: argparse.Namespace,
    *,
    sound: Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Run or resume one job; Ctrl-C prints the command that resumes.

    `arguments.input` and `arguments.output` are the paths. `sound` is the file whose sound goes
    with the frames, if not the input itself; `metadata` holds tags for the final file.
    """
    from ...encoding.delivery import output_path
    from ..job import refuse_the_source

    output = output_path(str(arguments.output), arguments.codec)
    config, method = job_config(arguments), _open_method(arguments)
    source = Path(arguments.input)
    refuse_the_source(source, output)
    destination = _destination(arguments, source, output, sound=sound, metadata=metadata)
    show = ProgressBar(quiet=arguments.json)
    try:
        result = _run_job(arguments, source, method, config, destination, show)
    except KeyboardInterrupt:
        _say_how_to_resume(show.session_id, destination)
        return 130
    _tell(result, arguments.json)
    return 0


def _run_many(arguments: argparse.Namespace) -> int:
    """Run a job for each input; exit code 1 if any failed."""
    from ..batch import VideoTask, plan_videos, run_videos
    from ..errors import SettingsError

    if arguments.session is not None:
        raise SettingsError("--session names one session: leave it out with --out-dir.")
    paths = [Path(path) for path in (*arguments.frames, *arguments.paths)]
    tasks = plan_videos(paths, arguments.out_dir, codec=arguments.codec)
    config, method = job_config(arguments), _open_method(arguments)
    outcomes: list[VideoOutcome] = []
    current: list[tuple[ProgressBar, Destination]] = []

    def run(task: VideoTask) -> JobResult:
        number = f"{len(outcomes) + 1}/{len(tasks)}"
        say(f"{number} {task.source} -> {task.output}", quiet=arguments.json)
        destination = _destination(arguments, task.source, task.output, is_one_of_many=True)
        show = ProgressBar(quiet=arguments.json)
        current.append((show, destination))
        return _run_job(arguments, task.source, method, config, destination, show)

    try:
        for outcome in run_videos(tasks, run):
            outcomes.append(outcome)
            current.clear()
            if outcome.error:
                say(f"{outcome.task.source} failed: {outcome.error}", quiet=arguments.json)
    except KeyboardInterrupt:
        done = f"interrupted after {len(outcomes)} of {len(tasks)} videos"
        if not arguments.overwrite:
            say(f"{done}; resume with:\n{command_line(['tlbvfi', *arguments.argv])}")
            return 130
        say(f"{done}, which --overwrite would make again: leave them out of the next command.")
        for show, destination in current:
            _say_how_to_resume(show.session_id, destination)
        return 130
    _tell_all(outcomes, arguments.json)
    return 1 if any(outcome.error for outcome in outcomes) else 0


def _destination(
    arguments: argparse.Namespace,
    source: Path,
    output: Path,
    *,
    sound: Path | None = None,
    metadata: Mapping[str, str] | None = None,
    is_one_of_many: bool = False,
) -> Destination:
    from ..job import Destination

    folder, root, session_id = Path.cwd(), arguments.root, arguments.session
    if "resuming" in arguments:
        folder, root, session_id = arguments.resuming
    begun: dict[str, object] = {"command": arguments.argv, "folder": str(folder)}
    if is_one_of_many:
        begun["paths"] = [str(source), str(output)]
    return Destination(
        output=output,
        root=root,
        session_id=session_id,
        overwrite=arguments.overwrite,
        resume="resuming" in arguments,
        keep_chunks=arguments.keep_chunks,
        sound=sound or (source if source.is_file() else None),
        metadata=metadata,
        begun=begun,
    )


def _run_job(
    arguments: argparse.Namespace,
    source: Path,
    method: Method,
    config: JobConfig,
    destination: Destination,
    show: ProgressBar,
) -> JobResult:
    from ...encoding.source import open_source
    from ..allocator import set_up_memory
    from ..job import run_job
    from ..timeline import parse_rate

    rate = parse_rate(arguments.input_fps) if arguments.input_fps else None
    budget = method_config(arguments).memory
    with open_source(source, input_rate=rate, hwaccel=arguments.hwaccel) as opened, show:
        if method.name == "tlbvfi":
            method = cast("TlbvfiMethod", method)
            set_up_memory(budget, method, opened.info.height, opened.info.width)
        return run_job(opened, method, config, destination, on_event=show)


def run_resume(arguments: argparse.Namespace) -> int:
    """Run the command that began a session again, on this very session."""
    from ...encoding.errors import SessionError
    from ...encoding.session import Session

    root, session_id = session_place(arguments.session, arguments.root)
    origin = Session.open(root, session_id).origin()
    command = origin.get("command")
    if not command:
        raise SessionError(
            f"Session {session_id} was not begun on the command line: queue its workflow again, or "
            "run tlbvfi concat on what it has."
        )
    folder = Path(origin.get("folder", ""))
    if not folder.is_dir():  # it was moved, presumably with the session in it
        folder = Path.cwd()
    resuming = (folder, root.absolute(), session_id)
    known = argparse.Namespace(argv=command, parser=arguments.parser, resuming=resuming)
    parsed = arguments.parser.parse_args(command, known)
    if getattr(parsed, "comfy_command", parsed.command) not in ("interpolate", "run"):
        raise SessionError(
            f"Session {session_id} says it was begun with tlbvfi {parsed.command}, which does not "
            "begin sessions: run that command by hand if it is what you want."
        )
    if "paths" in origin:  # one of many videos: the others have sessions of their own
        parsed.paths, parsed.frames, parsed.out_dir = origin["paths"], [], None
    if folder != Path.cwd():
        _take_names_from(folder, parsed)
    parsed.json = arguments.json
    say(f"in {folder}: {command_line(['tlbvfi', *command])}", quiet=arguments.json)
    return parsed.run(parsed)


def _take_names_from(folder: Path, arguments: argparse.Namespace) -> None:
    """Make relative paths among the arguments relative to `folder`."""
    for name, value in vars(arguments).items():
        if isinstance(value, Path) and value != STDOUT:
            setattr(arguments, name, folder / value)
    for name in ("paths", "frames"):
        texts = getattr(arguments, name, ())
        setattr(arguments, name, [name_from(folder, text) for text in texts])


def name_from(folder: PurePath, text: str) -> str:
    """What a name typed in `folder` means elsewhere; its trailing slash has a meaning, too.

    On Windows, names such as `\\clips` and `D:clip.mp4` are neither relative nor absolute.
    """
    return f"{folder / text}{'/' if text.endswith(('/', os.sep)) else ''}"


def job_config(arguments: argparse.Namespace) -> JobConfig:
    """The job that the arguments describe.

    Raises:
        SettingsError: a value is out of range, or two contradict each other.
    """
    from ...encoding.profiles import EncoderSettings
    from ..config import ChunkLength, JobConfig
    from ..timeline import parse_factor, parse_rate, parse_seconds

    def given(text: str | None, parse: Callable[[str], Fraction]) -> Fraction | None:
        return None if text is None else parse(text)

    return JobConfig(
        times=arguments.times,
        fps=given(arguments.fps, parse_rate),
        slowmo=parse_factor(arguments.slowmo),
        slowmo_sound=arguments.slowmo_sound,
        depth=arguments.depth,
        cuts=arguments.cuts,
        retime=arguments.retime,
        seed=arguments.seed,
        alpha=arguments.alpha,
        start=given(arguments.start, parse_seconds),
        end=given(arguments.end, parse_seconds),
        encoder=encoder_settings(arguments) or EncoderSettings(),
        mezzanine=_mezzanine(arguments),
        chunk=ChunkLength(
            seconds=given(arguments.chunk_seconds, parse_seconds),
            frames=arguments.chunk_frames,
            bytes=parse_size(arguments.chunk_size) if arguments.chunk_size else None,
        ),
        audio=not arguments.no_audio,
    )


def _mezzanine(arguments: argparse.Namespace) -> EncoderSettings | None:
    from ...encoding.profiles import EncoderSettings
    from ..errors import SettingsError

    if arguments.mezzanine is not None:
        return EncoderSettings(codec=arguments.mezzanine, crf=arguments.mezzanine_crf)
    if arguments.mezzanine_crf is not None:
        raise SettingsError("--mezzanine-crf has no effect without --mezzanine: name its codec.")
    return None


def method_config(arguments: argparse.Namespace) -> MethodConfig:
    """The method that the arguments name, with its options.

    Raises:
        SettingsError: a value is out of range.
    """
    return MethodConfig(
        name=arguments.method,
        model=arguments.model,
        steps=arguments.steps,
        flow_scale=arguments.flow_scale,
        padding=arguments.padding,
        precision=arguments.precision,
        device=arguments.device,
        memory=None if arguments.memory is None else parse_size(arguments.memory),
        compile=arguments.compile,
    )


def _open_method(arguments: argparse.Namespace) -> Method:
    from ..allocator import use_expandable_segments
    from ..methods import create_method

    use_expandable_segments()
    return create_method(method_config(arguments))


def _say_how_to_resume(session_id: str | None, destination: Destination) -> None:
    if session_id is None:
        say("interrupted before any chunk was started.")
        return
    command = ["tlbvfi", "resume", session_id, "--root", str(destination.sessions_root)]
    say(f"interrupted; resume with:\n{command_line(command)}")


def _tell(result: JobResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(result), default=str))
    elif result.was_done:
        say(f"{result.output} is already there and verified; --overwrite makes it again.")
    else:
        say(f"{result.output}: {result.frames} frames.")


def _tell_all(outcomes: Sequence[VideoOutcome], as_json: bool) -> None:
    """The summary of many videos."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if as_json:
        videos = [
            {
                "input": outcome.task.source,
                "output": outcome.task.output,
                **(asdict(outcome.result) if outcome.result else {"error": outcome.error}),
            }
            for outcome in outcomes
        ]
        counts = {"done": len(outcomes) - len(failed), "failed": len(failed)}
        print(json.dumps({**counts, "videos": videos}, default=str))
        return
    say(f"{len(outcomes) - len(failed)} of {len(outcomes)} videos done.")
    for outcome in failed:
        say(f"failed: {outcome.task.source}: {outcome.error}")
