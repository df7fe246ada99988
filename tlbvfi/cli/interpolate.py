"""`tlbvfi interpolate` and `tlbvfi resume`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..methods import METHODS, MethodConfig
from .arguments import add_root, session_place
from .show import ProgressBar

if TYPE_CHECKING:
    from fractions import Fraction

    from ..config import JobConfig
    from ..job import Destination, JobResult


def add_parsers(subparsers: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401 - argparse hides its type
    _add_interpolate(subparsers, shared)
    resume = subparsers.add_parser(
        "resume", parents=[shared], help="go on with a session, with the settings it was begun with"
    )
    resume.add_argument("session", metavar="SESSION", help="session id, or its folder")
    add_root(resume)
    resume.set_defaults(run=run_resume)


def _add_interpolate(subparsers: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401
    parser = subparsers.add_parser(
        "interpolate",
        parents=[shared],
        help="make a video smoother",
        description="Interpolate INPUT into OUTPUT. The same command again resumes by itself.",
    )
    parser.add_argument("input", metavar="INPUT", help="video file, or folder of images")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="video file to write")
    add_job_options(parser)
    parser.set_defaults(run=run_interpolate)


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Everything that decides a job, apart from its source and its output."""
    _add_frames(parser)
    _add_method(parser)
    _add_encoder(parser)
    _add_session(parser)


