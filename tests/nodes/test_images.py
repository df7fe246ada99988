"""IMAGE batches through the pipeline, and the line of text a node shows; needs no ComfyUI."""

import pytest
import torch
from comfyui_tlbvfi.nodes.images import (
    interpolate_images,
    pair_of,
    require_images,
    require_pairs,
    sequence_length,
    source_frames,
)
from comfyui_tlbvfi.nodes.status import status_line
from comfyui_tlbvfi.tlbvfi.errors import FrameError, SettingsError
from comfyui_tlbvfi.tlbvfi.progress import ChunkDone, FrameDone
from hypothesis import given, settings
from hypothesis import strategies as st


class Mix:
    """A method that mixes linearly and counts the frames it prepares."""

    name, any_time = "mix", True

    def __init__(self):
        self.prepared = 0

    def prepare(self, frame):
        self.prepared += 1
        return frame

    def between(self, a, b, times, key):
        return [a + (b - a) * float(t) for t in times]


def ramp(count: int, channels: int = 3) -> torch.Tensor:
    """[count, 4, 6, channels]; all values of frame n are n."""
    return torch.arange(count, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 4, 6, channels)


def levels(count: int, channels: int = 3, **options) -> list[float]:
    shown = {k: v for k, v in options.items() if k in ("sources", "ends_here")}
    length = sequence_length(count, options["times"], **({"sources": True} | shown))
    out = torch.full((length, 4, 6, channels), torch.nan)
    interpolate_images(ramp(count, channels), Mix(), out, on_frame=lambda frame: None, **options)
    assert not out.isnan().any()
    return out[:, 1, 2, -1].tolist()


def test_a_batch_becomes_the_whole_sequence():
    assert levels(3, times=2) == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]


def test_alpha_goes_through_with_the_picture():
    assert levels(2, channels=4, times=1) == [0, 0.5, 1]


def test_times_0_gives_the_one_mid_frame_of_each_pair():
    assert levels(3, times=0) == [0.5, 1.5]


def test_without_sources_only_mid_frames_are_kept():
    assert levels(3, times=1, sources=False) == [0.5, 1.5]
    assert levels(2, times=2, sources=False) == [0.25, 0.5, 0.75]


def test_a_pair_that_is_not_the_last_leaves_out_its_end():
    assert levels(2, times=1, ends_here=False) == [0, 0.5]


def two_scenes() -> torch.Tensor:
    """[8, 64, 96, 3]; four frames of one checkered picture, then four of another."""
    scenes = torch.rand(2, 1, 8, 12, 3, generator=torch.Generator().manual_seed(0))
    shots = scenes.expand(2, 4, 8, 12, 3).flatten(0, 1)
    return shots.repeat_interleave(8, 1).repeat_interleave(8, 2)


@pytest.mark.parametrize(("cuts", "shown"), [("hold", [3] * 3), ("nearest", [3, 3, 4])])
@pytest.mark.parametrize("sources", [True, False])
def test_no_frame_is_blended_of_two_scenes_if_cuts_are_looked_for(cuts, shown, sources):
    images = two_scenes()
    length = sequence_length(8, 2, sources=sources)
    out = torch.empty(length, *images.shape[1:])
    interpolate_images(
        images, Mix(), out, times=2, sources=sources, cuts=cuts, on_frame=lambda frame: None
    )
    first = 13 if sources else 9
    assert torch.equal(out[first : first + 3], images[shown])


def test_a_rule_for_cuts_that_there_is_not_is_refused():
    with pytest.raises(SettingsError, match="cuts must be hold, nearest or ignore, got 'cut'"):
        interpolate_images(ramp(3), Mix(), ramp(5), times=1, cuts="cut", on_frame=print)


def test_each_frame_is_prepared_once():
    method = Mix()
    out = torch.empty(9, 4, 6, 3)
    interpolate_images(ramp(5), method, out, times=1, on_frame=lambda frame: None)
    assert method.prepared == 5


