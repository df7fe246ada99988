"""What the figures were measured on: names, versions, and how fast a large matrix product is."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping
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

SIDE = {"cpu": 2048, "cuda": 8192}
"""Of the square matrices; twice 17 or 1,100 GFLOP."""

PRODUCTS = 7


def measure_machine(task: Task) -> dict[str, Any]:
    """Facts, and TFLOP/s of a matrix product in float32 and in the precision asked for."""
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
    """Name of the CPU as the system tells it."""
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def matmul_tflops(device: torch.device, precision: Precision) -> float:
    """TFLOP/s of the median of a few large `torch.mm`, the most this device does in practice."""
    side, dtype = SIDE.get(device.type, SIDE["cpu"]), DTYPES[precision]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(side, side, generator=generator).to(device, dtype) for _ in range(2))
    seconds = []
    with matmul_precision(tf32=precision == "tf32"):
        torch.mm(a, b)
        for _ in range(PRODUCTS):
            began = now(device)
            torch.mm(a, b)
            seconds.append(now(device) - began)
    return 2 * side**3 / median(seconds) / 1e12


def describe(facts: Mapping[str, Any]) -> str:
    """The device in a few words."""
    return str(facts.get("gpu") or f"{facts['cpu']}, {facts['threads']} threads")
