"""Sound in slow motion: its length, position and pitch, measured with independent tools."""

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui_tlbvfi.encoding.concat import join
from comfyui_tlbvfi.encoding.sound import SlowSound, UnbrokenSound
from comfyui_tlbvfi.encoding.window import Window

AUDIO_FRAME = 1024 / 48000
FACTORS = [Fraction(2), Fraction(4), Fraction(5, 2), Fraction(3, 2)]
SRT = "1\n00:00:00,100 --> 00:00:00,500\nHello\n\n2\n00:00:00,700 --> 00:00:00,900\nWorld\n"


@pytest.fixture
def sounding(tmp_path):
    """Factory for audio-only files: `wave(seconds)` in every channel of every stream.

    `start`: time of its first sample in seconds; `gap`: seconds [from, to) that are missing.
    """

    def make(
        name="source.mkv",
        *,
        codec="pcm_s16le",
        rate=48000,
        layouts=("stereo",),
        seconds=Fraction(1),
        start=Fraction(0),
        gap=(0, 0),
        wave=lambda t: 0.3 * np.sin(2 * np.pi * 440 * t),
    ):
        path = tmp_path / name
        with av.open(str(path), "w") as out:
            streams = [out.add_stream(codec, rate=rate, layout=layout) for layout in layouts]
            for stream in streams:
                stream.codec_context.bit_rate = 128_000  # WMA has no default
                stream.codec_context.open()
            size = streams[0].codec_context.frame_size or 1000
            for first in range(0, int(seconds * rate), size):
                numbers = np.arange(first, min(first + size, int(seconds * rate)))
                if gap[0] <= first / rate < gap[1]:
                    continue
                for stream in streams:
                    frame = as_frame(wave(numbers / rate), stream)
                    frame.pts = first + int(start * rate)
                    out.mux(stream.encode(frame))
            for stream in streams:
                out.mux(stream.encode(None))
        return path

    return make


def as_frame(wave, stream):
    context = stream.codec_context
    samples = np.stack([wave] * context.channels).astype(np.float32)
    if context.format.name == "s16":
        samples = (samples.T.reshape(1, -1) * 32767).astype(np.int16)
    elif context.format.name == "u8":
        samples = (samples.T.reshape(1, -1) * 127 + 128).astype(np.uint8)
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples), format=context.format.name, layout=context.layout.name
    )
    frame.sample_rate, frame.time_base = context.sample_rate, Fraction(1, context.sample_rate)
    return frame


