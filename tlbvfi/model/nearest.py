"""The nearest code of a codebook, by differences.

Not as |z|^2 + |e|^2 - 2 z.e, which suffers from cancellation, and which a matrix unit would compute
in reduced precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor

from .kernels import are_right, example_values, kernel_named

BLOCK_VECTORS, BLOCK_CODES = 32, 256
AT_ONCE = 1024
"""Vectors whose distances to all codes are held at once without a kernel."""


def nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of `codebook` [K, 3] for each of `vectors` [N, 3]; int64 [N]."""
    vectors, codebook = vectors.float(), codebook.float()
    if is_available(vectors.device):
        return nearest_in_kernel(vectors, codebook)
    return nearest_in_pytorch(vectors, codebook)


@cache
def is_available(device: torch.device) -> bool:
    """Whether the kernel runs on `device` and is right."""
    return are_right("nearest codes", examples, device)


def examples(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(found in the kernel, wanted) indices of codes."""
    codebook = example_values(device, 2 * BLOCK_CODES, 3)
    vectors = example_values(device, 70, 3, seed=1)
    yield nearest_in_kernel(vectors, codebook), nearest_in_pytorch(vectors, codebook)


def nearest_in_pytorch(vectors: Tensor, codebook: Tensor) -> Tensor:
    """`nearest` for float32."""
    return torch.cat([_nearest(some, codebook) for some in vectors.split(AT_ONCE)])


def nearest_in_kernel(vectors: Tensor, codebook: Tensor) -> Tensor:
    """`nearest` for float32, K a multiple of `BLOCK_CODES`, where `is_available`."""
    vectors = vectors.contiguous()
    out = torch.empty(len(vectors), dtype=torch.int64, device=vectors.device)
    with torch.cuda.device_of(out):
        kernel_named("nearest_kernel")[(-(-len(vectors) // BLOCK_VECTORS),)](
            vectors,
            codebook.contiguous(),
            out,
            len(vectors),
            CODES=len(codebook),
            BLOCK=BLOCK_VECTORS,
            STEP=BLOCK_CODES,
        )
    return out


def _nearest(vectors: Tensor, codebook: Tensor) -> Tensor:
    distance = torch.zeros(len(vectors), len(codebook), device=vectors.device, dtype=torch.float32)
    for vector, code in zip(vectors.T, codebook.T, strict=True):
        distance += (vector[:, None] - code).square_()
    return distance.argmin(dim=1)
