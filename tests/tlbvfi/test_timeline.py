"""Output times and numbers, in exact arithmetic."""

from fractions import Fraction
from itertools import pairwise

import pytest
from comfyui_tlbvfi.encoding.timetable import LONGEST_FRAME
from comfyui_tlbvfi.tlbvfi.config import JobConfig
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from comfyui_tlbvfi.tlbvfi.timeline import (
    Bisection,
    TargetRate,
    nearest_node,
    parse_factor,
    parse_rate,
    parse_seconds,
    storable_tick,
)
from hypothesis import given
from hypothesis import strategies as st

RATES = [
    Fraction(24000, 1001),
    Fraction(24),
    Fraction(25),
    Fraction(30000, 1001),
    Fraction(16),
    Fraction(60000, 1001),
    Fraction(25, 2),
]
rates = st.sampled_from(RATES)


def walk(timeline, times):
    """All slots of a clip whose source frames are at `times`."""
    slots = []
    for pair, (a, b) in enumerate(pairwise(times)):
        slots += timeline.slots(pair, a, b)
    return slots + timeline.last(len(times) - 1, times[-1])


@given(frames=st.integers(1, 50), times=st.integers(0, 4), rate=rates)
def test_bisection_gives_n_minus_1_times_2_to_the_k_plus_1_frames_evenly_spaced(
    frames, times, rate
):
    slots = walk(Bisection(times=times), [Fraction(3, 7) + i / rate for i in range(frames)])
    assert len(slots) == (frames - 1) * 2**times + 1
    assert Bisection(times=times).total(frames, frames / rate) == len(slots)
    assert Bisection(times=times).rate(rate) == rate * 2**times
    assert Bisection(times=times).step(1 / rate) == 1 / (rate * 2**times)
    assert [s.number for s in slots] == list(range(len(slots)))
    assert [s.time for s in slots] == [
        Fraction(3, 7) + i / (rate * 2**times) for i in range(len(slots))
    ]


@given(gaps=st.lists(st.integers(1, 5000), min_size=1, max_size=30), times=st.integers(1, 4))
def test_bisection_of_a_variable_rate_keeps_every_source_time(gaps, times):
    source = [Fraction(sum(gaps[:i]), 90000) for i in range(len(gaps) + 1)]
    slots = walk(Bisection(times=times), source)
    assert [s.time for s in slots if s.t == 0] == source
    tick = Bisection(times=times).step(Fraction(1, 90000))
    assert all((s.time / tick).denominator == 1 for s in slots)
    assert all(a.time < b.time for a, b in pairwise(slots))


@given(rate=rates, target=rates, frames=st.integers(2, 80))
def test_target_rate_is_exact_and_independent_of_how_the_clip_is_cut(rate, target, frames):
    source = [i / rate for i in range(frames)]
    timeline = TargetRate(fps=target)
    slots = walk(timeline, source)
    assert [s.number for s in slots] == list(range(len(slots)))
    assert all(s.time == s.number / target for s in slots)
    assert slots[-1].time <= source[-1] < slots[-1].time + 1 / target
    assert len(slots) == timeline.total(frames, source[-1])
    for pair, (a, b) in enumerate(pairwise(source)):
        assert timeline.slots(pair, a, b) == [s for s in slots if a <= s.time < b]


def test_24000_1001_to_60_is_exact_over_an_hour():
    rate, hour = Fraction(24000, 1001), 3600 * 24
    timeline = TargetRate(fps=Fraction(60))
    tick = storable_tick(timeline.step(1 / rate))
    total = 0
    for pair in range(hour):
        for slot in timeline.slots(pair, pair / rate, (pair + 1) / rate):
            assert slot.number == total
            assert (slot.time / tick).denominator == 1
            total += 1
    assert total == -(-hour * 60 * 1001 // 24000)


# Of fractions alone hardly one would be a node of a deeper tree.
places = st.fractions(0, 1) | st.integers(0, 256).map(lambda n: Fraction(n, 256))


@given(t=places, depth=st.integers(1, 6))
def test_a_method_that_bisects_shows_the_nearest_node_of_the_tree(t, depth):
    node = nearest_node(t, depth)
    assert node.denominator <= 2**depth or (node == t and node.denominator == 2 ** (depth + 1))
    assert abs(node - t) <= Fraction(1, 2 ** (depth + 1))


@given(times=st.lists(places, min_size=2, max_size=9), depth=st.integers(1, 6))
def test_a_later_time_never_shows_an_earlier_node(times, depth):
    nodes = [nearest_node(t, depth) for t in sorted(times)]
    assert nodes == sorted(nodes)


@pytest.mark.parametrize(
    ("t", "depth"),
    [
        (Fraction(0), 1),
        (Fraction(1), 1),
        (Fraction(3, 4), 1),
        (Fraction(5, 16), 3),
        (Fraction(5, 256), 8),
    ],
)
def test_what_bisection_reaches_is_left_as_it_is(t, depth):
    assert nearest_node(t, depth) == t


def test_a_time_base_no_container_can_store_is_refused():
    with pytest.raises(SettingsError, match="finer than video files can store"):
        storable_tick(Fraction(1, 2**31))
    assert storable_tick(Fraction(1, 2**31 - 1)) == Fraction(1, 2**31 - 1)


def test_a_tick_whose_terms_do_not_fit_32_bits_is_refused():
    with pytest.raises(SettingsError, match="choose fewer times or another fps"):
        storable_tick(1 / Fraction("0.2147483647"))


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("25", Fraction(25)),
        ("24", Fraction(24)),
        ("24000/1001", Fraction(24000, 1001)),
        ("23.976", Fraction(24000, 1001)),
        ("23.98", Fraction(24000, 1001)),
        ("29.97", Fraction(30000, 1001)),
        ("59.94", Fraction(60000, 1001)),
        ("119.88", Fraction(120000, 1001)),
        ("12.5", Fraction(25, 2)),
        ("24.97", Fraction(2497, 100)),
        ("24.975", Fraction(999, 40)),  # close to 25000/1001, which is no usual rate
    ],
)
def test_rates_are_read_exactly(text, rate):
    assert parse_rate(text) == rate


