"""The command line's memory: its budget of a GPU, gaps included; on a CPU, what is freed is kept."""

import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.allocator import EXPANDABLE, set_up_memory, use_expandable_segments

GPU, CPU = torch.device("cuda"), torch.device("cpu")


def method(needed, device=GPU):
    """A method whose frames take `needed` bytes."""
    return SimpleNamespace(
        device=device,
        memory_needed=lambda height, width: needed,
        has_memory_to_spare=lambda height, width: False,
    )


# Runs in its own process, as an allocator is set up once: maps of many sizes, three at a time.
GROWING_MAPS = """
import torch
from types import SimpleNamespace
from comfyui_tlbvfi.tlbvfi.allocator import set_up_memory, use_expandable_segments
use_expandable_segments()
maps = SimpleNamespace(device=torch.device("cuda"), memory_needed=lambda *size: 367_000_000)
set_up_memory(400_000_000, maps, 16, 16)
for megabytes in range(21, 121, 7):
    first, second = (torch.empty(megabytes << 20, dtype=torch.uint8, device="cuda") for _ in "12")
    del first
print(torch.cuda.max_memory_reserved())
"""


# In its own process, too. The second map is smaller, as the C library needs a little more than it gives.
FAULTS_OF_A_MAP = """
import resource, sys
import torch
from types import SimpleNamespace
from comfyui_tlbvfi.tlbvfi.allocator import set_up_memory
has_spare = sys.argv[1] == "True"
method = SimpleNamespace(device=torch.device("cpu"), has_memory_to_spare=lambda *size: has_spare)
set_up_memory(None, method, 16, 16)
for megabytes in (64, 60):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(megabytes << 20, dtype=torch.uint8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture
def settings(monkeypatch):
    """PyTorch's settings in the environment of a Linux machine, none at first."""
    for name in list(os.environ):
        if name.startswith("PYTORCH_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("platform.release", lambda: "6.8.0-45-generic")
    monkeypatch.setattr("os.environ", os.environ.copy())
    return lambda: {name: v for name, v in os.environ.items() if name.startswith("PYTORCH_")}


@pytest.fixture
def limits(monkeypatch):
    """Shares of the memory that PyTorch was limited to, on a GPU of 80 GB."""
    given = []
    facts = SimpleNamespace(total_memory=80_000_000_000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100_000_000)
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda share, device: given.append(share)
    )
    return given


def test_segments_grow_under_both_names_of_the_setting(settings):
    use_expandable_segments()
    assert settings() == {"PYTORCH_ALLOC_CONF": EXPANDABLE, "PYTORCH_CUDA_ALLOC_CONF": EXPANDABLE}


@pytest.mark.parametrize("name", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_user_s_own_setting_stays(settings, monkeypatch, name):
    monkeypatch.setitem(os.environ, name, "backend:cudaMallocAsync")
    use_expandable_segments()
    assert settings() == {name: "backend:cudaMallocAsync"}


@pytest.mark.parametrize(
    ("system", "release"),
    [("win32", "11"), ("linux", "5.15.167.4-microsoft-standard-WSL2"), ("darwin", "25.1.0")],
)
def test_where_segments_cannot_grow_nothing_is_set(settings, monkeypatch, system, release):
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr("platform.release", lambda: release)
    use_expandable_segments()
    assert settings() == {}


def test_on_gpus_of_amd_nothing_is_set(settings, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "7.2.53211")
    use_expandable_segments()
    assert settings() == {}


def test_a_budget_limits_what_pytorch_holds(settings, limits):
    use_expandable_segments()
    set_up_memory(4_000_000_000, method(3_900_000_000), 2160, 3840)
    assert limits == [0.05]


@pytest.mark.parametrize("budget", [3_000_000_000, 90_000_000_000])  # for 80 GB
def test_frames_or_budgets_that_are_too_large_lift_the_limit(settings, limits, budget):
    use_expandable_segments()
    set_up_memory(budget, method(3_900_000_000), 2160, 3840)
    assert limits == [1.0]


def test_segments_that_cannot_grow_are_not_limited(settings, limits):
    set_up_memory(4_000_000_000, method(0), 2160, 3840)
    assert limits == []


def test_without_a_budget_nothing_is_limited(settings, limits):
    use_expandable_segments()
    set_up_memory(None, method(0), 2160, 3840)
    assert limits == []


def test_a_cpu_is_not_limited(settings, limits):
    use_expandable_segments()
    set_up_memory(4_000_000_000, method(0, CPU), 2160, 3840)
    assert limits == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
@pytest.mark.parametrize("has_spare", [True, False])
def test_maps_take_memory_that_was_freed_instead_of_new_pages_if_there_is_plenty(has_spare):
    command = [sys.executable, "-c", FAULTS_OF_A_MAP, str(has_spare)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 16) == has_spare  # it has 15360 pages, or 30 of 2 MB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_maps_of_many_sizes_stay_within_the_budget_of_a_gpu():
    command = [sys.executable, "-c", GROWING_MAPS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 350_000_000 < int(done.stdout) <= 400_000_000
