"""Recordings put end to end: one clock for picture and sound, whatever clocks the parts have."""

from fractions import Fraction
from types import SimpleNamespace

import av
import pytest
from comfyui_tlbvfi.encoding.clock import ClockReader, Piece
from comfyui_tlbvfi.encoding.concat import join
from comfyui_tlbvfi.encoding.reader import VideoSource
from comfyui_tlbvfi.encoding.scan import read_clock

STEP = Fraction(1, 25)


@pytest.fixture
def part(tmp_path, clip):
    """Factory for recordings of 25 frames and sound whose clock begins at about `begin` seconds."""

    def make(name, *, begin=0, first=0, has_audio=True, **facts):
        path = tmp_path / name
        whole = clip(f"{name}.mp4", frames=25, first=first, has_audio=has_audio, **facts)
        with av.open(str(whole)) as source, av.open(str(path), "w") as out:
            streams = [out.add_stream_from_template(stream) for stream in source.streams]
            for packet in source.demux():
                if packet.size:
                    packet.stream = streams[packet.stream_index]
                    packet.pts += round(begin / packet.time_base)
                    packet.dts += round(begin / packet.time_base)
                    out.mux(packet)
        return path

    return make


@pytest.fixture
def joined(tmp_path, part):
    """Factory for (file of two recordings joined, first recording, second recording)."""

    def make(begin, then, suffix="ts", **facts):
        one = part(f"one.{suffix}", begin=begin, **facts)
        two = part(f"two.{suffix}", begin=then, first=40, **facts)
        path = tmp_path / f"both.{suffix}"
        path.write_bytes(one.read_bytes() + two.read_bytes())
        return path, one, two

    return make


def pictures(path, samples, start=0):
    with VideoSource(path) as source:
        return [(frame.time, samples(frame.picture)) for frame in source.frames(start)]


CLOCKS = [(0, 0), (50, 0), (1, Fraction(3, 2)), (200, 0)]
"""Same clock twice; set back; overlapping; set back so far that FFmpeg sees a wraparound."""


@pytest.mark.parametrize(("begin", "then"), CLOCKS)
def test_a_part_whose_clock_is_set_back_follows_right_after(joined, samples, caplog, begin, then):
    path, one, two = joined(begin, then)
    first, second = pictures(one, samples), pictures(two, samples)
    caplog.clear()
    whole = pictures(path, samples)
    assert [picture for _, picture in whole] == [picture for _, picture in first + second]
    assert [time for time, _ in whole] == [first[0][0] + n * STEP for n in range(50)]
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "The clock of both.ts jumps from" in told[0]
    for start in (13, 24, 25, 40):
        assert pictures(path, samples, start) == whole[start:]
    with VideoSource(path) as source:
        list(source.frames())
        assert not source.info.is_vfr
        assert source.shortfall() is None


def test_program_streams_are_put_on_one_clock_as_well(joined, samples):
    facts = {"codec": "mpeg2video", "options": {"g": "8", "bf": "2"}, "has_audio": False}
    path, one, two = joined(3, 0, "mpg", **facts)
    parts = [picture for each in (one, two) for _, picture in pictures(each, samples)]
    whole = pictures(path, samples)
    assert [picture for _, picture in whole] == parts
    assert [time - whole[0][0] for time, _ in whole] == [n * STEP for n in range(50)]


def sound(path):
    with av.open(str(path)) as container:
        return [p.pts * p.time_base for p in container.demux(audio=0) if p.size]


@pytest.mark.parametrize(("begin", "then"), CLOCKS)
def test_sound_moves_as_far_as_the_picture(tmp_path, filled, joined, begin, then):
    path, one, two = joined(begin, then)
    with VideoSource(one) as first, VideoSource(two) as second:
        start = first.info.start
        shift = start + 1 - second.info.start
    output = tmp_path / "out.mp4"
    notes = join(filled("h264", start=start), output, source=path).notes
    before, after = sound(one), [time + shift for time in sound(two)]
    late = [time for time in after if time <= before[-1]]
    assert len(notes) == bool(late)
    found = sound(output)
    planned = before + after[len(late) :]
    assert len(found) == len(planned)
    assert max(abs(a - b) for a, b in zip(found, planned, strict=True)) < Fraction(1, 48000)


def test_a_part_that_begins_amid_its_pictures_begins_with_the_first_whole_one(
    tmp_path, part, samples
):
    one, two = part("a.ts"), part("b.ts", first=40)
    content = two.read_bytes()
    begin = len(content) // 3 // 188 * 188
    path = tmp_path / "cut.ts"
    path.write_bytes(one.read_bytes() + content[:564] + content[begin:])
    whole = pictures(path, samples)
    whole_two = [picture for _, picture in pictures(two, samples)]
    found = [picture for _, picture in whole[25:]]
    assert 0 < len(found) < 25
    assert found == whole_two[-len(found) :]
    assert [time - whole[0][0] for time, _ in whole] == [n * STEP for n in range(len(whole))]


