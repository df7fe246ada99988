"""Padding and the canvas of the flow, in integers."""

from fractions import Fraction

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model import plan_geometry
from comfyui_tlbvfi.tlbvfi.model.geometry import padded_side
from comfyui_tlbvfi.tlbvfi.model.tlbvfi import pad_frame, reduce_frame
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("side", "reference", "tight"),
    [
        (16, 256, 256),
        (255, 256, 256),
        (256, 256, 256),
        (257, 512, 512),
        (512, 512, 512),
        (513, 1024, 768),
        (1080, 1536, 1280),
        (1920, 2048, 2048),
        (2160, 2560, 2304),
    ],
)
def test_sides_are_padded_as_documented(side, reference, tight):
    assert padded_side(side, "reference") == reference
    assert padded_side(side, "tight") == tight


@given(
    st.integers(16, 5000),
    st.integers(16, 5000),
    st.floats(0.001, 1),
    st.sampled_from(["reference", "tight"]),
)
def test_every_canvas_is_exact_and_a_multiple_of_32(height, width, scale, padding):
    geometry = plan_geometry(height, width, flow_scale=scale, padding=padding)
    assert 0 < geometry.flow_scale <= 1
    assert geometry.canvas[0] == geometry.padded_height * geometry.flow_scale
    assert geometry.canvas[0] % 32 == geometry.canvas[1] % 32 == 0
    for reduced, side in zip(geometry.reduced_frame, (height, width), strict=True):
        assert reduced == max(1, int(side * geometry.flow_scale))


@pytest.mark.parametrize(
    ("wanted", "used"),
    [(0.5, Fraction(1, 2)), (0.25, Fraction(1, 4)), (0.3, Fraction(5, 16)), (1.0, Fraction(1))],
)
def test_flow_scale_is_rounded_to_a_canvas_that_fits(wanted, used):
    assert plan_geometry(512, 1000, flow_scale=wanted).flow_scale == used


def test_the_smallest_scale_still_has_a_canvas():
    assert plan_geometry(256, 256, flow_scale=0.001).canvas == (32, 32)


def test_frames_are_continued_by_reflection():
    frame = torch.rand(1, 3, 264, 300)
    padded = pad_frame(frame, plan_geometry(264, 300))
    assert padded.shape == (1, 3, 512, 512)
    assert torch.equal(padded[:, :, :264, :300], frame)
    assert torch.equal(padded[:, :, 264, :300], frame[:, :, 262])
    assert torch.equal(padded[:, :, :264, 300], frame[:, :, :, 298])


def test_small_frames_are_reflected_once_and_then_continued_by_their_border():
    frame = torch.rand(1, 3, 16, 200)
    padded = pad_frame(frame, plan_geometry(16, 200))
    assert padded.shape == (1, 3, 256, 256)
    assert torch.equal(padded[:, :, 30, :200], frame[:, :, 0])
    assert torch.equal(padded[:, :, 255], padded[:, :, 30])


def test_the_rest_of_the_canvas_is_gray():
    frame = torch.rand(1, 3, 264, 328)
    canvas = reduce_frame(frame, plan_geometry(264, 328))
    assert canvas.shape == (1, 3, 256, 256)
    assert torch.all(canvas[:, :, 132:] == 0.5)
    assert torch.all(canvas[:, :, :, 164:] == 0.5)
    for row, column in ((0, 0), (131, 163)):
        below, right = 2 * row, 2 * column
        mean = frame[:, :, below : below + 2, right : right + 2].mean(dim=(2, 3))
        assert (canvas[:, :, row, column] - mean).abs().max() < 1e-6
