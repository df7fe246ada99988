"""Sizes: how far a frame is padded, and the canvas on which its flow is estimated. Plain ints."""

from dataclasses import dataclass
from fractions import Fraction
from math import floor, gcd
from typing import Literal

Padding = Literal["reference", "tight"]

MINIMUM_SIDE = 16
"""Shortest accepted side of a frame, in pixels."""

SMALLEST_PADDED = 256
LATENT_CELL = 32
"""Pixels of a padded frame per latent position; the reduced canvas is a multiple of it as well."""


def padded_side(side: int, padding: Padding) -> int:
    """Length to which a side of `side` pixels is padded.

    `reference` is the rule of the paper's code, multiples of 512 except for 256 itself; `tight` is
    the least that the attention windows at 1/32 allow, multiples of 256.
    """
    if side <= SMALLEST_PADDED:
        return SMALLEST_PADDED
    multiple = 512 if padding == "reference" else SMALLEST_PADDED
    return -(-side // multiple) * multiple


def nearest_flow_scale(wanted: float, height: int, width: int) -> Fraction:
    """The scale in (0, 1] nearest to `wanted` whose canvas has sides that are multiples of 32.

    `height`, `width`: padded sides in pixels.
    """
    unit = Fraction(LATENT_CELL, gcd(height, width))
    return unit * max(1, round(Fraction(wanted) / unit))


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """All sizes of a job, in pixels; frames of one geometry can be paired."""

    height: int
    width: int
    padded_height: int
    padded_width: int
    flow_scale: Fraction
    """Scale at which the flow is estimated; 1 is the reference's full-size path."""

    @property
    def reduces_flow(self) -> bool:
        """Whether the flow is estimated on a smaller canvas."""
        return self.flow_scale < 1

    @property
    def canvas(self) -> tuple[int, int]:
        """Height and width on which the flow is estimated."""
        return int(self.padded_height * self.flow_scale), int(self.padded_width * self.flow_scale)

    @property
    def reduced_frame(self) -> tuple[int, int]:
        """Height and width of the unpadded frame on that canvas."""
        scale = self.flow_scale
        return max(1, floor(self.height * scale)), max(1, floor(self.width * scale))

    @property
    def latent(self) -> tuple[int, int]:
        """Height and width of the latent."""
        return self.padded_height // LATENT_CELL, self.padded_width // LATENT_CELL


def plan_geometry(
    height: int, width: int, *, flow_scale: float = 0.5, padding: Padding = "reference"
) -> Geometry:
    """Geometry of frames of `height` x `width` pixels; the flow scale may be rounded.

    The caller must have checked that both sides are at least `MINIMUM_SIDE` and `flow_scale` is in
    (0, 1].
    """
    padded_height, padded_width = padded_side(height, padding), padded_side(width, padding)
    return Geometry(
        height=height,
        width=width,
        padded_height=padded_height,
        padded_width=padded_width,
        flow_scale=nearest_flow_scale(flow_scale, padded_height, padded_width),
    )
