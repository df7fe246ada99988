"""One chunk of a session: pictures in, a durable file and its record out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .durable import StepHook, file_sha256, no_step
from .errors import SessionError, VerificationError
from .manifest import Manifest
from .packets import CHUNK, scan_packets
from .progress import ChunkRecord
from .writer import VideoWriter

if TYPE_CHECKING:
    from av import VideoFrame


class ChunkWriter:
    """A chunk being made. Leaving the `with` block without `commit` leaves nothing behind."""

    def __init__(
        self,
        path: Path,
        index: int,
        manifest: Manifest,
        *,
        on_made: Callable[[ChunkRecord], None],
        if_full: str,
        on_step: StepHook = no_step,
    ) -> None:
        """Use `Session.new_chunk`."""
        self.index = index
        self._manifest, self._on_made = manifest, on_made
        self._pts: list[int] = []
        self._bytes, self._sha256 = 0, ""
        self._writer = VideoWriter(
            path, manifest.encoder, manifest.stream, if_full=if_full, on_step=on_step
        )

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.abort()

    @property
    def frames(self) -> int:
        """Frames written so far."""
        return len(self._pts)

    @property
    def bytes(self) -> int:
        """Bytes encoded so far."""
        return self._writer.bytes

    def write(self, picture: VideoFrame, pts: int) -> None:
        """Encode `picture`, shown `pts` ticks after the first frame of the output.

        Raises:
            EncoderError: another size or pix_fmt than planned, or pts not after the last one.
        """
        first = self._pts[0] if self._pts else pts
        self._writer.write(picture, pts - first)  # played alone, each chunk starts at 0
        self._pts.append(pts)

    def commit(
        self,
        *,
        pairs: tuple[int, int],
        first_frame: int | None = None,
        is_last: bool = False,
        notes: dict[str, list[int]] | None = None,
    ) -> ChunkRecord:
        """Make the chunk durable, then record it as done.

        `pairs`: half-open range of source pairs. `first_frame`: number of its first frame in the
        output, or None if chunks come in any order and are numbered when they are joined. `notes`:
        as in `ChunkRecord`.

        Raises:
            SessionError: the pts do not follow the session's constant rate.
            VerificationError: the file does not hold what was written.
            OutputError: the disk is full.
        """
        self._require_rate(first_frame)
        self._writer.finish(self._check)
        record = ChunkRecord(
            index=self.index,
            pairs=pairs,
            first_frame=first_frame,
            frames=len(self._pts),
            first_pts=self._pts[0],
            last_pts=self._pts[-1],
            pts=tuple(self._pts) if self._manifest.is_vfr else None,
            bytes=self._bytes,
            sha256=self._sha256,
            is_last=is_last,
            notes=notes or {},
        )
        self._on_made(record)
        return record

    def _require_rate(self, first_frame: int | None) -> None:
        if self._manifest.is_vfr or not self._pts:
            return
        step = self._manifest.stream.step
        first = self._pts[0] if first_frame is None else first_frame * step
        if self._pts != list(range(first, first + len(self._pts) * step, step)):
            raise SessionError(
                f"Chunk {self.index} has pts {self._pts[0]} to {self._pts[-1]}, which does not "
                f"follow a constant rate from {first} in steps of {step}: number frames in order."
            )

    def _check(self, path: Path) -> None:
        found = len(scan_packets(path, CHUNK).pts)
        if found != len(self._pts):
            raise VerificationError(
                f"{path.name} holds {found} frames instead of {len(self._pts)}: "
                "choose another codec or check the disk."
            )
        self._bytes, self._sha256 = path.stat().st_size, file_sha256(path)
