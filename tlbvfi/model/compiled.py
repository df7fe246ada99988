"""Blocks of the network through torch.compile, which fuses the operations around their products.

Each block is compiled once for every shape it meets: some minutes on a GPU. Results are cached in a
folder for later processes.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from ..device import nvidia_capability
from .flow import FlowBlock
from .kernels import has_triton
from .layers import FeedForward, GroupAttention

BLOCKS = (FeedForward, FlowBlock, GroupAttention)

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable that names the folder; PyTorch reads it when it first compiles."""

SHAPES = 256
"""Shapes that the blocks of one kind are compiled for; PyTorch's default of 8 is too few."""

OLDEST = (7, 0)
"""Lowest compute capability of NVIDIA GPUs that PyTorch compiles for."""


def pays_off(device: torch.device) -> bool:
    """Whether compiling makes long jobs faster: on GPUs for which PyTorch can compile."""
    capability = nvidia_capability(device)
    is_too_old = capability is not None and capability < OLDEST
    return not is_too_old and has_triton(device)  # which PyTorch compiles with


def compile_blocks(network: nn.Module, cache: str | None) -> None:
    """Have the blocks of `network` compiled when they are next called.

    `cache`: folder for the results, unless the environment names one; None: PyTorch's own choice.
    Frames are equal up to the rounding of the dtype. A block that PyTorch cannot compile runs
    uncompiled, and PyTorch's log says so; folder, limit and this fallback are PyTorch's own switches,
    not only of this network.
    """
    if cache is not None:
        os.environ.setdefault(CACHE_VARIABLE, cache)
    dynamo = torch._dynamo.config
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    setattr(dynamo, limit, max(getattr(dynamo, limit), SHAPES))
    dynamo.suppress_errors = True
    for module in network.modules():
        if isinstance(module, BLOCKS):
            module.compile(dynamic=False)
