"""Which part of a source an output shows, and how its times become the output's."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A stretch of the source, half-open, in seconds on the source file's own clock.

    The output's clock begins with it.
    """

    start: Fraction
    end: Fraction | None = None
    stretch: Fraction = Fraction(1)
    """Output seconds per source second, at least 1."""

    def output_time(self, source_time: Fraction) -> Fraction:
        """Seconds on the output's clock."""
        return (source_time - self.start) * self.stretch


def output_window(window: Window | None, start: Fraction, suffix: str) -> Window | None:
    """The window of an output whose first frame is at `start` on the source's clock.

    That is `window`. Where there is none the output keeps the source's clock, unless a file of this
    kind cannot: AVI always begins at 0, and none but Matroska before it.
    """
    is_before = start < 0 and suffix.lower() not in (".mkv", ".webm")
    if window is None and (suffix.lower() == ".avi" or is_before):
        return Window(start=start)
    return window
