"""Frame times: exact rates from rounded ticks, and time windows as ranges of frames."""

from fractions import Fraction
from itertools import pairwise

import pytest
from comfyui_tlbvfi.encoding.timestamps import Timestamps, ascending, filled, timestamps
from hypothesis import assume, given
from hypothesis import strategies as st

RATES = [
    Fraction(24000, 1001), Fraction(24), Fraction(25), Fraction(30000, 1001), Fraction(30),
    Fraction(48000, 1001), Fraction(50), Fraction(60000, 1001), Fraction(60), Fraction(16),
    Fraction(25, 2), Fraction(120000, 1001), Fraction(240),
]  # fmt: skip
MILLISECOND = Fraction(1, 1000)


def rounded(rate, time_base, count, start=0):
    return [round((start + i / rate) / time_base) for i in range(count)]


@given(
    rate=st.sampled_from(RATES),
    time_base=st.sampled_from([MILLISECOND, Fraction(1, 90000), Fraction(1, 1_000_000)]),
    count=st.integers(400, 500),
    start=st.fractions(0, 100),
)
def test_a_constant_rate_is_found_exactly_through_rounded_ticks(rate, time_base, count, start):
    times = timestamps(rounded(rate, time_base, count, start), time_base, [])
    assert times.rate == rate
    assert not times.is_vfr
    assert times.time(count) - times.time(0) == count / rate


@given(rate=st.sampled_from(RATES), count=st.integers(2, 12))
def test_a_short_clip_in_milliseconds_has_the_rate_it_declares(rate, count):
    assert timestamps(rounded(rate, MILLISECOND, count), MILLISECOND, [rate]).rate == rate


def test_a_declared_rate_the_ticks_contradict_is_not_believed():
    ticks = rounded(Fraction(25), MILLISECOND, 50)
    assert timestamps(ticks, MILLISECOND, [Fraction(50), None, Fraction(120)]).rate == 25


def test_the_rate_that_muxers_report_for_60000_1001_is_put_right():
    ticks = rounded(Fraction(60000, 1001), MILLISECOND, 300)
    assert timestamps(ticks, MILLISECOND, [Fraction(19001, 317)]).rate == Fraction(60000, 1001)


@pytest.mark.parametrize("rate", ["29.9712345", "23.9001", "59.7275005", "239.123456"])
def test_an_uncommon_rate_over_many_ticks_can_be_stored(rate):
    ticks = [round(number * 90_000 / Fraction(rate)) for number in range(20_000)]
    found = timestamps(ticks, Fraction(1, 90_000), ())
    assert not found.is_vfr
    assert found.rate.numerator <= 1 << 22
    assert all(
        abs(found.time(n) - Fraction(tick, 90_000)) <= Fraction(1, 90_000)
        for n, tick in enumerate(ticks)
    )


def test_an_uncommon_exact_rate_is_kept():
    base = Fraction(1, 1_000_000)
    ticks = rounded(Fraction(1000, 61), base, 300)
    times = timestamps(ticks, base, [])
    assert not times.is_vfr
    assert abs(times.time(299) - 299 * Fraction(61, 1000)) <= 2 * base


@given(gaps=st.lists(st.integers(1, 3000), min_size=3, max_size=60))
def test_variable_ticks_are_kept(gaps):
    assume(max(gaps) > 2 * min(gaps))
    ticks = [sum(gaps[:i]) for i in range(len(gaps) + 1)]
    times = timestamps(ticks, Fraction(1, 90000), [Fraction(25)])
    assert times.is_vfr
    assert [times.time(i) for i in range(len(ticks))] == [Fraction(t, 90000) for t in ticks]
    assert times.rate == Fraction(len(gaps) * 90000, sum(gaps))


def test_one_dropped_frame_makes_a_variable_rate_also_where_a_tick_is_a_frame():
    assert timestamps([0, 1, 2, 4, 5, 6], Fraction(1, 25), [Fraction(25)]).is_vfr
    assert not timestamps([5, 6, 7, 8], Fraction(1, 25), [Fraction(25)]).is_vfr


def test_a_frame_more_than_a_tick_off_the_beat_makes_a_variable_rate():
    ticks = rounded(RATES[0], MILLISECOND, 200)
    assert not timestamps(ticks, MILLISECOND, [RATES[0]]).is_vfr
    ticks[6] -= 1  # its exact time is 250.25
    assert timestamps(ticks, MILLISECOND, [RATES[0]]).is_vfr


@pytest.mark.parametrize(("declared", "rate"), [([Fraction(24)], 24), ([None], 25)])
def test_a_single_frame_has_the_declared_rate(declared, rate):
    times = timestamps([7], MILLISECOND, declared)
    assert (times.rate, times.start, times.count) == (rate, Fraction(7, 1000), 1)


@given(
    start=st.fractions(0, 10, max_denominator=1000),
    seconds=st.fractions(-1, 20, max_denominator=1001),
    is_vfr=st.booleans(),
)
def test_a_window_begins_at_the_first_frame_not_before_it(start, seconds, is_vfr):
    if is_vfr:
        ticks = [int(start * 1000) + i * i for i in range(100)]
        times = timestamps(ticks, MILLISECOND, [])
    else:
        rate = Fraction(24000, 1001)
        times = Timestamps(start=start, rate=rate, count=100, time_base=MILLISECOND)
    index = times.index_at(seconds)
    expected = [i for i in range(100) if times.time(i) - times.start >= seconds]
    assert index == (expected[0] if expected else 100)


@given(st.lists(st.integers(0, 50)).map(sorted))
def test_equal_ticks_are_moved_apart_and_others_stay(ticks):
    moved = list(ascending(ticks))
    assert all(a < b for a, b in pairwise(moved))
    assert all(new >= old for new, old in zip(moved, ticks, strict=True))
    if len(set(ticks)) == len(ticks):
        assert moved == ticks


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ([None, None, 0, 120, 40, 80], [-80, -40, 0, 40, 80, 120]),
        ([0, None, None, 120], [0, 40, 80, 120]),
        ([0, 120, None, None, None], [0, 120, 160, 200, 240]),
        ([None, 80, 0, None, 1000], [-40, 0, 80, 540, 1000]),
        ([5], [5]),
    ],
)
def test_pictures_without_a_time_are_shown_evenly_between_the_others(given, shown):
    assert filled(given, Fraction(40)) == shown


@given(st.lists(st.none() | st.integers(-1000, 1000), max_size=40), st.integers(-1000, 1000))
def test_no_picture_and_no_known_time_is_lost_by_filling(given, known):
    given = [*given, known]
    found = filled(given, Fraction(40))
    assert len(found) == len(given)
    assert found == sorted(found)
    assert {tick for tick in given if tick is not None} <= set(found)
