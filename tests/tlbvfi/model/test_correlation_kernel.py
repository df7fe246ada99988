"""The Triton kernels against plain PyTorch, in Triton's interpreter: no GPU is needed."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model.correlation_kernel import is_available

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton comes with PyTorch's CUDA builds only"
)

CHILD = """
import sys, torch
from importlib.util import module_from_spec, spec_from_file_location
spec = spec_from_file_location("conftest", sys.argv[1])
spec.loader.exec_module(module_from_spec(spec))
from comfyui_tlbvfi.tlbvfi.model import correlation_kernel
cases = torch.load(sys.argv[2])
torch.save(
    [
        {
            "correlation": correlation_kernel.correlation(
                case["blend"], case["features"], case["flow"], case["start"]
            ),
            "warped": correlation_kernel.warped(
                case["features"], case["flow"], case["start"], case["stop"]
            ),
        }
        for case in cases
    ],
    sys.argv[3],
)
"""


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(flow, channels=64, rows=None, dtype=torch.float32):
    batch, _, height, width = flow.shape
    start, stop = rows or (0, height)
    layout = {"memory_format": torch.channels_last}
    return {
        "blend": drawn(batch, channels, stop - start, width, seed=1).contiguous(**layout),
        "features": drawn(batch, channels, height, width, seed=2).to(dtype).contiguous(**layout),
        "flow": flow,
        "start": start,
        "stop": stop,
    }


def special():
    """Whole pixels, both ends of the image to the last digit, and a little beyond."""
    flow = torch.zeros(1, 2, 7, 8)
    flow[:, 0] = torch.tensor([-1.0, 0, 1, 1 - 2**-24, -(2**-24), 8, -8])[:, None]
    flow[:, 1] = torch.tensor([0.0, 1, -1, 6, -7, 2**-20, 0.5, 1 - 2**-20])
    return flow


CASES = {
    "small": case(drawn(1, 2, 6, 9)),
    "two images of a batch": case(3 * drawn(2, 2, 5, 7)),
    "128 channels": case(2 * drawn(1, 2, 4, 6), channels=128),
    "some rows": case(2 * drawn(1, 2, 9, 5), rows=(3, 7)),
    "far out": case(1e4 * drawn(1, 2, 5, 6)),
    "beyond every integer": case(1e30 * drawn(1, 2, 4, 4)),
    "whole pixels and borders": case(special()),
    "one half of a flow of four channels": case(drawn(2, 4, 5, 6).split(2, dim=1)[1]),
    "smallest image": case(drawn(1, 2, 2, 2)),
    "bfloat16 features": case(2 * drawn(1, 2, 4, 6), dtype=torch.bfloat16),
    "zero features": case(drawn(1, 2, 4, 4)) | {"features": torch.zeros(1, 64, 4, 4)},
}


@pytest.fixture(scope="module")
def interpreted(root, tmp_path_factory):
    """What the kernels gave for every case, in a process that has Triton interpret them."""
    folder = tmp_path_factory.mktemp("triton")
    torch.save(list(CASES.values()), folder / "cases.pt")
    files = [root / "tests/conftest.py", folder / "cases.pt", folder / "found.pt"]
    command = [sys.executable, "-c", CHILD, *files]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "1"}, timeout=300)
    return dict(zip(CASES, torch.load(folder / "found.pt"), strict=True))


def plain(blend, features, flow, start, stop):
    """(correlation, warped) as the model's description says, in float64."""
    features, flow = features.double(), flow.double()[:, :, start:stop]
    height, width = features.shape[-2:]
    column, x = split(flow[:, 0] + torch.arange(width), width)
    row, y = split(flow[:, 1] + torch.arange(start, stop)[:, None], height)
    padded = torch.nn.functional.pad(features, (1, 1, 1, 1))

    def at(down, right):
        rows, columns = row + 1 + down, column + 1 + right
        return torch.stack([p[:, r, c] for p, r, c in zip(padded, rows, columns, strict=True)])

    def seen(dy, dx):
        above = torch.lerp(at(dy, dx), at(dy, dx + 1), x)
        return torch.lerp(above, torch.lerp(at(dy + 1, dx), at(dy + 1, dx + 1), x), y)

    neighbors = [seen(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    unit = normed(blend.double())
    return torch.stack([(normed(n) * unit).sum(dim=1) for n in neighbors], dim=1), neighbors[4]


def split(position, size):
    """The pixel before a position clamped to the image, and the fraction [B, 1, h, W] beyond it."""
    position = position.clamp(0, size - 1)
    before = position.floor().clamp(max=size - 2)
    return before.long(), (position - before)[:, None]


def normed(x):
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_kernels_equal_plain_pytorch(interpreted, name):
    wanted, seen = plain(**CASES[name])
    found = interpreted[name]
    assert found["correlation"].shape == wanted.shape
    assert (found["correlation"] - wanted).abs().max() < 1e-6
    assert found["warped"].dtype == CASES[name]["features"].dtype
    assert torch.isfinite(found["warped"]).all()
    exactness = 2e-6 if found["warped"].dtype == torch.float32 else 2e-2
    assert (found["warped"].float() - seen).abs().max() < exactness


@needs_triton
def test_whole_pixels_are_moved_exactly(interpreted):
    example = CASES["whole pixels and borders"]
    wanted = plain(**example)[1]
    exact = (example["flow"].frac() == 0).all(dim=1)[:, None].expand_as(wanted)
    assert exact.any()
    assert torch.equal(
        interpreted["whole pixels and borders"]["warped"][exact], wanted[exact].float()
    )


def test_there_are_no_kernels_for_a_cpu():
    assert not is_available(torch.device("cpu"))
