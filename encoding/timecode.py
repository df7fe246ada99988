"""SMPTE timecode (ST 12-1): the label of the first frame, at another rate and after a cut."""

from __future__ import annotations

import re
from fractions import Fraction

LABEL = re.compile(r"(\d+):(\d\d):(\d\d)([:;.,])(\d+)")


def moved_timecode(label: str, rate: Fraction, new_rate: Fraction, seconds: Fraction) -> str | None:
    """The label of the frame shown `seconds` after the one labeled `label`, at another frame rate.

    None if no frame is shown at exactly that time, or the label is not valid: only at multiples of
    30 (29.97, 59.94) can labels be dropped.
    """
    match, count, new_count = LABEL.fullmatch(label), round(rate), round(new_rate)
    if match is None or not count or Fraction(new_count, count) != new_rate / rate:
        return None
    hours, minutes, whole_seconds, frames = (int(match[part]) for part in (1, 2, 3, 5))
    drops = match[4] != ":"
    if drops and (count % 30 or new_count % 30):
        return None
    minutes += 60 * hours
    number = (60 * minutes + whole_seconds) * count + frames
    if drops:
        number -= _dropped(count) * (minutes - minutes // 10)
    new_number = (number + seconds * rate) * new_rate / rate
    if new_number.denominator != 1:
        return None
    return _label(new_number.numerator, new_count, drops=drops)


def _dropped(count: int) -> int:
    """Labels dropped at the start of each minute except every tenth: 2 of 30."""
    return count // 15


def _label(number: int, count: int, *, drops: bool) -> str:
    if drops:
        dropped = _dropped(count)
        tens, rest = divmod(number, 600 * count - 9 * dropped)
        minutes = max(0, (rest - dropped) // (60 * count - dropped))
        number += dropped * (9 * tens + minutes)
    seconds, frames = divmod(number, count)
    hours, minutes = seconds // 3600 % 24, seconds // 60 % 60
    return f"{hours:02}:{minutes:02}:{seconds % 60:02}{';' if drops else ':'}{frames:02}"
