"""What follows a convolution, in one pass over its result, for NVIDIA GPUs.

There cuDNN adds the bias in a separate pass, which reads and writes the whole map, and PyTorch
takes another for the activation or to add another map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import are_right, example_values, kernel_named, rows_of

Activation = Callable[[Tensor], Tensor]
"""`F.gelu`, or a PReLU layer, whose `weight` [C] holds its slopes."""

BLOCK_VALUES = 2048
"""Values per program: 16 for each of 128 threads."""


@cache
def is_available(device: torch.device) -> bool:
    """Whether the kernels run on `device` and are right."""
    return are_right("activations and sums", examples, device)


def examples(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(found in kernels, wanted) of GELU, PReLU and a sum, each with a bias."""
    x, other = example_values(device, 2, 2, 32, 9, 20)
    bias, slopes = example_values(device, 2, 32, seed=1)
    prelu = nn.PReLU(32, device=device).requires_grad_(False)
    prelu.weight.copy_(slopes)
    biased = (x + bias[:, None, None]).double()
    yield activated(x, bias, F.gelu), F.gelu(biased)
    yield activated(x, bias, prelu), prelu.double()(biased)
    yield summed(x, bias, other), biased + other


def activated(x: Tensor, bias: Tensor, activation: Activation) -> Tensor:
    """activation(x + bias), in place if `x` [B, C, H, W] is channels_last; computed in float32.

    `bias`: [C]. Where `is_available`.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    slope = getattr(activation, "weight", bias)  # GELU has none
    with torch.cuda.device_of(x):
        kernel_named("activation_kernel")[(-(-x.numel() // BLOCK_VALUES),)](
            x,
            bias,
            slope,
            x.numel(),
            C=x.shape[1],
            IS_GELU=activation is F.gelu,
            BLOCK=BLOCK_VALUES,
        )
    return x


def summed(x: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
    """x + bias + other, in place if `x` [B, C, H, W] is channels_last; computed in float32.

    `bias`: [C]; `other`: as `x`. Where `is_available`.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    other = rows_of(other)
    per_image = x[0].numel()
    with torch.cuda.device_of(x):
        kernel_named("sum_kernel")[(-(-per_image // BLOCK_VALUES), len(x))](
            x,
            x if bias is None else bias,
            other,
            per_image,
            other.stride(0),
            C=x.shape[1],
            HAS_BIAS=bias is not None,
            BLOCK=BLOCK_VALUES,
        )
    return x
