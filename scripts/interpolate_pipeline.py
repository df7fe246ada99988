"""Frames or a video in, one smooth video out, compressed once: wraps `tlbvfi interpolate`.

    python scripts/interpolate_pipeline.py clip.mp4 --method film --crf 18 --output smooth.mp4
    python scripts/interpolate_pipeline.py --frames frames/ --fps 16 --keep-frames

Only here, --fps is the rate of the input frames. With --keep-frames the frames of the result are
also written as PNG next to it, interpolated once and never from a compressed picture. Running the
same command again resumes it, or says that everything is there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
METHODS = ("tlbvfi", "film", "flow", "blend")


def load_package() -> None:
    """Import this script's checkout as `comfyui_tlbvfi`, or else use the installed package."""
    if not (CHECKOUT / "tlbvfi" / "cli").is_dir() or "comfyui_tlbvfi" in sys.modules:
        return
    spec = spec_from_file_location(
        "comfyui_tlbvfi", CHECKOUT / "__init__.py", submodule_search_locations=[str(CHECKOUT)]
    )
    if spec is not None and spec.loader is not None:
        module = sys.modules["comfyui_tlbvfi"] = module_from_spec(spec)
        spec.loader.exec_module(module)


def build_parser() -> argparse.ArgumentParser:
    """The flags of this script."""
    parser = argparse.ArgumentParser(
        description="Make a smooth video from a video or from frames, compressed once.",
        epilog="tlbvfi interpolate --help lists what else the engine can do.",
    )
    parser.add_argument("video", nargs="?", type=Path, help="video file")
    parser.add_argument("--frames", type=Path, metavar="DIR", help="folder of images as the input")
    parser.add_argument("--fps", metavar="RATE", help="rate of --frames, such as 16 or 24000/1001")
    parser.add_argument("--method", choices=METHODS, help="default: tlbvfi")
    parser.add_argument("--model", metavar="FILE", help="weights of tlbvfi or film")
    parser.add_argument("--device", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--times", metavar="K", help="2^K times the frames (default 1)")
    parser.add_argument("--codec", help="h264, hevc, av1, prores, ... (default auto)")
    parser.add_argument("--crf", help="constant quality, lower is better")
    parser.add_argument("--preset", help="speed of the encoder")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: NAME_smooth.mp4")
    parser.add_argument(
        "--keep-frames", action="store_true", help="also write PNG frames into OUTPUT_frames/"
    )
    parser.add_argument("--overwrite", action="store_true", help="start over, replace the output")
    return parser


def read_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments, with `source` and `output` filled in."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if (arguments.video is None) == (arguments.frames is None):
        parser.error("give a video, or --frames DIR")
    if arguments.frames is not None and arguments.fps is None:
        parser.error("--frames needs --fps, the rate of these frames")
    if arguments.video is not None and arguments.fps is not None:
        parser.error(
            "--fps is the rate of --frames, and a video has its own; for another rate of the "
            "output use tlbvfi interpolate --fps"
        )
    arguments.source = arguments.frames or arguments.video
    named = arguments.source
    if named.name in ("", ".."):  # such as --frames . in the folder itself
        named = named.resolve()
    stem = named.name if arguments.frames else named.stem
    arguments.output = arguments.output or named.with_name(f"{stem}_smooth.mp4")
    return arguments


def interpolate_words(arguments: argparse.Namespace) -> list[str]:
    """The `tlbvfi interpolate` arguments for the same job."""
    words = ["interpolate", str(arguments.source), str(arguments.output)]
    if arguments.fps is not None:
        words += ["--input-fps", arguments.fps]
    for name in ("method", "model", "device", "times", "codec", "crf", "preset"):
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name}", value]
    return [*words, "--overwrite"] if arguments.overwrite else words


def session_name(arguments: argparse.Namespace, words: list[str]) -> str:
    """A session name that is the same for the same command on the same source."""
    facts = arguments.source.stat() if arguments.source.exists() else None
    identity = [*words, facts and facts.st_size, facts and facts.st_mtime_ns]
    return f"pipeline-{hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]}"


def run_keeping_frames(arguments: argparse.Namespace) -> int:
    """Make lossless chunks once; encode the video and write the images from them."""
    from comfyui_tlbvfi.encoding.delivery import output_path
    from comfyui_tlbvfi.encoding.session import Session
    from comfyui_tlbvfi.tlbvfi.cli import main as tlbvfi
    from comfyui_tlbvfi.tlbvfi.join import is_joined

    words, root = interpolate_words(arguments), arguments.output.absolute().parent / "output"
    name = session_name(arguments, words)
    folder = f"{arguments.output.with_name(arguments.output.stem)}_frames/"
    known = Session.find(root, name)
    is_done = known is not None and is_joined(known, output_path(folder, "png"))
    if is_done and arguments.output.is_file() and not arguments.overwrite:
        print(f"{arguments.output} and {folder} are already there.", file=sys.stderr)
        return 0
    place = ["--root", str(root)]
    code = tlbvfi([*words, "--mezzanine", "ffv1", "--keep-chunks", "--session", name, *place])
    if code:
        return code
    images = ["concat", name, folder, "--codec", "png", "--remove-chunks", *place]
    return tlbvfi([*images, "--overwrite"] if arguments.overwrite else images)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script; exit codes are those of `tlbvfi`."""
    arguments = read_arguments(argv)
    load_package()
    if arguments.keep_frames:
        return run_keeping_frames(arguments)
    from comfyui_tlbvfi.tlbvfi.cli import main as tlbvfi

    return tlbvfi(interpolate_words(arguments))


if __name__ == "__main__":
    sys.exit(main())
