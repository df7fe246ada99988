"""Which device a network runs on, and what it can compute there."""

from __future__ import annotations

import torch

from .errors import MemoryBudgetError, SettingsError
from .memory import is_out_of_memory

NO_KERNELS = ("no kernel image", "invalid device function")
"""Texts of the errors of CUDA and of ROCm on a GPU that a PyTorch was not built for."""

COMPLETE = ("cpu", "cuda", "meta")
"""Types of devices on which PyTorch has all its number types and operators."""


def choose_device(name: str) -> torch.device:
    """Device called `name` (cpu, cuda, cuda:1, ...); `auto` is a GPU if there is one.

    Raises:
        SettingsError: there is no such device here, or this PyTorch cannot compute on it.
        MemoryBudgetError: its memory is full.
    """
    name = device_type(name) if name == "auto" else name
    try:
        device = torch.device(name)
        # A kernel, because copies work on GPUs that this PyTorch was not built for; and a copy,
        # because meta exists everywhere and computes nothing.
        torch.ones(1, device=device).cpu()
    except (RuntimeError, AssertionError, ImportError) as error:
        if is_out_of_memory(error):
            raise MemoryBudgetError(
                f"The memory of {name} is full: close the programs that use it, or choose another "
                "device."
            ) from error
        raise SettingsError(_why_not(name, str(error))) from error
    return device


def device_type(name: str) -> str:
    """Type of the device called `name` (cpu, cuda), which takes no memory of a GPU."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name.partition(":")[0]


def _why_not(name: str, fault: str) -> str:
    reason = fault.strip().partition("\n")[0]
    if any(text in fault for text in NO_KERNELS):
        return (
            f"This PyTorch was not built for {torch.cuda.get_device_name(name)} ({reason}): install "
            "one that was, see https://pytorch.org/get-started/locally, or choose the device cpu."
        )
    return (
        f"The device {name} cannot be used here ({reason}): choose cpu, cuda, cuda:1, ... or auto."
    )


def is_complete(device: torch.device) -> bool:
    """Whether PyTorch has all its number types and operators there.

    GPUs of Apple and some of Intel have no float64, nor has DirectML; Apple's lack operators too.
    """
    return device.type in COMPLETE


def nvidia_capability(device: torch.device) -> tuple[int, int] | None:
    """Compute capability of an NVIDIA GPU; None for others, AMD's too, which PyTorch calls cuda."""
    if device.type != "cuda" or torch.version.hip is not None:
        return None
    return torch.cuda.get_device_capability(device)


def has_bfloat16(device: torch.device) -> bool:
    """False on NVIDIA GPUs older than the A100 and RTX 30, for which cuDNN has none.

    PyTorch's own convolutions take many times the memory and time there.
    """
    capability = nvidia_capability(device)
    return capability is None or capability >= (8, 0)


def require_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse bfloat16 on a device that has none.

    Raises:
        SettingsError: it is one.
    """
    if dtype == torch.bfloat16 and not has_bfloat16(device):
        raise SettingsError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: set precision to "
            "float16 or float32."
        )
