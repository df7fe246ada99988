"""FILM as a method of the pipeline."""

from fractions import Fraction

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.errors import FrameError, SettingsError
from comfyui_tlbvfi.tlbvfi.method import PairKey
from comfyui_tlbvfi.tlbvfi.methods import MethodConfig, create_method
from comfyui_tlbvfi.tlbvfi.methods.film import FilmMethod

KEY = PairKey(seed=0, pair=0)
THIRDS = [Fraction(1, 3), Fraction(2, 3)]


@pytest.fixture(scope="module")
def method(film):
    return FilmMethod(film)


def between(method, frame0, frame1, times=THIRDS):
    return list(method.between(method.prepare(frame0), method.prepare(frame1), times, KEY))


def test_frames_are_the_network_s_clamped_once(film, method, frames):
    frame0, frame1 = frames(64, 70)
    made = between(method, frame0[0], frame1[0], THIRDS[:1])
    raw = film(frame0, frame1, THIRDS[:1])
    assert any(frame.max() > 1 or frame.min() < 0 for frame in raw)
    for frame, wanted in zip(made, raw, strict=True):
        assert torch.equal(frame, wanted[0].clamp(0, 1))
        assert frame.dtype == torch.float32


def test_autocast_and_defaults_of_the_caller_change_nothing(method, frames, around):
    frame0, frame1 = (torch.cat([frame[0], frame[0, :1]]) for frame in frames(64, 70))
    expected = between(method, frame0, frame1, THIRDS[:1])
    with around():
        made = between(method, frame0, frame1, THIRDS[:1])
    assert torch.equal(made[0], expected[0])


def test_features_of_a_frame_serve_both_its_pairs(method, frames, monkeypatch):
    calls = []
    extract = method.film.features
    monkeypatch.setattr(method.film, "features", lambda x: calls.append(x) or extract(x))
    frame0, frame1 = (frame[0] for frame in frames(64, 64))
    clip = [frame0, frame1, frame0]
    features = method.prepare(clip[0])
    for frame in clip[1:]:
        following = method.prepare(frame)
        assert len(list(method.between(features, following, THIRDS[:1], KEY))) == 1
        features = following
    assert len(calls) == len(clip)


def test_a_frame_is_computed_when_it_is_asked_for(method, frames, monkeypatch):
    made = []
    compute = method.film.frame
    monkeypatch.setattr(method.film, "frame", lambda *a: made.append(a[-1]) or compute(*a))
    frame0, frame1 = (method.prepare(frame[0]) for frame in frames(64, 64))
    coming = iter(method.between(frame0, frame1, THIRDS, KEY))
    assert made == []
    next(coming)
    assert made == THIRDS[:1]


def test_frames_do_not_depend_on_the_key_or_the_run(method, frames):
    pair = [method.prepare(frame[0]) for frame in frames(64, 64)]
    runs = [list(method.between(*pair, THIRDS[:1], PairKey(seed=s, pair=s))) for s in (0, 7)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_values_beyond_white_of_the_pair_are_kept(method, frames):
    frame0, frame1 = (frame[0] * 3 - 1 for frame in frames(64, 64))
    (made,) = between(method, frame0, frame1, [Fraction(1, 2)])
    assert made.max() > 1
    assert made.max() <= max(frame0.max(), frame1.max())
    assert made.min() >= min(frame0.min(), frame1.min())


@pytest.mark.parametrize(("height", "width"), [(64, 70), (40, 50)])
def test_alpha_travels_with_the_picture_and_leaves_it_alone(method, frames, height, width):
    frame0, frame1 = (frame[0] for frame in frames(height, width))
    alpha0, alpha1 = torch.full((1, height, width), 0.25), torch.full((1, height, width), 0.75)
    t = Fraction(1, 4)
    (plain,) = between(method, frame0, frame1, [t])
    with_alpha = torch.cat([frame0, alpha0]), torch.cat([frame1, alpha1])
    (made,) = between(method, *with_alpha, [t])
    assert made.shape == (4, height, width)
    assert torch.equal(made[:3], plain)
    assert torch.allclose(made[3], torch.tensor(0.25 + 0.5 * float(t)), atol=1e-6)


def test_alpha_is_moved_by_the_flows_the_picture_is_read_with(method, frames):
    frame0, frame1 = (frame[0] for frame in frames(64, 64))
    ramp = torch.arange(64.0).expand(1, 64, 64) / 64
    features = [method.prepare(torch.cat([frame, ramp])) for frame in (frame0, frame1)]
    flows = method.film.flows(*(f.features for f in features))
    backward, forward = flows.backward[0][0, 0], flows.forward[0][0, 0]
    (made,) = method.between(*features, [Fraction(1, 4)], KEY)
    x = torch.arange(64.0).expand(64, 64)
    read0, read1 = (x + 0.25 * backward).clamp(0, 63), (x + 0.75 * forward).clamp(0, 63)
    assert torch.allclose(made[3], (0.75 * read0 + 0.25 * read1) / 64, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pixels_that_are_no_numbers_are_refused(method, value):
    frame = torch.zeros(3, 64, 64)
    frame[1, 5, 5] = value
    with pytest.raises(FrameError, match="NaN or infinite"):
        method.prepare(frame)


@pytest.mark.parametrize("shape", [(1, 64, 64), (2, 64, 64), (1, 3, 64, 64), (64, 64)])
def test_frames_of_another_shape_are_refused(method, shape):
    with pytest.raises(FrameError, match="RGB or RGBA"):
        method.prepare(torch.zeros(shape))


def test_bytes_are_refused(method):
    with pytest.raises(FrameError, match=r"torch\.uint8"):
        method.prepare(torch.zeros(3, 64, 64, dtype=torch.uint8))


def test_frames_that_do_not_go_together_are_refused(method):
    plain, larger = torch.zeros(3, 64, 64), torch.zeros(3, 64, 80)
    with pytest.raises(FrameError, match="the same size"):
        between(method, plain, larger)
    with pytest.raises(FrameError, match="alpha"):
        between(method, plain, torch.zeros(4, 64, 64))


def test_settings_name_the_weights_and_the_type(method):
    assert method.settings["dtype"] == "float32"
    assert len(method.settings["weights"]) == 64
    assert (method.name, method.any_time) == ("film", True)
    assert method.memory_needed(1080, 1920) > method.memory_needed(720, 1280) > 1e9


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [("float32", "float32", False), ("tf32", "float32", True), ("float16", "float16", False)],
)
def test_method_is_opened_from_a_config(film_file, precision, dtype, tf32):
    config = MethodConfig(name="film", model=film_file, precision=precision, device="cpu")
    settings = create_method(config).settings
    assert (settings["dtype"], settings["tf32"]) == (dtype, tf32)


def test_precision_too_coarse_for_flows_is_refused(film_file):
    config = MethodConfig(name="film", model=film_file, precision="bfloat16")
    with pytest.raises(SettingsError, match="not in bfloat16"):
        create_method(config)


@pytest.mark.parametrize("tf32", [True, False])
def test_switches_of_the_process_are_restored(film, frames, tf32):
    before = torch.backends.cudnn.allow_tf32
    list(between(FilmMethod(film, tf32=tf32), *(frame[0] for frame in frames(64, 64)), THIRDS[:1]))
    assert torch.backends.cudnn.allow_tf32 == before
