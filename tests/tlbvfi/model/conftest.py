"""The model with deterministic stand-in weights, and golden vectors made with the same weights."""

import os
from importlib.util import module_from_spec, spec_from_file_location

import pytest
import torch
from safetensors.torch import load_file


@pytest.fixture(scope="session")
def weights_module(root):
    """benchmarks/model_weights.py."""
    path = root / "benchmarks/model_weights.py"
    spec = spec_from_file_location("model_weights", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def stand_in_state(weights_module):
    """Every tensor of the official file but the schedule, as a dict."""
    return weights_module.stand_in_weights(weights_module.read_shapes(weights_module.KEY_LIST))


@pytest.fixture(scope="session")
def model(stand_in_state):
    """The network with stand-in weights, float32 on the CPU."""
    from comfyui_tlbvfi.tlbvfi.model import TLBVFI

    network = TLBVFI().eval().requires_grad_(False)
    network.load_state_dict({name: stand_in_state[name] for name in network.state_dict()})
    return network


@pytest.fixture(scope="session")
def golden(root):
    """Loader of a golden file by name: the one in the repository, else the one in the test data."""
    data = os.environ.get("TLBVFI_TEST_DATA", root.parent / "shared")
    folders = [root / "tests/data/golden", root.joinpath(data) / "tlbvfi/golden"]

    def load(name):
        for folder in folders:
            if (folder / f"{name}.safetensors").is_file():
                return load_file(folder / f"{name}.safetensors")
        pytest.skip(f"{name} is not in the folder that TLBVFI_TEST_DATA names")

    return load


@pytest.fixture
def frames():
    """The frames of a golden file, [1, 3, H, W] in [0, 1]."""

    def convert(vectors):
        return [vectors[k].permute(0, 3, 1, 2).float() / 255 for k in ("frame0", "frame1")]

    return convert


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield
