"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class PathsAnywhere(argparse.ArgumentParser):
    """A parser whose positional `paths` may stand anywhere among the options.

    argparse alone takes the first run of them and stumbles over the rest.
    """

    def parse_known_args(  # type: ignore[override] - typeshed overloads it by the namespace
        self,
        args: Sequence[str] | None = None,
        namespace: argparse.Namespace | None = None,
    ) -> tuple[argparse.Namespace, list[str]]:
        """As argparse, with what it left over of the paths put where they belong."""
        known, rest = super().parse_known_args(args, namespace or argparse.Namespace())
        if "paths" in known:
            known.paths += [word for word in rest if not word.startswith("-")]
            rest = [word for word in rest if word.startswith("-")]
        return known, rest


def add_root(parser: Any) -> None:  # noqa: ANN401 - a parser or a group of one
    """`--root`, the folder sessions live in."""
    parser.add_argument(
        "--root",
        type=Path,
        metavar="DIR",
        help="where sessions live, in tlbvfi_chunks/ (default: output/ beside the output file, or "
        "here)",
    )


def session_place(session: str, root: Path | None) -> tuple[Path, str]:
    """Root and id of the session an argument names: an id below --root, or a session's folder."""
    folder = Path(session)
    if len(folder.parts) > 1 and (folder / "manifest.json").is_file():
        return folder.absolute().parent.parent, folder.name
    return root or Path("output"), session
