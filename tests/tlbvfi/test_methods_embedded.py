"""`flow` and `blend` on scenes whose mid frames are known."""

from __future__ import annotations

from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import torch
from av.video.reformatter import ColorRange, Colorspace
from av.video.reformatter import Interpolation as Swscale
from comfyui_tlbvfi.tlbvfi.method import PairKey
from comfyui_tlbvfi.tlbvfi.methods import flow as flow_module
from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod
from comfyui_tlbvfi.tlbvfi.methods.flow import FlowMethod
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = PairKey(seed=0, pair=0)
HALF = Fraction(1, 2)
METHODS = [FlowMethod(), BlendMethod()]


def mid_frames(method, frame0, frame1, *times):
    between = method.between(method.prepare(frame0), method.prepare(frame1), list(times), KEY)
    return list(between)


def mid_frame(method, frame0, frame1, t=HALF):
    return mid_frames(method, frame0, frame1, t)[0]


def psnr(image, truth):
    codes = (image.clamp(0, 1) * 255).round()
    return float(10 * torch.log10(255**2 / ((codes - truth * 255) ** 2).mean()))


def texture(height, width, seed=0, channels=3):
    """[C, H, W] float32 in [0, 1]: smooth noise, so that matching and subpixel motion work."""
    noise = np.random.default_rng(seed).random((height, width, channels), np.float32)
    soft = cv2.GaussianBlur(noise, (0, 0), 2)
    soft = (soft - soft.min()) / (soft.max() - soft.min())
    return torch.from_numpy(soft.transpose(2, 0, 1).copy())


def panned(x, y=0, height=120, width=160, channels=3):
    """A window on a wide texture, moved by `x`, `y` whole pixels."""
    wide = texture(height + 64, width + 64, channels=channels)
    return wide[:, 32 + y : 32 + y + height, 32 + x : 32 + x + width].contiguous()


def square_over_texture(x, size=48, height=144, width=192):
    """A textured square `x` pixels from the left edge over a still background."""
    scene = texture(height, width, seed=1) * 0.6
    scene[:, 50 : 50 + size, x : x + size] = 0.3 + 0.7 * texture(size, size, seed=2)
    return scene


