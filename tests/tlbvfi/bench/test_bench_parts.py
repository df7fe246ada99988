"""Sizes, spans, pictures and figures of the benchmark: arithmetic, without measuring anything."""

import re
import subprocess
import sys
import time
from contextlib import nullcontext
from itertools import repeat
from types import SimpleNamespace

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.bench import cuda, rate
from comfyui_tlbvfi.tlbvfi.bench.cuda import covered, kernel_seconds
from comfyui_tlbvfi.tlbvfi.bench.figures import STAGES, psnr
from comfyui_tlbvfi.tlbvfi.bench.pictures import (
    moving_picture,
    pictures,
    there_and_back,
    write_clip,
)
from comfyui_tlbvfi.tlbvfi.bench.plain import require_plain
from comfyui_tlbvfi.tlbvfi.bench.rate import plain_frames
from comfyui_tlbvfi.tlbvfi.bench.report import START, job_pairs
from comfyui_tlbvfi.tlbvfi.bench.sizes import Size, parse_sizes
from comfyui_tlbvfi.tlbvfi.bench.stages import watched
from comfyui_tlbvfi.tlbvfi.bench.tasks import Task, task_from_json, task_to_json
from comfyui_tlbvfi.tlbvfi.checkpoint import Bare
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from comfyui_tlbvfi.tlbvfi.methods import MethodConfig
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import TlbvfiMethod
from comfyui_tlbvfi.tlbvfi.model import TLBVFI, SamplingOptions
from hypothesis import given
from hypothesis import strategies as st


def test_a_height_is_that_of_a_16_to_9_picture():
    sizes = parse_sizes("256, 720,1080,2160,4320,512x448")
    assert list(map(str, sizes)) == [
        "456x256",
        "1280x720",
        "1920x1080",
        "3840x2160",
        "7680x4320",
        "512x448",
    ]


@given(st.integers(8, 3000).map(lambda half: 2 * half))
def test_widths_are_even_and_within_a_pixel_of_16_to_9(height):
    (size,) = parse_sizes(str(height))
    assert size.width % 2 == 0
    assert abs(size.width - height * 16 / 9) <= 1


@pytest.mark.parametrize("text", ["1080p", "", "1080,", "511x512", "8x8", "1920:1080"])
def test_what_is_no_size_is_refused_in_one_sentence(text):
    with pytest.raises(SettingsError, match=r"^[^.\n]*(\. )?[^.\n]*\.$"):
        parse_sizes(text)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12))
def test_spans_that_overlap_count_once(pieces):
    spans = [(start, start + length) for start, length in pieces]
    inside = {n for start, end in spans for n in range(start, end)}
    assert covered(spans) == len(inside)


def profiled(name, start, end, device="CUDA"):
    return SimpleNamespace(
        name=name,
        device_type=SimpleNamespace(name=device),
        time_range=SimpleNamespace(start=start, end=end),
    )


def test_kernels_are_added_up_once_the_device_that_runs_them_is_done(monkeypatch):
    events = [
        profiled("convolution", 0.0, 3e6),
        profiled("Memcpy HtoD (Pinned -> Device)", 3e6, 9e6),
        profiled("cudaLaunchKernel", 3e6, 9e6, device="CPU"),
        profiled("norm", 2e6, 4e6),
    ]
    done = []
    profiler = SimpleNamespace(events=lambda: events)
    monkeypatch.setattr(cuda, "profile", lambda activities: nullcontext(profiler))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: done.append(device))
    second = torch.device("cuda", 1)
    assert kernel_seconds(lambda: done.append("work"), second) == 4
    assert done == ["work", second]


def test_stages_are_watched_without_graphs_and_the_profiler_which_slows_down_comes_last(
    monkeypatch, tmp_path
):
    order = []

    def watch(method):
        order.append("stages")
        assert not method.launches_frames_at_once
        return nullcontext(dict.fromkeys(STAGES, 0.0))

    def profile(work, device):
        order.append("profiler")
        assert gpu.launches_frames_at_once
        return 1.0

    gpu = SimpleNamespace(
        device=torch.device("cuda"),
        options=SamplingOptions(),
        plan=lambda geometry, pairs: SimpleNamespace(peak=0),
        launches_frames_at_once=True,
        forget_graphs=lambda: order.append("no graphs"),
    )
    frames = (frame for frame in repeat(torch.zeros(3, 16, 16)))
    stubs = {"open_method": lambda task: gpu, "mid_frames": lambda *given: frames}
    stubs |= {name: lambda *given: 0 for name in ("held_bytes", "forget_peak", "peak_bytes")}
    stubs |= {"watched": watch, "kernel_seconds": profile, "count_gflop": lambda *given: {}}
    for name, stub in stubs.items():
        monkeypatch.setattr(rate, name, stub)
    size, method = Size(16, 16), MethodConfig()
    task = Task(kind="model", folder=tmp_path, method=method, threads=None, size=size)
    assert rate.measure_model(task).gpu_busy > 0
    assert order == ["no graphs", "stages", "profiler"]


