"""The loop over pairs: what is prepared, asked for and shown."""

from fractions import Fraction

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.pipeline import SourceFrame, interpolate
from comfyui_tlbvfi.tlbvfi.timeline import Bisection, TargetRate


class Counting:
    """A method that mixes linearly and remembers what it was asked."""

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


def clip(count, rate=Fraction(25)):
    for i in range(count):
        yield SourceFrame(index=i, time=i / rate, image=torch.full((3, 4, 4), float(i)), picture=i)


def values(frames):
    return [float(f.source.picture if f.is_source else f.image.mean()) for f in frames]


def test_every_frame_is_prepared_once_and_every_t_computed_once():
    method = Counting()
    out = list(interpolate(clip(5), method, Bisection(times=2)))
    assert method.prepared == [0, 1, 2, 3, 4]
    assert method.asked == [[Fraction(1, 4), Fraction(1, 2), Fraction(3, 4)]] * 4
    assert values(out) == [i / 4 for i in range(17)]


def test_a_target_rate_asks_only_for_what_is_shown():
    method = Counting()
    out = list(interpolate(clip(6), method, TargetRate(fps=Fraction(60))))
    assert values(out) == pytest.approx([i * 25 / 60 for i in range(13)])
    assert sum(map(len, method.asked)) == sum(not f.is_source for f in out)
    slower = list(interpolate(clip(6), method, TargetRate(fps=Fraction(5))))
    assert values(slower) == [0, 5]


def test_a_job_cut_into_chunks_gives_the_frames_and_keys_of_one_run():
    whole, cut = Counting(), Counting()
    timeline = Bisection(times=1)
    expected = list(interpolate(clip(9), whole, timeline, seed=7))
    frames = list(clip(9))
    parts = [
        *interpolate(frames[:4], cut, timeline, seed=7, ends_here=False),
        *interpolate(frames[3:9], cut, timeline, seed=7),
    ]
    assert [f.slot for f in parts] == [f.slot for f in expected]
    assert values(parts) == values(expected)
    assert cut.keys == whole.keys


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
