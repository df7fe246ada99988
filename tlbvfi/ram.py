"""The memory of the machine that is free, within the limits of control groups.

A container sees all memory of its machine, and Linux kills a process that takes more than its group may.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

GROUPS = Path("/proc/self/cgroup")
"""Lists the groups of this process, a line for each hierarchy: `0::/docker/1a2b`."""
MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Files:
    """The files of a group, and the entry of its `memory.stat` for what is given up for others."""

    limit: str
    used: str
    cached: str


VERSION_1 = _Files(
    limit="memory.limit_in_bytes", used="memory.usage_in_bytes", cached="total_inactive_file"
)
VERSION_2 = _Files(limit="memory.max", used="memory.current", cached="inactive_file")


def free_ram(*, groups: Path = GROUPS, mount: Path = MOUNT) -> int:
    """Bytes of the machine's memory that this process can still take."""
    found = (_left(folder, files) for folder, files in _groups(groups, mount))
    return min([psutil.virtual_memory().available, *(left for left in found if left is not None)])


def _groups(groups: Path, mount: Path) -> Iterator[tuple[Path, _Files]]:
    """Folders that may hold limits: of the groups of this process, and of those around them.

    In a container, the path may be that on the machine, while the group itself is what is mounted.
    """
    try:
        lines = groups.read_text().splitlines()
    except OSError:  # not Linux
        return
    for _, controllers, path in (line.split(":", 2) for line in lines):
        is_2 = not controllers
        if not is_2 and "memory" not in controllers.split(","):
            continue
        top, files = (mount, VERSION_2) if is_2 else (mount / "memory", VERSION_1)
        own = Path(path.lstrip("/"))
        for folder in (own, *own.parents):
            yield top / folder, files


def _left(folder: Path, files: _Files) -> int | None:
    """Bytes below the limit of a group; None if it has none."""
    try:
        limit, used = (int((folder / name).read_text()) for name in (files.limit, files.used))
        cached = re.search(rf"^{files.cached} (\d+)$", (folder / "memory.stat").read_text(), re.M)
    except (OSError, ValueError):  # no such group here, or the limit is "max"
        return None
    return max(0, limit - used + (int(cached[1]) if cached else 0))
