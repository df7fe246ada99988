"""The model against what the reference implementation computed with the same weights."""

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model import plan_geometry

END_TO_END = [
    ("e2e_264x328_scale0.5_steps10", 0.5, 10),
    ("e2e_256x256_scale1.0_steps5", 1.0, 5),
    pytest.param("e2e_256x256_scale0.5_steps5", 0.5, 5, marks=pytest.mark.slow),
    pytest.param("e2e_256x256_scale0.5_steps10", 0.5, 10, marks=pytest.mark.slow),
    pytest.param("e2e_256x256_scale1.0_steps10", 1.0, 10, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "scale", "steps"), END_TO_END)
def test_whole_model_equals_the_reference(model, golden, frames_of, name, scale, steps):
    vectors = golden(name)
    frame0, frame1 = frames_of(vectors)
    geometry = plan_geometry(*frame0.shape[-2:], flow_scale=scale)
    features = [model.encode(frame, geometry) for frame in (frame0, frame1)]
    unknown = model.encode_unknown(geometry)

    y = model.encode_clip(features[0], unknown, features[1])
    assert (y - vectors["latent"]).abs().max() < 1e-4
    latent = model.sample_latent(y, steps, list(vectors["noise"]))
    assert (latent - vectors["latent_final"]).abs().max() < 1e-4
    assert torch.equal(model.vqgan.quantize.codes(latent), vectors["codes"].long())

    flow = model.estimate_flow(*features)
    between = model.decode(model.vqgan.quantize(latent), *features, flow)
    off = (between * 2 - 1 - vectors["out"]).abs()
    assert off.max() < 2e-4
    assert off.mean() < 1e-5
