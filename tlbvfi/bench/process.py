"""This process's memory: the most it ever had, and a limit it must not pass."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil


def peak_resident_bytes() -> int:
    """Largest size this process ever had in memory, interpreter and libraries included.

    On Linux not `ru_maxrss`: a process inherits that from the one that started it.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def stop_at_free_memory() -> None:
    """Let what does not fit into the free memory fail as an allocation, where the system can.

    Without it Linux grants the memory, swaps, and kills some process or other.
    """
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    free = psutil.virtual_memory().available
    resource.setrlimit(resource.RLIMIT_DATA, (free, hard))
