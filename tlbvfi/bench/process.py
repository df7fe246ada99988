"""This process's memory: its peak, and a limit that it must not exceed."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import psutil

from ..ram import free_ram


def peak_resident_bytes() -> int:
    """Peak resident memory of this process, interpreter and libraries included.

    Not `ru_maxrss` on Linux: a process inherits that from its parent.
    """
    if sys.platform == "linux":
        status = Path("/proc/self/status").read_text()
        return 1024 * int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def stop_at_free_memory() -> None:
    """Make allocations beyond the free memory fail, if the system can.

    Otherwise Linux grants the memory, swaps, and kills some process.
    """
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (free_ram(), hard))
