"""How memory is held in a process that is all ours, as the command line is."""

from __future__ import annotations

import os
import platform
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .methods.tlbvfi import TlbvfiMethod

VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Where PyTorch finds the settings of its allocator; the second is the name before 2.9."""

EXPANDABLE = "expandable_segments:True"


def use_expandable_segments() -> None:
    """Have PyTorch let its segments of VRAM grow; call this before a GPU is used.

    Maps differ in size from stage to stage. Segments of fixed size get gaps that no later map fits
    into, so that PyTorch may hold nearly twice what its tensors take. Left as it is where the
    user has set up the allocator, on Windows, whose PyTorch cannot do it, in WSL, where drivers
    fail at it (PyTorch issue 192330), and on AMD's GPUs, where PyTorch ignores it or, since 2.12,
    may hang (issue 192259).
    """
    if sys.platform != "linux" or "microsoft" in platform.release().lower():
        return
    import torch

    if torch.version.hip is None and not any(name in os.environ for name in VARIABLES):
        os.environ.update(dict.fromkeys(VARIABLES, EXPANDABLE))


def set_up_memory(budget: int | None, method: TlbvfiMethod, height: int, width: int) -> None:
    """Keep a GPU within `budget` bytes, or freed memory on a CPU that has enough, for frames of this size."""
    if method.device.type == "cuda":
        _keep_within(budget, method, height, width)
    elif method.device.type == "cpu" and method.has_memory_to_spare(height, width):
        from .memory import keep_freed_memory

        keep_freed_memory()


def _keep_within(budget: int | None, method: TlbvfiMethod, height: int, width: int) -> None:
    """Let PyTorch hold at most `budget` bytes of a GPU; before it holds more, it gives back gaps.

    If `method` needs more for frames of this size, there is no limit. There is none either where
    segments cannot grow: their gaps cannot be given back, and would make plans fail that fit.
    """
    device = method.device
    settings = " ".join(os.environ.get(name, "") for name in VARIABLES)
    if budget is None or EXPANDABLE not in settings:
        return
    import torch

    from .memory import used_memory

    total = torch.cuda.get_device_properties(device).total_memory
    fits = used_memory(device) + method.memory_needed(height, width) <= budget < total
    torch.cuda.set_per_process_memory_fraction(budget / total if fits else 1.0, device.index)
