"""The model with deterministic stand-in weights, and golden vectors made with the same weights."""

import json
import os
import subprocess
import sys

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.bench.report import run_tasks
from comfyui_tlbvfi.tlbvfi.bench.stand_in import stand_in_weights, write_stand_in
from comfyui_tlbvfi.tlbvfi.bench.tasks import Task
from comfyui_tlbvfi.tlbvfi.checkpoint import Bare
from comfyui_tlbvfi.tlbvfi.methods import MethodConfig
from comfyui_tlbvfi.tlbvfi.model import TLBVFI, FrameFeatures
from comfyui_tlbvfi.tlbvfi.model.memory import WHOLE
from comfyui_tlbvfi.tlbvfi.model.tlbvfi import FLOW_LEVELS, LEVELS, FlowFeatures, pad_frame
from safetensors import safe_open
from safetensors.torch import load_file
from torch.nn import functional as F

RUN_KERNELS = """
import sys, torch
from inspect import isgenerator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("conftest", sys.argv[1])
spec.loader.exec_module(module_from_spec(spec))
def call(module, function, arguments):
    package = import_module("comfyui_tlbvfi.tlbvfi.model." + module)
    found = getattr(package, function)(**arguments)
    found = list(found) if isgenerator(found) else found
    return arguments if found is None else found
calls = torch.load(sys.argv[2], weights_only=False, map_location=sys.argv[4])
torch.save([call(*asked) for asked in calls], sys.argv[3])
"""


ON_GPU = [pytest.param("cuda", marks=pytest.mark.gpu)] if torch.cuda.is_available() else []


@pytest.fixture(scope="session", params=["cpu", *ON_GPU])
def device(request):
    """Where kernels run: on a CPU Triton interprets them; on a GPU, if there is one, for real."""
    return request.param


@pytest.fixture(scope="session")
def run_kernels(root, tmp_path_factory, device):
    """Results, on the CPU, of calls {name: (module, function, arguments)} that run kernels.

    They run in their own process. Where a function returns nothing, the result is its arguments.
    """

    def run(calls, timeout=300):
        folder = tmp_path_factory.mktemp("triton")
        torch.save(list(calls.values()), folder / "calls.pt")
        files = [root / "tests/conftest.py", folder / "calls.pt", folder / "found.pt"]
        command = [sys.executable, "-c", RUN_KERNELS, *files, device]
        environment = {**os.environ, "TRITON_INTERPRET": "1" if device == "cpu" else "0"}
        subprocess.run(command, check=True, env=environment, timeout=timeout)
        found = torch.load(folder / "found.pt", map_location="cpu", weights_only=True)
        return dict(zip(calls, found, strict=True))

    return run


@pytest.fixture(scope="session")
def stand_in_state(root):
    """Every tensor of the official file except the schedule, as a dict."""
    rows = map(str.split, (root / "tests/data/tlbvfi_keys.txt").read_text().splitlines())
    return stand_in_weights({name: tuple(map(int, sides)) for name, *sides in rows})


@pytest.fixture(scope="session")
def model(stand_in_state):
    """The network with stand-in weights, float32 on the CPU."""
    network = TLBVFI(Bare()).eval().requires_grad_(False)
    network.load_state_dict({name: stand_in_state[name] for name in network.state_dict()})
    return network


@pytest.fixture
def sketch(model, monkeypatch):
    """The network with only its sampler: the other stages are simple arithmetic on their inputs.

    For tests of the code around the network. A mid frame shows its pair, the order of the pair's
    frames, the noise, and how many pairs were computed at once.
    """

    def encode(frame, geometry, plan=WHOLE):
        padded = pad_frame(frame, geometry)
        canvas = F.adaptive_avg_pool2d(padded[:, :3], geometry.latent)
        flow = None
        if plan.keeps_flow_features:
            flow = FlowFeatures(canvas=canvas, features=[canvas] * (1 + FLOW_LEVELS))
        return FrameFeatures(
            geometry=geometry, frame=padded, levels=[2 * canvas - 1] * LEVELS, flow=flow
        )

    def encode_unknown(geometry, plan=WHOLE):
        return torch.zeros(1, 3, *geometry.latent)

    def estimate_flow(features0, features1, plan=WHOLE):
        return features0.levels[0] - 2 * features1.levels[0]

    def encode_clip(features0, unknown, features1, plan=WHOLE):
        deepest = (features0.levels[0], features1.levels[0])
        return torch.stack([deepest[0], unknown.expand_as(deepest[0]), deepest[1]], dim=2)

    def decode(latent, features0, features1, flow, plan=WHOLE):
        geometry = features0.geometry
        made = F.interpolate(latent.mean(dim=2) + flow, size=features0.frame.shape[-2:])
        between = torch.lerp(features1.frame, features0.frame, 0.6)
        between[:, :3] += 0.01 * made + 1e-6 * len(latent)
        return between[:, :, : geometry.height, : geometry.width]

    for stage in (encode, encode_unknown, estimate_flow, encode_clip, decode):
        monkeypatch.setattr(model, stage.__name__, stage)
    return model


@pytest.fixture(scope="session")
def golden_folders(root, test_data):
    """Folders of golden files, the complete ones first."""
    return [test_data / "tlbvfi/golden", root / "tests/data/golden"]


@pytest.fixture(scope="session")
def golden_with_rules(golden_folders):
    """Load a golden file by name: (tensors, how each was sliced); skips if it is missing."""

    def load(name):
        for path in (folder / f"{name}.safetensors" for folder in golden_folders):
            if path.is_file():
                with safe_open(path, framework="pt") as file:
                    rules = json.loads((file.metadata() or {}).get("rules", "{}"))
                return load_file(path), rules
        pytest.skip(f"{name} is only in the folder that TLBVFI_TEST_DATA names")

    return load


@pytest.fixture(scope="session")
def golden(golden_with_rules):
    """Load the tensors of a golden file by name."""
    return lambda name: golden_with_rules(name)[0]


@pytest.fixture(scope="session")
def frames_of():
    """The frames of a golden file, [1, 3, H, W] in [0, 1]."""

    def convert(vectors):
        return [vectors[k].permute(0, 3, 1, 2).float() / 255 for k in ("frame0", "frame1")]

    return convert


@pytest.fixture
def measured(tmp_path):
    """Measure mid frames on the CPU in a separate process, with stand-in weights."""

    def measure(size, pairs, **options):
        weights = tmp_path / "weights.safetensors"
        write_stand_in(weights)
        method = MethodConfig(model=weights, device="cpu", **options)
        (found,) = run_tasks(
            Task(kind="model", folder=tmp_path, method=method, threads=2, size=size, pairs=pairs)
        )
        return found

    return measure


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield
