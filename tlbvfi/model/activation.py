"""Bias and activation of a convolution in one pass over its result, for NVIDIA GPUs.

There cuDNN leaves the bias to a pass of its own, which reads and writes the whole map, and PyTorch
takes another for the activation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels import kernel_named

Activation = Callable[[Tensor], Tensor]
"""`F.gelu`, or a layer of PReLU, whose `weight` [C] are its slopes."""

BLOCK_VALUES = 2048
"""Values of a program: 16 for each of 128 threads."""


def activated(x: Tensor, bias: Tensor, activation: Activation) -> Tensor:
    """activation(x + bias), in place where `x` [B, C, H, W] is channels_last; computed in float32.

    `bias`: [C]. The device is one that `has_triton`.
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
