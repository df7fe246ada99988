"""How much memory a device has left, how much of it is ours, and when it has run out."""

from __future__ import annotations

import psutil
import torch

SHORTAGE = (
    "out of memory",
    "allocate memory",
    "not enough memory",
    "ALLOC_FAILED",
    "could not create a primitive",
)
"""Texts of out-of-memory errors that have no type of their own.

In order: drivers and MPS, PyTorch on a CPU, the same on Windows, NVIDIA's libraries, oneDNN.
"""


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: on the GPU, or on a CPU in the machine's RAM."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    return psutil.virtual_memory().available


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
