"""The precision of matrix units, set for the duration of a block and then restored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes the decoder's convolutions can compute in."""


@contextmanager
def matmul_precision(*, tf32: bool) -> Iterator[None]:
    """Float32 products in full precision, or with `tf32` in NVIDIA's 19-bit format.

    PyTorch lets cuDNN use TF32 by default, so full precision must be requested. The switches belong
    to the process: other threads that compute meanwhile see them too. A caller's autocast is off
    meanwhile.
    """
    before = float32_precision()
    _set(["tf32" if tf32 else "ieee"] * len(before))
    try:
        with _without_autocast():
            yield
    finally:
        _set(before)


def _without_autocast() -> ExitStack:
    stack = ExitStack()
    for kind in ("cpu", "cuda"):
        if torch.is_autocast_enabled(kind):
            stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


def float32_precision() -> tuple[str, ...]:
    """The value of every switch, in PyTorch's words: "tf32", "ieee" or, if not set, "none"."""
    if _knows_new_names():
        return tuple(switch.fp32_precision for switch in _new_names())
    return tuple("tf32" if switch.allow_tf32 else "ieee" for switch in _old_names())


def _set(precisions: Sequence[str]) -> None:
    # The old names are set as well: if they disagree with the new ones, any code that reads them
    # gets an error. The new ones are finer and set last.
    for switch, precision in zip(_old_names(), precisions, strict=False):
        switch.allow_tf32 = precision == "tf32"
    if _knows_new_names():
        for switch, precision in zip(_new_names(), precisions, strict=True):
            switch.fp32_precision = precision


def _knows_new_names() -> bool:
    """Whether this is PyTorch 2.9 or later."""
    return hasattr(torch.backends.cudnn, "conv")


def _old_names() -> Sequence[Any]:
    return torch.backends.cuda.matmul, torch.backends.cudnn


def _new_names() -> Sequence[Any]:
    """In the order of the old names, of which cuDNN's stands for two."""
    cudnn: Any = torch.backends.cudnn
    return torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
