"""The machine the figures were measured on: names, versions, and its matrix product rate."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from ..device import choose_device
from ..methods.config import Precision
from ..methods.tlbvfi import DTYPES
from ..model.precision import matmul_precision
from .cuda import gpu_facts, now
from .tasks import Task

PACKAGES = ("torch", "numpy", "av")

SIDES = ((256, 512, 1024, 2048), (2048, 8192))
"""Sides of the square matrices, on a CPU and on a GPU; the largest take 17 and 1,100 GFLOP."""

LONG_SECONDS = 0.05
"""In a product that takes this long, the startup cost no longer matters."""

PRODUCTS = 7


def measure_machine(task: Task) -> dict[str, Any]:
    """Facts, and TFLOP/s of a matrix product in float32 and in the requested precision."""
    device = choose_device(task.method.device)
    wanted = dict.fromkeys(("float32", task.method.precision))
    return {
        "cpu": cpu_name(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "device": str(device),
        **gpu_facts(device),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
        "matmul_tflops": {precision: matmul_tflops(device, precision) for precision in wanted},
    }


def cpu_name() -> str:
    """Name of the CPU as reported by the system."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def matmul_tflops(device: torch.device, precision: Precision) -> float:
    """Median TFLOP/s of a few large `torch.mm`: the most this device reaches in practice.

    The size grows through `SIDES` until a product takes `LONG_SECONDS`: bfloat16 can be 300 times
    slower than float32 on a CPU without instructions for it.
    """
    generator = torch.Generator().manual_seed(0)
    reached = 0.0
    with matmul_precision(tf32=precision == "tf32"):
        for side in SIDES[device.type == "cuda"]:
            drawn = torch.randn(side, side, generator=generator)
            factor = drawn.to(device, DTYPES[precision])
            seconds = _product_seconds(factor, device)
            reached = 2 * side**3 / seconds / 1e12
            if seconds > LONG_SECONDS:
                break
    return reached


def _product_seconds(factor: torch.Tensor, device: torch.device) -> float:
    torch.mm(factor, factor)
    seconds = []
    for _ in range(PRODUCTS):
        began = now(device)
        torch.mm(factor, factor)
        seconds.append(now(device) - began)
    return median(seconds)
