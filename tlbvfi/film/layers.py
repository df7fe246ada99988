"""The building blocks of FILM: resampling, and convolutions that keep the size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CHANNELS_LAST = torch.channels_last
"""Layout of all features and weights: convolutions then need no reordered copy of their input,
which at full size would be a third of the peak memory."""

WARP_CHANNELS = 32
"""Channels sampled at a time, so that float32 copies of half-precision features stay small."""


def empty_like(x: Tensor, channels: int) -> Tensor:
    """Uninitialized [B, channels, h, w] with the dtype and device of `x` [B, C, h, w]."""
    size = (x.shape[0], channels, *x.shape[2:])
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=CHANNELS_LAST)


def down(x: Tensor) -> Tensor:
    """Half the size: the mean of 2x2 pixels; an odd last row or column is dropped."""
    return F.avg_pool2d(x, 2)


def upscale_flow(flow: Tensor, size: tuple[int, int]) -> Tensor:
    """Flow on the next finer level of `size` (h, w), in that level's pixels.

    The values are doubled exactly, even if the ratio of odd sizes is not quite two.
    """
    return 2 * F.interpolate(flow, size=size, mode="bilinear", align_corners=False)


def upscale_nearest(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Each pixel repeated to `size` (h, w); index min(floor(i * in / out), in - 1) is read."""
    return F.interpolate(x, size=size, mode="nearest")


def sampling_grid(flow: Tensor) -> Tensor:
    """Positions x + flow for `sample`, [B, h, w, 2]; -1 and 1 are the outer edges of the image.

    Positions are float32 whatever the working dtype: half precision is too coarse for fractions of
    a pixel.
    """
    height, width = flow.shape[-2:]
    dx, dy = flow.float().unbind(1)
    x = _centers(width, flow.device) + dx / (width / 2)
    y = _centers(height, flow.device)[:, None] + dy / (height / 2)
    return torch.stack([x, y], dim=-1)


def _centers(side: int, device: torch.device) -> Tensor:
    """Pixel centers along a side in the grid's units."""
    edge = 1 - 1 / side
    return torch.linspace(-edge, edge, side, device=device, dtype=torch.float32)


def sample(image: Tensor, grid: Tensor, out: Tensor) -> None:
    """Write `image` [B, C, h, w], sampled at `grid`, into `out` of the same shape.

    Bilinear in float32, positions clamped to the image. Channels are sampled independently, so a
    few at a time give the same values.
    """
    for start in range(0, image.shape[1], WARP_CHANNELS):
        channels = slice(start, start + WARP_CHANNELS)
        out[:, channels] = F.grid_sample(
            image[:, channels].float(), grid, padding_mode="border", align_corners=False
        )


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """`image` [B, C, h, w] warped by `flow` [B, 2, h, w], x then y, in its pixels."""
    out = torch.empty_like(image)
    sample(image, sampling_grid(flow), out=out)
    return out


class Conv(nn.Module):
    """3x3 or 1x1 convolution, zeros outside, then leaky ReLU unless `linear`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, linear: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.linear else F.leaky_relu_(x, 0.2)


class EvenConv(nn.Module):
    """2x2 convolution that keeps the size, with zeros only at the right and the bottom."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Zeros all around and a crop: the same sums without a padded copy of the input.
        return self.conv(x)[..., 1:, 1:]
