"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, get_args

from ..methods.config import Compile, Padding, Precision

if TYPE_CHECKING:
    from ...encoding.profiles import EncoderSettings

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What commands are added to; argparse has no public name for it."""

ENCODER_OPTIONS = ("codec", "crf", "bitrate", "preset", "pix_fmt")


def not_empty(text: str) -> str:
    """The name as it is, for argparse, which turns the error into one of usage."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name ('') is not a file: write it out")
    return text


def named_path(text: str) -> Path:
    """The path of that name, for argparse: `Path("")` would be the current folder."""
    return Path(not_empty(text))


def add_encoder(parser: argparse.ArgumentParser, *, codec: str | None) -> None:
    """`--codec` and related options; `codec` is the default."""
    group = parser.add_argument_group("encoder (as in ffmpeg)")
    group.add_argument(
        "--codec",
        default=codec,
        help="auto, h264, hevc, av1, their _nvenc twins, vp9, prores, prores_4444, dnxhr, ffv1, "
        "h264-lossless, utvideo, or an ffmpeg encoder name; for images png, png8, png16, exr, "
        f"exr-half, exr-float, tiff, jpeg, webp (default: {codec or 'the chunks as they are'})",
    )
    group.add_argument("--crf", type=int, help="constant quality, lower is better")
    group.add_argument("--bitrate", help="average bits per second, such as 20M")
    group.add_argument("--preset", help="speed of the encoder, such as fast, slow, p5")
    group.add_argument(
        "--pix-fmt",
        help="default: the source's where the codec takes it; for RGB what every player supports",
    )


def add_network(group: argparse._ActionsContainer) -> None:
    """Options of the methods with a network; `interpolate.method_config` reads them."""
    group.add_argument("--model", type=named_path, metavar="FILE", help="weights of tlbvfi or film")
    group.add_argument("--steps", type=int, default=10, help="tlbvfi: sampling steps (default 10)")
    group.add_argument(
        "--flow-scale", type=float, default=0.5, help="tlbvfi: scale of the flow (default 0.5)"
    )
    group.add_argument(
        "--padding",
        choices=get_args(Padding),
        default="reference",
        help="tlbvfi: pad to multiples of 512 (reference, the default) or of 256 (tight: faster, "
        "frames differ slightly)",
    )
    group.add_argument(
        "--precision",
        choices=get_args(Precision),
        default="float32",
        help="arithmetic of tlbvfi and film (default float32)",
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default auto)")
    group.add_argument(
        "--vram",
        "--memory",
        dest="memory",
        metavar="SIZE",
        help="tlbvfi: use at most this much memory, such as 4G, of the GPU, or of RAM for the whole "
        "process; the frames are the same (default: what is free)",
    )
    group.add_argument(
        "--compile",
        choices=get_args(Compile),
        default="auto",
        help="tlbvfi: fuse the network's blocks with torch.compile, which takes minutes the first "
        "time (default auto: on a GPU with Triton for 5000 frames or more, off in bench)",
    )


def parse_size(text: str) -> int:
    """Bytes of `4G`, `1.5G` or `800M`, powers of ten.

    Raises:
        SettingsError: not a positive number with an optional k, M or G.
    """
    from ...encoding.profiles import parse_amount
    from ..errors import SettingsError

    size = parse_amount(text)
    if size is None:
        raise SettingsError(f"A size of {text!r} is not understood: write it like 4G or 800M.")
    return size


def encoder_settings(arguments: argparse.Namespace) -> EncoderSettings | None:
    """The settings given by the options of `add_encoder`; None if none of them is given."""
    from ...encoding.profiles import EncoderSettings

    wishes = {name: getattr(arguments, name) for name in ENCODER_OPTIONS}
    if not any(value is not None for value in wishes.values()):
        return None
    return EncoderSettings(**{**wishes, "codec": wishes["codec"] or "auto"})


class CommandParser(argparse.ArgumentParser):
    """A command's parser, whose positional `paths` may appear anywhere among the options.

    argparse alone takes the first group of them and rejects the rest. An option that the command does
    not have is an error here, with this command's usage and the option that was probably meant.
    """

    def parse_known_args(  # type: ignore[override] - typeshed overloads it by the namespace
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse, with leftover paths added to `paths`."""
        known, rest = super().parse_known_args(args, namespace or argparse.Namespace())
        if "paths" in known:
            known.paths += [word for word in rest if not word.startswith("-")]
            rest = [word for word in rest if word.startswith("-")]
        if rest:
            options = list(self._option_string_actions)
            near = get_close_matches(rest[0].partition("=")[0], options, 1, cutoff=0.8)
            hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists the options"
            self.error(f"unrecognized arguments: {' '.join(rest)}: {hint}")
        return known, rest


def add_root(
    parser: argparse._ActionsContainer, *, default: str = "output/ in the current folder"
) -> None:
    """`--root`, the folder of sessions; `default` describes where they are without it."""
    parser.add_argument(
        "--root",
        type=named_path,
        metavar="DIR",
        help=f"folder whose tlbvfi_chunks/ holds the sessions (default: {default})",
    )


def session_place(session: str, root: Path | None) -> tuple[Path, str]:
    """Root and id of the session that an argument names: an id below --root, or a session's folder.

    Raises:
        SessionError: it is a path without a session.
    """
    from ...encoding.errors import SessionError

    is_path = session.startswith(".") or "/" in session or "\\" in session  # which no id is
    if not is_path:
        return root or Path("output"), session
    folder = Path(session).resolve()  # `.` and `..` have no name
    if not (folder / "manifest.json").is_file():
        raise SessionError(f"{session} is not a session's folder: check the path, or give its id.")
    return folder.parent.parent, folder.name
