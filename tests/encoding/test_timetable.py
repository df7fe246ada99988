from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from comfyui_tlbvfi.encoding.concat import join
from comfyui_tlbvfi.encoding.errors import SessionError
from comfyui_tlbvfi.encoding.timetable import (
    LONGEST_FRAME,
    Timetable,
    start_ticks,
    timetable,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def records_of(session):
    return [record for _, record in sorted(session.records().items())]


@given(
    st.integers(0, 5000),
    st.lists(st.integers(1, 500), max_size=40),
    st.integers(1, 500),
    st.integers(0, 2),
    st.data(),
)
def test_decode_times_suit_any_order_an_encoder_may_choose(start, gaps, last, reorder, data):
    pts = start + np.cumsum([0, *gaps])
    times = Timetable(time_base=Fraction(1, 1000), pts=pts, last_duration=last)
    dts = times.dts(reorder)
    delay = min(reorder, len(pts) - 1)
    order = order_within(data, len(pts), reorder)
    shown = [int(pts[place]) for place in order]
    assert np.all(np.diff(dts) > 0)
    assert all(decoded <= when for decoded, when in zip(dts.tolist(), shown, strict=True))
    if delay and start:  # the mp4 muxer takes the least pts - dts of the packets before 0
        early = [
            when - when_d for when, when_d in zip(shown, dts.tolist(), strict=True) if when_d <= 0
        ]
        assert not early or min(early) == early[0]
    length = int(dts[-1]) - int(dts[0])
    assert length == int(pts[-1 - delay] - pts[0]) + int(pts[-1] - pts[-1 - delay])
    assert int(times.durations().sum()) == int(pts[-1]) - int(pts[0]) + last


def order_within(data, count, reorder):
    """A decode order: the first frame first, none more than `reorder` places early."""
    left, order = list(range(1, count)), [0]
    while left:
        # The earliest frame that is left must not fall more than `reorder` places behind.
        must = left[0] + reorder <= len(order)
        pick = 0 if must else data.draw(st.integers(0, len(left) - 1))
        order.append(left.pop(pick))
    return order


def test_constant_rate_steps_evenly_in_decode_time():
    times = Timetable(time_base=Fraction(1, 48), pts=np.arange(0, 8) * 1001, last_duration=1001)
    assert times.dts(2).tolist() == [1001 * n for n in range(-2, 6)]
    assert times.dts(0).tolist() == times.pts.tolist()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_shortest_outputs_have_decode_times(count):
    times = Timetable(time_base=Fraction(1, 25), pts=np.arange(count), last_duration=1)
    assert times.dts(2).tolist() == [n - min(2, count - 1) for n in range(count)]


@given(start=st.fractions(0, 10_000, max_denominator=44_000), hours=st.integers(1, 3))
@settings(max_examples=20)
def test_an_hour_keeps_its_start_and_rate_to_the_tick(encoder, stream, start, hours):
    from comfyui_tlbvfi.encoding.manifest import Manifest
    from comfyui_tlbvfi.encoding.progress import ChunkRecord

    manifest = Manifest(
        source={}, settings={}, encoder=encoder("ffv1"), stream=stream(), start=start
    )
    frames = hours * 172_627
    record = ChunkRecord(
        **{"index": 0, "pairs": (0, 1), "first_frame": 0, "frames": frames, "first_pts": 0},
        **{"last_pts": frames - 1, "pts": None, "bytes": 1, "sha256": "", "is_last": True},
    )
    times = timetable(manifest, [record])
    last = int(times.pts[-1]) * times.time_base
    assert int(times.pts[0]) * times.time_base == start
    assert last == start + (frames - 1) * Fraction(1001, 48000)


@given(
    start=st.fractions(-10_000, 10_000, max_denominator=10**10),
    rate=st.fractions(Fraction(1, 1000), 1000, max_denominator=10**6),
)
def test_a_start_is_kept_as_exactly_as_ticks_that_can_be_stored_allow(start, rate):
    first, finer = start_ticks(start, 1 / rate)
    tick = 1 / rate / finer
    assert tick.denominator <= 2**31 - 1
    assert finer <= LONGEST_FRAME  # ticks from frame to frame
    assert abs(first * tick - start) <= tick / 2
    is_fine = tick < Fraction(2, 10**9) or finer > LONGEST_FRAME // 2
    assert first * tick == start or is_fine or tick == Fraction(1, rate.numerator)


@pytest.mark.parametrize(
    ("rate", "start"),
    [
        (Fraction("47.123457"), Fraction(237107, 90000)),
        (Fraction(1, 4), Fraction(1, 10**9 + 7)),
    ],
)
def test_a_start_that_no_tick_can_store_exactly_is_rounded(tmp_path, filled, stream, rate, start):
    output = tmp_path / "out.mp4"
    join(filled("h264", start=start, stream=stream(rate=rate)), output)
    with av.open(str(output)) as container:
        times = sorted(p.pts * p.time_base for p in container.demux(video=0) if p.size)
    assert abs(times[0] - start) < Fraction(1, 10**6)
    assert [time - times[0] for time in times] == [number / rate for number in range(7)]


def test_variable_rate_follows_the_records(filled):
    session = filled(pts=[0, 3, 10, 11, 30], is_vfr=True, per_chunk=2, start=Fraction(1, 2))
    times = timetable(session.manifest, records_of(session), shift=Fraction(1, 2))
    assert times.pts.tolist() == [0, 3, 10, 11, 30]
    assert times.time_base == Fraction(1001, 48000)


def test_a_variable_rate_without_times_is_refused(filled):
    session = filled(pts=[0, 3, 10, 11, 30], is_vfr=True, per_chunk=2)
    records = [replace(record, pts=None) for record in records_of(session)]
    with pytest.raises(SessionError, match="lacks the times of its frames"):
        timetable(session.manifest, records)


def test_overlapping_chunks_are_refused(filled):
    session = filled(pts=[0, 3, 10, 11, 30], is_vfr=True, per_chunk=2)
    with pytest.raises(SessionError, match="overlap in time"):
        timetable(session.manifest, records_of(session)[::-1])
