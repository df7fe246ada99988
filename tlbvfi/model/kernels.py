"""Access to the Triton kernels: whether a device runs them and gets them right, and each by name."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ..memory import is_out_of_memory

log = logging.getLogger("tlbvfi.model")

Examples = Callable[[torch.device], Iterable[tuple[Tensor, Tensor]]]
"""Computes small examples on a device: what kernels find, and what PyTorch finds, in pairs."""

EXACTNESS = 5e-5
"""Largest difference allowed, relative to the largest value.

In Triton's interpreter all examples are within 1e-6. Factors rounded to TF32 would be 3e-4 off.
"""

PACKAGE = "triton-windows" if os.name == "nt" else "triton"
"""What pip calls Triton. PyTorch for Linux brings it along, PyTorch for Windows does not."""


@cache
def has_triton(device: torch.device) -> bool:
    """Whether kernels run on `device`: a CUDA GPU, with Triton and what it needs to compile.

    Determined by running one, once per device.

    Raises:
        RuntimeError: out of memory, which says nothing about Triton.
    """
    if device.type != "cuda":
        return False
    if find_spec("triton") is None:
        log.warning(
            "Triton is not installed: plain PyTorch is used on %s, which is slower and gives the "
            "same frames; install %s in a version that fits this PyTorch.",
            device,
            PACKAGE,
        )
        return False
    fault = _fault(_probe, device)
    if fault is not None:
        log.warning(
            "Triton does not work on %s (%s): plain PyTorch is used, which is slower and gives the "
            "same frames; install a C compiler, or the Triton version that fits this PyTorch.",
            device,
            fault,
        )
    return fault is None


def are_right(what: str, examples: Examples, device: torch.device) -> bool:
    """Whether kernels run on `device` and agree with PyTorch; if they do not, a warning says so.

    Compilers and drivers differ from machine to machine, so no kernel is used before it has shown
    that it is right where it runs. `what`: name of the kernels for the warning.

    Raises:
        RuntimeError: out of memory, which says nothing about the kernels.
    """
    if not has_triton(device):
        return False
    fault = _fault(examples, device)
    if fault is not None:
        log.warning(
            "The Triton kernels for %s do not work on %s (%s): plain PyTorch is used for them, "
            "which is slower and gives the same frames; try another version of Triton.",
            what,
            device,
            fault,
        )
    return fault is None


def _probe(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    one = torch.zeros(1, device=device, dtype=torch.float32)
    with torch.cuda.device_of(one):
        kernel_named("probe_kernel")[(1,)](one)
    yield one, torch.ones_like(one)


@torch.no_grad()
def _fault(examples: Examples, device: torch.device) -> str | None:
    """What is wrong with the kernels of `examples` on `device`; None if they are right."""
    try:
        off = max(
            _difference(found.double(), wanted.double()) for found, wanted in examples(device)
        )
    except Exception as error:
        if is_out_of_memory(error):
            raise
        # Of a compiler or a driver: PyTorch works all the same.
        return (str(error).strip() or repr(error)).split("\n", 1)[0]
    return None if off <= EXACTNESS else f"off by {off:.1e} of the largest value"


def _difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest value wanted; infinite if a value is NaN."""
    off = ((found - wanted).abs().max() / wanted.abs().max()).item()
    return off if off == off else float("inf")


def example_values(device: torch.device, *shape: int, seed: int = 0) -> Tensor:
    """Values of N(0, 1) for examples."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32).to(device)


def kernel_named(name: str, module: str = "triton_kernels") -> Any:  # noqa: ANN401 - as Triton has wrapped it
    """A kernel from a module that can be imported only if Triton is installed."""
    return getattr(import_module(f".{module}", __package__), name)


def triton_version() -> tuple[int, ...]:
    """Major and minor version of Triton, which must be installed."""
    return tuple(map(int, import_module("triton").__version__.split(".")[:2]))


def rows_of(x: Tensor) -> Tensor:
    """[B, rows, W, C] of a map [B, C, rows, W]; a view if its channels_last rows are adjacent."""
    tokens = x.permute(0, 2, 3, 1)
    _, _, W, C = tokens.shape
    return tokens if tokens.stride()[1:] == (W * C, C, 1) else tokens.contiguous()
