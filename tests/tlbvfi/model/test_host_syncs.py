"""The network queues its work without waiting: no value read back, nothing copied from the CPU.

The tests run on `meta` tensors, which have no values: reading one fails by itself, and transfers
from the CPU are recorded.
"""

import traceback

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.checkpoint import Bare
from comfyui_tlbvfi.tlbvfi.model import TLBVFI, plan_geometry
from comfyui_tlbvfi.tlbvfi.model.bridge import sample_bridge
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

META = torch.device("meta")
FROM_PYTHON = (torch.tensor, torch.as_tensor)


def line_of_the_package():
    """The line of the package that called the current operator."""
    frames = [f for f in traceback.extract_stack() if "/tlbvfi/model/" in f.filename]
    inside = [f for f in frames if "/tests/" not in f.filename]
    return f"{inside[-1].filename}:{inside[-1].lineno}" if inside else "outside"


def tensors(*trees):
    return [leaf for tree in trees for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Crossings(TorchDispatchMode):
    """Records operators that move CPU values to a device. A single number is not a copy."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        given = [x for x in tensors(args, kwargs) if x.device.type == "cpu" and x.ndim]
        if given and any(x.device == META for x in tensors(out)):
            self.lines.append(line_of_the_package())
        return out


class FromPython(TorchFunctionMode):
    """Records tensors made on a device from Python numbers."""

    def __init__(self, lines):
        super().__init__()
        self.lines = lines

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in FROM_PYTHON and torch.device(kwargs.get("device") or "cpu") == META:
            self.lines.append(line_of_the_package())
        return func(*args, **kwargs)


@pytest.fixture
def crossings():
    with Crossings() as noted, FromPython(noted.lines):
        yield noted.lines


@pytest.fixture(scope="module")
def ghost():
    """The network without values."""
    with META:
        return TLBVFI(Bare()).eval().requires_grad_(False)


def test_values_of_the_cpu_and_values_read_back_are_noticed(crossings):
    torch.tensor([1, 2], device=META)
    torch.zeros(3).to(META)
    torch.ones(3, device=META) * torch.tensor(2.0)
    assert crossings == ["outside", "outside"]
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(1, device=META).item()


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_nothing_but_the_sampler_waits_for_the_device(ghost, crossings, scale):
    geometry = plan_geometry(64, 48, flow_scale=scale)
    frame = torch.empty(1, 3, 64, 48, device=META)
    features = [ghost.encode(frame, geometry) for _ in range(2)]
    y = ghost.encode_clip(features[0], ghost.encode_unknown(geometry), features[1])
    latent = ghost.vqgan.quantize(torch.empty_like(y))
    flow = ghost.estimate_flow(*features)
    assert ghost.decode(latent, *features, flow).shape == frame.shape
    assert crossings == []


def test_what_the_sampler_records_does_not_wait(ghost, crossings):
    y = torch.empty(1, 3, 3, 16, 16, device=META)
    noise = torch.empty(2, *y.shape, device=META)
    unet = ghost.denoise_fn
    embeddings = unet.embed([2, 1, 0], META)  # computed once, outside the recording
    crossings.clear()
    context = unet.embed_context(y)
    latent = sample_bridge(lambda x, step: unet(x, context, embeddings[step]), y, 3, list(noise))
    assert latent.shape == y.shape
    assert crossings == []
