"""Benchmark processes that take turns, with scripts in place of measurements."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
from comfyui_tlbvfi.tlbvfi.bench import turns
from comfyui_tlbvfi.tlbvfi.bench.sizes import Size
from comfyui_tlbvfi.tlbvfi.bench.tasks import Task
from comfyui_tlbvfi.tlbvfi.bench.turns import run_tasks
from comfyui_tlbvfi.tlbvfi.methods import MethodConfig

LOAD = turns.START.split("from comfyui_tlbvfi.tlbvfi")[0] + (
    "from comfyui_tlbvfi.tlbvfi.bench.turns import let_others_run\n"
)
SCRIPT = """
import json, os, signal
from pathlib import Path
task = json.loads(sys.argv[2])
def note(word):
    with (Path(task["folder"]) / "notes").open("a") as notes:
        notes.write(f"{task['kind']} {word}, ")
note("starts")
for frame in range(task["pairs"]):
    let_others_run()
    note(frame)
if task["kind"] == "KIND": END
print(json.dumps({"pairs": task["pairs"]}))
"""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run tasks of these kinds with these numbers of frames; `ends` is how one of them ends."""
    task = Task(kind="model", folder=tmp_path, method=MethodConfig(), threads=1, size=Size(64, 64))

    def run(ends=("none", "pass"), **pairs):
        script = SCRIPT.replace("KIND", ends[0]).replace("END", ends[1])
        monkeypatch.setattr(turns, "START", LOAD + script)
        found = run_tasks(*(replace(task, kind=kind, pairs=pairs[kind]) for kind in pairs))
        return found, (tmp_path / "notes").read_text().removesuffix(", ").split(", ")

    return run


def test_processes_run_one_at_a_time_frame_by_frame(run):
    found, notes = run(model=2, baseline=3)
    assert notes == [
        *("model starts", "baseline starts"),
        *("model 0", "baseline 0"),
        *("model 1", "baseline 1"),
        "baseline 2",
    ]
    assert found == [{"pairs": 2}, {"pairs": 3}]


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
    assert found[0] == {"pairs": 3}
    assert "exit code 3" in found[1]["problem"]


@pytest.mark.skipif(os.name == "nt", reason="Windows kills no process that lacks memory")
def test_a_process_that_was_killed_is_told_apart_from_one_that_failed(run):
    (found,), _ = run(("model", "os.kill(os.getpid(), signal.SIGKILL)"), model=1)
    assert found["problem"].startswith("out of memory")


def test_a_process_ends_if_nobody_waits_for_it(root):
    command = [sys.executable, "-c", LOAD + "let_others_run(); print(1)", str(root)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, turns.TURN_OVER)
