"""Frame sizes as people write them: the height of a 16:9 picture, or both sides."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..errors import SettingsError

MINIMUM = 16


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of a frame in pixels, both even, as 4:2:0 video requires."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def parse_sizes(text: str) -> tuple[Size, ...]:
    """Sizes from a list such as `720,1080,512x512`; a height alone means a 16:9 picture.

    Raises:
        SettingsError: a part is not a size, is odd, or has a side below 16 pixels.
    """
    return tuple(_parse(part.strip()) for part in text.split(","))


def _parse(text: str) -> Size:
    match = re.fullmatch(r"(?:(\d+)x)?(\d+)", text)
    if match is None:
        raise SettingsError(
            f"sizes are heights or WIDTHxHEIGHT, such as 720,1920x1080, got {text!r}."
        )
    height = int(match[2])
    size = Size(int(match[1]) if match[1] else 2 * round(height * 8 / 9), height)
    if size.width % 2 or size.height % 2 or min(size.width, size.height) < MINIMUM:
        raise SettingsError(f"both sides must be even and at least {MINIMUM} pixels, got {size}.")
    return size
