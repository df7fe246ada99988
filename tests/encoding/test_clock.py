"""Recordings put end to end: one clock for picture and sound, whatever clocks the parts have."""

from fractions import Fraction

import av
import pytest
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
