"""Blocks of the network through torch.compile, which fuses what they do beside their products.

Each block is compiled for every shape it meets, once: some minutes on a GPU. Results are kept in a
folder, where the next process finds them.
"""

from __future__ import annotations

import os

import torch
from torch import nn

from .flow import FlowBlock
from .layers import FeedForward, GroupAttention

BLOCKS = (FeedForward, FlowBlock, GroupAttention)

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Where PyTorch looks for the folder; read when it compiles for the first time."""

SHAPES = 256
"""Shapes that the blocks of one kind are compiled for; PyTorch's own 8 do not do for all levels."""


def compile_blocks(network: nn.Module, cache: str) -> None:
    """Let the blocks of `network` be compiled where they are called next.

    `cache`: folder for the results, unless the environment names one. Frames are the same to the
    rounding of the type. A block that PyTorch cannot compile is run as it is, and its log says so;
    folder, limit and that tolerance are PyTorch's own switches and hold for the whole process.
    """
    os.environ.setdefault(CACHE_VARIABLE, cache)
    dynamo = torch._dynamo.config
    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    setattr(dynamo, limit, max(getattr(dynamo, limit), SHAPES))
    dynamo.suppress_errors = True
    for module in network.modules():
        if isinstance(module, BLOCKS):
            module.compile(dynamic=False)
