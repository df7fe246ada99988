"""Interpolation methods and the job that runs them, without a user interface.

Names are loaded when they are first used: the command line must not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .film import load_film

__all__ = ["load_film"]

_HOMES = {"load_film": ".film"}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - a module can hold anything
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
