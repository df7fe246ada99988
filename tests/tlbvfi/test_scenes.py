"""Scene cuts and repeated frames, on clips with known ground truth (benchmarks/scene_cuts.py)."""

import sys
from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest
import torch
from comfyui_tlbvfi.tlbvfi.errors import FrameError
from comfyui_tlbvfi.tlbvfi.scenes import (
    FRAMES_AFTER,
    FRAMES_BEFORE,
    is_cut,
    is_duplicate,
    marked,
    signature,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(scope="module")
def bench(root):
    """The benchmark's module: its clips and its measures."""
    spec = spec_from_file_location("scene_cuts", root / "benchmarks" / "scene_cuts.py")
    module = sys.modules["scene_cuts"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def stage(bench):
    return bench.Stage(height=108, length=6)


def wrong(bench, clips):
    """Clips whose cuts are misjudged, with the difference."""
    judged = {clip.name: (clip.cuts, bench.found_cuts(clip.frames)) for clip in clips}
    assert judged
    return {name: truth ^ found for name, (truth, found) in judged.items() if truth != found}


def test_every_cut_between_textured_scenes_is_found_and_nothing_else(bench, stage):
    assert wrong(bench, bench.textured_scenes(stage)) == {}


def test_every_cut_between_shots_of_one_real_scene_is_found(bench, stage):
    assert wrong(bench, bench.real_scenes(stage)) == {}


def test_cuts_between_drawings_flat_cards_and_black_are_found(bench, stage):
    assert wrong(bench, bench.short_and_flat_scenes(stage)) == {}


def test_motion_is_never_a_cut(bench, stage):
    assert wrong(bench, bench.motion(stage)) == {}


def test_flashes_are_no_cuts_except_one_that_burns_out_the_picture_and_lasts(bench, stage):
    assert wrong(bench, bench.flashes(stage)) == {"explosion": {4}}


def test_fades_and_dissolves_are_no_cuts(bench, stage):
    assert wrong(bench, bench.slow_transitions(stage)) == {}


def test_repeated_frames_are_found_through_codec_noise_and_slow_motion_is_none(bench):
    stage = bench.Stage(height=216, length=8)
    for name, frames, pairs in bench.repetitions(stage):
        hits, alarms, misses = bench.score(pairs, bench.found_duplicates(frames))
        assert alarms == 0, name
        assert misses == 0 or "crf 2" in name, name
        assert hits >= len(pairs) * (0.3 if "crf 28" in name else 0.8), name


def test_a_mouth_that_opens_is_no_repetition(bench):
    stage = bench.Stage(height=360, length=2)
    for light in (1.0, 0.15):
        shut, opened = stage.texture(1), stage.texture(1)
        opened[200:206, 300:312] = 0.05
        known = [signature(bench.tensor(frame * light)) for frame in (shut, opened)]
        assert not is_duplicate(*known)
        assert is_duplicate(known[0], known[0])


def decisions(frames, image_of):
    """(is a cut, repeats) of every pair."""
    return [tuple(marks) for _, *marks in marked(frames, image_of)][1:]


@settings(max_examples=12, deadline=None)
@given(first=st.integers(0, 40), length=st.integers(1, 30))
def test_decisions_do_not_depend_on_where_a_job_was_cut(bench, decided, first, length):
    frames, whole = decided
    start = max(0, first - FRAMES_BEFORE + 1)
    stop = first + length + FRAMES_AFTER
    part = decisions(frames[start:stop], bench.tensor)
    done = min(first + length, len(whole))
    assert part[first - start : done - start] == whole[first:done]


@pytest.fixture(scope="module")
def decided(bench):
    """Frames of many scenes with repeats, and an uninterrupted job's decision on every pair."""
    stage = bench.Stage(height=54, length=5)
    scenes = [stage.pan(seed, speed=0.03 * (seed + 1)) for seed in range(5)]
    frames = [frame for scene in scenes for one in scene for frame in (one, one)]
    whole = decisions(frames, bench.tensor)
    assert sum(cut for cut, _ in whole) == 4
    assert sum(repeated for _, repeated in whole) == 25
    return frames, whole


def test_it_reads_no_further_ahead_than_it_says():
    read = []

    def frames():
        for n in range(20):
            read.append(n)
            yield torch.full((3, 8, 8), n / 20)

    for n, (frame, _, _) in enumerate(marked(frames(), lambda frame: frame)):
        assert frame.max() == pytest.approx(n / 20)
        assert len(read) <= n + FRAMES_AFTER
    assert n == 19


@pytest.mark.parametrize("count", [0, 1])
def test_the_first_frame_neither_begins_a_scene_nor_repeats_one(count):
    found = marked([torch.zeros(3, 8, 8)] * count, lambda frame: frame)
    assert [marks for _, *marks in found] == [[False, False]] * count


def test_two_frames_are_enough_for_a_decision(bench, stage):
    a, b = (signature(bench.tensor(stage.texture(seed))) for seed in (1, 2))
    assert is_cut([a], [b])
    assert not is_cut([a], [a])


def test_values_beyond_the_range_and_alpha_change_nothing():
    white = signature(torch.ones(3, 20, 20))
    brighter = signature(torch.cat([torch.full((3, 20, 20), 6.0), torch.rand(1, 20, 20)]))
    np.testing.assert_array_equal(white.colors, brighter.colors)
    np.testing.assert_array_equal(white.luma, brighter.luma)


def test_tiny_and_narrow_frames_are_accepted():
    for shape in ((3, 1, 1), (3, 2, 500), (4, 900, 3)):
        assert is_duplicate(signature(torch.full(shape, 0.5)), signature(torch.full(shape, 0.5)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (8, 8), (1, 3, 8, 8)])
def test_a_frame_of_another_shape_is_refused_with_its_shape(shape):
    with pytest.raises(FrameError, match=r"\[3 or 4, height, width\], not \[.*8\]"):
        signature(torch.zeros(shape))
