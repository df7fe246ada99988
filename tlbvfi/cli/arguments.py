"""Arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
