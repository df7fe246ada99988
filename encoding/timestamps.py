"""When the frames of a source are shown: exact times, and whether they follow a constant rate."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

LARGEST = 1 << 22
"""Numerator of a rate up to which 256 times the rate can still be a time base, in 31 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timestamps:
    """Exact times of frames 0, 1, 2, ... of a source.

    At a constant rate frame i is shown at `start + i / rate`, also where the container rounds its
    ticks; otherwise at `ticks[i] * time_base`.
    """

    start: Fraction
    """Seconds of frame 0 on the source's own clock."""
    rate: Fraction
    """Frames per second: the constant rate, or the average where `is_vfr`."""
    count: int | None
    """Number of frames that can be decoded; None if it is known only at the end."""
    time_base: Fraction
    ticks: Sequence[int] | None = None
    """Presentation times in units of `time_base`, ascending; None at a constant rate."""

    @property
    def is_vfr(self) -> bool:
        """Whether the distance between frames varies."""
        return self.ticks is not None

    def time(self, index: int) -> Fraction:
        """Seconds of frame `index` on the source's own clock."""
        if self.ticks is None:
            return self.start + index / self.rate
        return self.ticks[index] * self.time_base

    def index_at(self, seconds: Fraction) -> int:
        """First frame shown at or after `seconds`, counted from frame 0; `count` if there is none.

        `index_at(start), index_at(end)` is the half-open range of frames of a time window.
        """
        if self.ticks is None:
            index = max(0, -(-seconds * self.rate // 1))
        else:
            index = bisect_left(self.ticks, (self.start + seconds) / self.time_base)
        return index if self.count is None else min(index, self.count)


def timestamps(
    ticks: Sequence[int], time_base: Fraction, declared: Iterable[Fraction | None]
) -> Timestamps:
    """Times of frames with these ascending `ticks` of `time_base`, at a constant rate if they fit one.

    `declared`: rates the container and the stream declare, most trusted first; they decide only
    between rates that the ticks allow.
    """
    known = [rate for rate in declared if rate]
    start = ticks[0] * time_base
    count = len(ticks)
    if count == 1:
        rate = _common(known[0]) if known else Fraction(25)
        return Timestamps(start=start, rate=rate, count=1, time_base=time_base)
    average = Fraction(count - 1, ticks[-1] - ticks[0]) / time_base
    for rate in _candidates(known, average):
        if _fits(ticks, time_base, rate):
            rate = _storable(rate, ticks, time_base)
            return Timestamps(start=start, rate=rate, count=count, time_base=time_base)
    return Timestamps(start=start, rate=average, count=count, time_base=time_base, ticks=ticks)


def ascending(ticks: Iterable[int]) -> Iterator[int]:
    """The same ticks, each moved later if needed to follow the one before by at least one."""
    last = None
    for tick in ticks:
        last = tick if last is None else max(tick, last + 1)
        yield last


def filled(ticks: Sequence[int | None], step: Fraction) -> list[int]:
    """Ascending times of pictures given in decoding order, some of which have none.

    Pictures without a time are shown in their turn, evenly between the others, and `step` ticks
    apart at the ends. At least one must have a time.
    """
    turns, without = {}, 0
    for number, tick in enumerate(ticks):
        turns[number] = without
        without += tick is None
    known = sorted((tick, turns[number]) for number, tick in enumerate(ticks) if tick is not None)
    places: list[tuple[int, int]] = []
    for rank, (tick, turn) in enumerate(known):
        places.append((max(places[-1][0] + 1 if places else 0, rank + turn), tick))
    (first, begin), (last, end) = places[0], places[-1]
    times = [begin - round((first - place) * step) for place in range(first)]
    for (place, tick), (after, later) in pairwise(places):
        gap = Fraction(later - tick, after - place)
        times += [tick + round(number * gap) for number in range(after - place)]
    return times + [end + round(number * step) for number in range(len(ticks) - last)]


def _candidates(declared: Sequence[Fraction], average: Fraction) -> Iterator[Fraction]:
    """Rates to try. Muxers report 19001/317 for 60000/1001, so the common rate nearby goes first."""
    for rate in declared:
        yield _common(rate)
        yield rate
    yield _ntsc(average)
    yield _half(average)
    yield average


def _ntsc(rate: Fraction) -> Fraction:
    return Fraction(max(1, round(rate * Fraction(1001, 1000))) * 1000, 1001)


def _half(rate: Fraction) -> Fraction:
    return Fraction(max(1, round(2 * rate)), 2)


def _common(rate: Fraction) -> Fraction:
    """A whole, half or NTSC rate within 10 ppm of `rate`; else `rate`."""
    for common in (_half(rate), _ntsc(rate)):
        if abs(common - rate) * 100_000 <= common:
            return common
    return rate


def _storable(rate: Fraction, ticks: Sequence[int], time_base: Fraction) -> Fraction:
    """`rate`, or the roughest one near it that the ticks fit as well, if its terms are huge.

    An average over many rounded ticks has such terms: 1799910000/60054583 for 29.9712345.
    """
    if rate.numerator <= LARGEST:
        return rate
    rougher = (rate.limit_denominator(10**digits) for digits in range(1, 6))
    return next((each for each in rougher if each and _fits(ticks, time_base, each)), rate)


def _fits(ticks: Sequence[int], time_base: Fraction, rate: Fraction) -> bool:
    """Whether frame i lies within a tick, and within a quarter frame, of the i-th beat of `rate`.

    A tick, because first and i-th tick may both be rounded; a quarter frame, because where a tick
    is as long as a frame, an error cannot be due to rounding.
    """
    beat = 1 / (rate * time_base)
    tolerance = min(4 * beat.denominator, beat.numerator)
    first, p, q = ticks[0], beat.numerator, beat.denominator
    return all(4 * abs((tick - first) * q - i * p) <= tolerance for i, tick in enumerate(ticks))
