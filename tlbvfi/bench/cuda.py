"""Everything that is measured differently on an NVIDIA GPU.

A GPU computes asynchronously, so the clock waits for it; PyTorch's allocator counts memory; and
only the profiler knows how busy the GPU is.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterable

import psutil
import torch
from torch.profiler import ProfilerActivity, profile

from .process import peak_resident_bytes


def now(device: torch.device) -> float:
    """Seconds on a clock, once the device has finished its queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def forget_peak(device: torch.device) -> None:
    """Reset the peak on a GPU. On a CPU the peak is that of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Peak bytes since `forget_peak` that PyTorch held of a GPU, or of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return peak_resident_bytes()


def held_bytes(device: torch.device) -> int:
    """The current value of what `peak_bytes` is the peak of."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return psutil.Process().memory_info().rss


def kernel_seconds(work: Callable[[], object], device: torch.device) -> float:
    """Seconds in which at least one kernel ran during `work`, as the profiler saw it.

    Copies do not count. Kernels that run at the same time in several streams count once.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize(device)  # not PyTorch's current device, which may be another
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA"
        and _is_kernel(event.name)
        # Ranges marked by the program also appear on the GPU's clock. Older PyTorch: no such field.
        and not getattr(event, "is_user_annotation", False)
    ]
    return covered(spans) / 1e6


def _is_kernel(name: str) -> bool:
    return not name.startswith(("Memcpy", "Memset"))


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """Length of the union of spans (start, end)."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def gpu_facts(device: torch.device) -> dict[str, str | int]:
    """Name, memory and driver of a GPU; empty for a CPU."""
    if device.type != "cuda":
        return {}
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_bytes": properties.total_memory,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda or "none",
        "driver": _driver(),
    }


def _driver() -> str:
    """Version of NVIDIA's driver from its own tool: PyTorch does not know it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return told[0] if told else "unknown"
