import io
import json
import os
import shutil
import wave
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from av.stream import Disposition
from comfyui_tlbvfi.encoding import concat
from comfyui_tlbvfi.encoding.concat import join
from comfyui_tlbvfi.encoding.durable import file_sha256, sole_writer
from comfyui_tlbvfi.encoding.errors import (
    OutputError,
    SourceError,
    VerificationError,
)
from comfyui_tlbvfi.encoding.packets import open_made
from comfyui_tlbvfi.encoding.profiles import find_profile
from comfyui_tlbvfi.encoding.session import Session
from comfyui_tlbvfi.encoding.window import Window
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

TICK = Fraction(1001, 48000)
SRT = "1\n00:00:00,100 --> 00:00:00,500\nHello\n\n2\n00:00:00,700 --> 00:00:00,900\nWorld\n"


@pytest.fixture
def sounding(tmp_path):
    """Factory for a source: one second of video and sound, chapters, titles, optional subtitles."""

    def make(name="source.mkv", *, audio="aac", rate=44100, subtitles=""):
        path = tmp_path / name
        with av.open(str(path), "w") as out:
            video = out.add_stream("libx264", rate=24)
            video.width, video.height = 64, 48
            video.metadata.update(language="jpn", title="Main")
            sound = out.add_stream(audio, rate=rate, layout="stereo")
            sound.metadata["language"] = "deu"
            sound.codec_context.open()
            text = subtitle_stream(out, tmp_path, subtitles) if subtitles else None
            out.metadata["title"] = "A film"
            out.set_chapters([chapter(0, 0, 400, "One"), chapter(1, 400, 1000, "Two")])
            for number in range(24):
                gray = np.full((72, 64), 90 + number, np.uint8)
                picture = av.VideoFrame.from_ndarray(gray, format="yuv420p")
                picture.pts = number
                out.mux(video.encode(picture))
            out.mux(video.encode(None))
            size = sound.codec_context.frame_size or 1024
            for start in range(0, rate, size):
                out.mux(sound.encode(tone(start, size, rate, sound.format.name)))
            out.mux(sound.encode(None))
            if text is not None:
                put_subtitles(out, text, tmp_path)
        return path

    return make


def chapter(number, start, end, title):
    base = Fraction(1, 1000)
    return {
        "id": number,
        "start": start,
        "end": end,
        "time_base": base,
        "metadata": {"title": title},
    }


def tone(start, size, rate, kind):
    wave = np.sin(np.arange(start, start + size) * 2 * np.pi * 440 / rate) * 0.3
    samples = np.stack([wave, wave]).astype(np.float32)
    if kind == "s16":
        samples = (samples.T.reshape(1, -1) * 32767).astype(np.int16)
    if kind == "s32p":
        samples = (samples * 2**31).astype(np.int32)
    frame = av.AudioFrame.from_ndarray(samples, format=kind, layout="stereo")
    frame.rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
    return frame


def subtitle_stream(out, folder, text):
    (folder / "lines.srt").write_text(text)
    with av.open(str(folder / "lines.srt")) as lines:
        return out.add_stream_from_template(lines.streams.subtitles[0])


def put_subtitles(out, stream, folder):
    with av.open(str(folder / "lines.srt")) as lines:
        for packet in lines.demux():
            if packet.size:
                packet.stream = stream
                out.mux(packet)


def shown(path):
    """Exact times of a file's video packets, in order of presentation."""
    with av.open(str(path)) as container:
        return sorted(p.pts * p.time_base for p in container.demux(video=0) if p.size)


def payload(path, kind="audio"):
    """(time, content) of the packets of the first stream of a kind."""
    with av.open(str(path)) as container:
        stream = getattr(container.streams, kind)[0]
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]


def streams(path):
    with av.open(str(path)) as container:
        return [(stream.type, stream.codec_context.name) for stream in container.streams]


@pytest.mark.parametrize(
    ("codec", "suffixes"),
    [
        ("h264", (".mp4", ".mov", ".mkv")),
        ("hevc", (".mp4", ".mkv")),
        ("av1", (".mp4", ".webm")),
        ("vp9", (".webm", ".mp4", ".mkv")),
        ("prores", (".mov", ".mkv")),
        ("prores_4444", (".mov", ".mkv")),
        ("ffv1", (".mkv", ".nut")),
        ("h264-lossless", (".mp4", ".mkv")),
        ("utvideo", (".nut", ".avi")),
    ],
)
def test_joined_frames_are_the_chunks_frames_at_exact_times(
    tmp_path, filled, decoded, codec, suffixes
):
    session = filled(codec, frames=8, per_chunk=3)
    chunks = [frame for index in range(3) for frame in decoded(session.chunk_path(index))]
    for suffix in suffixes:
        output = tmp_path / f"out{suffix}"
        result = join(session, output)
        assert decoded(output) == chunks, suffix
        times = shown(output)
        if suffix in (".mkv", ".webm"):
            assert all(abs(t - n * TICK) <= Fraction(1, 1000) for n, t in enumerate(times))
        else:
            assert times == [n * TICK for n in range(8)], suffix
        assert (result.frames, result.duration) == (8, 8 * TICK)
        assert result.bytes == output.stat().st_size


