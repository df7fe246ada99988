"""Notices that a file was replaced, or written to, since it was looked at.

What was read of it before and after belongs to two files, and would make an output of both.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from .errors import SourceError

Facts = tuple[int, int]
"""Size in bytes and modification time in nanoseconds."""


def file_facts(file: str | Path | BinaryIO | None) -> Facts | None:
    """What changes with a file on disk; None if it is missing, or in memory, where it is ours."""
    if not isinstance(file, str | Path):
        return None
    try:
        found = Path(file).stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_mtime_ns


def require_unchanged(file: str | Path | BinaryIO | None, facts: Facts | None) -> None:
    """Require that a file is still what it was when `file_facts` returned `facts`.

    Raises:
        SourceError: it was replaced, written to or removed.
    """
    if not isinstance(file, str | Path) or facts is None or (now := file_facts(file)) == facts:
        return
    what, remedy = (
        ("changed", "let what writes it finish") if now else ("was removed", "restore it")
    )
    raise SourceError(
        f"{Path(file).name} {what} while it was read: {remedy}, then run the same command again."
    )


@contextmanager
def unchanged(file: str | Path | BinaryIO | None, facts: Facts | None) -> Iterator[None]:
    """Require that a file is the same before and after the block, which reads it.

    Raises:
        SourceError: it has changed; in the block, it may then have seemed to be damaged.
    """
    try:
        yield
    except SourceError:
        require_unchanged(file, facts)
        raise
    require_unchanged(file, facts)
