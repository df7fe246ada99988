"""The memory of a device: how much is left, how much is ours, whether it ran out, giving it back."""

from __future__ import annotations

import ctypes
import sys

import psutil
import torch

from .ram import free_ram

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of `mallopt`, from the GNU C library's malloc.h."""

SHORTAGE = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "not enough GPU video memory",
    "ALLOC_FAILED",
    "could not create a primitive",
)
"""Texts of out-of-memory errors that have no type of their own.

In order: drivers and MPS, PyTorch on a CPU, the same on Windows, DirectML, NVIDIA's libraries, oneDNN.
"""


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: on the GPU, or on a CPU in RAM."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return free_ram()


def used_memory(device: torch.device) -> int:
    """Bytes already taken: by tensors on a GPU, else by the whole process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return psutil.Process().memory_info().rss


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or a CPU."""
    if isinstance(error, torch.cuda.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in SHORTAGE)


def give_back_freed_memory(device: torch.device) -> None:
    """Return the freed memory of bands to the system, on a CPU.

    The GNU allocator keeps freed blocks that lie between live ones: several hundred MB after the
    many bands of a stage.
    """
    if device.type == "cpu":
        _call_allocator("malloc_trim", 0)


def keep_freed_memory() -> None:
    """Have the C library keep all freed memory of this process for what is allocated next.

    It takes large blocks from the system and returns them when they are freed, and every page of 4 kB
    that is new costs a fault: at 512x512 a tenth of the time of a mid frame.
    """
    _call_allocator("mallopt", M_MMAP_MAX, 0)
    _call_allocator("mallopt", M_TRIM_THRESHOLD, 2**31 - 1)


def _call_allocator(function: str, *arguments: int) -> None:
    """Call a function that only the GNU allocator has; elsewhere there is nothing to do."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), function):
        getattr(library, function)(*arguments)
