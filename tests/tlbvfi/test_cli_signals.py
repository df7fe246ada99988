"""A job that is told to end: by Ctrl-C, by a supervisor, or by a terminal that is closed."""

import json
import os
import signal
import subprocess
import sys
import time
from fractions import Fraction

import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")

# Each mid frame takes long enough for a signal to come in the middle of a chunk.
SLOWLY = """
import sys, time, importlib.util as u
root, *words = sys.argv[1:]
s = u.spec_from_file_location("p", root + "/__init__.py", submodule_search_locations=[root])
m = sys.modules["p"] = u.module_from_spec(s); s.loader.exec_module(m)
from p.tlbvfi.cli import main
from p.tlbvfi.methods.blend import BlendMethod
between = BlendMethod.between
def slowly(self, *arguments):
    time.sleep(0.05)
    return between(self, *arguments)
BlendMethod.between = slowly
sys.exit(main(words))
"""


@pytest.fixture
def start(clip, root, tmp_path):
    """Start a job in the shell with these words before it; returns once its frames are being made."""

    def go(*before):
        source = clip(tmp_path / "in.mp4", 20, rate=Fraction(25))
        words = ("interpolate", source, "out.mp4", "--method", "blend", "--chunk-frames", "10")
        process = subprocess.Popen(
            [*before, sys.executable, "-c", SLOWLY, str(root), *map(str, words)],
            cwd=tmp_path,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for line in process.stderr:  # and with the ends of lines, what moves the progress bar
            if "frame/s" in line:
                break
        return process

    return go


# `timeout` and shells send more than one.
@pytest.mark.parametrize(("name", "times"), [("SIGINT", 1), ("SIGTERM", 3), ("SIGHUP", 3)])
def test_a_job_that_is_told_to_end_says_how_to_resume_and_leaves_no_part(
    start, tlbvfi, tmp_path, name, times
):
    job = start()
    for _ in range(times):
        job.send_signal(getattr(signal, name))
        time.sleep(0.005)
    _, told = job.communicate()
    assert job.returncode == 130
    assert "Traceback" not in told
    assert not [each for each in tmp_path.rglob(".*") if each.is_file()]
    words = told.splitlines()[-1].split()
    assert words[:2] == ["tlbvfi", "resume"]
    code, out, _ = tlbvfi(*words[1:], "--json")
    assert code == 0
    assert json.loads(out)["frames"] == 39


def test_a_job_under_nohup_outlives_its_terminal(start, tmp_path):
    job = start("sh", "-c", 'trap "" HUP; exec "$@"', "sh")
    job.send_signal(signal.SIGHUP)
    job.communicate()
    assert job.returncode == 0
    assert (tmp_path / "out.mp4").is_file()