def bar_over_texture(x, width=12):
    """An upright bar `x` pixels from the left edge over a still background."""
    scene = texture(144, 192, seed=1) * 0.6
    scene[:, 20:124, x : x + width] = 0.4 + 0.6 * texture(104, width, seed=2)
    return scene


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
class TestEveryEmbeddedMethod:
    def test_has_a_name_and_takes_any_time(self, method):
        assert method.name in ("flow", "blend")
        assert method.any_time

    def test_two_equal_frames_have_that_frame_between(self, method):
        frame = panned(0)
        for between in mid_frames(method, frame, frame, Fraction(1, 3), HALF):
            torch.testing.assert_close(between, frame, rtol=0, atol=1e-6)

    def test_times_asked_together_equal_times_asked_alone(self, method):
        times = [Fraction(1, 5), HALF, Fraction(7, 8)]
        together = mid_frames(method, panned(0), panned(6), *times)
        for t, frame in zip(times, together, strict=True):
            assert torch.equal(frame, mid_frame(method, panned(0), panned(6), t))

    def test_frames_of_a_long_pause_are_made_one_by_one(self, method):
        frame = method.prepare(torch.zeros(3, 1080, 1920))
        times = [Fraction(n, 100_000) for n in range(1, 100_000)]  # 2.5 TB
        made = iter(method.between(frame, frame, times, KEY))
        assert next(made).shape == next(made).shape == (3, 1080, 1920)

    def test_a_pair_does_not_depend_on_the_pairs_before(self, method):
        frames = [method.prepare(panned(x)) for x in (0, 5, 12)]
        list(method.between(frames[0], frames[1], [HALF], KEY))
        (after,) = method.between(frames[1], frames[2], [HALF], KEY)
        assert torch.equal(after, mid_frame(type(method)(), panned(5), panned(12)))

    def test_threads_do_not_change_a_bit(self, method):
        before = cv2.getNumThreads()
        try:
            cv2.setNumThreads(1)
            alone = mid_frame(method, panned(0), panned(7, 3))
            cv2.setNumThreads(4)
            assert torch.equal(alone, mid_frame(method, panned(0), panned(7, 3)))
        finally:
            cv2.setNumThreads(before)

    @pytest.mark.parametrize("size", [(16, 16), (17, 31), (1, 1), (9, 200), (135, 241)])
    @pytest.mark.parametrize("channels", [3, 4])
    def test_shape_and_type_are_kept_at_odd_and_tiny_sizes(self, method, size, channels):
        frame0, frame1 = panned(0, 0, *size, channels), panned(2, 0, *size, channels)
        between = mid_frame(method, frame0, frame1)
        assert between.shape == (channels, *size)
        assert between.dtype == torch.float32
        assert between.is_contiguous()
        assert between.isfinite().all()

    def test_the_two_frames_are_left_as_they_were(self, method):
        frame0, frame1 = panned(0), panned(4)
        mid_frame(method, frame0, frame1)
        assert torch.equal(frame0, panned(0))
        assert torch.equal(frame1, panned(4))

    def test_values_beyond_the_nominal_range_are_kept(self, method):
        """EXR: values above white and below black stay as bright and as dark."""
        frame0, frame1 = panned(0) * 8 - 2, panned(4) * 8 - 2
        between = mid_frame(method, frame0, frame1)
        assert between.max() > 4
        assert between.min() < -1

    @settings(max_examples=15, deadline=None)
    @given(t=st.fractions(Fraction(1, 100), Fraction(99, 100)), low=st.floats(-3, 0.5))
    def test_no_value_lies_beyond_those_of_the_pair(self, method, t, low):
        frame0, frame1 = panned(0) + low, panned(3) + low
        between = mid_frame(method, frame0, frame1, t)
        slack = 1e-6
        assert between.min() >= min(frame0.min(), frame1.min()) - slack
        assert between.max() <= max(frame0.max(), frame1.max()) + slack


@given(t=st.fractions(Fraction(1, 1000), Fraction(999, 1000)))
@settings(max_examples=30, deadline=None)
def test_blend_mixes_in_proportion_to_time(t):
    frame0, frame1 = torch.full((3, 2, 2), 0.25), torch.full((3, 2, 2), 2.25)
    between = mid_frame(BlendMethod(), frame0, frame1, t)
    torch.testing.assert_close(between, torch.full((3, 2, 2), 0.25 + 2 * float(t)))


@pytest.mark.parametrize("t", [Fraction(1, 4), HALF, Fraction(3, 4)])
def test_flow_follows_a_pan_to_every_time(t):
    truth = panned(int(8 * t), int(4 * t))
    between = mid_frame(FlowMethod(), panned(0), panned(8, 4), t)
    inner = (slice(None), slice(16, -16), slice(16, -16))
    assert psnr(between[inner], truth[inner]) > 50


