"""GPUs of Apple and Intel, and DirectML, are asked only for what PyTorch has there.

Run on tensors without values, on a device that is said to lack what those do.
"""

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.device import is_complete
from comfyui_tlbvfi.tlbvfi.model import (
    TLBVFI,
    layers,
    lookup,
    norm,
    plan_geometry,
    plan_memory,
    warp,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Asked(TorchDispatchMode):
    """Records what operators are called with, and the number types of all results."""

    def __init__(self):
        super().__init__()
        self.arguments = {}
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.arguments.setdefault(func.overloadpacket.__name__, []).append(args)
        tensors = (x for x in tree_leaves(result) if isinstance(x, torch.Tensor))
        self.dtypes |= {x.dtype for x in tensors if x.is_meta}
        return result


@pytest.fixture(scope="module")
def asked():
    geometry = plan_geometry(60, 100, flow_scale=0.5, padding="tight")
    plan = plan_memory(geometry, device="mps")
    with pytest.MonkeyPatch.context() as patch, torch.device("meta"), torch.no_grad():
        for module in (layers, lookup, norm, warp):
            patch.setattr(module, "is_complete", lambda device: False)
        model = TLBVFI().eval()
        frame = torch.empty(1, 3, 60, 100)
        noise = torch.empty(0, 1, 3, 3, *geometry.latent)
        with Asked() as asked:
            features = model.encode(frame, geometry, plan)
            unknown = model.encode_unknown(geometry, plan)
            model(features, unknown, features, 1, noise, plan)
    return asked


@pytest.mark.parametrize("name", ["mps", "xpu:0", "privateuseone:0"])
def test_gpus_of_others_than_nvidia_and_amd_lack_something(name):
    assert not is_complete(torch.device(name))


def test_all_numbers_have_types_that_every_gpu_has(asked):
    """Not float64, which the GPUs of Apple and Intel's Arc A lack."""
    assert asked.dtypes == {torch.float32, torch.int64, torch.bool}


def test_no_operator_is_used_that_apple_s_gpus_lack(asked):
    """In PyTorch 2.4, of which the others have kernels in its native_functions.yaml."""
    lacking = {"_embedding_bag", "_embedding_bag_forward_only", "avg_pool3d"}
    assert not lacking & set(asked.arguments)


def test_warps_need_no_padding_with_the_border(asked):
    """Which PyTorch before 2.13 refuses on Apple's GPUs."""
    warps = asked.arguments["grid_sampler_2d"]
    assert warps
    assert {mode for _, _, _, mode, _ in warps} == {0}


def test_without_that_padding_a_warp_gives_the_same_bits(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(2, 3, 37, 53, generator=generator)
    flow = 30 * torch.randn(2, 2, 37, 53, generator=generator)
    wanted = warp.warp(image, flow)
    monkeypatch.setattr(warp, "is_complete", lambda device: False)
    assert torch.equal(warp.warp(image, flow), wanted)


def test_attention_in_parts_equals_that_of_all_queries(monkeypatch):
    q, k, v = torch.randn(3, 2, 50, 16, generator=torch.Generator().manual_seed(1))
    whole = layers.attend(q, k, v)
    monkeypatch.setattr(layers, "is_complete", lambda device: False)
    monkeypatch.setattr(layers, "ATTENTION_WEIGHTS", 2 * 50 * 7)
    assert torch.allclose(layers.attend(q, k, v), whole, atol=1e-6)
