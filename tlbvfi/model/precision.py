"""How exactly matrix units compute, set for the length of a block and then restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Types the convolutions of the decoder can compute in."""


@contextmanager
def matmul_precision(*, tf32: bool) -> Iterator[None]:
    """Float32 products in full precision, or with `tf32` in NVIDIA's 19-bit format.

    PyTorch lets cuDNN use TF32 by default, so exactness has to be asked for. The switches are
    those of the process: other threads that compute meanwhile see them too.
    """
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [bool(switch.allow_tf32) for switch in switches]
    _allow_tf32(switches, [tf32, tf32])
    try:
        yield
    finally:
        _allow_tf32(switches, before)


def _allow_tf32(switches: Sequence[Any], allowed: Sequence[bool]) -> None:
    for switch, value in zip(switches, allowed, strict=True):
        switch.allow_tf32 = value