@given(st.integers(0, 500), st.integers(2, 20))
def test_there_and_back_moves_one_frame_at_a_time(number, count):
    here, there = there_and_back(number, count), there_and_back(number + 1, count)
    assert abs(here - there) == 1
    assert 0 <= here < count


def test_a_psnr_of_equal_frames_is_none():
    assert psnr(0.0) is None
    assert psnr(1e-5) == pytest.approx(50)


def test_jobs_last_long_enough_but_no_longer():
    assert job_pairs(100.0) == 100
    assert job_pairs(60_000.0) == 4
    assert job_pairs(0.1) == 1000


def test_tasks_travel_as_json(tmp_path):
    method = MethodConfig(model=tmp_path / "w.pth", steps=4, precision="float16", memory=10**9)
    task = Task(
        kind="job",
        folder=tmp_path,
        method=method,
        threads=3,
        size=Size(64, 48),
        pairs=2,
        clip=tmp_path / "in.mp4",
    )
    assert task_from_json(task_to_json(task)) == task


def test_the_baseline_outside_of_a_checkout_is_one_sentence(tmp_path):
    told = "only a checkout of the repository has: install the project from one"
    with pytest.raises(SettingsError, match=told):
        require_plain(tmp_path / "model_baseline.py")


def test_a_flow_scale_the_baseline_cannot_do_is_one_sentence(tmp_path):
    task = Task(
        kind="baseline",
        folder=tmp_path,
        method=MethodConfig(flow_scale=0.25),
        threads=1,
        size=Size(256, 256),
    )
    with pytest.raises(SettingsError, match=r"multiples of 128 at flow scale 0.25, got 64 and 64"):
        next(plain_frames(task, torch.device("cpu")))


def test_a_clip_has_the_frames_asked_for_at_the_size_asked_for(tmp_path, pictures_of):
    size = Size(96, 64)
    write_clip(tmp_path / "a.mp4", moving_picture(size, 3), 7)
    shown = pictures_of(tmp_path / "a.mp4")
    assert [picture.shape for picture in shown] == [(64, 96, 3)] * 7
    again = pictures(Size(48, 32), tmp_path / "a.mp4", 5)
    assert [picture.shape for picture in again] == [(32, 48, 3)] * 5
    # H.264 and half the size change the picture far less than the next picture differs from it.
    wanted = [picture[::2, ::2].astype(float) for picture in moving_picture(size, 2)]
    off = [abs(again[0] - picture).mean() for picture in wanted]
    assert off[0] < 12
    assert off[0] < off[1]


def test_a_clip_of_one_frame_is_refused(tmp_path, clip):
    clip(tmp_path / "one.mp4", 1)
    with pytest.raises(SettingsError, match="has only one frame"):
        pictures(Size(32, 32), tmp_path / "one.mp4")


def test_watching_leaves_the_model_as_it_was():
    with torch.device("meta"):
        model = TLBVFI(Bare())
    before = dict(vars(model))
    with watched(TlbvfiMethod(model)) as spent:
        assert "encode" in vars(model)
    assert vars(model) == before
    assert set(spent) == {
        *("encode", "latent", "sampler", "quantizer", "flow", "decode"),
        "other",
    }


def test_a_stage_within_a_stage_counts_once(monkeypatch):
    with torch.device("meta"):
        model = TLBVFI(Bare())
    monkeypatch.setattr(TLBVFI, "encode", lambda self: time.sleep(0.3))
    monkeypatch.setattr(TLBVFI, "decode", lambda self: (time.sleep(0.01), self.encode()))
    with watched(TlbvfiMethod(model)) as spent:
        model.decode()
    assert spent["encode"] >= 0.3
    assert 0.01 <= spent["decode"] < 0.3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux grants more memory than there is")
def test_more_than_the_free_memory_is_an_error_not_a_swap(root):
    code = START.split("from comfyui_tlbvfi.tlbvfi")[0] + (
        "import psutil, torch\n"
        "from comfyui_tlbvfi.tlbvfi.memory import is_out_of_memory\n"
        "from comfyui_tlbvfi.tlbvfi.bench.process import *\n"
        "stop_at_free_memory()\n"
        "try:\n"
        "    torch.empty(2 * psutil.virtual_memory().total, dtype=torch.uint8)\n"
        "except RuntimeError as error:\n"
        "    print(is_out_of_memory(error), peak_resident_bytes())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=True
    )
    known, peak = re.findall(r"(\w+) (\d+)", ended.stdout)[0]
    assert known == "True"
    assert 50e6 < int(peak) < 2e9
