"""When every frame of an output is shown and decoded, in exact ticks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .errors import OutputError, SessionError
from .manifest import Manifest
from .progress import ChunkRecord

MOST_TICKS = 2**31 - 1
"""Per second: FFmpeg counts them in a signed 32-bit integer."""
MOST_B_FRAMES = 16
"""Between two other frames: as many as encoders make, at their slowest presets."""
LONGEST_FRAME = MOST_TICKS // (MOST_B_FRAMES + 2)
"""Ticks: mp4 counts those from decoding a frame to showing it, up to 18 frames, in 32 bits."""
NANOSECONDS = 10**9
"""Per second, where a start is rounded, unless a frame would last too long."""
MILLISECOND_CONTAINERS = (".mkv", ".webm")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timetable:
    """Presentation times of all frames of a file."""

    time_base: Fraction
    pts: np.ndarray
    """int64 [frames], strictly increasing ticks."""
    last_duration: int
    """Number of ticks for which the last frame is shown."""

    @property
    def end(self) -> int:
        """Tick at which the last frame ends."""
        return int(self.pts[-1]) + self.last_duration

    @property
    def duration(self) -> Fraction:
        """Seconds from the first frame's beginning to the last one's end."""
        return (self.end - int(self.pts[0])) * self.time_base

    @property
    def least_distance(self) -> Fraction:
        """Seconds between the two frames that are closest to each other."""
        return int(self.durations().min()) * self.time_base

    def durations(self) -> np.ndarray:
        """int64 [frames]: ticks until the next frame."""
        return np.diff(self.pts, append=self.pts[-1:] + self.last_duration)

    def dts(self, reorder: int) -> np.ndarray:
        """int64 [frames]: decode times for packets in decode order.

        Packet j is decoded when frame j - `reorder` is shown. The first `reorder` packets come
        earlier by the time that the last ones leave at the end, so that the track is exactly as
        long as its frames (mp4 counts its length in decode time).
        """
        count = len(self.pts)
        delay = min(reorder, count - 1)
        if delay == 0:
            return self.pts
        room = int(self.pts[-1] - self.pts[-1 - delay])
        # The mp4 muxer takes the smallest pts - dts of the early packets as the first frame's:
        # no packet may come closer to its pts than the first, as one shown at pts[1] could.
        near = int(self.pts[1] - self.pts[0])
        offsets = [
            max(j, min(room * j // delay, near * j // max(1, delay - 1))) for j in range(delay)
        ]
        lead = np.array(offsets, dtype=np.int64) + (int(self.pts[0]) - room)
        return np.concatenate([lead, self.pts[: count - delay]])


def timetable(
    manifest: Manifest, records: Sequence[ChunkRecord], *, shift: Fraction = Fraction(0)
) -> Timetable:
    """Times of the output that `records` form in order; its clock is the source's minus `shift`.

    `shift`: seconds. The time base becomes finer if the start needs it: see `start_ticks`.

    Raises:
        SessionError: the chunks of a variable rate lack their times or overlap.
    """
    base = manifest.stream.time_base
    first, finer = start_ticks(manifest.start - shift, base)
    pts = finer * _ticks(manifest, records) + first
    if np.any(np.diff(pts) <= 0):
        raise SessionError("The chunks overlap in time: make the session again.")
    return Timetable(time_base=base / finer, pts=pts, last_duration=manifest.stream.step * finer)


def require_storable(suffix: str, step: Fraction, *, is_vfr: bool) -> None:
    """Refuse a kind of file that cannot hold the times of an output.

    `step`: the least distance between two frames, in seconds.

    Raises:
        OutputError: two frames may get the same time, or a variable rate becomes a constant one.
    """
    if suffix.lower() == ".avi" and is_vfr:
        raise OutputError(
            ".avi cannot hold a variable frame rate: choose .nut, or a constant rate with fps."
        )
    if suffix.lower() in (*MILLISECOND_CONTAINERS, ".avi") and step * 1000 < 1:
        raise OutputError(
            f"{suffix} cannot hold more than 1000 frames per second, and frames would be as little as "
            f"{float(step * 1000):.3g} ms apart: choose .mp4 or .nut, or fewer times."
        )


def start_ticks(start: Fraction, base: Fraction) -> tuple[int, int]:
    """`start`, in seconds, in ticks of `base` / n; and n.

    Exact, unless that takes ticks too fine to be stored: then rounded, to about a nanosecond if
    frames are not long, which leaves the distances between frames exact.
    """
    ticks = start / base
    exact = ticks.denominator
    if (base / exact).denominator <= MOST_TICKS and exact <= LONGEST_FRAME:
        return ticks.numerator, exact
    second, frame = NANOSECONDS // base.denominator, LONGEST_FRAME // base.numerator
    finer = base.numerator * max(1, min(second, frame))
    return round(ticks * finer), finer


def _ticks(manifest: Manifest, records: Sequence[ChunkRecord]) -> np.ndarray:
    if manifest.is_vfr:
        if any(record.pts is None for record in records):
            raise SessionError(
                "A chunk's record lacks the times of its frames: make the session again."
            )
        return np.concatenate([np.array(record.pts, dtype=np.int64) for record in records])
    frames = sum(record.frames for record in records)
    return np.arange(frames, dtype=np.int64) * manifest.stream.step
