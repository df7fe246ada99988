"""FILM with deterministic stand-in weights, and golden vectors made with the same weights."""

import math
import zlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

STEM = "extract.extract_sublevels.convs.0.0.conv.weight"
OUTPUT = "fuse.output_conv."


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Stand-in for a tensor: a function of its name and shape, scaled so no stage fades out."""
    values = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()))).standard_normal(
        math.prod(shape)
    )
    is_flow = name.startswith("predict_flow.") and "._convs.4." in name
    if name.endswith(".bias"):
        return values.reshape(shape) * (0.01 if is_flow else 0.05) + 0.5 * name.startswith(OUTPUT)
    rows = values.reshape(shape[0], -1)
    scale = 6.0 if name == STEM else 0.35 if is_flow else 0.13 if name.startswith(OUTPUT) else 1.6
    if not is_flow and not name.startswith(OUTPUT):
        rows = rows - rows.mean(axis=1, keepdims=True)  # or brightness would dominate
    return (rows * (scale / math.sqrt(rows.shape[1]))).reshape(shape)


@pytest.fixture(scope="session")
def film_tensors(root) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the published file."""
    lines = (root / "tests/data/film/tensors.txt").read_text().splitlines()
    return {
        name: tuple(int(side) for side in shape.split("x")) for name, shape in map(str.split, lines)
    }


@pytest.fixture(scope="session")
def film_weights(film_tensors) -> dict[str, torch.Tensor]:
    """Stand-in weights, float16 as published."""
    return {
        name: torch.from_numpy(draw(name, shape).astype(np.float16))
        for name, shape in film_tensors.items()
    }


@pytest.fixture(scope="session")
def film_file(film_weights, tmp_path_factory) -> Path:
    """A weights file like the published one."""
    path = tmp_path_factory.mktemp("film") / "film_net_fp16.safetensors"
    save_file(film_weights, path)
    return path


@pytest.fixture(scope="session")
def film(film_file):
    """The network with stand-in weights, float32 on the CPU."""
    from comfyui_tlbvfi.tlbvfi import load_film

    return load_film(film_file)


@pytest.fixture(scope="session")
def golden(root):
    """Golden vectors by case; `even` and `odd` are cut from the complete ones to save space."""
    cases = defaultdict(dict)
    for key, value in load_file(root / "tests/data/film/golden.safetensors").items():
        case, _, name = key.partition("/")
        cases[case][name] = value
    return cases


@pytest.fixture(scope="session")
def complete_golden(test_data):
    """Load the complete vectors of a case."""

    def load(name: str) -> dict[str, torch.Tensor]:
        path = test_data / "film" / "golden" / f"{name}.safetensors"
        if not path.exists():
            pytest.skip(f"complete golden vectors are not here: no {path}")
        return load_file(path)

    return load


@pytest.fixture
def frames():
    """Two smooth frames [1, 3, H, W] in [0, 1]; the second is the first, shifted."""

    def make(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")

        def scene(shift: float) -> torch.Tensor:
            phases = [(x - shift) / 7 + y / (9 + c) for c in range(3)]
            return torch.stack([0.5 + 0.5 * torch.sin(phase) for phase in phases])[None]

        return scene(0.0), scene(4.0)

    return make
