"""`tlbvfi bench`: one real run at the smallest size; the other tests fake the measurements."""

import json
import re

import pytest
from comfyui_tlbvfi.tlbvfi import device
from comfyui_tlbvfi.tlbvfi.bench import report
from comfyui_tlbvfi.tlbvfi.bench.figures import STAGES

MACHINE = {
    "cpu": "a CPU",
    "threads": 2,
    "torch": "2.9",
    "device": "cpu",
    "matmul_tflops": {"float32": 2.0},
}
MODEL = {
    "ms": 500.0,
    "cpu_ms": 900.0,
    "pairs": 3,
    "peak_bytes": 1_500_000_000,
    "idle_bytes": 300_000_000,
    "predicted_bytes": 1_100_000_000,
    "stages_ms": {**dict.fromkeys(STAGES, 80.0), "other": 20.0},
    "stages_gflop": dict.fromkeys(STAGES, 50.0),
    "gpu_busy": None,
}
BASELINE = {
    "ms": 1500.0,
    "cpu_ms": 2900.0,
    "peak_bytes": 3_000_000_000,
    "largest_difference": 3.5e-6,
    "psnr": 118.0,
    "ms_torch_defaults": None,
}
JOB = {
    "pairs": 20,
    "mid_frames": 20,
    "frames": 41,
    "seconds": 12.5,
    "model_ms": 500.0,
    "decode_ms": 3.0,
    "encode_ms": 9.0,
    "peak_bytes": 1_600_000_000,
    "encoder": "libx264",
}
FOUND = {
    "machine": MACHINE,
    "weights": {},
    "model": MODEL,
    "baseline": BASELINE,
    "clip": {},
    "job": JOB,
}


@pytest.fixture
def pretend(monkeypatch):
    """Replace every measurement with fixed values; `changes` overrides them by (kind, size)."""

    def replace(changes=None):
        asked = []

        def run_tasks(*tasks):
            results = []
            for task in tasks:
                asked.append(task)
                found = (changes or {}).get((task.kind, str(task.size)), FOUND[task.kind])
                if isinstance(found, BaseException):
                    raise found
                results.append(found)
                if "problem" in found:
                    break
            return results

        monkeypatch.setattr(report, "run_tasks", run_tasks)
        monkeypatch.setattr(report, "installed_model", lambda config: None)
        return asked

    return replace


def table(out, name):
    """Cells by size of the table that begins with `name`."""
    lines = out[out.index(f"\n{name}  ") :].split("\n\n")[0].strip().splitlines()
    return {line.split()[0]: re.split(r" {2,}", line)[1:] for line in lines[1:]}


@pytest.fixture
def one_pair_jobs(monkeypatch):
    """Make jobs as short as possible."""
    monkeypatch.setattr(report, "JOB_PAIRS", (1, 1))


