"""Warp and correlation of the flow's refinement in one Triton kernel each, for NVIDIA GPUs.

The plain correlation (`flow.correlation`) writes and reads a warped map for each of nine neighbors.
Per pixel and direction, for 64 channels of float32, it moves 9 * 2368 bytes through memory (indices
64, tokens 256, warped map, its square, product and sums 2048); the kernel moves 556 (blend 256,
tokens 256 if neighbors find them in the cache, flow 8, cosines 36), and keeps neither a border
around the features nor a warped map. Results differ only by float32 rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels import are_right, example_values, kernel_named

CHANNELS = (64, 128)
"""Channel counts of the maps there are kernels for."""

BLOCK_VALUES = 1024
"""Values of a token block: 8 for each of 128 threads; some ten blocks are held at once."""

NEIGHBORS = 9


@cache
def is_available(device: torch.device) -> bool:
    """Whether the kernels run on `device` and are right."""
    return are_right("warp and correlation", examples, device)


def examples(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(found in kernels, wanted) of a warp and a correlation."""
    height, width = 6, 9
    blend, features = example_values(device, 2, 1, CHANNELS[0], height, width)
    flow = 3 * example_values(device, 1, 2, height, width, seed=1)
    rows = torch.arange(height, device=device, dtype=torch.float64)[:, None]
    columns = torch.arange(width, device=device, dtype=torch.float64)
    x = (columns + flow[:, 0]).clamp(0, width - 1)
    y = (rows + flow[:, 1]).clamp(0, height - 1)
    bordered = F.pad(features.double(), (1, 1, 1, 1))

    def at(dy: int, dx: int) -> Tensor:
        grid = [2 * (x + dx + 1) / (width + 1) - 1, 2 * (y + dy + 1) / (height + 1) - 1]
        return F.grid_sample(bordered, torch.stack(grid, dim=-1), align_corners=True)

    neighbors = torch.stack([at(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)], dim=1)
    yield warped(features, flow, 0, height), neighbors[:, NEIGHBORS // 2]
    wanted = F.cosine_similarity(neighbors, blend.double()[:, None], dim=2)
    yield correlation(blend, features, flow, 0), wanted


def warped(features: Tensor, flow: Tensor, start: int, stop: int) -> Tensor:
    """Rows [start, stop) of a map warped by a flow: `lookup.look_up` without an offset.

    `features`: [B, C, H, W], channels_last, C in `CHANNELS`, H and W at least 2; `flow`: [B, 2, H, W]
    float32 in pixels, x then y. Result: [B, C, stop - start, W], channels_last, in the dtype of
    `features`; computed in float32.
    """
    B, C, _, W = features.shape
    out = features.new_empty((B, stop - start, W, C))
    _launch("warp_kernel", [_tokens(features)], out, features.shape, flow, start)
    return out.permute(0, 3, 1, 2)


def correlation(blend: Tensor, features: Tensor, flow: Tensor, start: int) -> Tensor:
    """Cosines of rows of a map and the neighbors in another map warped by a flow.

    `blend`: rows [start, start + h) of a map, [B, C, h, W] channels_last; `features`: [B, C, H, W]
    channels_last, zero outside; `flow`: [B, 2, H, W] float32 in pixels, x then y. Positions are
    clamped to the image before the neighbor's offset is added. Result: [B, 9, h, W] float32,
    channels_last, in the order of `flow.OFFSETS`.
    """
    B, _, rows, W = blend.shape
    out = torch.empty((B, rows, W, NEIGHBORS), device=blend.device, dtype=torch.float32)
    maps = [_tokens(blend), _tokens(features)]
    _launch("correlation_kernel", maps, out, features.shape, flow, start)
    return out.permute(0, 3, 1, 2)


def _tokens(image: Tensor) -> Tensor:
    """[B, H, W, C]; a view of a channels_last map."""
    return image.permute(0, 2, 3, 1).contiguous()


def _launch(
    name: str, maps: list[Tensor], out: Tensor, shape: torch.Size, flow: Tensor, start: int
) -> None:
    _, C, H, W = shape
    count, block = out.shape[:3].numel(), BLOCK_VALUES // C
    sizes = (count, start, out.shape[1], H, W, *flow.stride())
    with torch.cuda.device_of(out):
        kernel_named(name)[(-(-count // block),)](*maps, flow, out, *sizes, C=C, BLOCK=block)