def test_chunks_with_the_gops_asked_of_nvenc_join_to_one_stream(tmp_path, filled, encoder, decoded):
    # x264 with the GOP structure of NVENC's profiles: three B-frames, the middle one a reference.
    asked, made = find_profile("h264_nvenc"), encoder("h264")
    same = {name: asked.options[name] for name in ("bf", "g", "rc-lookahead")}
    pattern = {"b-pyramid": "normal", "b_strategy": "0", "sc_threshold": "0"}
    standing_in = replace(made, reorder=asked.reorder, options={**made.options, **same, **pattern})
    session = filled("h264", frames=21, per_chunk=9, encoder=standing_in)
    output = tmp_path / "out.mp4"
    join(session, output)
    assert decoded(output) == [
        frame for index in range(3) for frame in decoded(session.chunk_path(index))
    ]
    with av.open(str(output)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        start = container.streams.video[0].start_time
    shown_at = [packet.pts for packet in packets]
    step = sorted(shown_at)[1]
    assert start == 0
    assert sorted(shown_at) == [number * step for number in range(21)]
    assert [packet.dts for packet in packets] == [(n - asked.reorder) * step for n in range(21)]
    assert max(n - pts // step for n, pts in enumerate(shown_at)) == asked.reorder == 2
    keyframes = [packet.pts // step for packet in packets if packet.is_keyframe]
    assert keyframes == [0, 9, 18]
    for first, end in ((0, 9), (9, 18), (18, 21)):
        assert {pts // step for pts in shown_at[first:end]} == set(range(first, end))


@given(
    gaps=st.lists(st.integers(1, 90), min_size=1, max_size=12),
    start=st.sampled_from([Fraction(0), Fraction(1001, 30000), Fraction("2.235"), Fraction(1, 7)]),
    per_chunk=st.integers(1, 5),
)
@example(gaps=[3, 2, 1, 1], start=Fraction(0), per_chunk=1)  # keyframes close to the end
@example(gaps=[1, 1, 1, 1, 1, 2], start=Fraction(1001, 30000), per_chunk=4)  # a long B-frame last
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_variable_rate_and_late_starts_are_exact_to_the_tick(
    tmp_path, filled, ffprobe, gaps, start, per_chunk
):
    for left in tmp_path.iterdir():
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    pts = [sum(gaps[:n]) for n in range(len(gaps) + 1)]
    session = filled("h264", pts=pts, is_vfr=True, start=start, per_chunk=per_chunk)
    output = tmp_path / "out.mp4"
    result = join(session, output)
    found = ffprobe(output, "-show_packets", "-select_streams", "v")
    stream = found["streams"][0]
    base = Fraction(stream["time_base"])
    times = sorted(int(packet["pts"]) * base for packet in found["packets"])
    assert times == [start + tick * TICK for tick in pts]
    assert int(stream["duration_ts"]) * base == result.duration


def test_tags_aspect_and_rotation_survive_the_join(tmp_path, filled, stream, ffprobe):
    from comfyui_tlbvfi.encoding.frame import ColorTags

    spec = stream(
        color=ColorTags(primaries=1, transfer=1, matrix=1, range=1),
        sample_aspect_ratio=Fraction(4, 3),
        rotation=90,
    )
    for codec in ("h264", "av1", "prores"):
        session = filled(codec, id=codec, stream=spec)
        output = tmp_path / f"{codec}{session.manifest.encoder.chunk_suffix}"
        assert join(session, output).notes == ()
        found = ffprobe(output)["streams"][0]
        assert (found["color_space"], found["color_range"]) == ("bt709", "tv")
        assert found["sample_aspect_ratio"] == "4:3"
        assert found["side_data_list"][0]["rotation"] == 90
        assert found["r_frame_rate"] == "48000/1001"


def test_what_a_container_does_not_keep_is_told(tmp_path, filled, stream):
    session = filled("ffv1", stream=stream(sample_aspect_ratio=Fraction(4, 3)))
    notes = join(session, tmp_path / "out.mkv").notes
    assert notes == (
        ".mkv with ffv1 does not keep the sample aspect ratio 4/3, except in each frame.",
    )
    turned = filled("utvideo", id="turned", stream=stream(rotation=90, is_mirrored=True))
    assert join(turned, tmp_path / "out.avi").notes == (
        ".avi with utvideo does not keep the rotation by 90 degrees.",
        ".avi with utvideo does not keep the mirroring.",
    )
    square = filled("ffv1", id="square", stream=stream(sample_aspect_ratio=Fraction(1)))
    assert join(square, tmp_path / "square.mkv").notes == ()


def test_tags_chapters_and_marks_that_a_container_does_not_keep_are_told(
    tmp_path, filled, sounding
):
    source = tmp_path / "marked.mkv"
    with av.open(str(sounding(subtitles=SRT))) as given, av.open(str(source), "w") as out:
        out.set_chapters(given.chapters())
        tracks = {each.index: out.add_stream_from_template(each) for each in given.streams}
        for each in given.streams:
            tracks[each.index].metadata.update(each.metadata)
        out.streams.audio[0].metadata["title"] = "Main"
        out.streams.subtitles[0].disposition = Disposition.forced
        for packet in given.demux():
            if packet.size:
                packet.stream = tracks[packet.stream.index]
                out.mux(packet)
    session, lossless = filled("h264"), filled("utvideo", id="avi")
    workflow = {"workflow": "{}", "title": "A film"}
    told = {
        suffix: join(each, tmp_path / f"out{suffix}", source=source, metadata=workflow).notes
        for suffix, each in ((".mkv", session), (".mov", session), (".avi", lossless))
    }
    assert told[".mkv"] == ()
    assert told[".mov"][1:] == (".mov does not keep the mark forced of subtitle stream 2.",)
    assert told[".avi"][1:] == (
        ".avi does not keep the tag workflow.",
        ".avi does not keep the chapters.",
        ".avi does not keep the language deu of audio stream 1.",
    )


def test_a_creation_time_that_says_unknown_is_not_missed(tmp_path, filled, sounding):
    unknown = {"creation_time": "1970-01-01T00:00:00.000000Z"}
    assert (
        join(filled("h264"), tmp_path / "out.mp4", source=sounding(), metadata=unknown).notes == ()
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_sound_is_copied_packet_by_packet(tmp_path, filled, sounding, suffix):
    source = sounding("source.mp4")
    output = tmp_path / f"out{suffix}"
    assert join(filled("h264"), output, source=source).notes == ()
    ours, theirs = payload(output), payload(source)
    assert [content for _, content in ours] == [content for _, content in theirs]
    if suffix != ".mkv":  # Matroska shifts all times by the encoder's priming
        assert [time for time, _ in ours] == [time for time, _ in theirs]
        assert shown(output)[0] == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_sound_whose_packets_tell_no_duration_is_copied_to_its_end(
    tmp_path, filled, sounding, suffix
):
    # Matroska tells none; only FFmpeg since that of PyAV 19 works them out
    source, output = sounding("source.mkv", audio="alac"), tmp_path / f"out{suffix}"
    assert join(filled("h264"), output, source=source).notes == ()
    assert [content for _, content in payload(output)] == [each for _, each in payload(source)]


def test_sound_that_an_edit_list_hides_stays_unheard(tmp_path, filled, sounding):
    whole, source = sounding("whole.mp4", rate=48000), tmp_path / "source.mp4"
    with av.open(str(whole)) as given, av.open(str(source), "w") as out:
        sound = out.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(audio=0):
            if packet.size:
                packet.stream, packet.pts, packet.dts = sound, packet.pts - 4384, packet.dts - 4384
                out.mux(packet)
    with av.open(str(source)) as container:
        hidden = [packet.is_discard for packet in container.demux(audio=0) if packet.size]
    assert hidden == [True] * 5 + [False] * (len(hidden) - 5)
    for suffix, kept in ((".mp4", 5), (".mkv", 1)):  # AAC needs one to begin with
        output = tmp_path / f"out{suffix}"
        assert join(filled("h264", id=suffix[1:]), output, source=source).notes == ()
        contents = [content for _, content in payload(output)]
        assert contents == [content for _, content in payload(source)][5 - kept :]
    assert samples_of(tmp_path / "out.mp4") == samples_of(source)


def samples_of(path):
    """The samples that are heard of a file's sound."""
    with av.open(str(path)) as container:
        return b"".join(frame.to_ndarray().tobytes() for frame in container.decode(audio=0))


def test_picture_and_sound_keep_the_sources_clock(tmp_path, filled, sounding):
    source = sounding("source.mp4")
    start = Fraction("0.3")
    output = tmp_path / "out.mp4"
    join(filled("h264", start=start), output, source=source)
    assert shown(output)[0] == start
    assert payload(output)[0][0] == payload(source)[0][0]


@pytest.mark.parametrize(
    ("codec", "suffix"), [("h264", ".mp4"), ("h264", ".mov"), ("ffv1", ".nut")]
)
def test_what_begins_below_zero_begins_at_zero_where_the_container_must(
    tmp_path, filled, sounding, codec, suffix
):
    source, start = sounding("source.mp4"), Fraction(-5, 2)
    output = tmp_path / f"out{suffix}"
    joined = join(filled(codec, start=start), output, source=source)
    assert joined.shift == start
    assert shown(output)[0] == 0
    assert payload(output)[0][0] == payload(source)[0][0] - start


@pytest.mark.parametrize("start", ["0", "0.3"])
def test_sound_before_zero_leaves_the_picture_where_it_was(tmp_path, filled, sounding, start):
    source, output = sounding("source.mp4"), tmp_path / "out.nut"
    assert payload(source)[0][0] < 0  # AAC priming, for which NUT has no times
    join(filled("ffv1", start=Fraction(start)), output, source=source)
    assert shown(output)[0] == Fraction(start)
    assert payload(output) == [each for each in payload(source) if each[0] >= 0]


def test_title_chapters_language_and_workflow_are_carried(tmp_path, filled, sounding, ffprobe):
    output = tmp_path / "out.mp4"
    workflow = '{"nodes": ["ä"]}'
    join(filled("h264"), output, source=sounding(), metadata={"workflow": workflow})
    found = ffprobe(output, "-show_format", "-show_chapters")
    assert found["format"]["tags"]["title"] == "A film"
    assert found["format"]["tags"]["workflow"] == workflow
    assert [entry["tags"]["title"] for entry in found["chapters"]] == ["One", "Two"]
    assert found["streams"][0]["tags"]["language"] == "jpn"
    assert found["streams"][1]["tags"]["language"] == "deu"
    assert output.read_bytes().find(b"moov") < output.read_bytes().find(b"mdat")


def test_the_name_of_the_video_track_is_kept(tmp_path, filled, sounding, ffprobe):
    output = tmp_path / "out.mkv"
    join(filled("h264"), output, source=sounding())
    tags = ffprobe(output)["streams"][0]["tags"]
    assert (tags["language"], tags["title"]) == ("jpn", "Main")


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_names_of_tracks_are_kept_from_mp4_on(tmp_path, filled, sounding, suffix):
    once, output = tmp_path / "once.mp4", tmp_path / f"out{suffix}"
    session = filled("h264")
    join(session, once, source=sounding())
    join(session, output, source=once)
    with av.open(str(output)) as container:
        tags = container.streams.video[0].metadata
    assert tags.get("title", tags.get("name")) == "Main"


@pytest.mark.parametrize(("language", "code"), [("fre", "fra"), ("deu", "ger"), ("jpn", "jpn")])
def test_languages_are_called_by_their_names_in_mov(tmp_path, filled, language, code):
    source, output = tmp_path / "source.mkv", tmp_path / "out.mov"
    with av.open(str(source), "w") as out:
        sound = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound.metadata["language"] = language
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4000), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        out.mux([*sound.encode(frame), *sound.encode(None)])
    join(filled("prores"), output, source=source)
    with av.open(str(output)) as container:
        assert container.streams.audio[0].metadata["language"] == code


def test_an_attachment_that_webm_cannot_hold_is_told(tmp_path, filled):
    source = tmp_path / "source.mkv"
    with av.open(str(source), "w") as out:
        video = out.add_stream("libx264", rate=24)
        video.width, video.height = 64, 48
        out.add_attachment("a.ttf", "font/ttf", b"not a font")
        out.mux([*video.encode(av.VideoFrame(64, 48, "yuv420p")), *video.encode(None)])
    (note,) = join(filled("vp9"), tmp_path / "out.webm", source=source).notes
    assert note == ".webm cannot hold attachment stream 1 (no codec): it is left out."


@pytest.mark.parametrize(("codec", "suffix"), [("h264", ".mkv"), ("vp9", ".webm")])
def test_pictures_for_both_eyes_are_called_that(tmp_path, filled, codec, suffix):
    source, output = tmp_path / "source.mkv", tmp_path / f"out{suffix}"
    with av.open(str(source), "w") as out:
        video = out.add_stream("libx264", rate=24)
        video.width, video.height = 64, 48
        video.metadata["stereo_mode"] = "left_right"
        out.mux([*video.encode(av.VideoFrame(64, 48, "yuv420p")), *video.encode(None)])
    join(filled(codec), output, source=source)
    with av.open(str(output)) as container:
        assert container.streams.video[0].metadata["stereo_mode"] == "left_right"


@pytest.mark.parametrize(("ours", "left"), [({"Title": "New"}, ["New"]), ({"title": ""}, [])])
def test_metadata_of_the_job_takes_the_place_of_the_source_s(
    tmp_path, filled, sounding, ours, left
):
    output = tmp_path / "out.mkv"
    join(filled("h264"), output, source=sounding(), metadata=ours)
    with av.open(str(output)) as container:
        titles = [text for key, text in container.metadata.items() if key.lower() == "title"]
    assert titles == left


@pytest.mark.parametrize(
    ("codec", "suffix", "audio", "becomes"),
    [
        ("h264", ".mp4", "pcm_s16le", "aac"),
        ("vp9", ".webm", "aac", "opus"),
        ("h264", ".mov", "libopus", "aac"),
    ],
)
def test_sound_the_container_cannot_hold_is_converted_in_sync(
    tmp_path, filled, sounding, codec, suffix, audio, becomes
):
    source = sounding(audio=audio, rate=48000)
    output = tmp_path / f"out{suffix}"
    notes = join(filled(codec), output, source=source).notes
    assert len(notes) == 1
    assert f"it becomes {'libopus' if becomes == 'opus' else becomes}" in notes[0]
    with av.open(str(output)) as container:
        sound = container.streams.audio[0]
        assert sound.codec_context.name == becomes
        frames = [frame for frame in container.decode(sound) if frame.pts is not None]
        heard = sum(frame.samples for frame in frames) / sound.codec_context.sample_rate
    assert heard == pytest.approx(1.0, abs=0.05)
    assert frames[0].time == pytest.approx(0, abs=0.025)


@pytest.mark.parametrize(
    ("codec", "suffix", "rate", "channels", "becomes"),
    [
        ("h264", ".mp4", 192_000, 1, (96_000, 1)),
        ("h264", ".mp4", 1_000, 2, (7_350, 2)),
        ("h264", ".mp4", 44_100, 3, (44_100, 3)),
        ("h264", ".mp4", 48_000, 16, (48_000, 2)),
        ("vp9", ".webm", 44_100, 3, (48_000, 2)),
        ("vp9", ".webm", 48_000, 16, (48_000, 2)),
    ],
)
def test_sound_beyond_what_the_encoder_takes_is_resampled_or_mixed(
    tmp_path, filled, codec, suffix, rate, channels, becomes
):
    source = tmp_path / "sound.wav"
    with wave.open(str(source), "wb") as file:
        file.setparams((channels, 2, rate, 0, "NONE", ""))
        file.writeframes(np.full((rate, channels), 5000, "<i2").tobytes())
    (note,) = join(filled(codec), tmp_path / f"out{suffix}", source=source).notes
    assert ("stereo" in note) == (becomes[1] < channels)
    assert (" Hz" in note) == (becomes[0] < rate)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        sound = container.streams.audio[0]
        assert (sound.rate, sound.channels) == becomes
        heard = sum(frame.samples for frame in container.decode(sound)) / sound.rate
    assert heard == pytest.approx(1.0, abs=0.3)


def test_packets_shorter_than_a_millisecond_are_copied_from_matroska_to_matroska(tmp_path, filled):
    # As those of TrueHD are: two of them may have the same time.
    source, output = tmp_path / "source.mkv", tmp_path / "out.mkv"
    with av.open(str(source), "w") as out:
        sound = out.add_stream("pcm_s16le", rate=48000, layout="mono")
        for first in range(0, 48000, 40):
            frame = av.AudioFrame.from_ndarray(
                np.full((1, 40), first // 40, np.int16), "s16", "mono"
            )
            frame.sample_rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), first
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    assert join(filled("h264"), output, source=source).notes == ()
    assert payload(output) == payload(source)
    assert len(payload(output)) == 1200


def test_channels_in_an_unusual_order_are_copied(tmp_path, filled, ffprobe):
    source, session = tmp_path / "source.mov", filled("h264")
    with av.open(str(source), "w") as out:
        sound = out.add_stream("pcm_s16le", rate=8000, layout="7.1")
        frame = av.AudioFrame.from_ndarray(np.ones((1, 8 * 4000), np.int16), "s16", "7.1")
        frame.sample_rate = 8000
        out.mux([*sound.encode(frame), *sound.encode(None)])
    data = source.read_bytes()
    tag = data.index(b"chan") + 8
    source.write_bytes(data[:tag] + b"\0\x80\0\x08" + data[tag + 4 :])  # Apple's MPEG_7_1_C
    join(session, tmp_path / "out.mkv", source=source)
    assert ffprobe(tmp_path / "out.mkv")["streams"][1]["channels"] == 8
    with pytest.raises(OutputError, match=r"unusual order .*choose \.mkv or \.mov"):
        join(session, tmp_path / "out.mp4", source=source)


def test_sound_ends_where_its_file_is_damaged_beyond_reading(tmp_path, filled, sounding):
    source = sounding("source.nut", audio="pcm_s16le")
    with source.open("ab") as file:
        file.write(bytes(range(256)) * 40)
    with av.open(str(source)) as container, pytest.raises(av.InvalidDataError):
        list(container.demux())
    output = tmp_path / "out.mkv"
    assert join(filled("h264"), output, source=source).notes == ()
    with av.open(str(output)) as container:
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 44_100


def test_subtitles_are_copied_or_become_what_the_container_knows(tmp_path, filled, sounding):
    source = sounding(subtitles=SRT)
    session = filled("h264")
    join(session, tmp_path / "out.mkv", source=source)
    assert payload(tmp_path / "out.mkv", "subtitles")[0][1] == b"Hello"
    notes = join(session, tmp_path / "out.mp4", source=source).notes
    assert len(notes) == 1
    assert "it becomes mov_text" in notes[0]
    lines = [line for line in payload(tmp_path / "out.mp4", "subtitles") if len(line[1]) > 2]
    assert [(float(time), content[2:]) for time, content in lines] == [
        (0.1, b"Hello"),
        (0.7, b"World"),
    ]


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_subtitles_of_the_same_time_are_shown_together_and_begin_when_they_should(
    tmp_path, filled, sounding, suffix
):
    lines = [(100, 600, "A"), (100, 900, "B"), (300, 950, "A")]
    text = "".join(
        f"{number}\n00:00:00,{begin} --> 00:00:00,{end}\n{word}\n\n"
        for number, (begin, end, word) in enumerate(lines)
    )
    output = tmp_path / f"out{suffix}"
    join(filled("h264"), output, source=sounding(subtitles=text))
    with av.open(str(output)) as container:
        packets = [packet for packet in container.demux(subtitles=0) if packet.size > 2]
    assert [(p.pts, p.pts + p.duration, bytes(p)[2:]) for p in packets] == [
        (100, 300, b"A\nB"),
        (300, 600, b"A\nB"),
        (600, 900, b"B\nA"),
        (900, 950, b"A"),
    ]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_subtitles_in_an_unknown_codec_are_left_out_with_a_note(tmp_path, filled, sounding, suffix):
    source = sounding(subtitles=SRT)
    source.write_bytes(source.read_bytes().replace(b"S_TEXT/UTF8", b"S_TEXT/XYZ8"))
    output = tmp_path / f"out{suffix}"
    assert join(filled("h264"), output, source=source).notes == (
        f"{suffix} cannot hold subtitle stream 2 (no codec): it is left out.",
    )
    assert len(payload(output)) == len(payload(source))


@pytest.mark.parametrize("codec", ["mp2", "ac3"])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_of_a_program_stream_cut_at_any_pack_is_copied(
    tmp_path, filled, sounding, codec, suffix, caplog
):
    content = sounding("whole.vob", audio=codec, rate=48000).read_bytes()
    session, told = filled("h264"), set()
    for first in range(len(content) // 2048 - 1):
        source = tmp_path / f"cut{first}.vob"
        source.write_bytes(content[2048 * first :])
        result = join(session, tmp_path / f"out{first}{suffix}", source=source)
        told |= set(result.notes)
        times = [time for time, _ in payload(result.output)]
        assert times == sorted(set(times))
        assert times
    assert len(told) == len(
        {note for note in told if "are left out" in note or "is left out" in note}
    )


ASS = """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name, Fontname, Fontsize
Style: Default,Arial,20

[Events]
Format: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, Effect, Text
Dialogue: 0,0:00:00.10,0:00:00.30,Default,,0,0,0,,Hello
Dialogue: 0,0:00:00.40,0:00:00.60,Default,,0,0,0,,
Dialogue: 0,0:00:00.70,0:00:00.90,Default,,0,0,0,,World
"""


def test_empty_lines_of_subtitles_make_no_empty_block(tmp_path, filled, ffprobe):
    (tmp_path / "lines.ass").write_text(ASS)
    source = tmp_path / "source.mkv"
    with av.open(str(tmp_path / "lines.ass")) as lines, av.open(str(source), "w") as out:
        text = out.add_stream_from_template(lines.streams.subtitles[0])
        for packet in lines.demux():
            if packet.size:
                packet.stream = text
                out.mux(packet)
    output = tmp_path / "out.webm"
    join(filled("vp9"), output, source=source)
    found = ffprobe(output, "-show_packets", "-select_streams", "s")["packets"]
    assert [(p["pts_time"], int(p["size"])) for p in found] == [("0.100000", 5), ("0.700000", 5)]


def test_chapters_of_hours_keep_their_places_and_titles_in_mp4(tmp_path, filled, ffprobe):
    source, output, hour = tmp_path / "chapters.mkv", tmp_path / "out.mp4", 3_600_000
    places = [(0, 2), (2, 3), (5, 12)]  # the third is announced three hours after the second
    with av.open(str(source), "w") as out:
        out.add_stream("ffv1", rate=24).width = 64
        out.streams.video[0].height = 48
        out.set_chapters(
            [chapter(n, a * hour, b * hour, f"No {n}") for n, (a, b) in enumerate(places)]
        )
        out.mux(out.streams.video[0].encode(av.VideoFrame(64, 48, "yuv420p")))
        out.mux(out.streams.video[0].encode(None))
    join(filled("h264"), output, source=source)
    found = ffprobe(output, "-show_chapters", "-show_streams")
    assert [float(c["start_time"]) for c in found["chapters"]] == [0, 7200, 18000]
    titles = [each for each in found["streams"] if each["codec_type"] == "data"]
    assert [float(each["duration"]) for each in titles] == [12 * 3600]


def test_a_window_takes_the_packets_and_chapters_inside_it(tmp_path, filled, sounding, ffprobe):
    source = sounding("source.mp4", subtitles=False)
    window = Window(start=Fraction("0.25"), end=Fraction("0.75"))
    output = tmp_path / "out.mp4"
    join(filled("h264", start=Fraction("0.25")), output, source=source, window=window)
    inside = [(t, c) for t, c in payload(source) if window.start <= t < window.end]
    ours = payload(output)
    assert [content for _, content in ours] == [content for _, content in inside]
    assert abs(ours[0][0] - (inside[0][0] - window.start)) < Fraction(1, 44100)
    assert shown(output)[0] == 0
    chapters = ffprobe(output, "-show_chapters")["chapters"]
    assert [(c["start_time"], c["end_time"]) for c in chapters] == [
        ("0.000000", "0.150000"),
        ("0.150000", "0.500000"),
    ]


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_subtitles_are_cut_to_the_window(tmp_path, filled, sounding, ffprobe, suffix):
    source = sounding(subtitles=SRT)  # shown from 0.1 to 0.5 and from 0.7 to 0.9 seconds
    window = Window(start=Fraction("0.25"), end=Fraction("0.75"))
    output = tmp_path / f"out{suffix}"
    join(filled("h264", start=window.start), output, source=source, window=window)
    packets = ffprobe(output, "-show_packets", "-select_streams", "s")["packets"]
    lines = [
        (float(packet["pts_time"]), float(packet["duration_time"]))
        for packet in packets
        if int(packet["size"]) > 2  # mp4 fills the time between with empty ones
    ]
    assert lines == [(0, 0.25), (0.45, 0.05)]


@pytest.mark.parametrize(
    ("suffix", "kinds", "stretch"),
    [
        (".mp4", ["video"], Fraction(1)),
        (".mov", ["video"], Fraction(2)),
        (".mkv", ["video", "audio"], Fraction(1)),
    ],
)
def test_a_window_after_the_end_of_the_sound_has_none(
    tmp_path, filled, sounding, suffix, kinds, stretch
):
    source, window = sounding(), Window(start=Fraction(5), stretch=stretch)
    output = tmp_path / f"out{suffix}"
    notes = join(filled("h264", start=window.start), output, source=source, window=window).notes
    with av.open(str(output)) as container:
        assert [each.type for each in container.streams if each.type != "data"] == kinds
    assert any("has no sound in this part" in note for note in notes) == (kinds == ["video"])


@pytest.mark.parametrize("rate", [44100, 48000, 96000])
@pytest.mark.parametrize("rest", [1, 2, 3, 1023])
def test_the_last_samples_of_converted_sound_are_not_cut_off(tmp_path, filled, stream, rate, rest):
    source, output = tmp_path / "a.wav", tmp_path / "out.mp4"
    with wave.open(str(source), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * (20 * 1024 + rest)))
    session = filled("h264", stream=stream(rate=Fraction(25)))
    join(session, output, source=source)
    with av.open(str(output)) as container:
        sound = container.streams.audio[0]
        assert sound.duration * sound.time_base == Fraction(20 * 1024 + rest, rate)


def test_data_that_are_left_out_are_told(tmp_path, filled, sounding):
    source = tmp_path / "source.ts"
    with av.open(str(sounding())) as given, av.open(str(source), "w") as out:
        video = out.add_stream_from_template(given.streams.video[0])
        telemetry = out.add_data_stream("klv")
        for packet in given.demux(video=0):
            if packet.size:
                packet.stream = video
                out.mux(packet)
        packet = av.Packet(b"data")
        packet.stream, packet.pts, packet.dts, packet.time_base = telemetry, 0, 0, Fraction(1, 25)
        out.mux(packet)
    notes = join(filled("h264"), tmp_path / "out.mkv", source=source).notes
    assert notes == ("data in stream 1 (klv) are left out.",)


def test_chapters_of_mp4_are_no_data_that_are_left_out(tmp_path, filled, sounding):
    source = tmp_path / "source.mp4"
    join(filled("h264"), source, source=sounding())
    with av.open(str(source)) as container:
        assert len(container.streams.data) == 1
    assert join(filled("h264", id="again"), tmp_path / "out.mp4", source=source).notes == ()


def test_a_source_in_memory_gives_its_sound(tmp_path, filled, sounding):
    source = sounding("source.mp4")
    output = tmp_path / "out.mp4"
    join(filled("h264"), output, source=io.BytesIO(source.read_bytes()))
    assert len(payload(output)) == len(payload(source))


def test_a_source_that_is_gone_is_told(tmp_path, filled):
    with pytest.raises(SourceError, match="does not exist"):
        join(filled("h264"), tmp_path / "out.mp4", source=tmp_path / "gone.mp4")


def test_chunks_saved_in_any_order_without_numbers_are_joined(
    tmp_path, manifest, paint, decoded, samples
):
    session = Session.create(tmp_path, "job", manifest())
    with session.locked():
        for index in (2, 0, 1):
            with session.new_chunk(index) as chunk:
                chunk.write(paint(2 * index, pix_fmt="yuv420p"), 0)
                chunk.write(paint(2 * index + 1, pix_fmt="yuv420p"), 1)
                chunk.commit(pairs=(index, index + 1))
    output = tmp_path / "out.nut"
    join(session, output)
    assert decoded(output) == [samples(paint(n)) for n in range(6)]
    assert shown(output) == [n * TICK for n in range(6)]


def test_a_constant_rate_counted_in_finer_ticks_is_joined(tmp_path, filled, stream):
    output = tmp_path / "out.mp4"
    join(filled("h264", stream=stream(time_base=Fraction(1, 48000))), output)
    assert shown(output) == [n * TICK for n in range(7)]


def test_missing_or_damaged_chunks_make_no_file(tmp_path, filled):
    session = filled("h264")
    output = tmp_path / "out.mp4"
    path = session.chunk_path(1)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    with pytest.raises(
        VerificationError, match=r"chunk_000001\.mp4 does not have the recorded checksum"
    ):
        join(session, output)
    path.unlink()
    with pytest.raises(VerificationError, match=r"chunk_000001\.mp4 is missing"):
        join(session, output)
    assert not [entry for entry in tmp_path.iterdir() if entry.is_file()]


def test_a_chunk_is_compared_with_its_checksum_when_its_turn_comes(tmp_path, filled, monkeypatch):
    """All of them first would read the disk twice, the first time without any progress."""
    from comfyui_tlbvfi.encoding import session as sessions

    events = []

    def summed(path):
        events.append(path.stem)
        return file_sha256(path)

    monkeypatch.setattr(sessions, "file_sha256", summed)
    join(
        filled("h264"),
        tmp_path / "out.mp4",
        on_progress=lambda done, total: events.append(f"{done}/{total}"),
        on_verify=lambda done, total: events.append(f"verified {done}/{total}"),
    )
    assert events == [
        *("chunk_000000", "3/7", "chunk_000001", "6/7", "chunk_000002", "7/7"),
        "verified 7/7",
    ]


@pytest.mark.parametrize("codec", ["ffv1", "h264"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"frames": 4, "pts": [0, 3, 4, 5]}, "holds 3 frames instead of 4"),
        ({"frames": 2, "pts": [0, 3]}, "holds other frames than were recorded"),
    ],
)
def test_a_chunk_of_more_or_fewer_frames_than_recorded_makes_no_file(
    tmp_path, filled, codec, change, told
):
    progress = filled(codec, pts=[0, 3, 4], is_vfr=True).folder / "progress.jsonl"
    progress.write_text(json.dumps({**json.loads(progress.read_text()), **change}) + "\n")
    with pytest.raises(VerificationError, match=told):
        join(Session.open(tmp_path, "job"), tmp_path / "out.mkv")
    assert not [entry for entry in tmp_path.iterdir() if entry.is_file()]


def test_a_chunk_of_other_times_than_recorded_makes_no_file(tmp_path, filled):
    progress = filled("h264", pts=[0, 3, 4], is_vfr=True).folder / "progress.jsonl"
    change = {"pts": [0, 2, 4]}
    progress.write_text(json.dumps({**json.loads(progress.read_text()), **change}) + "\n")
    with pytest.raises(VerificationError, match="holds other frames than were recorded"):
        join(Session.open(tmp_path, "job"), tmp_path / "out.mp4")


def test_a_joined_file_whose_end_the_disk_lost_gets_no_name(tmp_path, filled, monkeypatch):
    def losing(path, *options):
        if path.name == ".out.part.mkv":
            os.truncate(path, path.stat().st_size - 2000)
        return open_made(path, *options)

    monkeypatch.setattr(concat, "open_made", losing)
    with pytest.raises(VerificationError, match=r"\.out\.part\.mkv"):
        join(filled("ffv1"), tmp_path / "out.mkv")
    assert not [entry for entry in tmp_path.iterdir() if entry.is_file()]


def test_chunks_of_another_encoder_are_refused(tmp_path, filled, encoder, paint):
    session = filled("h264", frames=6)
    other = filled(
        "h264", id="other", frames=6, encoder=encoder("h264", crf=40, preset="ultrafast")
    )
    path = session.chunk_path(1)
    shutil.copy(other.chunk_path(1), path)
    progress = session.folder / "progress.jsonl"
    lines = progress.read_text().splitlines()
    theirs = (other.folder / "progress.jsonl").read_text().splitlines()
    progress.write_text("\n".join([lines[0], theirs[1]]) + "\n")
    again = Session.open(tmp_path, "job")
    with pytest.raises(VerificationError, match="another encoder or other settings"):
        join(again, tmp_path / "out.mp4")


def test_existing_files_and_unfit_containers_are_refused(tmp_path, filled):
    session = filled("ffv1")
    taken = tmp_path / "taken.mkv"
    taken.write_text("mine")
    with pytest.raises(OutputError, match=r"taken\.mkv exists: .*--overwrite"):
        join(session, taken)
    assert taken.read_text() == "mine"
    join(session, taken, overwrite=True)
    with pytest.raises(OutputError, match=r"do not fit into \.mp4: choose \.mkv or \.nut"):
        join(session, tmp_path / "out.mp4")


def test_a_variable_rate_is_not_pressed_into_avi(tmp_path, filled):
    session = filled("utvideo", pts=[0, 3, 4], is_vfr=True)
    with pytest.raises(OutputError, match=r"cannot hold a variable frame rate: choose \.nut"):
        join(session, tmp_path / "out.avi")
    output = tmp_path / "new" / "folder" / "out.nut"
    join(session, output)
    assert shown(output) == [0, 3 * TICK, 4 * TICK]


def test_frames_less_than_a_millisecond_apart_are_not_pressed_into_matroska(
    tmp_path, filled, stream
):
    session = filled("ffv1", stream=stream(rate=Fraction(1500)))
    with pytest.raises(OutputError, match=r"\.mkv .* 0\.667 ms apart: choose \.mp4 or \.nut"):
        join(session, tmp_path / "out.mkv")
    join(session, tmp_path / "out.nut")
    assert shown(tmp_path / "out.nut") == [Fraction(n, 1500) for n in range(7)]


def test_a_link_in_the_place_of_the_unfinished_output_is_not_followed(tmp_path, filled):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".out.part.mkv").symlink_to(victim)
    join(filled("ffv1"), tmp_path / "out.mkv")
    assert victim.read_text() == "precious"
    assert not (tmp_path / "out.mkv").is_symlink()
    assert len(shown(tmp_path / "out.mkv")) == 7


@pytest.mark.skipif(os.name == "nt", reason="Windows says something else")
def test_a_link_in_the_place_of_the_lock_is_refused_with_a_sentence(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / ".out.mkv.lock").symlink_to(victim)
    with (
        pytest.raises(OutputError, match=r"out\.mkv cannot be written"),
        sole_writer(tmp_path / "out.mkv"),
    ):
        pass
    assert victim.read_text() == "precious"


def test_an_output_folder_that_cannot_be_made_is_told(tmp_path, filled):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        join(filled("ffv1"), tmp_path / "file" / "out.mkv")


def test_cancelling_leaves_no_file_and_keeps_the_chunks(tmp_path, filled):
    def cancel(done, total):
        assert (done, total) == (3, 7)
        raise KeyboardInterrupt

    session = filled("h264")
    with pytest.raises(KeyboardInterrupt):
        join(session, tmp_path / "out.mp4", on_progress=cancel)
    assert not [entry for entry in tmp_path.iterdir() if entry.is_file()]
    assert len(session.done(thorough=True)) == 3


@pytest.mark.slow
def test_a_full_disk_loses_no_chunk_and_goes_on_after_room_is_made(
    tmp_path, small_disk, manifest, paint, decoded, samples
):
    disk = small_disk("256k")
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(120_000))
    session = Session.create(disk, "job", manifest())
    made, told = fill(session, paint, 60)
    assert 0 < made < 20
    assert "running the same job again resumes it" in told
    assert [record.index for record in session.done(thorough=True)] == list(range(made))
    ballast.unlink()
    assert fill(session, paint, 60, first=made) == (20, "")
    output = tmp_path / "out.nut"
    with pytest.raises(OutputError, match=r"The disk is full .* the chunks are kept"):
        join(session, disk / "out.nut")
    assert not (disk / "out.nut").exists()
    join(session, output)
    assert decoded(output) == [samples(paint(n)) for n in range(60)]


def fill(session, paint, frames, *, first=0):
    """Make chunks of 3 frames from chunk `first` on; returns how many there are and any error."""
    with session.locked():
        for index in range(first, frames // 3):
            try:
                with session.new_chunk(index) as chunk:
                    for number in range(index * 3, index * 3 + 3):
                        chunk.write(paint(number), number)
                    last = index == frames // 3 - 1
                    chunk.commit(pairs=(index, index + 1), first_frame=index * 3, is_last=last)
            except OutputError as error:
                return index, str(error)
    return frames // 3, ""
