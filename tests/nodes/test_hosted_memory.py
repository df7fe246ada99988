"""TLB-VFI within the memory that ComfyUI has left; the tests themselves are in memory_checks.py."""

import os
import subprocess
import sys

import pytest

# Runs in ComfyUI's Python and folder: loads the pack as `pack`, then runs the tests of a file.
RUN_TESTS = """
import runpy, sys, unittest
from importlib.util import module_from_spec, spec_from_file_location
import utils.install_util  # before another module of that name can take its place
from comfy.cli_args import args
args.cpu = True
root, file = sys.argv[1:]
spec = spec_from_file_location("pack", f"{root}/__init__.py", submodule_search_locations=[root])
sys.modules["pack"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
tests = runpy.run_path(file)["MemoryTest"]
suite = unittest.defaultTestLoader.loadTestsFromTestCase(tests)
sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
"""


@pytest.mark.comfyui
def test_the_model_keeps_to_the_memory_comfyui_has_left(root):
    code = os.environ.get("COMFYUI_DIR")
    if not code:
        pytest.skip("COMFYUI_DIR does not name a ComfyUI checkout")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    file = root / "tests" / "nodes" / "memory_checks.py"
    command = [python, "-c", RUN_TESTS, str(root), str(file)]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Ran 10 tests" in done.stderr
