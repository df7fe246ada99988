"""Loads this checkout as the package `comfyui_tlbvfi`, whatever its folder is called."""

import os
import signal
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

# Workers already share the cores; set before numpy, OpenCV and torch make their thread pools.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENCV_FOR_THREADS_NUM", "1")

# How long an example takes says more about the machine than about the code.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


def load_checkout(name: str) -> ModuleType:
    """This checkout as a package called `name`, the way ComfyUI loads custom nodes."""
    spec = spec_from_file_location(
        name, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load_checkout("comfyui_tlbvfi")


@pytest.fixture(scope="session")
def kill_signal() -> int:
    """What `os.kill` ends a process with at once; on Windows, which has no SIGKILL, SIGTERM does."""
    return int(getattr(signal, "SIGKILL", signal.SIGTERM))


@pytest.fixture(scope="session")
def killed(kill_signal) -> int:
    """The return code of a process that `kill_signal` has ended."""
    return kill_signal if os.name == "nt" else -kill_signal


@pytest.fixture(scope="session")
def test_data(root) -> Path:
    """Folder of test data too large for the repository; tests that need it skip where it is not."""
    return root / os.environ.get("TLBVFI_TEST_DATA", root.parent / "shared")


@pytest.fixture(scope="session")
def real_video(test_data) -> Path:
    """132 frames of Big Buck Bunny: 1280x720, 25 fps, H.264 and stereo AAC."""
    path = test_data / "media" / "bbb_720p.mp4"
    if not path.is_file():
        pytest.skip(f"no real clip at {path}; TLBVFI_TEST_DATA names the folder of test data")
    return path


@pytest.fixture
def small_disk(tmp_path):
    """Factory for a folder on its own file system: small_disk("256k")."""
    place = tmp_path / "disk"
    mounted = []

    def make(size: str) -> Path:
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if sys.platform != "linux" or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs needs Linux and root")
        mounted.append(place)
        return place

    yield make
    for each in mounted:
        subprocess.run(["umount", str(each)], check=True)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository root."""
    return ROOT


@pytest.fixture(scope="session")
def load_as():
    """Load this checkout under another package name."""
    return load_checkout
