"""Free memory, within the limits of control groups."""

from types import SimpleNamespace

import psutil
import pytest
from comfyui_tlbvfi.tlbvfi.ram import free_ram

GB = 10**9


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with 64 GB free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=64 * GB))


@pytest.fixture
def free(tmp_path):
    """What is free for a process whose groups are listed like this."""
    return lambda groups: free_ram(groups=listed(tmp_path, groups), mount=tmp_path)


def listed(folder, groups):
    path = folder / "groups"
    path.write_text("".join(f"{line}\n" for line in groups))
    return path


def group(folder, limit, used, cached=0):
    """A group of version 2."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\nactive_file 7\n")


def old_group(folder, limit, used, cached=0):
    """A group of version 1."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (folder / "memory.usage_in_bytes").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"inactive_file 3\ntotal_inactive_file {cached}\n")


def test_without_groups_all_of_the_machine_is_free(free, tmp_path):
    assert free([]) == 64 * GB
    assert free_ram(groups=tmp_path / "missing", mount=tmp_path) == 64 * GB


def test_a_container_has_what_is_left_below_its_limit(free, tmp_path):
    group(tmp_path, 8 * GB, 3 * GB)
    assert free(["0::/"]) == 5 * GB


def test_what_the_system_gives_up_for_others_is_free(free, tmp_path):
    group(tmp_path, 8 * GB, 7 * GB, cached=4 * GB)
    assert free(["0::/"]) == 5 * GB


def test_the_tightest_of_nested_groups_counts(free, tmp_path):
    group(tmp_path / "slice", 10 * GB, 8 * GB)
    group(tmp_path / "slice" / "job", "max", 1 * GB)
    assert free(["0::/slice/job"]) == 2 * GB


def test_a_limit_beyond_the_machine_is_none(free, tmp_path):
    old_group(tmp_path / "memory", 2**63 - 4096, 3 * GB)
    assert free(["4:memory:/", "0::/"]) == 64 * GB


def test_a_container_that_is_listed_by_its_place_on_the_machine_is_found(free, tmp_path):
    old_group(tmp_path / "memory", 8 * GB, 3 * GB, cached=1 * GB)
    assert free(["5:cpu,cpuacct:/docker/1a", "4:memory:/docker/1a", "0::/"]) == 6 * GB


def test_a_group_over_its_limit_has_nothing_left(free, tmp_path):
    group(tmp_path, 1 * GB, 2 * GB)
    assert free(["0::/"]) == 0
