"""Which part of a source an output shows, and how its times become the output's."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A half-open part of the source, in seconds on the source file's own clock.

    The output's clock begins with it.
    """

    start: Fraction
    end: Fraction | None = None
    stretch: Fraction = Fraction(1)
    """Output seconds per source second, at least 1."""

    def holds(self, source_time: Fraction) -> bool:
        """Whether it is within the window."""
        return self.start <= source_time and (self.end is None or source_time < self.end)

    def output_time(self, source_time: Fraction) -> Fraction:
        """Seconds on the output's clock."""
        return (source_time - self.start) * self.stretch


def output_window(window: Window | None, start: Fraction, suffix: str) -> Window | None:
    """The window of an output whose first frame is at `start` on the source's clock.

    That is `window`. Without one the output keeps the source's clock, unless a file of this kind
    cannot: AVI always begins at 0, and only Matroska can hold video before 0; NUT cannot hold
    sound before 0 either, where AAC in MP4 begins.
    """
    if window is not None or suffix.lower() in (".mkv", ".webm"):
        return window
    if suffix.lower() == ".avi" or start < 0:
        return Window(start=start)
    return Window(start=Fraction(0)) if suffix.lower() == ".nut" else None
