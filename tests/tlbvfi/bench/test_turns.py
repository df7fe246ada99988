"""Benchmark processes that take turns, with scripts in place of measurements."""

import os
import subprocess
import sys

import pytest
from comfyui_tlbvfi.tlbvfi.bench.report import START
from comfyui_tlbvfi.tlbvfi.bench.turns import TURN_OVER, run_in_turns

LOAD = START.split("from comfyui_tlbvfi.tlbvfi")[0] + (
    "from comfyui_tlbvfi.tlbvfi.bench.turns import let_others_run\n"
)
SCRIPT = """
import json, os, signal
name, frames = sys.argv[3], int(sys.argv[4])
def note(word):
    with open(sys.argv[2], "a") as notes:
        notes.write(f"{name} {word}, ")
note("starts")
for frame in range(frames):
    let_others_run()
    note(frame)
if name == "NAME": END
print(json.dumps({"frames": frames}))
"""


@pytest.fixture
def run(tmp_path, root):
    """Run processes of these names with these numbers of frames; `ends` is how one of them ends."""
    notes = tmp_path / "notes"

    def run(ends=("none", "pass"), **frames):
        script = LOAD + SCRIPT.replace("NAME", ends[0]).replace("END", ends[1])
        command = [sys.executable, "-c", script, root, notes]
        found = run_in_turns(*([*map(str, command), name, str(frames[name])] for name in frames))
        return found, notes.read_text().removesuffix(", ").split(", ")

    return run


def test_processes_run_one_at_a_time_frame_by_frame(run):
    found, notes = run(model=2, baseline=3)
    assert notes == [
        *("model starts", "baseline starts"),
        *("model 0", "baseline 0"),
        *("model 1", "baseline 1"),
        "baseline 2",
    ]
    assert found == [{"frames": 2}, {"frames": 3}]


def test_a_process_that_never_rests_ends_before_the_next_starts(run):
    _, notes = run(model=0, baseline=1)
    assert notes == ["model starts", "baseline starts", "baseline 0"]


def test_a_problem_stops_what_builds_on_it(run):
    found, notes = run(("model", "raise SystemExit(3)"), model=1, baseline=9)
    assert notes == ["model starts", "baseline starts", "model 0"]
    (problem,) = found
    assert "exit code 3" in problem["problem"]


def test_a_problem_leaves_what_it_builds_on(run):
    found, notes = run(("baseline", "raise SystemExit(3)"), model=3, baseline=1)
    assert notes[-1] == "model 2"
    assert found[0] == {"frames": 3}
    assert "exit code 3" in found[1]["problem"]


@pytest.mark.skipif(os.name == "nt", reason="Windows kills no process that lacks memory")
def test_a_process_that_was_killed_is_told_apart_from_one_that_failed(run):
    (found,), _ = run(("model", "os.kill(os.getpid(), signal.SIGKILL)"), model=1)
    assert found["problem"].startswith("out of memory")


def test_a_process_ends_if_nobody_waits_for_it(root):
    command = [sys.executable, "-c", LOAD + "let_others_run(); print(1)", str(root)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, TURN_OVER)
