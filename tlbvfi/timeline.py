"""When each output frame is shown, and where it lies between two source frames.

Fractions only: no torch, no files, no rounding. A timeline needs only one pair of source frames at
a time, so a job can be cut into chunks, resumed, or spread over machines, and every output frame
keeps its number and its time.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from ..encoding.timestamps import LARGEST
from .errors import SettingsError

MAX_TIMES = 8
"""2**8 = 256 times the frames: beyond that, neighboring mid frames cannot be told apart."""

LOWEST_RATE = Fraction(1, 1000)
"""Frames per second: mp4 cannot store how long frames of much lower rates last."""

LONGEST_NUMBER = 100
"""Characters: a number is computed exactly, and `1e999999999` would take gigabytes."""

LONGEST_TERM = 10**8
"""Of a rate in decimals: with a longer one, a frame lasts more ticks than mp4 counts, or ticks are too
fine for any file."""

LONGEST_TICK_TERM = 2**31 - 1
"""Of a tick in seconds: mp4 stores ticks per second in 32 bits, FFmpeg in a signed 32-bit integer."""


@dataclass(frozen=True, slots=True)
class Slot:
    """One output frame: its number from 0, its time in seconds, and its place in the pair."""

    number: int
    time: Fraction
    t: Fraction
    """Fraction of the pair in [0, 1]; 0 and 1 are the source frames themselves."""


class Timeline(Protocol):
    """Places output frames between (and on) source frames."""

    def slots(self, pair: int, time0: Fraction, time1: Fraction) -> list[Slot]:
        """Output frames of pair `pair` that are shown in [time0, time1), in seconds.

        `pair` counts from 0 at the first pair of the job.
        """
        ...

    def last(self, pair: int, time: Fraction) -> list[Slot]:
        """Output frames that show the last source frame, number `pair`, at `time` seconds."""
        ...

    def step(self, source_step: Fraction) -> Fraction:
        """An interval, in seconds, that all output times are multiples of, counted from the first.

        `source_step` is the same for the source times.
        """
        ...

    def rate(self, source_rate: Fraction) -> Fraction:
        """Output frames per second; an average if the source's rate is one."""
        ...

    def total(self, frames: int, length: Fraction) -> int:
        """Number of output frames for `frames` source frames whose last is `length` seconds in."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """Every source frame and 2**times - 1 mid frames per pair: (N - 1) * 2**times + 1 frames."""

    times: int

    def __post_init__(self) -> None:
        if not 0 <= self.times <= MAX_TIMES:
            raise SettingsError(
                f"times must be between 0 and {MAX_TIMES} (2 to {2**MAX_TIMES} times the frames), "
                f"got {self.times}."
            )

    def slots(self, pair: int, time0: Fraction, time1: Fraction) -> list[Slot]:
        n = 2**self.times
        return [
            Slot(pair * n + j, time0 + (time1 - time0) * Fraction(j, n), Fraction(j, n))
            for j in range(n)
        ]

    def last(self, pair: int, time: Fraction) -> list[Slot]:
        return [Slot(pair * 2**self.times, time, Fraction(0))]

    def step(self, source_step: Fraction) -> Fraction:
        return source_step / 2**self.times

    def rate(self, source_rate: Fraction) -> Fraction:
        return source_rate * 2**self.times

    def total(self, frames: int, length: Fraction) -> int:
        return (frames - 1) * 2**self.times + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetRate:
    """Output frames at `i / fps`, whatever the source's rate, constant or not.

    Times count from the first source frame, which is shown at 0.
    """

    fps: Fraction
    """Above 0."""

    def slots(self, pair: int, time0: Fraction, time1: Fraction) -> list[Slot]:
        shown = range(math.ceil(time0 * self.fps), math.ceil(time1 * self.fps))
        length = time1 - time0
        return [Slot(i, i / self.fps, (i / self.fps - time0) / length) for i in shown]

    def last(self, pair: int, time: Fraction) -> list[Slot]:
        number = time * self.fps
        return [Slot(int(number), time, Fraction(0))] if number.denominator == 1 else []

    def step(self, source_step: Fraction) -> Fraction:
        return 1 / self.fps

    def rate(self, source_rate: Fraction) -> Fraction:
        return self.fps

    def total(self, frames: int, length: Fraction) -> int:
        return math.floor(length * self.fps) + 1


def is_node(t: Fraction) -> bool:
    """Whether bisection reaches `t`."""
    return t.denominator & (t.denominator - 1) == 0 and t.denominator <= 2**MAX_TIMES


def nearest_node(t: Fraction, depth: int) -> Fraction:
    """The t of the mid frame shown at `t` by a method that only bisects.

    The nearest j / 2**depth, at most 1 / 2**(depth + 1) of the pair away, or `t` itself if it is
    halfway between two of them. Never decreases as `t` increases.
    """
    if is_node(t) and t.denominator <= 2 ** (depth + 1):
        return t
    return Fraction(math.floor(t * 2**depth + Fraction(1, 2)), 2**depth)


def storable_tick(step: Fraction) -> Fraction:
    """`step`, an interval in seconds that all times are multiples of, as a file's time base.

    Raises:
        SettingsError: the time base is too fine for any container.
    """
    if max(step.as_integer_ratio()) > LONGEST_TICK_TERM:
        raise SettingsError(
            f"the output's timestamps need ticks of {step} s, finer than video files "
            "can store: choose fewer times or another fps."
        )
    return step


def parse_rate(text: str) -> Fraction:
    """Frames per second from `25`, `24000/1001` or `23.976`.

    The usual decimals for NTSC rates stand for the exact rates: 23.976, 29.97, 59.94 and 119.88 are
    24000/1001, 30000/1001, 60000/1001 and 120000/1001. Decimals of so many digits that no file can
    store them stand for the fraction nearby, within 2e-7 of them: 33.333333333333336 is 100/3.

    Raises:
        SettingsError: not a number, or below `LOWEST_RATE`.
    """
    rate = _number(text)
    if rate is None:
        raise SettingsError(
            f"a frame rate is a number such as 25, 24000/1001 or 23.976, not {text!r:.80}."
        )
    if rate < LOWEST_RATE:
        raise SettingsError(
            f"a frame rate of {text} is too low for a video file: choose {LOWEST_RATE} or more."
        )
    ntsc = Fraction(round(rate) * 1000, 1001)
    looks_ntsc = round(rate) % 24 == 0 or round(rate) % 30 == 0
    if ntsc and looks_ntsc and abs(rate - ntsc) < Fraction(1, 200):
        return ntsc
    if "/" in text or max(rate.as_integer_ratio()) <= LONGEST_TERM:
        return rate
    return rate.limit_denominator(max(1, min(LONGEST_TERM, int(LARGEST / rate))))


def parse_factor(text: str) -> Fraction:
    """A factor from `4`, `2.5` or `5/2`.

    Raises:
        SettingsError: not a number, or not above 0.
    """
    factor = _number(text)
    if factor is None or factor <= 0:
        raise SettingsError(
            f"a factor is a number above 0 such as 4, 2.5 or 5/2, not {text!r:.80}."
        )
    return factor


def parse_seconds(text: str) -> Fraction:
    """Seconds from `12.5` or `hh:mm:ss.mmm` or `mm:ss`.

    Raises:
        SettingsError: not a time, or negative.
    """
    parts = [_number(part) for part in text.split(":", 3)]
    seconds = Fraction(0)
    for part in parts:
        if len(parts) > 3 or part is None or part < 0:
            raise SettingsError(f"a time is seconds or hh:mm:ss.mmm, not {text!r:.80}.")
        seconds = seconds * 60 + part
    return seconds


def _number(text: str) -> Fraction | None:
    """The exact value of a text; None if it is not a number, or has too many digits written out."""
    if len(text) > LONGEST_NUMBER or re.search(r"e[-+]?[\d_]{3}", text, re.IGNORECASE):
        return None
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
