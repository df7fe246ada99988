"""The loop over pairs: what is prepared, asked for and shown."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from comfyui_tlbvfi.tlbvfi.pipeline import Rules, interpolate
from comfyui_tlbvfi.tlbvfi.spans import LONGEST_RUN, SourceFrame
from comfyui_tlbvfi.tlbvfi.timeline import Bisection, TargetRate
from hypothesis import given
from hypothesis import strategies as st


class Counting:
    """A method that mixes linearly and records its calls."""

    name = "counting"
    any_time = True

    def __init__(self):
        self.prepared, self.asked, self.keys = [], [], []

    def prepare(self, frame):
        self.prepared.append(float(frame.mean()))
        return frame

    def between(self, a, b, times, key):
        self.asked.append(list(times))
        self.keys.append(key)
        return (a + (b - a) * float(t) for t in times)


def clip(count, rate=Fraction(25), *, cuts=(), shown=None):
    """Frames of value i, or of `shown[i]`: equal neighbors are marked as repeats."""
    values = shown or list(range(count))
    for i in range(count):
        yield SourceFrame(
            index=i,
            time=i / rate,
            image=torch.full((3, 4, 4), float(values[i])),
            picture=values[i],
            begins_scene=i in cuts,
            repeats=i > 0 and values[i] == values[i - 1],
        )


def values(frames):
    return [float(f.source.picture if f.is_source else f.image.mean()) for f in frames]


def test_every_frame_is_prepared_once_and_every_t_computed_once():
    method = Counting()
    out = list(interpolate(clip(5), method, Bisection(times=2)))
    assert method.prepared == [0, 1, 2, 3, 4]
    assert method.asked == [[Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)]] * 4
    assert values(out) == [i / 4 for i in range(17)]
    assert [f.pair for f in out] == [min(i // 4, 3) for i in range(17)]


def test_a_target_rate_asks_only_for_what_is_shown():
    method = Counting()
    out = list(interpolate(clip(6), method, TargetRate(fps=Fraction(60))))
    assert values(out) == pytest.approx([i * 25 / 60 for i in range(13)])
    assert sum(map(len, method.asked)) == sum(not f.is_source for f in out)
    slower = list(interpolate(clip(6), method, TargetRate(fps=Fraction(5))))
    assert values(slower) == [0, 5]


class Bisecting(Counting):
    """The same for a method that can only compute times j / 2**k."""

    any_time = False


def test_slow_motion_by_a_power_of_two_is_exact_beyond_the_depth():
    timeline = TargetRate(fps=Fraction(25 * 32))
    out = list(interpolate(clip(2), Bisecting(), timeline, Rules(depth=3)))
    assert values(out) == [i / 32 for i in range(33)]


@given(
    gaps=st.lists(st.integers(1, 8000), min_size=1, max_size=4),
    fps=st.sampled_from([24, 60, Fraction(60000, 1001), 96, 125]),
    depth=st.integers(1, 4),
)
def test_motion_never_runs_backward_however_long_a_frame_is_shown(gaps, fps, depth):
    seconds = [Fraction(sum(gaps[:i]), 1000) for i in range(len(gaps) + 1)]
    frames = [
        SourceFrame(index=i, time=time, image=torch.full((3, 2, 2), float(i)), picture=i)
        for i, time in enumerate(seconds)
    ]
    timeline = TargetRate(fps=Fraction(fps))
    out = list(interpolate(frames, Bisecting(), timeline, Rules(depth=depth)))
    assert len(out) == timeline.total(len(frames), seconds[-1])
    shown = values(out)
    assert shown == sorted(shown)
    wanted = np.interp(
        [float(f.slot.time) for f in out], list(map(float, seconds)), range(len(frames))
    )
    assert np.abs(wanted - shown).max() <= 2**-depth / 2 + 1e-6


def test_a_job_cut_into_chunks_gives_the_frames_and_keys_of_one_run():
    whole, cut = Counting(), Counting()
    timeline = Bisection(times=1)
    expected = list(interpolate(clip(9), whole, timeline, Rules(seed=7)))
    frames = list(clip(9))
    parts = [
        *interpolate(frames[:4], cut, timeline, Rules(seed=7), ends_here=False),
        *interpolate(frames[3:9], cut, timeline, Rules(seed=7)),
    ]
    assert [f.slot for f in parts] == [f.slot for f in expected]
    assert values(parts) == values(expected)
    assert cut.keys == whole.keys


def test_a_job_that_begins_later_counts_from_its_own_first_frame():
    frames = list(clip(9))[4:]
    out = list(interpolate(frames, Counting(), Bisection(times=1), first=4, start=4))
    assert [f.slot.number for f in out] == list(range(9))
    assert [f.pair for f in out] == [4, 4, 5, 5, 6, 6, 7, 7, 7]
    assert values(out) == [4 + i / 2 for i in range(9)]


def test_one_source_frame_comes_out_alone():
    assert values(interpolate(clip(1), Counting(), Bisection(times=3))) == [0]


def test_mid_frames_are_computed_one_at_a_time_so_that_a_job_can_stop_between_them():
    method = Counting()
    frames = interpolate(clip(2), method, Bisection(times=3))
    next(frames)
    computed = []
    method.between = lambda a, b, times, key: (computed.append(t) or a for t in times)
    frames = interpolate(clip(2), method, Bisection(times=3))
    for _ in range(3):
        next(frames)
    assert computed == [Fraction(1, 8), Fraction(1, 4)]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("hold", [0, 0.5, 1, 1, 2, 2.5, 3]),
        ("ignore", [0, 0.5, 1, 1.5, 2, 2.5, 3]),
    ],
)
def test_across_a_cut_the_first_frame_is_held(rule, expected):
    frames = list(interpolate(clip(4, cuts={2}), Counting(), Bisection(times=1), Rules(cuts=rule)))
    assert values(frames) == expected
    assert [f.is_held for f in frames] == [rule == "hold" and i == 3 for i in range(7)]


def test_across_a_cut_the_nearer_frame_is_shown_by_choice():
    frames = interpolate(clip(2, cuts={1}), Counting(), Bisection(times=2), Rules(cuts="nearest"))
    assert values(frames) == [0, 0, 0, 1, 1]


def test_animation_on_twos_and_threes_is_retimed_by_choice():
    shown = [0, 0, 6, 6, 6, 12]
    out = list(
        interpolate(clip(6, shown=shown), Counting(), Bisection(times=1), Rules(retime=True))
    )
    assert values(out) == [0, 1.5, 3, 4.5, 6, 7, 8, 9, 10, 11, 12]
    assert [f.slot.number for f in out] == list(range(11))
    assert [f.is_retimed for f in out] == [True] * 10 + [False]
    as_it_is = list(interpolate(clip(6, shown=shown), Counting(), Bisection(times=1)))
    assert not any(f.is_retimed for f in as_it_is)
    assert values(as_it_is) == [0, 0, 0, 3, 6, 6, 6, 6, 6, 9, 12]


@pytest.mark.parametrize(
    ("rule", "expected"), [("nearest", [0, 0, 0, 0, 0, 0, 6]), ("ignore", [0, 0, 0, 0, 0, 3, 6])]
)
def test_there_is_no_motion_from_repeated_frames_towards_a_cut(rule, expected):
    frames = clip(4, shown=[0, 0, 0, 6], cuts={3})
    rules = Rules(retime=True, cuts=rule)
    assert values(interpolate(frames, Counting(), Bisection(times=1), rules)) == expected


@pytest.mark.parametrize("length", [2, LONGEST_RUN, LONGEST_RUN + 3])
def test_a_clip_that_ends_in_a_still_loses_none_of_it(length):
    shown = [0, *[6] * length]
    out = interpolate(
        clip(len(shown), shown=shown), Counting(), Bisection(times=1), Rules(retime=True)
    )
    assert values(out) == [0, 3, *[6] * (2 * length - 1)]


def test_the_longest_run_is_still_retimed():
    shown = [0] * LONGEST_RUN + [12]
    out = interpolate(
        clip(len(shown), shown=shown), Counting(), Bisection(times=1), Rules(retime=True)
    )
    assert values(out) == pytest.approx(np.linspace(0, 12, 2 * LONGEST_RUN + 1))


@pytest.mark.parametrize("longer", [1, 2, LONGEST_RUN])
def test_a_still_picture_is_not_taken_for_animation(longer):
    length = LONGEST_RUN + longer
    shown = [0, *[6] * length, 12]
    out = values(
        interpolate(
            clip(len(shown), shown=shown), Counting(), Bisection(times=1), Rules(retime=True)
        )
    )
    assert out == [0, 3, *[6] * (2 * length - 1), 9, 12]


@given(
    runs=st.lists(st.integers(1, LONGEST_RUN + 3), min_size=2, max_size=8),
    cuts=st.sets(st.integers(1, 20)),
    data=st.data(),
)
def test_retimed_and_held_frames_do_not_depend_on_where_a_job_is_cut(runs, cuts, data):
    shown = [6 * i for i, run in enumerate(runs) for _ in range(run)]
    rules, timeline = Rules(retime=True, cuts="hold"), Bisection(times=1)
    frames = list(clip(len(shown), shown=shown, cuts=cuts))
    whole = list(interpolate(frames, Counting(), timeline, rules))
    cut = data.draw(st.integers(1, len(shown) - 1))
    around = frames[: cut + LONGEST_RUN + 1], frames[max(0, cut - LONGEST_RUN) :]
    before = interpolate(around[0], Counting(), timeline, rules, stop=cut, ends_here=False)
    after = interpolate(around[1], Counting(), timeline, rules, start=cut)
    parts = [*before, *after]
    assert [f.slot for f in parts] == [f.slot for f in whole]
    assert values(parts) == pytest.approx(values(whole))


class Far(Counting):
    """Acts as if it computed on another device, and logs the mid frames that are begun."""

    def __init__(self, fails_at=None):
        super().__init__()
        self.log, self.fails_at = [], fails_at

    def between(self, a, b, times, key):
        for mid in super().between(a, b, times, key):
            if float(mid.mean()) == self.fails_at:
                raise ValueError("cannot compute")
            self.log.append(float(mid.mean()))
            yield mid


class FarDownload:
    takes_time = True

    def __init__(self, image):
        self.image = image

    def result(self):
        return self.image + 100


@pytest.fixture
def far(monkeypatch):
    monkeypatch.setattr("comfyui_tlbvfi.tlbvfi.pipeline.Downloads", lambda: FarDownload)


def test_on_the_cpu_nothing_is_computed_before_it_is_asked_for():
    method = Far()
    shown = 0
    for frame in interpolate(clip(4), method, Bisection(times=2)):
        shown += not frame.is_source
        assert len(method.log) == shown


@pytest.mark.usefixtures("far")
def test_elsewhere_one_mid_frame_is_begun_ahead_and_order_stays():
    method = Far()
    out, ahead = [], []
    for frame in interpolate(clip(3), method, Bisection(times=1)):
        out.append(frame)
        ahead.append(len(method.log))
    assert values(out) == [0, 100.5, 1, 101.5, 2]
    assert ahead == [0, 2, 2, 2, 2]
    assert [f.slot.number for f in out] == list(range(5))


@pytest.mark.usefixtures("far")
def test_an_error_elsewhere_comes_after_the_frames_before_it():
    frames = interpolate(clip(4), Far(fails_at=1.5), Bisection(times=1))
    assert values([next(frames) for _ in range(3)]) == [0, 100.5, 1]
    with pytest.raises(ValueError, match="cannot compute"):
        next(frames)


@pytest.mark.usefixtures("far")
def test_closing_ends_the_work_and_lets_go_of_the_source():
    closed = []

    def source():
        try:
            yield from clip(50)
        finally:
            closed.append(True)

    method = Far()
    frames = interpolate(source(), method, Bisection(times=1))
    assert values([next(frames), next(frames)]) == [0, 100.5]
    frames.close()
    assert closed == [True]
    assert method.log == [0.5, 1.5]


class Batched(Counting):
    """Computes `size` pairs at once and records the batches."""

    def __init__(self, size, *, any_time=True):
        super().__init__()
        self.size, self.batches, self.any_time = size, [], any_time

    def pairs_at_once(self, height, width):
        assert (height, width) == (4, 4)
        return self.size

    def between_many(self, requests):
        assert 1 <= len(requests) <= self.size
        self.batches.append([request.key.pair for request in requests])
        for request in requests:
            yield from self.between(
                request.features0, request.features1, request.times, request.key
            )


def test_a_method_is_given_as_many_pairs_as_it_does_at_once():
    method, alone = Batched(3), Counting()
    out = list(interpolate(clip(9), method, Bisection(times=2), Rules(seed=5)))
    expected = list(interpolate(clip(9), alone, Bisection(times=2), Rules(seed=5)))
    assert method.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert method.prepared == alone.prepared
    assert method.keys == alone.keys
    assert values(out) == values(expected)
    assert [f.slot for f in out] == [f.slot for f in expected]


def test_pairs_that_show_no_mid_frame_are_not_asked_for():
    method = Batched(4)
    frames = clip(6, cuts={1, 2, 3, 5})
    out = list(interpolate(frames, method, Bisection(times=1), Rules(cuts="hold")))
    assert method.batches == [[3]]
    assert values(out) == [0, 0, 1, 1, 2, 2, 3, 3.5, 4, 4, 5]


@given(size=st.integers(1, 5), count=st.integers(2, 9), any_time=st.booleans(), data=st.data())
def test_frames_do_not_depend_on_how_pairs_fall_into_batches(size, count, any_time, data):
    rules, timeline = Rules(seed=1, depth=1), TargetRate(fps=Fraction(60))
    frames = list(clip(count))
    whole = list(interpolate(frames, Batched(1, any_time=any_time), timeline, rules))
    cut = data.draw(st.integers(1, count - 1))
    method = Batched(size, any_time=any_time)
    before = interpolate(frames[: cut + 1], method, timeline, rules, stop=cut, ends_here=False)
    after = interpolate(frames[cut - 1 :], method, timeline, rules, start=cut)
    parts = [*before, *after]
    assert values(parts) == values(whole)
    assert [f.slot for f in parts] == [f.slot for f in whole]


def test_features_of_two_frames_are_held_and_no_more():
    class Features:
        alive = 0

        def __init__(self, image):
            self.image = image
            Features.alive += 1

        def __del__(self):
            Features.alive -= 1

    class Holding(Counting):
        def prepare(self, frame):
            assert Features.alive <= 1
            return Features(frame)

        def between(self, a, b, times, key):
            return ((a.image + b.image) / 2 for _ in times)

    out = interpolate(clip(6), Holding(), Bisection(times=1))
    assert values(out) == [i / 2 for i in range(11)]


@given(st.lists(st.integers(0, 255), min_size=2, max_size=2), st.integers(0, 255))
def test_mid_frames_of_straight_alpha_are_those_of_the_pictures_seen(alphas, hidden):
    """Over black, a mid frame is the mix of the two frames over black, whatever was invisible."""
    given_alphas = torch.tensor(alphas) / 255
    frames = [
        torch.cat(
            [
                torch.full((3, 4, 4), hidden / 255 if a == 0 else 0.75),
                torch.full((1, 4, 4), float(a)),
            ]
        )
        for a in given_alphas
    ]
    source = [
        SourceFrame(index=i, time=Fraction(i), image=frame, picture=i)
        for i, frame in enumerate(frames)
    ]
    out = list(interpolate(source, Counting(), Bisection(times=1)))
    assert out[1].image is not None
    color, alpha = out[1].image[:3], out[1].image[3:]
    assert torch.allclose(alpha, given_alphas.mean().expand(1, 4, 4))
    assert torch.allclose(color * alpha, 0.75 * alpha, atol=1e-5)


def rgba(*values: float) -> torch.Tensor:
    """A [4, 4, 4] picture of one color and alpha."""
    return torch.tensor(values).reshape(4, 1, 1).expand(4, 4, 4)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        ("premultiplied", [0.4, 0.3, 0.2, 0.75]),
        ("straight", [0.7 / 1.5, 0.5 / 1.5, 0.3 / 1.5, 0.75]),
    ],
)
def test_half_transparent_colors_count_as_the_source_means_them(alpha, expected):
    pictures = [rgba(0.2, 0.2, 0.2, 0.5), rgba(0.6, 0.4, 0.2, 1.0)]
    source = [
        SourceFrame(index=i, time=Fraction(i), image=image, picture=i)
        for i, image in enumerate(pictures)
    ]
    out = list(interpolate(source, Counting(), Bisection(times=1), Rules(alpha=alpha)))
    assert out[1].image[:, 0, 0].tolist() == pytest.approx(expected)


def test_what_is_invisible_in_a_mid_frame_is_black():
    source = [
        SourceFrame(index=i, time=Fraction(i), image=rgba(0.9, 0.5, 0.1, 0.0), picture=i)
        for i in range(2)
    ]
    out = list(interpolate(source, Counting(), Bisection(times=1)))
    assert not out[1].image.any()