def test_a_callback_that_raises_stops_the_run_at_once():
    method, seen = Mix(), []

    def cancel(frame):
        seen.append(frame)
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interpolate_images(ramp(100), method, torch.empty(199, 4, 6, 3), times=1, on_frame=cancel)
    assert method.prepared <= 3


def test_source_frames_keep_every_bit_of_a_half_precision_batch():
    images = torch.rand(2, 4, 6, 3).half()
    out = torch.empty(3, 4, 6, 3, dtype=torch.float16)
    interpolate_images(images, Mix(), out, times=1, on_frame=lambda frame: None)
    assert torch.equal(out[::2], images)


@settings(deadline=None)  # the machine may be busy
@given(st.integers(2, 40), st.integers(0, 4), st.booleans(), st.booleans())
def test_the_announced_length_is_the_length(count, times, sources, ends_here):
    kept = sources and times > 0
    expected = levels(count, times=times, sources=sources, ends_here=ends_here)
    assert len(expected) == sequence_length(count, times, sources=sources, ends_here=ends_here)
    assert expected == sorted(expected)
    assert (expected[-1] == count - 1) == (kept and ends_here)


@pytest.mark.parametrize("times", [-1, 9])
def test_a_depth_no_sequence_has_is_refused(times):
    with pytest.raises(SettingsError, match=f"times must be between 0 and 8 .*, got {times}"):
        sequence_length(3, times, sources=True)


def test_one_frame_is_refused():
    with pytest.raises(FrameError, match="at least 2 frames, this batch has 1"):
        require_pairs(ramp(1))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_frame_with_broken_pixels_is_refused_with_its_number(value):
    images = ramp(4).clone()
    images[2, 1, 1, 0] = value
    with pytest.raises(FrameError, match="frame 2 of the batch holds NaN or infinite pixels"):
        list(source_frames(images))


@pytest.mark.parametrize("shape", [(4, 4, 6, 1), (4, 4, 6, 2), (0, 4, 6, 3), (4, 0, 6, 3)])
def test_what_is_no_batch_of_pictures_is_refused_with_what_it_is(shape):
    count, height, width, channels = shape
    words = f"this one has {count} of {width}x{height} with {channels} channels"
    with pytest.raises(FrameError, match=words):
        require_images(torch.zeros(shape))
    with pytest.raises(FrameError, match=words):
        pair_of(ramp(2), torch.zeros(shape))


def test_a_pair_of_two_sizes_is_refused_with_both():
    with pytest.raises(FrameError, match="6x4 with 3 channels and 6x4 with 4 channels"):
        pair_of(ramp(1), ramp(1, channels=4))


def test_a_pair_is_made_of_the_first_images():
    assert pair_of(ramp(1), ramp(3) + 5)[:, 0, 0, 0].tolist() == [0, 5]


def test_the_status_line_tells_rate_time_left_and_disk():
    frame = FrameDone(
        frames_done=120, frames_total=2000, frames_per_second=14.24, seconds_left=132.4, image=None
    )
    chunk = ChunkDone(chunks_done=3, bytes_written=96_000_000, bytes_predicted=1_600_000_000)
    assert status_line(frame, chunk) == (
        "120/2000 frames · 14.2 frames/s · 2:12 left · 3 chunks safe · 96 MB of 1600 MB"
    )


def test_the_status_line_of_an_endless_source_claims_no_end():
    frame = FrameDone(
        frames_done=9, frames_total=None, frames_per_second=2.0, seconds_left=None, image=None
    )
    assert status_line(frame, None) == "9 frames · 2.0 frames/s"
    chunk = ChunkDone(chunks_done=1, bytes_written=2_000_000, bytes_predicted=None)
    assert status_line(frame, chunk) == "9 frames · 2.0 frames/s · 1 chunk safe · 2 MB"
