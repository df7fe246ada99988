"""Group norms in Triton kernels, for NVIDIA GPUs.

The maps of encoder and decoder are so large that what counts is how often they pass through memory.
For each float16 value, PyTorch's moments and norm move 32 bytes, with float32 intermediates; the
kernels here move 6: one read for the moments, one read and one write for norm and activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import are_right, example_values, kernel_named, rows_of

CHANNELS = 32
"""A map's number of channels must be a multiple of this."""
BLOCK_PIXELS = 64
BLOCK_CHANNELS, BLOCK_ROWS = 16, 256
BLOCK_VALUES = 2048
"""Values scaled per program: 16 for each of 128 threads."""

NormActivation = Literal["silu", "relu"]


@cache
def is_available(device: torch.device) -> bool:
    """Whether the kernels run on `device` and are right."""
    return are_right("group norms", examples, device)


def examples(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(found in kernels, wanted) of a norm and its activation, of a map with a bias."""
    batch, channels, height, width = shape = (2, 64, 3, 70)
    x = 1 + example_values(device, *shape)
    norm = nn.GroupNorm(4, channels, device=device, dtype=torch.float32).requires_grad_(False)
    bias, weight, shift = example_values(device, 3, channels, seed=1)
    norm.weight.copy_(weight)
    norm.bias.copy_(shift)
    means, squares = torch.empty((2, batch, height, channels), device=device, dtype=torch.float32)
    row_moments(x, means, squares, 0)
    gathered = merged(means, squares, width)
    factors = factor_and_offset(norm, *gathered, height * width, bias)
    wanted = norm.double()((x + bias[:, None, None]).double())
    yield scaled(x, *factors, "silu"), F.silu(wanted)
    yield scaled(x, *factors, "relu"), F.relu(wanted)


def fits_map(x: Tensor) -> bool:
    """Whether there are kernels for a map [B, C, H, W]: C must be a multiple of `CHANNELS`."""
    return x.shape[1] % CHANNELS == 0


def row_moments(x: Tensor, means: Tensor, squares: Tensor, start: int) -> None:
    """Write moments of rows of a map that `fits_map`, where `is_available`.

    `x`: the rows [start, start + h), [B, C, h, W]. `means`, `squares`: of all rows, [B, H, C] float32,
    contiguous; the latter sums squared deviations from the former.
    """
    B, C, rows, width = x.shape
    x = rows_of(x)
    block = next(size for size in (64, CHANNELS) if C % size == 0)
    with torch.cuda.device_of(x):
        kernel_named("row_moments_kernel")[(B * rows, C // block)](
            x,
            means,
            squares,
            start,
            rows,
            means.shape[1],
            width,
            x.stride(0),
            C=C,
            BLOCK_C=block,
            BLOCK_W=BLOCK_PIXELS,
        )


def merged(means: Tensor, squares: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Mean and summed squared deviations of maps, [B, C] float64, from `row_moments`.

    `means`, `squares`: [B, H, C] float32 of rows of `width` pixels, where `is_available`.
    """
    B, H, C = means.shape
    mean, square = means.new_empty((2, B, C), dtype=torch.float64).unbind()
    with torch.cuda.device_of(means):
        kernel_named("merged_kernel")[(B, C // BLOCK_CHANNELS)](
            means, squares, mean, square, H, width, C=C, BLOCK_C=BLOCK_CHANNELS, BLOCK_H=BLOCK_ROWS
        )
    return mean, square


def factor_and_offset(
    norm: nn.GroupNorm, mean: Tensor, squares: Tensor, count: int, added: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(factor, offset), [B, C] float32: the norm of x + added is x * factor + offset.

    `mean`, `squares`: from `merged`, for `count` values per channel; `added`: [C].
    """
    B, C = mean.shape
    factor, offset = mean.new_empty((2, B, C), dtype=torch.float32).unbind()
    per_group = C // norm.num_groups
    with torch.cuda.device_of(mean):
        kernel_named("factors_kernel")[(B, norm.num_groups)](
            mean,
            squares,
            norm.weight,
            norm.bias,
            norm.weight if added is None else added,
            factor,
            offset,
            count,
            norm.eps,
            C=C,
            GROUPS=norm.num_groups,
            IS_ADDED=added is not None,
            BLOCK=1 << (per_group - 1).bit_length(),
        )
    return factor, offset


def scaled(x: Tensor, factor: Tensor, offset: Tensor, activation: NormActivation) -> Tensor:
    """activation(x * factor + offset) of a map that `fits_map`, where `is_available`.

    `x`: [B, C, h, W]; `factor`, `offset`: [B, C] float32. Result: channels_last, in the dtype of
    `x`; computed in float32.
    """
    B, C, rows, width = x.shape
    x = rows_of(x)
    out = x.new_empty((B, rows, width, C))
    per_image = rows * width * C
    with torch.cuda.device_of(x):
        kernel_named("scaled_kernel")[(-(-per_image // BLOCK_VALUES), B)](
            x,
            factor.contiguous(),
            offset.contiguous(),
            out,
            per_image,
            x.stride(0),
            C=C,
            IS_SILU=activation == "silu",
            BLOCK=BLOCK_VALUES,
        )
    return out.permute(0, 3, 1, 2)