def _add_frames(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("frames")
    group.add_argument("--times", type=int, metavar="K", help="2^K times the frames (default 1)")
    group.add_argument(
        "--fps", metavar="RATE", help="any output rate instead: 60, 60000/1001, 59.94"
    )
    group.add_argument(
        "--slowmo", default="1", metavar="X", help="output lasts X times longer, without sound"
    )
    group.add_argument(
        "--depth",
        type=int,
        default=3,
        metavar="K",
        help="tlbvfi at --fps or --slowmo: picks from 2^K - 1 mid frames of a pair (default 3)",
    )
    group.add_argument(
        "--input-fps", metavar="RATE", help="rate of a source that has none: a folder of images"
    )
    group.add_argument("--start", metavar="TIME", help="seconds or hh:mm:ss.mmm, included")
    group.add_argument("--end", metavar="TIME", help="seconds or hh:mm:ss.mmm, excluded")
    group.add_argument(
        "--cuts",
        choices=("hold", "nearest", "ignore"),
        default="hold",
        help="shown between two scenes: the last frame, the nearer one, or a mid frame all the same",
    )
    group.add_argument(
        "--retime", action="store_true", help="turn repeated frames (animation on twos) into motion"
    )
    group.add_argument("--no-audio", action="store_true", help="leave the sound out")


def _add_method(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("method")
    group.add_argument("--method", choices=METHODS, default="tlbvfi", help="default: tlbvfi")
    group.add_argument("--model", type=Path, metavar="FILE", help="weights of tlbvfi or film")
    group.add_argument("--steps", type=int, default=10, help="tlbvfi: sampling steps (default 10)")
    group.add_argument(
        "--flow-scale", type=float, default=0.5, help="tlbvfi: scale of the flow (default 0.5)"
    )
    group.add_argument(
        "--padding", choices=("reference", "tight"), default="reference", help="tlbvfi: padding"
    )
    group.add_argument(
        "--precision",
        choices=("float32", "tf32", "bfloat16", "float16"),
        default="float32",
        help="arithmetic of tlbvfi and film (default float32)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
    group.add_argument("--seed", type=int, default=0, help="tlbvfi: seed of the noise (default 0)")


def _add_encoder(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("encoder (ffmpeg's words)")
    group.add_argument(
        "--codec",
        default="auto",
        help="auto, h264, hevc, av1, vp9, their _nvenc twins, prores, prores_4444, dnxhr, ffv1, "
        "h264-lossless, utvideo, or an ffmpeg encoder name (default auto)",
    )
    group.add_argument("--crf", type=int, help="constant quality, lower is better")
    group.add_argument("--bitrate", help="average bits per second, such as 20M")
    group.add_argument("--preset", help="speed of the encoder, such as fast, slow, p5")
    group.add_argument("--pix-fmt", help="default: the source's where the codec takes it")


def _add_session(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("session")
    group.add_argument("--session", metavar="ID", help="default: from source and settings")
    add_root(group)
    length = group.add_mutually_exclusive_group()
    length.add_argument("--chunk-seconds", metavar="S", help="length of a chunk (default 2)")
    length.add_argument("--chunk-frames", type=int, metavar="N", help="output frames of a chunk")
    length.add_argument("--chunk-size", metavar="SIZE", help="end a chunk at a size, such as 64M")
    group.add_argument("--keep-chunks", action="store_true", help="keep them after the join")
    group.add_argument("--overwrite", action="store_true", help="start anew and replace the output")


def run_interpolate(
    arguments: argparse.Namespace,
    *,
    sound: Path | None = None,
    metadata: Mapping[str, str] | None = None,
) -> int:
    """Run one job, or go on with it; Ctrl-C prints the command that resumes.

    `sound` is the file whose sound goes with the frames, where it is not the input itself;
    `metadata` are tags for the final file.
    """
    from ...encoding.source import open_source
    from ..job import Destination, run_job
    from ..methods import create_method
    from ..timeline import parse_rate

    config, method = job_config(arguments), create_method(method_config(arguments))
    rate = parse_rate(arguments.input_fps) if arguments.input_fps else None
    destination = Destination(
        output=arguments.output,
        root=arguments.root,
        session_id=arguments.session,
        overwrite=arguments.overwrite,
        keep_chunks=arguments.keep_chunks,
        sound=sound or (Path(arguments.input) if Path(arguments.input).is_file() else None),
        metadata=metadata,
        command=tuple(arguments.argv),
    )
    show = ProgressBar(quiet=arguments.json)
    try:
        with open_source(arguments.input, input_rate=rate) as source, show:
            result = run_job(source, method, config, destination, on_event=show)
    except KeyboardInterrupt:
        _say_how_to_resume(show.session_id, destination)
        return 130
    _tell(result, arguments.json)
    return 0


def run_resume(arguments: argparse.Namespace) -> int:
    """Run the command a session was begun with once more."""
    from ...encoding.errors import SessionError
    from ...encoding.session import Session

    root, session_id = session_place(arguments.session, arguments.root)
    command = (Session.open(root, session_id).origin() or {}).get("command")
    if not command:
        raise SessionError(
            f"Session {session_id} was not begun on the command line: queue its workflow again, or "
            "run tlbvfi concat on what it has."
        )
    parsed = arguments.parser.parse_args(command, argparse.Namespace(argv=command))
    parsed.json = arguments.json
    return parsed.run(parsed)


def job_config(arguments: argparse.Namespace) -> JobConfig:
    """The job the arguments describe.

    Raises:
        SettingsError: a value is out of its range, or two contradict each other.
    """
    from ...encoding.profiles import EncoderSettings, parse_bitrate
    from ..config import ChunkLength, JobConfig
    from ..timeline import parse_factor, parse_rate, parse_seconds

    def given(text: str | None, parse: Callable[[str], Fraction]) -> Fraction | None:
        return None if text is None else parse(text)

    return JobConfig(
        times=arguments.times,
        fps=given(arguments.fps, parse_rate),
        slowmo=parse_factor(arguments.slowmo),
        depth=arguments.depth,
        cuts=arguments.cuts,
        retime=arguments.retime,
        seed=arguments.seed,
        start=given(arguments.start, parse_seconds),
        end=given(arguments.end, parse_seconds),
        encoder=EncoderSettings(
            codec=arguments.codec,
            crf=arguments.crf,
            bitrate=arguments.bitrate,
            preset=arguments.preset,
            pix_fmt=arguments.pix_fmt,
        ),
        chunk=ChunkLength(
            seconds=given(arguments.chunk_seconds, parse_seconds),
            frames=arguments.chunk_frames,
            bytes=parse_bitrate(arguments.chunk_size) if arguments.chunk_size else None,
        ),
        audio=not arguments.no_audio,
    )


def method_config(arguments: argparse.Namespace) -> MethodConfig:
    """The method the arguments name, with its options.

    Raises:
        SettingsError: a value is out of its range.
    """
    return MethodConfig(
        name=arguments.method,
        model=arguments.model,
        steps=arguments.steps,
        flow_scale=arguments.flow_scale,
        padding=arguments.padding,
        precision=arguments.precision,
        device=arguments.device,
    )


def _say_how_to_resume(session_id: str | None, destination: Destination) -> None:
    if session_id is None:
        print("tlbvfi: interrupted before any chunk was begun.", file=sys.stderr)
        return
    root = destination.sessions_root
    command = shlex.join(["tlbvfi", "resume", session_id, "--root", str(root)])
    print(f"tlbvfi: interrupted; this goes on:\n{command}", file=sys.stderr)


def _tell(result: JobResult, as_json: bool) -> None:
    if as_json:
        print(json.dumps({key: _plain(value) for key, value in asdict(result).items()}))
    elif result.was_done:
        print(
            f"tlbvfi: {result.output} is already there and verified; --overwrite makes it anew.",
            file=sys.stderr,
        )
    else:
        print(f"tlbvfi: {result.output}: {result.frames} frames.", file=sys.stderr)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
