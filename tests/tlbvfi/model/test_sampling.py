"""`sample`: what it promises, and what it refuses."""

from fractions import Fraction

import pytest
import torch
from comfyui_tlbvfi import tlbvfi
from comfyui_tlbvfi.tlbvfi.errors import FrameError, SettingsError
from comfyui_tlbvfi.tlbvfi.method import PairKey
from comfyui_tlbvfi.tlbvfi.model import plan_geometry, sample
from comfyui_tlbvfi.tlbvfi.model.precision import float32_precision, matmul_precision
from comfyui_tlbvfi.tlbvfi.model.sampling import SamplingOptions, check_values, draw_noise
from torch.nn import functional as F

CPU = torch.device("cpu")


def picture(seed, size=(64, 80), batch=1):
    coarse = torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=size, mode="bilinear")


@pytest.fixture(scope="module")
def pair():
    return picture(1), picture(2)


def test_public_names_are_those_of_the_package():
    assert tlbvfi.sample is sample
    assert callable(tlbvfi.load_checkpoint)


QUICK = {"steps": 2, "flow_scale": 0.125}
"""Two steps, so that there is noise, and the smallest canvas for the flow."""


@pytest.fixture(scope="module")
def between(model, pair):
    """The mid frame of the pair, with two steps and seed 7."""
    return sample(model, *pair, seed=7, **QUICK)


def test_the_same_call_gives_the_same_bits_whatever_was_drawn_before(model, pair, between):
    torch.manual_seed(123)
    state = torch.random.get_rng_state()
    assert torch.equal(between, sample(model, *pair, seed=7, **QUICK))
    assert torch.equal(state, torch.random.get_rng_state())
    assert between.shape == pair[0].shape
    assert between.min() >= 0
    assert between.max() <= 1


def test_autocast_and_defaults_of_the_caller_change_nothing(model, pair, between, around):
    with around():
        frame = sample(model, *pair, seed=7, **QUICK)
    assert torch.equal(between, frame)


def test_an_empty_batch_is_refused(model, pair):
    with pytest.raises(FrameError, match=r"got \[0, 3, 64, 80\]"):
        sample(model, *(frame[:0] for frame in pair))


def test_the_seed_is_the_noise_that_it_draws(model, pair, between):
    seeds = [PairKey(seed, 0).node_seed(Fraction(1, 2)) for seed in (7, 8)]
    same, other = (
        sample(model, *pair, noise=draw_noise(s, plan_geometry(64, 80), 2), **QUICK) for s in seeds
    )
    assert torch.equal(between, same)
    assert not torch.equal(between, other)


@pytest.mark.parametrize("pairs", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_pairs_of_a_batch_equal_single_pairs(model, pairs):
    """Bright and dark pairs: the reference decides by pixel values whether to rescale a batch."""
    frames = [picture(n, batch=pairs) for n in (3, 4)]
    frames = [torch.cat([f[:1] * 0.3 + 0.7, f[1:] * 0.4]) for f in frames]
    together = sample(model, *frames, **QUICK)
    for n in range(pairs):
        alone = sample(model, *(f[n : n + 1] for f in frames), **QUICK)
        assert (together[n : n + 1] - alone).abs().max() < 5e-5


@pytest.mark.parametrize("size", [(16, 16), (17, 255)])
def test_one_step_and_small_frames_are_possible(model, size):
    found = sample(model, picture(1, size), picture(2, size), steps=1)
    assert found.shape[-2:] == size
    assert torch.isfinite(found).all()


def test_the_callers_tensors_stay_as_they_were_and_the_result_is_the_callers(model, pair):
    torch.set_grad_enabled(True)
    copies = [frame.clone() for frame in pair]
    sample(model, *pair, steps=1).mul_(0.5)
    assert all(torch.equal(a, b) for a, b in zip(pair, copies, strict=True))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((picture(1, (15, 64)), picture(2, (15, 64))), "64x15"),
        ((picture(1), picture(2, (64, 96))), "one shape"),
        ((picture(1)[:, :1], picture(2)[:, :1]), "RGB"),
        ((torch.rand(1, 4, 64, 64),) * 2, "RGB"),
        ((torch.rand(3, 64, 64),) * 2, "RGB"),
        ((torch.zeros(1, 3, 64, 64, dtype=torch.uint8),) * 2, "divide by 255"),
        ((picture(1), picture(2).fill_(float("nan"))), "NaN"),
        ((picture(1).fill_(float("inf")), picture(2)), "infinite"),
        ((torch.empty(1, 3, 64, 64, device="meta"),) * 2, "meta"),
    ],
)
def test_bad_frames_are_refused_in_one_sentence(model, frames, message):
    with pytest.raises(FrameError, match=message):
        sample(model, *frames)


@pytest.mark.parametrize("values", [[torch.nan], [torch.inf], [-torch.inf, torch.inf]], ids=str)
def test_a_single_pixel_that_is_not_finite_is_found(values):
    frame = torch.rand(3, 300, 400)
    frame[1, 150, 200 : 200 + len(values)] = torch.tensor(values)
    with pytest.raises(FrameError, match="NaN or infinite"):
        check_values(frame)


def test_finite_pixels_whose_sum_is_infinite_are_no_error():
    frame = torch.full((3, 300, 400), torch.finfo(torch.float32).max)
    assert frame.sum().isinf()
    check_values(frame)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flow_scale": 0}, "flow_scale"),
        ({"flow_scale": 1.5}, "flow_scale"),
        ({"flow_scale": float("nan")}, "flow_scale"),
        ({"steps": 0}, "steps"),
        ({"steps": -3}, "steps"),
        ({"steps": 10**6}, "steps"),
        ({"padding": "loose"}, "padding"),
        ({"noise": []}, "noise"),
        ({"noise": [torch.zeros(1, 3, 3, 4, 4)] * 9}, "noise"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(model, pair, options, message):
    with pytest.raises(SettingsError, match=message):
        sample(model, *pair, **options)


def test_noise_has_unit_variance_and_depends_on_the_seed_alone():
    geometry = plan_geometry(1024, 1024)
    first, second = (draw_noise(s, geometry, 10) for s in (1, 2))
    values = first[:, 0]
    assert values.shape == (9, 3, 3, 32, 32)
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first, draw_noise(1, geometry, 10))


def test_a_rounded_flow_scale_is_reported(caplog):
    geometry = SamplingOptions(flow_scale=0.3).geometry(512, 512)
    assert geometry.flow_scale == Fraction(5, 16)
    with caplog.at_level("INFO", logger="tlbvfi"):
        SamplingOptions(flow_scale=0.3).report(geometry)
        SamplingOptions(flow_scale=0.5).report(plan_geometry(512, 512, flow_scale=0.5))
    assert [record.message for record in caplog.records] == [
        "flow_scale 0.3 is rounded to 0.3125 for frames of 512x512"
    ]


def test_precision_switches_are_restored_even_after_an_error():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32

    def fail_inside():
        with matmul_precision(tf32=not before[1]):
            assert (matmul.allow_tf32, cudnn.allow_tf32) == (not before[1],) * 2
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail_inside()
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="PyTorch before 2.9")
def test_precision_set_by_its_new_names_is_overruled_and_restored():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    at_first = float32_precision()
    matmul.fp32_precision = "tf32"  # as PyTorch recommends; then the old names cannot be read
    try:
        before = float32_precision()
        with matmul_precision(tf32=False):
            assert set(float32_precision()) == {"ieee"}
            assert not matmul.allow_tf32
            assert not cudnn.allow_tf32
        assert float32_precision() == before
    finally:
        matmul.fp32_precision = at_first[0]
