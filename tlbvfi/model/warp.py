"""The one warp: backward, bilinear, positions in pixels, border clamp."""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import is_complete


def sampling_grid(flow: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Grid for `sample_at` that looks up (u + flow_x, v + flow_y) for the pixel at column u, row v.

    `flow`: [B, 2, H, W], x then y, in pixels of its own resolution. Result: [B, h, W, 2] of rows
    [start, stop) in the units of `grid_sample` with align_corners=True, float32.
    """
    height, width = flow.shape[-2:]
    flow = flow[:, :, start:stop].float()
    columns = torch.arange(width, device=flow.device, dtype=torch.float32)
    rows = torch.arange(height, device=flow.device, dtype=torch.float32)[start:stop]
    x = (flow[:, 0] + columns) * (2 / max(width - 1, 1)) - 1
    y = (flow[:, 1] + rows[:, None]) * (2 / max(height - 1, 1)) - 1
    return torch.stack([x, y], dim=-1)


def sample_at(image: Tensor, grid: Tensor) -> Tensor:
    """`image` [B, C, H, W] at the positions of `grid`; positions outside are clamped to the border."""
    if is_complete(image.device):
        sampled = F.grid_sample(image.float(), grid, padding_mode="border", align_corners=True)
    else:  # Apple's GPUs lack that padding before PyTorch 2.13
        sampled = F.grid_sample(image.float(), grid.clamp(-1, 1), align_corners=True)
    return sampled.to(image.dtype)


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """`image` warped by `flow`: result[v, u] = image[v + flow_y, u + flow_x], clamped to the border.

    `image`: [B, C, H, W]; `flow`: [B, 2, H, W], x then y, pixels of this resolution.
    """
    return sample_at(image, sampling_grid(flow))
