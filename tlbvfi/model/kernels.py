"""Access to the Triton kernels: whether a device runs them, and each by name."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger("tlbvfi.model")


@cache
def has_triton(device: torch.device) -> bool:
    """Whether kernels run on `device`: a CUDA GPU, with Triton and what it needs to compile.

    Determined by running one, once per device.
    """
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    try:
        one = torch.zeros(1, device=device)
        with torch.cuda.device_of(one):
            kernel_named("probe_kernel")[(1,)](one)
        works, why = one.item() == 1, "a test kernel computed a wrong result"
    except Exception as error:  # noqa: BLE001 - a compiler, a driver: PyTorch works all the same
        works, why = False, str(error)
    if not works:
        log.warning(
            "Triton does not work on %s (%s): plain PyTorch is used, which is slower and gives the "
            "same frames; install a C compiler, or the Triton version that fits this PyTorch.",
            device,
            why,
        )
    return works


def kernel_named(name: str, module: str = "triton_kernels") -> Any:  # noqa: ANN401 - as Triton has wrapped it
    """A kernel from a module that can be imported only if Triton is installed."""
    return getattr(import_module(f".{module}", __package__), name)


def rows_of(x: Tensor) -> Tensor:
    """[B, rows, W, C] of a map [B, C, rows, W]; a view if its channels_last rows are adjacent."""
    tokens = x.permute(0, 2, 3, 1)
    _, _, W, C = tokens.shape
    return tokens if tokens.stride()[1:] == (W * C, C, 1) else tokens.contiguous()
