"""Tests in ComfyUI's own Python, without a server.

They are in memory_checks.py, the memory that ComfyUI has left, and in choice_checks.py, what nodes pass on.
"""

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
(tests,) = [each for name, each in runpy.run_path(file).items() if name.endswith("Test")]
suite = unittest.defaultTestLoader.loadTestsFromTestCase(tests)
sys.exit(not unittest.TextTestRunner(verbosity=2).run(suite).wasSuccessful())
"""


@pytest.mark.comfyui
@pytest.mark.parametrize(("name", "count"), [("memory_checks.py", 10), ("choice_checks.py", 4)])
def test_checks_in_comfyui_s_python(root, name, count):
    code = os.environ.get("COMFYUI_DIR")
    if not code:
        pytest.skip("COMFYUI_DIR does not name a ComfyUI checkout")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    file = root / "tests" / "nodes" / name
    command = [python, "-c", RUN_TESTS, str(root), str(file)]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"Ran {count} test" in done.stderr
