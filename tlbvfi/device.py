"""Which device a network runs on, and whether it can compute there."""

from __future__ import annotations

import torch

from .errors import SettingsError


COMPLETE = ("cpu", "cuda", "meta")
"""Types of devices on which PyTorch has all its number types and operators."""


def choose_device(name: str) -> torch.device:
    """Device called `name` (cpu, cuda, cuda:1, ...); `auto` is a GPU if there is one.

    Raises:
        SettingsError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # meta exists everywhere and computes nothing
    except (RuntimeError, AssertionError, ImportError) as error:
        raise SettingsError(
            f"The device {name} cannot be used here: choose cpu, cuda, cuda:1, ... or auto."
        ) from error
    return device


def is_complete(device: torch.device) -> bool:
    """Whether PyTorch has all its number types and operators there.

    GPUs of Apple and some of Intel have no float64, nor has DirectML; Apple's lack operators too.
    """
    return device.type in COMPLETE


def require_dtype(dtype: torch.dtype, device: torch.device) -> None:
    """Refuse bfloat16 on a GPU older than the A100 and RTX 30, for which cuDNN has none.

    PyTorch's own convolutions take many times the memory and time there.

    Raises:
        SettingsError: it is one.
    """
    if dtype != torch.bfloat16 or device.type != "cuda":
        return
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise SettingsError(
            f"{torch.cuda.get_device_name(device)} does not compute in bfloat16: set precision to "
            "float16 or float32."
        )
