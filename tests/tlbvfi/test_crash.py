"""kill -9 at every step of a commit and at random moments, full disks: nothing committed is lost."""

import json
import os
import random
import subprocess
import sys
import time
from fractions import Fraction

import pytest
from comfyui_tlbvfi.encoding.errors import OutputError
from comfyui_tlbvfi.tlbvfi.config import ChunkLength

STEPS = (
    "before close",
    "after close",
    "after fsync",
    "after rename",
    "before line",
    "in line",
    "after line",
)

# Every job except the last runs in a fork, so that one start is enough for any number of kills.
JOBS = """
import json, os, sys, time
from fractions import Fraction
from functools import partialmethod
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
root, source, jobs, pause, kill_signal = sys.argv[1:]
spec = spec_from_file_location(
    "p", Path(root) / "__init__.py", submodule_search_locations=[root])
sys.modules["p"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
from p.encoding.profiles import EncoderSettings
from p.encoding.session import Session
from p.encoding.source import open_source
from p.tlbvfi.config import ChunkLength, JobConfig
from p.tlbvfi.job import Destination, run_job
from p.tlbvfi.methods.blend import BlendMethod

new_chunk = Session.new_chunk

def run(output, fatal):
    seen = []
    def on_step(step):
        seen.append(step)
        if step == fatal and seen.count(step) == 3:
            os.kill(os.getpid(), int(kill_signal))

    Session.new_chunk = partialmethod(new_chunk, on_step=on_step)
    config = JobConfig(chunk=ChunkLength(frames=8), encoder=EncoderSettings(codec="h264"))
    with open_source(source) as opened:
        run_job(
            opened, BlendMethod(), config, Destination(output=Path(output), sound=Path(source)),
            on_event=lambda event: time.sleep(float(pause)))

*others, last = json.loads(jobs)
for job in others:
    if os.fork() == 0:
        run(*job)
        os._exit(0)
    os.wait()
run(*last)
"""

FRAMES = 40
OUTPUT_FRAMES = 2 * FRAMES - 1


@pytest.fixture
def source(clip, tmp_path):
    return clip(tmp_path / "in.mp4", FRAMES, rate=Fraction(25), sound=True)


@pytest.fixture
def start(root, source, tmp_path, kill_signal):
    """Start a process that runs one job after the other.

    `jobs`: for each output, the step at which its job is killed when it gets there a third time.
    """

    def go(jobs, pause=0.0):
        jobs = json.dumps([(str(tmp_path / name), fatal) for name, fatal in jobs.items()])
        words = [root, source, jobs, pause, kill_signal]
        return subprocess.Popen(
            [sys.executable, "-c", JOBS, *map(str, words)], stdout=subprocess.PIPE, text=True
        )

    return go


def committed(folder):
    """{index: modification time} of the chunks in the session's progress, without torn lines."""
    book = folder / "progress.jsonl"
    if not book.exists():  # killed while the session was being opened
        return {}
    lines = book.read_bytes().split(b"\n")[:-1]
    records = [json.loads(line) for line in lines]
    return {
        r["index"]: (folder / f"chunk_{r['index']:06d}.mp4").stat().st_mtime_ns for r in records
    }


def session_folder(tmp_path):
    return next((tmp_path / "output" / "tlbvfi_chunks").iterdir())


@pytest.fixture
def undisturbed(run, source, pictures, times, tmp_path):
    """Pictures and times of an uninterrupted run, in a root of its own."""
    result = run(
        source, "whole.mp4", chunk=ChunkLength(frames=8), destination={"root": tmp_path / "other"}
    )
    return pictures(result.output), times(result.output)


