"""What a job tells while it runs: small values handed to one callback, which may raise to stop it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The session is open and locked; frames follow."""

    session_id: str
    session_folder: Path
    frames_total: int | None
    frames_done: int
    """Output frames that earlier runs have committed."""
    encoder: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameDone:
    """An output frame went to the encoder."""

    frames_done: int
    frames_total: int | None
    frames_per_second: float
    """Output frames made by this run, per second of this run."""
    seconds_left: float | None
    chunk: int
    bytes_written: int
    """Size of the committed chunks."""
    bytes_predicted: int | None
    """Size of all chunks at the end, extrapolated."""
    image: Tensor | None
    """The mid frame, [C, H, W] float32 on the CPU, for a preview; None for source frames."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkDone:
    """A chunk is durable: a crash from here on does not cost it."""

    index: int
    frames: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """The chunks are being joined and verified."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One sentence the user should read: a loss, a choice made, a prediction."""

    text: str


Event = Started | FrameDone | ChunkDone | Joining | Notice
OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """For callers who do not want to be told."""


@dataclass(slots=True)
class Meter:
    """Counts output frames and extrapolates; reads the clock, so one meter belongs to one run."""

    total: int | None
    resumed: int = 0
    made: int = 0
    bytes_written: int = 0
    _started: float = field(default_factory=time.monotonic)

    def frame(self, chunk: int, image: Tensor | None) -> FrameDone:
        """Count one more frame and say where the job stands."""
        self.made += 1
        done = self.resumed + self.made
        rate = self.made / max(time.monotonic() - self._started, 1e-6)
        left = None if self.total is None else max(self.total - done, 0)
        return FrameDone(
            frames_done=done,
            frames_total=self.total,
            frames_per_second=rate,
            seconds_left=None if left is None else left / rate,
            chunk=chunk,
            bytes_written=self.bytes_written,
            bytes_predicted=self._predicted(done),
            image=image,
        )

    def _predicted(self, done: int) -> int | None:
        if self.total is None or not self.bytes_written:
            return None
        return round(self.bytes_written * max(self.total / done, 1.0))