def slowed(path, window):
    """(number of the first sample, samples of the first channel, rate) when slowed in memory."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        decode = SlowSound(stream, window)
        frames = [f for p in container.demux(stream) if p.size for f in decode(p)]
        frames += decode(None)
    follows = frames[0].pts
    for frame in frames:
        assert frame.pts == follows
        follows += frame.samples
    wave = [f.to_ndarray().reshape(-1, f.layout.nb_channels)[:, 0] for f in frames]
    return frames[0].pts, np.concatenate(wave), frames[0].sample_rate


def resident():
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("codec", "layout"), [("pcm_s16le", "stereo"), ("pcm_u8", "mono"), ("flac", "5.1")]
)
def test_two_hours_without_sound_take_no_memory_and_come_out_exactly(sounding, codec, layout):
    source = sounding(codec=codec, rate=8000, layouts=(layout,), start=Fraction(3600))
    samples, loud, held = 0, set(), []
    with av.open(str(source)) as container:
        stream = container.streams.audio[0]
        decode = UnbrokenSound(stream, from_zero=True)
        first = [packet for packet in container.demux(stream) if packet.size]
        container.seek(0)
        second = [packet for packet in container.demux(stream) if packet.size]
        for packet in second:
            packet.pts += round(3600 / packet.time_base)
        before = resident()
        for packet in (*first, *second, None):
            for frame in decode(packet):
                held.append(resident() - before)
                wave = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)[:, 0]
                heard = np.flatnonzero(wave != (128 if codec == "pcm_u8" else 0))
                loud.update(((samples + heard) // 8000).tolist())
                samples += frame.samples
    assert (samples, loud) == (7201 * 8000, {3600, 7200})
    if layout == "5.1":  # an hour of it has 690 MB
        assert max(held) < 100e6


def loudest_frequency(wave, rate):
    """The loudest frequency of the middle half, in hertz."""
    middle = wave[len(wave) // 4 : -len(wave) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), n=8 * len(middle)))
    return np.argmax(spectrum) * rate / (8 * len(middle))


def probed(ffprobe, path, number):
    """(begin, end) in seconds of an audio stream, by ffprobe."""
    found = ffprobe(path, "-show_packets", "-select_streams", f"a:{number}")
    packets, stream = found["packets"], found["streams"][0]
    end = max(float(p["pts_time"]) + float(p["duration_time"]) for p in packets)
    return float(stream["start_time"]), end


@pytest.mark.parametrize("factor", [*FACTORS, Fraction(16), Fraction(1001, 1000)])
@pytest.mark.parametrize("rate", [8000, 44100])
def test_it_lasts_longer_to_the_sample_at_the_same_pitch(sounding, factor, rate):
    source = sounding(rate=rate, seconds=Fraction(6, 5))
    first, wave, found = slowed(source, Window(start=Fraction(0), stretch=factor))
    assert (first, found) == (0, rate)
    assert abs(len(wave) - round(Fraction(6, 5) * factor * rate)) <= factor * rate / 1000
    assert loudest_frequency(wave, rate) == pytest.approx(440, abs=1.5)
    loud = np.sqrt(np.mean(wave**2))
    for end in (wave[: rate // 40], wave[-rate // 40 :]):  # neither begins nor ends in silence
        assert np.sqrt(np.mean(end**2)) > 0.5 * loud


@pytest.mark.parametrize("factor", FACTORS)
def test_it_stays_in_step_with_the_picture(sounding, factor):
    def ticking(t):
        return np.where(t % 1 < 0.05, 0.5, 0) * np.sin(2 * np.pi * 1000 * t)

    source = sounding("ticks.mp4", codec="aac", seconds=Fraction(20), wave=ticking)
    window = Window(start=Fraction(9, 2), end=Fraction(39, 2), stretch=factor)
    first, wave, rate = slowed(source, window)
    assert (first, len(wave)) == (0, 15 * factor * rate)
    heard = np.flatnonzero(np.abs(wave) > 0.1) / rate / float(factor) + 4.5
    ticks = np.round(heard)
    middles = [heard[ticks == tick].mean() - tick for tick in np.unique(ticks)]
    assert len(middles) == 15
    assert np.abs(np.array(middles) - 0.025).max() < 0.008
    assert middles[-1] == pytest.approx(middles[1], abs=0.004)


def test_what_fills_up_the_last_packet_is_not_heard(sounding):
    source = sounding("source.mp4", codec="aac")  # in packets of 1024 samples
    first, wave, rate = slowed(source, Window(start=Fraction(0), stretch=Fraction(2)))
    assert first == 0
    assert abs(len(wave) - 2 * rate) <= 2


def test_a_gap_lasts_longer_as_well(sounding):
    source = sounding(seconds=Fraction(2), gap=(0.5, 1))
    _, wave, rate = slowed(source, Window(start=Fraction(0), stretch=Fraction(2)))
    assert len(wave) == pytest.approx(4 * rate, abs=rate * 0.005)
    assert np.abs(wave[int(1.15 * rate) : int(1.9 * rate)]).max() < 0.01
    assert np.abs(wave[int(2.15 * rate) :]).max() > 0.25


def test_what_begins_late_begins_later_still(sounding):
    source = sounding(start=Fraction(3, 4))
    window = Window(start=Fraction(1, 4), stretch=Fraction(5, 2))
    first, wave, rate = slowed(source, window)
    assert first == 1.25 * rate
    assert len(wave) == pytest.approx(2.5 * rate, abs=rate / 1000)


def test_sound_that_begins_late_stays_in_place_in_avi(tmp_path, filled, sounding):
    source, output = sounding("source.mov", start=Fraction(3, 4)), tmp_path / "out.avi"
    (note, *_) = join(filled("utvideo", start=Fraction(1, 4)), output, source=source).notes
    assert "(pcm_s16le), which begins late or has a gap: it becomes pcm_s16le" in note
    with av.open(str(output)) as container:
        frames = [frame.to_ndarray()[0, ::2] for frame in container.decode(audio=0)]
    wave = np.concatenate(frames)
    assert len(wave) == 48000 * 3 // 2
    assert not wave[:24000].any()
    assert np.abs(wave[24000:24100]).max() > 3000


@pytest.mark.parametrize(
    ("codec", "name"), [("pcm_s16le", "a.mkv"), ("ac3", "a.mkv"), ("ac3", "a.mp4")]
)
def test_a_gap_in_sound_is_silent_in_avi(tmp_path, filled, sounding, codec, name):
    source, output = sounding(name, codec=codec, gap=(0.3, 0.6)), tmp_path / "out.avi"
    join(filled("utvideo"), output, source=source)
    with av.open(str(output)) as container:
        frames = [frame.to_ndarray()[0, ::2] for frame in container.decode(audio=0)]
    wave = np.concatenate(frames)
    assert len(wave) == pytest.approx(48000, abs=2500)
    assert not wave[48000 * 4 // 10 : 48000 * 5 // 10].any()
    assert np.abs(wave[48000 * 7 // 10 :]).max() > 3000


def test_the_rest_of_a_packet_before_the_window_delays_no_sound_in_avi(tmp_path, filled, sounding):
    # AVI plays a copied packet from 0 on, however long after the first frame it began.
    source, output = sounding(codec="ac3", rate=32000), tmp_path / "out.avi"
    window = Window(start=Fraction(24, 100))  # packets begin each 48 ms, the next one at 280 ms
    joined = join(filled("utvideo", start=window.start), output, source=source, window=window)
    assert "it becomes pcm_s16le" in joined.notes[0]
    with av.open(str(output)) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0)) / 32000
    assert heard == pytest.approx(0.76, abs=0.04)


@pytest.mark.parametrize(
    ("codec", "name", "to"),
    [
        ("flac", "source.mkv", "out.avi"),
        ("eac3", "source.mkv", "out.avi"),
        ("ac3", "source.avi", "out.avi"),
        ("mp2", "source.avi", "out.nut"),
        ("wmav2", "source.wmv", "out.nut"),
    ],
)
def test_sound_that_a_container_would_spoil_is_not_copied(
    tmp_path, filled, sounding, ffprobe, codec, name, to
):
    output = tmp_path / to
    join(filled("utvideo"), output, source=sounding(name, codec=codec))
    begin, end = probed(ffprobe, output, 0)
    assert (begin, end) == pytest.approx((0, 1), abs=0.1)


@pytest.mark.parametrize(
    ("codec", "name", "becomes"),
    [
        ("flac", "out.avi", "pcm_s24le"),
        ("flac", "out.mov", "pcm_s24le"),
        ("pcm_f32be", "out.mkv", "flac"),
    ],
)
def test_24_bits_stay_24_bits_where_sound_is_converted(tmp_path, filled, codec, name, becomes):
    codes = np.arange(-(1 << 23), 1 << 23, 349, dtype=np.int32) << 8
    source = tmp_path / ("source.flac" if codec == "flac" else "source.mov")
    output = tmp_path / name
    with av.open(str(source), "w") as out:
        stream = out.add_stream(codec, rate=48000, layout="mono")
        form = "s32" if codec == "flac" else "flt"
        stream.codec_context.format = form
        for first in range(0, len(codes), 4096):
            piece = codes[None, first : first + 4096]
            samples = piece if form == "s32" else piece.astype(np.float32) / np.float32(2**31)
            frame = av.AudioFrame.from_ndarray(samples, form, "mono")
            frame.sample_rate, frame.time_base, frame.pts = 48000, Fraction(1, 48000), first
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    profile = {".avi": "utvideo", ".mov": "prores"}.get(output.suffix, "h264")
    (note, *_) = join(filled(profile), output, source=source).notes
    assert note.endswith(f"it becomes {becomes}.")
    with av.open(str(output)) as container:
        heard = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert np.array_equal(heard, codes)


def test_the_5_1_of_ac3_stays_5_1_in_opus(tmp_path, filled, sounding):
    source = sounding(codec="ac3", layouts=("5.1(side)",))
    (note,) = join(filled("vp9"), tmp_path / "out.webm", source=source).notes
    assert note.endswith("it becomes libopus.")
    with av.open(str(tmp_path / "out.webm")) as container:
        assert container.streams.audio[0].layout.name == "5.1"


def test_a_window_without_sound_is_silent(sounding):
    with av.open(str(sounding())) as container:
        stream = container.streams.audio[0]
        window = Window(start=Fraction(3, 2), end=Fraction(2), stretch=Fraction(2))
        decode = SlowSound(stream, window)
        frames = [f for p in container.demux(stream) if p.size for f in decode(p)]
        assert [*frames, *decode(None)] == []
        assert list(UnbrokenSound(stream)(None)) == []


@pytest.mark.parametrize("factor", [Fraction(5, 2), Fraction(4)])
@pytest.mark.parametrize(
    ("codec", "suffix", "becomes"),
    [("h264", ".mp4", "aac"), ("h264", ".mkv", "flac"), ("vp9", ".webm", "opus")],
)
def test_every_stream_fits_the_container_and_keeps_its_place(
    tmp_path, filled, sounding, ffprobe, codec, suffix, becomes, factor
):
    source = sounding(codec="flac", layouts=("mono", "stereo", "5.1"), start=Fraction(1, 5))
    output = tmp_path / f"out{suffix}"
    window = Window(start=Fraction(0), stretch=factor)
    assert join(filled(codec), output, source=source, window=window).notes == ()
    sounds = [s for s in ffprobe(output)["streams"] if s["codec_type"] == "audio"]
    assert [(s["codec_name"], s["channels"]) for s in sounds] == [
        (becomes, channels) for channels in (1, 2, 6)
    ]
    for number in range(3):
        begin, end = probed(ffprobe, output, number)
        assert begin == pytest.approx(0.2 * float(factor), abs=AUDIO_FRAME)
        assert end == pytest.approx(1.2 * float(factor), abs=AUDIO_FRAME)


def test_a_window_is_cut_first_and_stretched_then(tmp_path, filled, sounding, ffprobe):
    source = sounding("source.mp4", codec="aac", seconds=Fraction(3))
    window = Window(start=Fraction(5, 4), end=Fraction(9, 4), stretch=Fraction(4))
    output = tmp_path / "out.mp4"
    join(filled("h264", start=Fraction(5, 4)), output, source=source, window=window)
    begin, end = probed(ffprobe, output, 0)
    assert (begin, end) == pytest.approx((0, 4), abs=AUDIO_FRAME)


def test_subtitles_and_chapters_last_longer(tmp_path, filled, ffprobe):
    (tmp_path / "lines.srt").write_text(SRT)
    source, base = tmp_path / "source.mkv", Fraction(1, 1000)
    with av.open(str(tmp_path / "lines.srt")) as lines, av.open(str(source), "w") as out:
        text = out.add_stream_from_template(lines.streams.subtitles[0])
        parts = [
            {"id": n, "start": start, "end": end, "time_base": base, "metadata": {"title": title}}
            for n, (title, start, end) in enumerate([("one", 50, 300), ("two", 300, 900)])
        ]
        out.set_chapters(parts)
        for packet in lines.demux():
            if packet.size:
                packet.stream = text
                out.mux(packet)
    window = Window(start=Fraction(1, 10), stretch=Fraction(5, 2))
    for suffix in (".mkv", ".mp4"):
        output = tmp_path / f"out{suffix}"
        session = filled("h264", id=suffix[1:], start=window.start)
        join(session, output, source=source, window=window)
        found = ffprobe(output, "-show_packets", "-select_streams", "s", "-show_chapters")
        spoken = [p for p in found["packets"] if int(p["size"]) > 2]
        times = [(float(p["pts_time"]), float(p["duration_time"])) for p in spoken]
        assert times == [(0, 1), (1.5, 0.5)], suffix
        chapters = [(float(c["start_time"]), float(c["end_time"])) for c in found["chapters"]]
        assert chapters == [(0, 0.5), (0.5, 2)], suffix


@pytest.mark.parametrize("stretch", [Fraction(1), Fraction(2)])
def test_sound_in_an_unknown_codec_is_left_out_with_a_note(tmp_path, filled, sounding, stretch):
    source = sounding("source.mov", codec="pcm_s16le")
    source.write_bytes(source.read_bytes().replace(b"sowt", b"zzzz"))
    window = Window(start=Fraction(0), end=None, stretch=stretch)
    result = join(filled(), tmp_path / "out.mkv", source=source, window=window)
    assert result.notes == ("audio stream 0 is in an unknown codec: it is left out.",)


@pytest.mark.parametrize("stretch", [Fraction(1), Fraction(2)])
def test_what_a_decoder_gives_at_the_end_without_a_time_is_heard(
    tmp_path, filled, sounding, stretch
):
    source = sounding("source.wma", codec="wmav2", rate=44100)
    with av.open(str(source)) as container:
        heard = sum(frame.samples for frame in container.decode(audio=0))
    output = tmp_path / "out.mkv"
    window = Window(start=Fraction(0), stretch=stretch)
    join(filled(), output, source=source, window=window)
    with av.open(str(output)) as container:
        found = sum(frame.samples for frame in container.decode(audio=0))
    assert abs(found - heard * stretch) <= 44 * stretch  # a millisecond, the unit of WMA's clock


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
@pytest.mark.parametrize("stretch", [1, 2])
def test_lossless_sound_of_which_the_file_tells_nothing_is_no_obstacle(
    tmp_path, filled, suffix, stretch
):
    source = tmp_path / "silent.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("ffv1", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        container.add_stream("flac", rate=48000, layout="stereo")
        container.mux(video.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(video.encode(None))
    before, _, after = source.read_bytes().rpartition(b"\x63\xa2")
    source.write_bytes(before + b"\x63\xa3" + after)  # it has lost the codec's private data
    with av.open(str(source)) as container:
        assert container.streams.audio[0].codec_context.format is None
    window = Window(start=Fraction(0), stretch=Fraction(stretch))
    joined = join(filled("h264"), tmp_path / f"out{suffix}", source=source, window=window)
    assert joined.frames == 7