def test_a_real_run_measures_everything(tlbvfi, one_pair_jobs, monkeypatch, tmp_path):
    monkeypatch.setenv("TLBVFI_MODELS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    words = "--sizes 64x48 --pairs 1 --steps 1 --device cpu --threads 1 --baseline --json"
    code, out, err = tlbvfi("bench", *words.split())
    assert code == 0
    found = json.loads(out)
    assert found["stand_in_weights"]
    assert found["machine"]["threads"] == 1
    assert found["machine"]["matmul_tflops"]["float32"] > 0
    assert found["command"][:2] == ["tlbvfi", "bench"]
    (row,) = found["rows"]
    assert row["problems"] == {}
    model, job, baseline = row["model"], row["job"], row["baseline"]
    assert all(model["stages_ms"][stage] > 0 for stage in STAGES)
    assert sum(model["shares"].values()) == pytest.approx(1)
    assert 200e6 < model["idle_bytes"] < model["peak_bytes"]
    assert model["tflops"] == pytest.approx(sum(model["stages_gflop"].values()) / model["ms"])
    assert baseline["largest_difference"] < 5e-5
    assert baseline["psnr"] > 80
    assert row["times_faster"] == pytest.approx(baseline["ms"] / model["ms"])
    assert (job["pairs"], job["mid_frames"], job["frames"]) == (1, 1, 3)
    assert job["limit"] == "model"
    assert "64x48: a clip and a job from file to file" in err


def test_tables_tell_the_figures_of_every_size(tlbvfi, pretend):
    asked = pretend()
    code, out, _ = tlbvfi("bench", "--sizes", "256,512x512", "--baseline")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "TLB-VFI on a CPU, 2 threads; torch 2.9"
    assert "stand-in weights" in lines[1]
    row = "512x512"
    assert table(out, "model")[row] == ["500.0", "2", "1.50 GB", "0.6", "30 %"]
    assert table(out, "stages")[row] == [*["16 %"] * 6, "4 %", "80.0", "-"]
    assert table(out, "file to file")[row][:3] == ["3.28", "80 %", "model"]
    assert table(out, "baseline")[row][:3] == ["1500.0", "3.00", "3.22"]
    assert [task.kind for task in asked if str(task.size) == "512x512"] == [
        *("model", "baseline", "clip", "job")
    ]


def test_aims_are_judged_where_they_were_measured(tlbvfi, pretend):
    pretend()
    words = ("--sizes", "256,512x512,1536x1024", "--baseline", "--memory", "1.6G")
    _, out, _ = tlbvfi("bench", *words)
    lines = out[out.index("aim ") :].splitlines()[1:]
    assert [line.split()[-1] for line in lines] == ["pass", "pass"]
    assert re.split(" {2,}", lines[0]) == [
        *("faster than the baseline", "512x512", "3 x", "at least 2.2 x", "pass")
    ]
    _, out, _ = tlbvfi("bench", "--sizes", "256")
    assert "aim " not in out


@pytest.mark.parametrize("words", [(), ("--memory", "2G")])
def test_a_peak_is_judged_only_where_the_budget_asks_for_it(tlbvfi, pretend, words):
    pretend()
    _, out, _ = tlbvfi("bench", "--sizes", "1536x1024", *words)
    assert "aim " not in out


def test_the_budget_is_told_and_reaches_every_process(tlbvfi, pretend):
    asked = pretend()
    code, out, _ = tlbvfi("bench", "--sizes", "256", "--vram", "1.5G")
    assert code == 0
    assert "within 1.50 GB" in out.splitlines()[1]
    assert {task.method.memory for task in asked} == {1_500_000_000}


def test_a_gpu_is_judged_by_the_aims_for_gpus(tlbvfi, pretend):
    gpu = {**MACHINE, "gpu": "a GPU", "device": "cuda", "matmul_tflops": {"bfloat16": 300.0}}
    model = {**MODEL, "gpu_busy": 0.93, "peak_bytes": 4_400_000_000}
    pretend(
        {
            ("machine", "1920x1080"): gpu,
            ("model", "1920x1080"): model,
            ("model", "3840x2160"): model,
        }
    )
    words = ("--sizes", "1080,2160", "--precision", "bfloat16", "--vram", "4G", "--baseline")
    found = json.loads(tlbvfi("bench", *words, "--json")[1])
    judged = {(aim["text"], aim["size"]): aim["passed"] for aim in found["aims"]}
    assert judged == {
        ("faster than the baseline", "1920x1080"): False,
        ("last frame against float32", "1920x1080"): True,
        ("job at the model's own rate", "1920x1080"): False,
        ("sampler", "1920x1080"): False,
        ("GPU busy", "1920x1080"): True,
        ("job at the model's own rate", "3840x2160"): False,
        ("peak memory", "3840x2160"): False,
    }


def test_all_aims_of_a_device_are_measured_by_one_command(tlbvfi, pretend):
    asked = pretend()
    code, out, err = tlbvfi("bench", "--aims", "--device", "cpu", "--json")
    assert code == 0
    found = [json.loads(line) for line in out.splitlines() if line]
    assert [[aim["text"] for aim in run["aims"]] for run in found] == [
        ["faster than the baseline"],
        ["peak memory"],
    ]
    assert "--aims" not in found[0]["command"]
    assert err.splitlines()[-1] == "tlbvfi: every aim is reached"
    assert {str(task.size) for task in asked} == {"512x512", "1536x1024"}


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--sizes", "64"), "--sizes"),
        (("--memory", "4G", "--pairs", "3"), "--memory and --pairs"),
    ],
)
def test_what_the_aims_set_themselves_is_refused(tlbvfi, pretend, words, named):
    asked = pretend()
    code, out, err = tlbvfi("bench", "--aims", "--device", "cpu", *words)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"--aims sets {named} by itself" in err
    assert not asked