def test_flow_sees_the_same_motion_backward():
    forward = mid_frame(FlowMethod(), panned(0), panned(8), Fraction(1, 4))
    backward = mid_frame(FlowMethod(), panned(8), panned(0), Fraction(3, 4))
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("step", "least"), [(4, 48), (8, 38), (16, 34)])
def test_flow_moves_an_object_over_what_it_hides(step, least):
    truth = square_over_texture(60 + step // 2)
    frame0, frame1 = square_over_texture(60), square_over_texture(60 + step)
    flow = psnr(mid_frame(FlowMethod(), frame0, frame1), truth)
    blend = psnr(mid_frame(BlendMethod(), frame0, frame1), truth)
    assert flow > max(least, blend + 5)


def test_flow_finds_motion_larger_than_the_object():
    """A bar of 12 pixels that moves by 20: without the full search, flow reaches 26.9 dB."""
    frame0, truth, frame1 = (bar_over_texture(x) for x in (60, 70, 80))
    assert psnr(mid_frame(FlowMethod(), frame0, frame1), truth) > 29


def test_flow_takes_what_one_frame_hides_from_the_other():
    """Where a moving square was, the background comes from the frame that shows it."""
    frame0, truth, frame1 = (square_over_texture(x) for x in (60, 68, 76))
    uncovered = (slice(None), slice(56, 92), slice(60, 66))
    flow, blend = (mid_frame(method(), frame0, frame1) for method in (FlowMethod, BlendMethod))
    assert psnr(flow[uncovered], truth[uncovered]) > psnr(blend[uncovered], truth[uncovered]) + 5


@pytest.mark.parametrize("move", [(4, 0), (0, -3), (3, 2), (-4, -4)])
def test_flow_shows_what_a_pan_uncovers_or_covers_at_the_edges(move):
    """Only one frame has it; the other would add its stretched border."""
    x, y = move
    between = mid_frame(FlowMethod(), panned(0), panned(2 * x, 2 * y))
    truth = panned(x, y)
    at_edges = torch.ones(120, 160, dtype=torch.bool)
    at_edges[abs(y) : 120 - abs(y), abs(x) : 160 - abs(x)] = False
    assert psnr(between[:, at_edges], truth[:, at_edges]) > 30


def test_bands_of_rows_do_not_show(monkeypatch):
    frame0, frame1 = panned(0, height=250), panned(6, 3, height=250)
    in_bands = mid_frame(FlowMethod(), frame0, frame1)
    monkeypatch.setattr(flow_module, "BAND_ROWS", 250)
    whole = mid_frame(FlowMethod(), frame0, frame1)
    torch.testing.assert_close(in_bands, whole, rtol=0, atol=1e-6)


def test_alpha_travels_with_the_picture():
    """An alpha that equals the red channel still equals it halfway."""
    frame0, frame1 = (torch.cat([panned(x), panned(x)[:1]]) for x in (0, 8))
    between = mid_frame(FlowMethod(), frame0, frame1)
    torch.testing.assert_close(between[3], between[0], rtol=0, atol=1e-6)


def test_flow_keeps_more_than_eight_bits():
    """A slope too gentle for 8 bits, carried by a texture, keeps its own values."""
    slope = torch.linspace(0, 1 / 512, 120)[:, None].expand(120, 160)
    frame = panned(0) * 0.9 + slope
    between = mid_frame(FlowMethod(), frame, frame)
    assert (between - frame).abs().max() < 1e-6


@pytest.fixture(scope="module")
def real_clip(real_video):
    """Some frames of the real clip, [C, H, W] float32."""
    if not hasattr(Swscale, "ACCURATE_RND"):
        pytest.skip("the quality is that of exactly converted frames, which needs PyAV 18")
    accurate = Swscale.BICUBIC | Swscale.ACCURATE_RND
    accurate |= Swscale.FULL_CHR_H_INT | Swscale.FULL_CHR_H_INP
    with av.open(str(real_video)) as container:
        frames = [
            picture.to_ndarray(
                format="rgb24",
                src_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.MPEG,
                interpolation=int(accurate),
            )
            for _, picture in zip(range(61), container.decode(video=0), strict=False)
        ]
    return [torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in frames]


def rebuilt(method, clip, pairs):
    """Mean PSNR of every second frame, rebuilt from its neighbors."""
    return np.mean(
        [
            psnr(mid_frame(method, clip[2 * pair], clip[2 * pair + 2]), clip[2 * pair + 1])
            for pair in pairs
        ]
    )


def test_flow_rebuilds_dropped_frames_of_a_real_clip(real_clip):
    pairs = range(2, 30, 9)
    assert rebuilt(FlowMethod(), real_clip, pairs) > rebuilt(BlendMethod(), real_clip, pairs) + 5.5


@pytest.mark.slow
def test_flow_reaches_its_published_quality(real_clip):
    assert rebuilt(FlowMethod(), real_clip, range(30)) >= 35.8
