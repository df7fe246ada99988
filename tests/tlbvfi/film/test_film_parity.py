"""FILM against vectors made by another implementation with the same stand-in weights.

Tolerances are about ten times the float32 noise, measured against a float64 run.
"""

import zlib

import pytest
import torch
import torch.nn.functional as F
from comfyui_tlbvfi.tlbvfi import load_film
from comfyui_tlbvfi.tlbvfi.film import layers, network
from torch import nn

TOLERANCE = {
    "feat0": 5e-5,
    "feat1": 5e-5,
    "residual_fwd": 2e-4,
    "residual_bwd": 2e-4,
    "flow_fwd": 5e-4,
    "flow_bwd": 5e-4,
    "G": 5e-4,
    "decoder": 5e-4,
}


def assert_near(found, wanted, tolerance, what=""):
    assert found.shape == wanted.shape, what
    error = (found.float() - wanted.float()).abs().max().item()
    assert error <= tolerance, f"{what}: off by {error:.2e}"


def images(case):
    return [case[f"img{i}_u8"].float() / 255 for i in (0, 1)]


def stages(film, case) -> dict[str, torch.Tensor]:
    """The result of every stage of the network, named like the vectors."""
    features = [film.features(image) for image in images(case)]
    found = {}
    for i, f in enumerate(features):
        found |= {f"feat{i}.{level}": x for level, x in enumerate(f.maps)}
    for name, (a, b) in {"fwd": (0, 1), "bwd": (1, 0)}.items():
        flows = film.predict_flow(features[a].maps, features[b].maps)
        found |= {f"flow_{name}.{level}": x for level, x in enumerate(flows)}
        found[f"residual_{name}.6"] = flows[6]
        for level, flow in enumerate(flows[:6]):
            coarse = layers.upscale_flow(flows[level + 1], flow.shape[-2:])
            found[f"residual_{name}.{level}"] = flow - coarse
    pair = network.AlignedPair(
        features0=features[0],
        features1=features[1],
        flows=film.flows(*features),
        t=case["stage_t"][0].float(),
    )
    found |= {f"G.{level}": pair.fill(pair.stack(level), level) for level in range(5)}
    net = found["G.4"]
    for level, (widen, mix, refine) in zip((3, 2, 1, 0), film.fuse.convs, strict=True):
        net = widen(layers.upscale_nearest(net, pair.size(level)))
        net = refine(mix(torch.cat([found[f"G.{level}"], net], dim=1)))
        found[f"decoder.{level}"] = net
    return found


def check_stages(film, case):
    found = stages(film, case)
    compared = 0
    for key, wanted in case.items():
        kind, _, level = key.partition(".")
        if kind not in TOLERANCE:
            continue
        value = found[key]
        channels = case.get(f"{kind.rstrip('01')}_channels.{level}")
        value = value if channels is None else value[:, channels]
        assert_near(value, wanted, TOLERANCE[kind], key)
        compared += 1
    assert compared


def check_frames(film, case):
    step = int(case.get("frames_step", 1))
    found = film(*images(case), case["timesteps"].tolist())
    assert len(found) == len(case["frames"])
    for frame, wanted in zip(found, case["frames"], strict=True):
        assert_near(frame[0, :, ::step, ::step], wanted, 1e-4, "frame")


def test_stand_in_weights_are_those_the_vectors_were_made_with(film_weights):
    crc = 0
    for name in sorted(film_weights):
        crc = zlib.crc32(film_weights[name].numpy().tobytes(), crc)
    assert f"{crc:08x}" == "211f1e25"


@torch.no_grad()
def test_stages_equal_the_reference(film, golden):
    check_stages(film, golden["odd"])


@pytest.mark.parametrize("case", ["even", "odd"])
def test_frames_equal_the_reference(film, golden, case):
    check_frames(film, golden[case])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["even_128x192", "odd_150x202"])
@torch.no_grad()
def test_everything_equals_the_reference_on_the_complete_vectors(film, complete_golden, name):
    case = complete_golden(name)
    check_stages(film, case)
    check_frames(film, case)


class HalfConv2d(nn.Conv2d):
    """Half-precision convolution as on GPUs, summed in float32; the CPU's own takes minutes."""

    def forward(self, input):
        assert input.dtype == self.weight.dtype == torch.float16
        weight, bias = self.weight.float(), self.bias.float()
        return F.conv2d(input.float(), weight, bias, padding=self.padding).half()


def check_half(film, case):
    step = int(case.get("frames_step", 1))
    (frame,) = film(*images(case), case["timesteps"][-1:].tolist())
    assert frame.dtype == torch.float16
    frame = frame[..., ::step, ::step].float()
    for wanted in (case["frames"][-1:], case["frames_fp16_last_t"].float()):
        assert_near(frame, wanted, 2e-2, "float16 frame")
        assert (frame - wanted).abs().mean() <= 2e-3


def test_float16_stays_near_the_reference(film_file, golden, monkeypatch):
    monkeypatch.setattr(nn, "Conv2d", HalfConv2d)
    check_half(load_film(film_file, dtype=torch.float16), golden["even"])


@pytest.mark.slow
def test_float16_of_the_cpu_stays_near_the_reference(film_file, complete_golden):
    check_half(load_film(film_file, dtype=torch.float16), complete_golden("even_128x192"))


def test_warp_equals_the_reference(golden):
    units = golden["units"]
    assert_near(layers.warp(units["warp.image"], units["warp.flow"]), units["warp.out"], 1e-5)
    half = layers.warp(units["warp.image"].half(), units["warp.flow"].half())
    assert half.dtype == torch.float16
    assert_near(half, units["warp16.out"], 2e-3)


def test_sampling_some_channels_at_a_time_equals_sampling_all():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 2 * layers.WARP_CHANNELS + 6, 5, 6, generator=generator)
    flow = torch.randn(2, 2, 5, 6, generator=generator) * 3
    apart = torch.cat([layers.warp(plane, flow) for plane in image.split(1, dim=1)], dim=1)
    assert torch.equal(layers.warp(image, flow), apart)


@pytest.mark.parametrize("name", ["conv2", "conv3"])
@torch.no_grad()
def test_convolutions_equal_the_reference(golden, name):
    units = golden["units"]
    if name == "conv2":
        layer = layers.EvenConv(5, 4)
    else:
        layer = layers.Conv(5, 4, 3)
    layer.conv.weight.copy_(units[f"{name}.weight"])
    layer.conv.bias.copy_(units[f"{name}.bias"])
    assert_near(layer(units[f"{name}.in"]), units[f"{name}.out"], 1e-5)


def test_resampling_equals_the_reference(golden):
    units = golden["units"]
    once = layers.down(units["pool.in"])
    assert_near(once, units["pool.out1"], 1e-5)
    assert_near(layers.down(once), units["pool.out2"], 1e-5)
    for size in ((37, 50), (37, 51)):
        wanted = units[f"nearest.out_{size[0]}x{size[1]}"]
        assert torch.equal(layers.upscale_nearest(units["nearest.in"], size), wanted)
    flow = layers.upscale_flow(units["flowup.coarse"], (9, 13)) + units["flowup.residual"]
    assert_near(flow, units["flowup.out"], 1e-5)