@pytest.mark.parametrize("figure", [{"peak_bytes": 2_000_000_000}, {"problem": "out of memory"}])
def test_an_aim_that_is_missed_or_not_measured_is_exit_code_1(tlbvfi, pretend, figure):
    found = figure if "problem" in figure else {**MODEL, **figure}
    pretend({("model", "1536x1024"): found})
    code, _, err = tlbvfi("bench", "--aims", "--device", "cpu")
    assert code == 1
    assert err.splitlines()[-1] == "tlbvfi: not every aim is reached"


def test_the_runs_for_gpus_measure_every_aim_for_gpus(tlbvfi, pretend, monkeypatch):
    gpu = {**MACHINE, "gpu": "a GPU", "device": "cuda"}
    gpu["matmul_tflops"] = dict.fromkeys(("float32", "bfloat16", "float16"), 300.0)
    stages = {**MODEL["stages_ms"], "sampler": 2.0}
    model = {**MODEL, "ms": 100.0, "gpu_busy": 0.93, "peak_bytes": 3_400_000_000}
    model["stages_ms"] = stages
    job = {**JOB, "seconds": 10.5}
    sizes = ("1920x1080", "3840x2160", "7680x4320")
    changes = {
        (kind, size): found for size in sizes for kind, found in (("model", model), ("job", job))
    }
    changes |= {("machine", size): gpu for size in sizes}
    asked = pretend(changes)
    monkeypatch.setattr(device, "device_type", lambda name: "cuda")
    code, _, err = tlbvfi("bench", "--aims")
    assert (code, err.splitlines()[-1]) == (0, "tlbvfi: every aim is reached")
    runs = {(task.method.precision, task.method.memory) for task in asked}
    assert runs == {
        ("float16", None),
        ("bfloat16", 4_000_000_000),
        ("float32", 7_000_000_000),
        ("bfloat16", 12_000_000_000),
    }
    assert {str(task.size) for task in asked if task.kind == "baseline"} == {"1920x1080"}


def test_out_of_memory_at_one_size_leaves_the_others(tlbvfi, pretend):
    full = {"problem": "out of memory"}
    asked = pretend({("model", "1280x720"): full, ("baseline", "910x512"): full})
    code, out, _ = tlbvfi("bench", "--sizes", "720,512", "--baseline")
    assert code == 0
    assert "1280x720: model: out of memory" in out.splitlines()
    assert "910x512: baseline: out of memory" in out.splitlines()
    assert [str(task.size) for task in asked if task.kind == "job"] == ["910x512"]


def test_ctrl_c_prints_what_was_measured(tlbvfi, pretend):
    pretend({("model", "1280x720"): KeyboardInterrupt()})
    code, out, _ = tlbvfi("bench", "--sizes", "512,720")
    assert code == 130
    assert "910x512" in out
    assert "1280x720" not in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--sizes", "big"), "sizes are heights or WIDTHxHEIGHT"),
        (("--model", "nothing.pth"), "There is no tlbvfi model at nothing.pth"),
        (("--sizes", "256", "--device", "cuda:9"), "The device cuda:9 cannot be used here"),
        (("--sizes", "256", "--pairs", "0"), "pairs must be at least 1"),
        (("--sizes", "256", "--threads", "0"), "threads must be at least 1"),
        (("--sizes", "256", "--threads", "99999999999"), "threads must be at most 1024"),
        (("--sizes", "256", "--vram", "4 apples"), "A size of '4 apples' is not understood"),
    ],
)
def test_mistakes_are_one_sentence(tlbvfi, words, said):
    code, out, err = tlbvfi("bench", *words)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith(f"tlbvfi: {said}")


@pytest.mark.parametrize(
    ("frames", "message"), [(None, "nope.mp4 does not exist"), (1, "nope.mp4 has only one frame")]
)
def test_a_clip_that_cannot_serve_is_told_before_anything_is_measured(
    tlbvfi, pretend, clip, tmp_path, frames, message
):
    asked = pretend()
    if frames is not None:
        clip(tmp_path / "nope.mp4", frames)
    code, out, err = tlbvfi("bench", "--sizes", "256", "--clip", "nope.mp4")
    assert (code, out, asked) == (1, "", [])
    assert message in err