@pytest.mark.parametrize("rate", [Fraction(1, 3), Fraction(100, 3), Fraction(1250, 57)])
@pytest.mark.parametrize("text", [lambda rate: str(float(rate)), lambda rate: f"{float(rate):.9f}"])
def test_decimals_of_many_digits_stand_for_the_fraction_nearby(rate, text):
    assert parse_rate(text(rate)) == rate


@given(st.fractions(Fraction(1, 1000), 1000, max_denominator=10**30))
def test_any_rate_in_decimals_can_be_stored(rate):
    found = parse_rate(f"{float(rate)!r}")
    assert abs(found - rate) <= rate * Fraction(2, 10**7) or found.denominator == 1001
    assert storable_tick(1 / found).numerator <= LONGEST_FRAME


@pytest.mark.parametrize("text", ["5e9", "1e20", "4294967296.5"])
def test_rates_beyond_all_files_are_read_too(text):
    assert abs(parse_rate(text) - Fraction(text)) <= Fraction(1, 2)


def test_a_rate_near_0_is_no_ntsc_rate():
    assert parse_rate("0.001") == Fraction(1, 1000)


HUGE = ["1e999999999", "1E-999999999", "1e9_9_9_9_9_9_9", "1" * 10**6]


@pytest.mark.parametrize("parse", [parse_rate, parse_factor, parse_seconds])
@pytest.mark.parametrize("text", HUGE, ids=range(len(HUGE)))
def test_numbers_that_would_fill_the_memory_are_refused(parse, text):
    with pytest.raises(SettingsError, match=r"^a (frame rate|factor|time) is .{,150}\.$"):
        parse(text)


def test_exponents_as_python_writes_them_are_read():
    assert parse_factor(str(1e16)) == parse_seconds("1e16") == 10**16
    assert parse_seconds(str(1e-5)) == Fraction(1, 100000)


def test_rates_too_low_for_a_file_are_refused():
    assert parse_rate("1/1000") == Fraction(1, 1000)
    with pytest.raises(
        SettingsError, match="a frame rate of 1e-5 is too low for a video file: choose 1/1000"
    ):
        parse_rate("1e-5")
    with pytest.raises(SettingsError, match="fps must be between 1/1000 and 1000"):
        JobConfig(fps=Fraction(1, 1001))


@pytest.mark.parametrize("text", ["0", "-1", "fast", "1/0", "", "nan"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(SettingsError, match="frame rate"):
        parse_rate(text)


def test_clock_times_are_read():
    assert parse_seconds("1:02:03.250") == Fraction(3723) + Fraction(1, 4)
    assert parse_seconds("12.5") == Fraction(25, 2)


@pytest.mark.parametrize("text", ["1:2:3:4", "soon", "", "-1", "1:-2"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(SettingsError, match="hh:mm:ss"):
        parse_seconds(text)


def test_factors_are_read_exactly_and_what_is_none_is_refused():
    assert [parse_factor(text) for text in ("4", "2.5", "5/2")] == [
        4,
        Fraction(5, 2),
        Fraction(5, 2),
    ]
    for text in ("0", "-2", "slow"):
        with pytest.raises(SettingsError, match="factor"):
            parse_factor(text)


@pytest.mark.parametrize("times", [-1, 9])
def test_times_out_of_range_are_refused(times):
    with pytest.raises(SettingsError, match="between 0 and 8"):
        Bisection(times=times)
