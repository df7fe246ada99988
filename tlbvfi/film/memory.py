"""How much memory FILM takes, for a warning before a job that will not fit."""

from __future__ import annotations

import torch

from .layers import WARP_CHANNELS
from .network import FILTERS, FUSED_CHANNELS, LEVELS, MAP_CHANNELS, MINIMUM_SIDE, PARAMETERS

ALLOCATOR_SHARE = 10
"""Allocators keep about a tenth more than the tensors need."""


def predict_peak_memory(height: int, width: int, *, dtype: torch.dtype = torch.float32) -> int:
    """Peak bytes of FILM for one pair of `height` x `width`, weights and features included.

    Torch itself (some 300 MB of a process) is not included. The peak is at the decoder's finest
    level; more frames of the same pair do not add to it. From 256x256 to 1080x1920 a process on the
    CPU took between 5 % less and 11 % more (benchmarks/film_memory.py).
    """
    pixels = max(height, MINIMUM_SIDE) * max(width, MINIMUM_SIDE)
    stack = FUSED_CHANNELS[0] + FILTERS[0]
    # A float32 grid, and the channels being sampled: read and written, copied if they are half.
    copies = 1 if dtype == torch.float32 else 2
    sampling = (2 + copies * WARP_CHANNELS) * torch.float32.itemsize
    working = stack * dtype.itemsize + max(FILTERS[0] * dtype.itemsize, sampling)
    numbers = (PARAMETERS + _held(pixels)) * dtype.itemsize + pixels * working
    return numbers + numbers // ALLOCATOR_SHARE


def _held(pixels: int) -> int:
    """Numbers kept for a pair: both frames' pyramids, and the flows each way."""
    return sum(
        (pixels >> 2 * level) * 2 * (3 + channels + 2)
        for level, channels in zip(range(LEVELS), MAP_CHANNELS, strict=True)
    )
