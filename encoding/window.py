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