def test_a_clock_that_never_jumps_moves_nothing(part):
    assert read_clock(part("a.ts", begin=7)).pieces == {}
    assert read_clock(part("a.mkv", begin=7)).pieces == {}


VIDEO, SOUND, WORDS = (
    SimpleNamespace(index=index, type=type)
    for index, type in enumerate(("video", "audio", "subtitle"))
)
UNKNOWN = object()
HOURS = 400_000


def packet(stream, pts, *, dts=UNKNOWN, duration=4, is_keyframe=True):
    """What a clock looks at, in hundredths of a second."""
    return SimpleNamespace(
        **{"stream": stream, "pts": pts, "dts": pts if dts is UNKNOWN else dts, "size": 1},
        **{"duration": duration, "is_keyframe": is_keyframe, "time_base": Fraction(1, 100)},
    )


def pieces(*packets):
    """(first packet, shift, start) of the pieces of each stream."""
    reader = ClockReader(VIDEO)
    for each in packets:
        reader.see(each)
    found = reader.clock().pieces
    return {
        index: [(piece.first, piece.shift, piece.start) for piece in each]
        for index, each in found.items()
    }


def pictures_at(*times):
    return [packet(VIDEO, time) for time in times]


def test_each_of_many_parts_follows_the_one_before():
    found = pieces(*pictures_at(9000, 9004, 9008, 500, 504, 100, 0, HOURS))
    assert found == {
        0: [(0, 0, None), (3, 8512, 500), (5, 8920, 100), (6, 9024, 0), (7, 9028 - HOURS, HOURS)]
    }


def test_sound_that_comes_late_belongs_to_the_part_it_fits():
    found = pieces(
        *(packet(VIDEO, 5000), packet(SOUND, 5000), packet(VIDEO, 5004), packet(VIDEO, 0)),
        *(packet(SOUND, 5004), packet(SOUND, 5008), packet(SOUND, 0), packet(VIDEO, 4)),
    )
    assert found == {0: [(0, 0, None), (2, 5008, 0)], 1: [(0, 0, None), (3, 5008, None)]}


def test_a_part_without_pictures_is_as_long_as_its_sound():
    found = pieces(
        *(packet(VIDEO, 9000), packet(SOUND, 9000), packet(SOUND, 5000), packet(SOUND, 5004)),
        *(packet(WORDS, 5002, duration=10), packet(SOUND, 100), packet(VIDEO, 100)),
    )
    assert found[0] == [(0, 0, None), (1, 8916, 100)]
    assert found[1] == [(0, 0, None), (1, 4004, None), (3, 8916, None)]
    assert found[2] == [(0, 4004, None)]


def test_a_part_begins_with_its_first_keyframe_and_else_with_its_earliest_picture():
    cut = [packet(VIDEO, time, is_keyframe=key) for time, key in [(0, 0), (4, 0), (12, 1), (8, 0)]]
    found = pieces(*pictures_at(9000), *cut, *pictures_at(HOURS))
    assert found == {0: [(0, 0, None), (1, 8992, 12), (5, 9008 - HOURS, HOURS)]}
    piece = Piece(first=1, shift=8992, start=12)
    assert [piece.leaves_out(time) for time in (8, 12)] == [True, False]
    without = [packet(VIDEO, time, dts=0, is_keyframe=False) for time in (8, 4)]
    assert pieces(*pictures_at(9000), *without) == {0: [(0, 0, None), (1, 9000, None)]}


def test_words_alone_begin_no_part():
    words = [packet(WORDS, time) for time in (9000, 0)]
    assert pieces(*words, *pictures_at(0, 4)) == {}
    assert pieces(packet(VIDEO, 0), *words, packet(VIDEO, 4)) == {}


def test_packets_without_times_are_counted_and_place_nothing():
    unknown = packet(VIDEO, None, dts=None)
    decoded = packet(VIDEO, None, dts=4)
    found = pieces(
        *(unknown, *pictures_at(9000), unknown, *pictures_at(0), decoded, unknown),
        *pictures_at(HOURS),
    )
    assert found == {0: [(1, 0, None), (3, 9004, 0), (6, 9012 - HOURS, HOURS)]}
    assert pieces(*pictures_at(0), packet(VIDEO, 4, duration=None), *pictures_at(8)) == {}
