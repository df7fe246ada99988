"""The sampler in Triton kernels against the network; without a GPU in Triton's interpreter."""

from importlib.util import find_spec

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model import fused_unet, split
from comfyui_tlbvfi.tlbvfi.model.bridge import bridge_step, sample_bridge, step_list
from torch import nn

CPU = torch.device("cpu")
STEPS = 2

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton comes with PyTorch's CUDA builds only"
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def unet():
    return fused_unet.example_network(CPU)


@pytest.fixture(scope="module")
def modulations(unet):
    return unet.embed(step_list(STEPS), CPU)


def sampled(unet, y, noise, modulations):
    """The network's result in float64."""
    unet, y, modulations = unet.double(), y.double(), modulations.double()
    context = unet.embed_context(y)
    found = sample_bridge(
        lambda x, step: unet(x, context, modulations[step]), y, len(modulations), noise.double()
    )
    unet.float()
    return found


def walked(run_kernels, unet, y, noise, modulations, **options):
    arguments = {
        "unet": unet,
        "y": y,
        "noise": noise,
        "modulations": modulations,
        "packed": fused_unet.pack(unet, CPU),
        **options,
    }
    return run_kernels({"walk": ("fused_unet", "walk_bridge", arguments)}, timeout=900)["walk"]


@needs_triton
def test_kernels_find_the_clean_latent_as_the_network_does(run_kernels, unet, modulations):
    y = drawn(1, 3, 3, 4, 12, seed=100)  # no whole squares at any of its three sizes
    last, none = modulations[-1:], torch.empty(0, *y.shape)
    found = walked(run_kernels, unet, y, none, last, few_pixels=y[0, 0].numel())
    wanted = sampled(unet, y, none, last)
    assert found.shape == y.shape
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


@needs_triton
@pytest.mark.slow
def test_kernels_walk_the_bridge_as_the_network_does(run_kernels, unet, modulations):
    y = drawn(2, 3, 3, 8, 12, seed=100)
    y[1] += 5
    noise = drawn(STEPS - 1, *y.shape, seed=101)
    found = walked(run_kernels, unet, y, noise, modulations)
    wanted = sampled(unet, y, noise, modulations)
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


@needs_triton
@pytest.mark.parametrize("has_noise", [True, False])
def test_a_step_of_the_bridge_is_one_kernel(run_kernels, has_noise):
    x, offset, end, noise = drawn(4, 2, 3, 3, 8, 12, seed=104)
    weights = bridge_step(500, 400)
    state = {"x": x, "offset": offset, "end": end, "noise": noise if has_noise else None}
    found = run_kernels({"step": ("fused_unet", "step_along", {"weights": weights, **state})})[
        "step"
    ]
    wanted = weights.clean * (x - offset) + weights.end * end + weights.state * x
    wanted += weights.noise * noise if has_noise else 0
    assert torch.allclose(found, wanted, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("size", [(8, 12), (48, 64), (80, 128)])
def test_on_a_gpu_kernels_walk_large_latents_as_the_network_does(unet, modulations, size):
    y, noise = drawn(1, 3, 3, *size, seed=102), drawn(STEPS - 1, 1, 3, 3, *size, seed=103)
    device = torch.device("cuda")
    if not fused_unet.is_available(device):
        pytest.skip("no kernels for this GPU")
    wanted = sampled(unet, y, noise, modulations)
    packed = fused_unet.pack(unet, device)
    unet.to(device)
    found = fused_unet.walk_bridge(unet, y.cuda(), noise.cuda(), modulations.cuda(), packed)
    again = fused_unet.walk_bridge(unet, y.cuda(), noise.cuda(), modulations.cuda(), packed)
    unet.to(CPU)
    assert torch.equal(found, again)
    assert (found.cpu() - wanted).abs().max() < 2e-5 * wanted.abs().max()


def test_what_was_packed_is_every_convolution(unet):
    unpacked = fused_unet.unpack(unet, fused_unet.pack(unet, CPU))
    convolutions = [
        name for name, layer in unet.named_modules() if isinstance(layer, (nn.Conv1d, nn.Conv3d))
    ]
    assert set(unpacked) == {*convolutions, "context"}
    weight = unet.get_submodule("output_blocks.0.0").in_layers["2"].weight
    factors = unpacked["output_blocks.0.0.in_layers.2"]
    found = factors.large.double() + factors.small.double() / split.SMALLER
    tap = found.view(27, 64, 32)[5]
    assert (tap - weight[:, :, 0, 1, 2].T).abs().max() < 2**-21 * weight.abs().max()


def test_channels_that_lack_are_zero(unet):
    factors = fused_unet.unpack(unet, fused_unet.pack(unet, CPU))
    first, last = factors["input_blocks.0.0"].large, factors["out.2"].large
    assert first.shape == last.shape == (27 * 32, 32)
    assert first.view(27, 32, 32)[:, :3].any()
    assert not first.view(27, 32, 32)[:, 3:].any()
    assert last[:, :3].any()
    assert not last[:, 3:].any()
