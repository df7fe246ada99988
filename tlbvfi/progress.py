"""The progress events of a job: small values passed to one callback, which may raise to stop it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger("tlbvfi.progress")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What is there already is being read to recognize it: frames in memory, or chunks."""

    what: Literal["frame", "chunk"]
    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The session is open and locked; frames follow."""

    session_id: str
    session_folder: Path
    frames_total: int | None
    frames_done: int
    """Output frames that earlier runs committed."""
    encoder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameDone:
    """An output frame is on its way to the encoder."""

    frames_done: int
    frames_total: int | None
    frames_per_second: float
    """Output frames made by this run, per second of this run."""
    seconds_left: float | None
    image: Tensor | None
    """The mid frame, [C, H, W] float32 on the CPU, for a preview; None for source frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDone:
    """A chunk is durable: a later crash does not lose it."""

    chunks_done: int
    bytes_written: int
    """Size of all committed chunks."""
    bytes_predicted: int | None
    """Size of all chunks at the end, extrapolated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """Lossless chunks are being encoded into the final file or into images; counts are frames."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """The chunks are being read, checked and joined; counts are frames."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verifying:
    """The joined file is being read and checked; counts are frames."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One sentence the user should read: a loss, a choice made, a prediction."""

    text: str


Event = Reading | Started | FrameDone | ChunkDone | Encoding | Joining | Verifying | Notice
OnEvent = Callable[[Event], None]


def log_notices(event: Event) -> None:
    """For callers without a callback of their own: log only the notices, as warnings."""
    if isinstance(event, Notice):
        log.warning("%s", event.text)


@dataclass(slots=True)
class Meter:
    """Counts frames and bytes and extrapolates; it reads the clock, so each run needs its own."""

    frames_total: int | None
    frames_before: int = 0
    """Frames that earlier runs committed."""
    chunks_done: int = 0
    bytes_written: int = 0
    frames_made: int = 0
    _frames_committed: int = 0
    _started: float = field(default_factory=time.monotonic)

    def frame(self, image: Tensor | None) -> FrameDone:
        """Count one more frame and return the job's progress."""
        self.frames_made += 1
        done = self.frames_before + self.frames_made
        rate = self.frames_made / max(time.monotonic() - self._started, 1e-6)
        left = None if self.frames_total is None else max(self.frames_total - done, 0) / rate
        return FrameDone(
            frames_done=done,
            frames_total=self.frames_total,
            frames_per_second=rate,
            seconds_left=left,
            image=image,
        )

    def chunk(self, frames: int, size: int) -> ChunkDone:
        """Count one more committed chunk and predict the total size."""
        self.chunks_done += 1
        self.bytes_written += size
        self._frames_committed += frames
        done = self.frames_before + self._frames_committed
        predicted = None
        if self.frames_total is not None:
            predicted = round(self.bytes_written * max(self.frames_total / done, 1.0))
        return ChunkDone(
            chunks_done=self.chunks_done,
            bytes_written=self.bytes_written,
            bytes_predicted=predicted,
        )
