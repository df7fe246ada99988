"""The list of committed chunks: one line each, appended and made durable.

The newline commits. Rewriting one JSON file per chunk costs 1,728 s for 36,000 chunks,
appending with fsync about 120 s. It is rewritten only once most of its lines are of chunks that
were made anew since, which happens if the same session is made again and again, and if it has a
second name.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path

from .durable import StepHook, atomic_file, fsync
from .errors import SessionError
from .stored import reading_stored, require_size, require_types

log = logging.getLogger("tlbvfi.progress")

SHOWN = 5
"""Damaged lines that are told one by one."""
MOST_REPLACED = 100
"""Lines of chunks that were made anew since, beyond one for each chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRecord:
    """A committed chunk."""

    index: int
    pairs: tuple[int, int]
    """Half-open range of source pairs its frames belong to."""
    first_frame: int | None
    """Number of its first output frame; None if chunks are saved one by one, in any order."""
    frames: int
    first_pts: int
    last_pts: int
    pts: tuple[int, ...] | None
    """All pts where the rate varies, else None."""
    bytes: int
    sha256: str
    is_last: bool
    """Whether the output ends with this chunk."""
    notes: dict[str, list[int]] = field(default_factory=dict)
    """Source pairs by what was decided for them: `cuts`, `retimed`."""


class ProgressLog:
    """The file, open for appending. Whoever opens it holds the session's lock."""

    def __init__(self, path: Path) -> None:
        """Open or create the file; a torn last line is cut off so that it cannot spoil the next."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # Unix, Windows
        self._file = os.open(path, flags, 0o666)
        content = path.read_bytes()
        self._size = content.rfind(b"\n") + 1
        if self._size < len(content):
            log.warning("%s: a line torn by a crash is dropped.", path)
            self._cut()

    def append(self, record: ChunkRecord, on_step: StepHook) -> None:
        """Commit a chunk; on a full disk nothing is committed.

        Raises:
            OSError: the line could not be written.
        """
        line = _line(record)
        on_step("before line")
        try:
            _write_all(self._file, line)
            on_step("in line")
            _write_all(self._file, b"\n")
            fsync(self._file)
        except OSError:
            self._cut()
            raise
        self._size += len(line) + 1
        on_step("after line")

    def close(self) -> None:
        """Close the file; its lines are durable without this."""
        os.close(self._file)

    def _cut(self) -> None:
        os.ftruncate(self._file, self._size)
        fsync(self._file)


def make_own(path: Path, records: Mapping[int, ChunkRecord]) -> None:
    """Rewrite a file if most of its lines are of chunks made anew since, or if it has a second name.

    Every reader reads all lines. Appending to a file with a second name, as backups by hard links give
    it, would change it there, too. `records`: what `read_progress` made of the lines. Whoever calls it
    holds the session's lock, and the file is not open.
    """
    if not path.exists():
        return
    lines = path.read_bytes().count(b"\n")
    if lines > 2 * len(records) + MOST_REPLACED or path.stat().st_nlink > 1:
        with atomic_file(path) as temporary:
            temporary.write_bytes(b"".join(_line(record) + b"\n" for record in records.values()))


def read_progress(path: Path) -> dict[int, ChunkRecord]:
    """Committed chunks by index; if a chunk was made twice, the later line wins.

    Raises:
        SessionError: the file cannot be read, or is larger than any list of chunks.
    """
    records: dict[int, ChunkRecord] = {}
    damaged = 0
    for number, line in enumerate(_lines(path), 1):
        try:
            record = _parse(line)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            damaged += 1
            if damaged <= SHOWN:
                log.warning(
                    "%s: line %d is damaged and dropped: that chunk is redone.", path, number
                )
        else:
            records[record.index] = record
    if damaged > SHOWN:
        log.warning("%s: %d lines are damaged in all.", path, damaged)
    return records


def _lines(path: Path) -> Iterator[bytes]:
    """The whole lines of a file; none if there is no file."""
    try:
        with reading_stored(path):
            require_size(path)
            content = path.read_bytes()
    except FileNotFoundError:
        return
    except ValueError as error:
        raise SessionError(f"{path} is {error}: remove the folder {path.parent}.") from error
    yield from (line for line in BytesIO(content) if line.endswith(b"\n"))


def _line(record: ChunkRecord) -> bytes:
    return json.dumps(asdict(record), separators=(",", ":")).encode()


def _parse(line: bytes) -> ChunkRecord:
    values = json.loads(line)
    first, end = values.pop("pairs")
    pts = values.pop("pts")
    record = ChunkRecord(**values, pairs=(first, end), pts=None if pts is None else tuple(pts))
    require_types(record)
    if not 0 < record.frames <= record.bytes:
        raise ValueError(f"chunk {record.index} has {record.frames} frames")
    if not 0 <= record.index <= first < end:  # every chunk before it has at least one pair
        raise ValueError(f"chunk {record.index} has pairs {first} to {end}")
    if record.pts is not None and len(record.pts) != record.frames:
        raise ValueError(f"chunk {record.index} has {len(record.pts)} times")
    return record


def _write_all(file: int, data: bytes) -> None:
    # A nearly full disk accepts part of the data and fails only at the next write.
    while data:
        data = data[os.write(file, data) :]
