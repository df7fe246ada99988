"""Which device a network runs on."""

from __future__ import annotations

import torch

from .errors import SettingsError


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
