"""Interpolation methods and the job that runs them, without a user interface.

    from comfyui_tlbvfi.tlbvfi import load_checkpoint, sample

    model = load_checkpoint("vimeo_unet.pth", device="cuda")
    between = sample(model, frame0, frame1)  # [B, 3, H, W] in [0, 1], all three

Names are loaded on first use, so that the command line does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import load_checkpoint
    from .film import load_film
    from .model import sample

__all__ = ["load_checkpoint", "load_film", "sample"]

_HOMES = {"load_checkpoint": ".checkpoint", "load_film": ".film", "sample": ".model"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module can hold anything
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
