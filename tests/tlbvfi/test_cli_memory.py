"""`--vram` or `--memory` changes how frames are computed, never the frames themselves."""

import json
import time
from fractions import Fraction

import pytest
import torch
from comfyui_tlbvfi.tlbvfi import allocator, job
from comfyui_tlbvfi.tlbvfi.bench.stand_in import write_stand_in
from comfyui_tlbvfi.tlbvfi.cli import build_parser
from comfyui_tlbvfi.tlbvfi.cli.interpolate import method_config
from comfyui_tlbvfi.tlbvfi.errors import InterpolationError, SettingsError
from comfyui_tlbvfi.tlbvfi.methods import MethodConfig
from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import TlbvfiMethod


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "stand_in.safetensors"
    write_stand_in(path)
    return path


@pytest.fixture
def source(clip, tmp_path):
    return clip(tmp_path / "in.mp4", 3, rate=Fraction(25))


@pytest.mark.parametrize(
    ("words", "size"),
    [
        ((), None),
        (("--vram", "4G"), 4_000_000_000),
        (("--memory", "1.5G"), 1_500_000_000),
        (("--memory", "800m"), 800_000_000),
        (("--vram", "123456789"), 123_456_789),
    ],
)
def test_a_budget_of_memory_is_a_size(words, size):
    arguments = build_parser().parse_args(["interpolate", "in.mp4", "out.mp4", *words])
    assert method_config(arguments).memory == size


@pytest.mark.parametrize("text", ["lots", "0", "-1G", "4 GB", ""])
def test_what_is_no_size_is_refused_in_one_sentence(tlbvfi, source, text):
    code, out, err = tlbvfi("interpolate", source, "out.mp4", "--method", "blend", f"--vram={text}")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        f"tlbvfi: A size of {text!r} is not understood: write it like 4G or 800M."
    )


def test_a_chunk_size_that_is_none_is_refused_alike(tlbvfi, source):
    words = ("--method", "blend", "--chunk-size", "huge")
    code, _, err = tlbvfi("interpolate", source, "out.mp4", *words)
    assert code == 1
    assert "A size of 'huge' is not understood" in err


@pytest.mark.parametrize("memory", ["4G", 0, 1.5])
def test_a_budget_is_a_number_of_bytes(memory):
    with pytest.raises(SettingsError, match="memory must be a whole number of bytes above 0, got"):
        MethodConfig(memory=memory)


def test_memory_that_runs_out_is_one_sentence(tlbvfi, source, monkeypatch, tmp_path):
    def out_of_memory(*arguments):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GB.\nDetails")

    monkeypatch.setattr(BlendMethod, "between", out_of_memory)
    code, out, err = tlbvfi("interpolate", source, tmp_path / "out.mp4", "--method", "blend")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == (
        "tlbvfi: out of memory, close other programs or scale the frames down: CUDA out of memory. "
        "Tried to allocate 2 GB."
    )


def test_a_gpu_is_held_to_the_budget_that_a_job_was_given(tlbvfi, source, weights, monkeypatch):
    held = []

    def stop(*arguments, **options):
        raise InterpolationError("stopped before the first frame")

    monkeypatch.setattr(job, "run_job", stop)
    monkeypatch.setattr(allocator, "set_up_memory", lambda *given: held.append(given))
    words = ("--model", weights, "--device", "cpu")
    assert tlbvfi("interpolate", source, "out.mkv", *words)[0] == 1
    assert tlbvfi("interpolate", source, "out.mkv", "--method", "blend", "--vram", "4G")[0] == 1
    assert [budget for budget, *_ in held] == [None]
    assert tlbvfi("interpolate", source, "out.mkv", *words, "--vram", "4G")[0] == 1
    budget, method, height, width = held[-1]
    assert (budget, method.device) == (4_000_000_000, torch.device("cpu"))
    assert (height, width) == (48, 64)
    assert 0 < method.memory_needed(height, width) < budget


@pytest.fixture
def wait_for_chunk(tmp_path):
    """Wait until a session below the folder of the test has committed a chunk."""

    def wait(seconds=10):
        deadline = time.monotonic() + seconds
        while not any(log.stat().st_size for log in tmp_path.rglob("progress.jsonl")):
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


def test_a_job_goes_on_with_another_budget(
    tlbvfi, source, weights, monkeypatch, pictures, wait_for_chunk
):
    """It keeps its session, and makes the frames of a job with one budget throughout."""
    between_many, budgets = TlbvfiMethod.between_many, []

    def interrupted(self, requests):
        budgets.append(self.available)
        if len(budgets) == 2:
            wait_for_chunk()
            raise KeyboardInterrupt
        return between_many(self, requests)

    monkeypatch.setattr(TlbvfiMethod, "between_many", interrupted)
    words = ("--model", weights, "--steps", 1, "--device", "cpu", "--chunk-frames", 1)
    words = (*words, "--flow-scale", 0.125, "--codec", "ffv1", "--json")
    assert tlbvfi("interpolate", source, "out.mkv", *words, "--vram", "4G")[0] == 130
    code, out, _ = tlbvfi("interpolate", source, "out.mkv", *words, "--vram", "900M")
    result = json.loads(out)
    assert code == 0
    assert (result["frames"], result["frames_made"] < 5) == (5, True)
    assert budgets[0] > budgets[-1]
    assert tlbvfi("interpolate", source, "again.mkv", *words)[0] == 0
    assert pictures(source.parent / "out.mkv") == pictures(source.parent / "again.mkv")