def test_kill_at_a_step_of_a_commit_costs_at_most_that_chunk(
    start, run, source, undisturbed, pictures, times, tmp_path, killed
):
    outputs = {step: tmp_path / step / "out.mp4" for step in STEPS}
    for output in outputs.values():
        output.parent.mkdir()
    jobs = {output: step for step, output in outputs.items()}
    # Where a process cannot fork (Windows), each job has one of its own.
    for part in [jobs] if hasattr(os, "fork") else [{job: step} for job, step in jobs.items()]:
        process = start(part)
        process.communicate()
        assert process.returncode == killed
    for step, output in outputs.items():
        before = committed(session_folder(output.parent))
        assert set(before) == set(range(3 if step == "after line" else 2)), step
        result = run(source, str(output), chunk=ChunkLength(frames=8))
        assert result.frames_made == OUTPUT_FRAMES - 8 * len(before), step
        assert (pictures(output), times(output)) == undisturbed, step


@pytest.fixture
def kill_again_and_again(start, tmp_path, kill_signal, killed):
    """Kill the job at random moments until it has been killed `kills` times."""

    def go(kills, seed):
        moments, kept = random.Random(seed), {}
        while kills:
            process = start({"out.mp4": "never"}, pause=0.03)
            time.sleep(moments.uniform(0.5, 5))
            os.kill(process.pid, kill_signal)
            process.communicate()
            assert process.returncode in (0, killed)  # a job that fails would be killed for ever
            kills -= process.returncode == killed
            folders = list((tmp_path / "output").glob("tlbvfi_chunks/*"))
            if not folders or (tmp_path / "out.mp4").exists():
                continue
            now = committed(folders[0])
            assert all(now[index] == stamp for index, stamp in kept.items())  # none is redone
            kept = now

    return go


def test_kill_at_random_moments_changes_nothing(
    kill_again_and_again, run, source, undisturbed, pictures, times, tmp_path
):
    kill_again_and_again(kills=2, seed=1)
    run(source, "out.mp4", chunk=ChunkLength(frames=8))
    assert (pictures(tmp_path / "out.mp4"), times(tmp_path / "out.mp4")) == undisturbed


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_thirty_kills_at_random_moments_change_nothing(
    kill_again_and_again, run, source, undisturbed, pictures, times, tmp_path, seed
):
    kill_again_and_again(kills=5, seed=seed)
    run(source, "out.mp4", chunk=ChunkLength(frames=8))
    assert (pictures(tmp_path / "out.mp4"), times(tmp_path / "out.mp4")) == undisturbed


def test_a_disk_that_takes_no_more_files_is_told_from_a_full_one(clip, run, tmp_path, small_disk):
    disk = small_disk("400k")
    subprocess.run(["mount", "-o", "remount,nr_inodes=20", str(disk)], check=True)
    source = clip(tmp_path / "in.mp4", FRAMES)
    with pytest.raises(
        OutputError, match=r"free, but it holds as many files as it can: remove some"
    ):
        run(source, destination={"root": disk}, chunk=ChunkLength(frames=4))


def test_a_full_disk_keeps_committed_chunks_and_resumes_once_there_is_room(
    clip, run, pictures, small_disk, tmp_path
):
    source, disk = clip(tmp_path / "in.mp4", FRAMES, size=(128, 96)), small_disk("400k")
    ballast = disk / "ballast"
    ballast.write_bytes(b"x" * 200_000)
    settings = {"codec": "ffv1", "chunk": ChunkLength(frames=8)}
    where = {"root": disk}
    with pytest.raises(
        OutputError, match=r"disk is full.*free some space.*running the same job again resumes"
    ):
        run(source, "out.mkv", destination=where, **settings)
    folder = next((disk / "tlbvfi_chunks").iterdir())
    before = {path.name: path.read_bytes() for path in folder.glob("chunk_*")}
    assert before
    assert not list(folder.glob(".*part*"))
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    result = run(source, "out.mkv", destination={**where, "keep_chunks": True}, **settings)
    assert result.frames_made == OUTPUT_FRAMES - 8 * len(before)
    assert all((folder / name).read_bytes() == content for name, content in before.items())
    whole = run(source, "whole.mkv", destination={"root": tmp_path / "other"}, **settings)
    assert pictures(result.output) == pictures(whole.output)
