"""Alpha: methods see colors multiplied by it, so that they are mixed as they are seen.

A transparent pixel's color is arbitrary, often black. Mixed, or moved by fractions of a pixel, as
if it were seen, it would show at soft edges; multiplied by alpha, it has no part in them (Porter
and Duff, Compositing Digital Images, 1984).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Alpha = Literal["straight", "premultiplied"]
"""Whether the colors of RGBA frames are as they are, or multiplied by alpha already."""

INVISIBLE = 0.5 / 65535
"""Alpha below this is 0 in 16 bits, and a color divided by it would be noise."""


def as_seen(image: Tensor, alpha: Alpha) -> Tensor:
    """RGB [3, H, W] as it is; RGBA [4, H, W] with its colors multiplied by alpha."""
    if alpha == "premultiplied" or len(image) == 3:
        return image
    return torch.cat([image[:3] * image[3:], image[3:]])


def as_stored(image: Tensor, alpha: Alpha) -> Tensor:
    """The inverse of `as_seen`; the colors of straight pixels that are invisible become black."""
    if alpha == "premultiplied" or len(image) == 3:
        return image
    color, opacity = image[:3], image[3:]
    return torch.cat([torch.where(opacity < INVISIBLE, 0.0, color / opacity), opacity])
