"""Frames of video files: all of them, in order, exactly timed, from any index, past damage."""

import errno
import gc
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui_tlbvfi.encoding import reader
from comfyui_tlbvfi.encoding.color import resolve, to_rgb
from comfyui_tlbvfi.encoding.container import SourceFile
from comfyui_tlbvfi.encoding.errors import SourceError
from comfyui_tlbvfi.encoding.layout import channel_views, pixel_layout
from comfyui_tlbvfi.encoding.probe import probe
from comfyui_tlbvfi.encoding.reader import VideoSource
from comfyui_tlbvfi.encoding.source import open_source
from comfyui_tlbvfi.encoding.verify import verify_file

OPEN_GOP = {"qp": "0", "preset": "ultrafast", "bf": "3", "g": "9", "x264-params": "open-gop=1"}
X265_OPEN = {
    "preset": "ultrafast",
    "x265-params": "log-level=none:lossless=1:keyint=9:min-keyint=9:open-gop=1:bframes=3",
}
INTRA_REFRESH = {"qp": "0", "preset": "ultrafast", "g": "12", "x264-params": "intra-refresh=1"}


def everything(source, samples, start=0, stop=None):
    return [(f.index, f.time, samples(f.picture)) for f in source.frames(start, stop)]


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("a.mp4", {}),
        ("a.mkv", {}),
        ("a.ts", {}),
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}),
        ("a.avi", {}),
        ("a.avi", {"codec": "mpeg4"}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"lossless": "1", "cpu-used": "8"}}),
        ("a.webm", {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
        ("a.mkv", {"codec": "ffv1", "pix_fmt": "gbrp16le"}),
        ("open.mkv", {"options": OPEN_GOP}),
        ("open.mp4", {"codec": "libx265", "options": X265_OPEN}),
        ("refresh.mp4", {"options": INTRA_REFRESH}),
        ("a.h264", {}),
    ],
)
def test_reading_from_any_index_gives_what_reading_from_the_start_gives(clip, samples, name, facts):
    source = VideoSource(clip(name, **facts))
    whole = everything(source, samples)
    assert [index for index, _, _ in whole] == list(range(30))
    assert [time - source.info.start for _, time, _ in whole] == [
        Fraction(i, 25) for i in range(30)
    ]
    assert len({picture for _, _, picture in whole}) == 30
    for start in range(0, 30, 1 if name == "open.mkv" else 4):
        assert everything(source, samples, start, start + 2) == whole[start : start + 2]
    assert everything(source, samples, 27) == whole[27:]
    assert source.shortfall() is None


@pytest.mark.parametrize(("suffix", "pix_fmt"), [("mp4", "yuv420p"), ("mkv", "yuv444p")])
def test_frames_are_the_pictures_that_were_encoded(clip, paint, samples, suffix, pix_fmt):
    with VideoSource(clip(f"a.{suffix}", frames=12, pix_fmt=pix_fmt)) as source:
        for frame in source.frames():
            painted = paint(frame.index, pix_fmt=pix_fmt)
            assert samples(frame.picture) == samples(painted)


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.webm", "libvpx-vp9", "yuva420p"),
        ("a.mov", "prores_ks", "yuva444p10le"),
        ("a.mkv", "ffv1", "yuva444p10le"),
    ],
)
def test_alpha_is_read(clip, paint, name, codec, pix_fmt):
    options = {"lossless": "1", "auto-alt-ref": "0"} if name == "a.webm" else {}
    path = clip(name, frames=6, codec=codec, pix_fmt=pix_fmt, options=options)
    with VideoSource(path) as source:
        assert (source.info.has_alpha, source.info.frame_count) == (True, 6)
        for frame in source.frames(2):
            assert frame.picture.format.name in (pix_fmt, "yuva444p12le")
            alpha = np.asarray(channel_views(frame.picture)[3], np.float64)
            painted = channel_views(paint(frame.index, pix_fmt=pix_fmt))[3]
            scale = 2 ** (pixel_layout(frame.picture.format.name).bits - pixel_layout(pix_fmt).bits)
            assert np.abs(alpha / scale - painted).max() <= 1


@pytest.mark.parametrize("suffix", ["mkv", "ts", "mp4", "mov", "webm"])
def test_23_976_is_exact_to_the_last_frame(clip, suffix):
    rate = Fraction(24000, 1001)
    codec = {"codec": "libvpx", "options": {"cpu-used": "8"}} if suffix == "webm" else {}
    with VideoSource(clip(f"a.{suffix}", frames=100, rate=rate, **codec)) as source:
        (last,) = source.frames(99)
        assert last.time - source.info.start == 99 / rate
        assert source.timestamps.index_at(Fraction(1)) == 24


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_times_are_those_of_the_file(clip, suffix):
    pts = tuple(i * 40 + (20 if i % 3 else 0) for i in range(24))
    path = clip(f"a.{suffix}", frames=24, pts=pts, time_base=Fraction(1, 1000))
    with VideoSource(path) as source:
        assert [frame.time for frame in source.frames()] == [Fraction(p, 1000) for p in pts]
        assert [frame.index for frame in source.frames(13, 15)] == [13, 14]


def test_a_file_in_memory_reads_like_one_on_disk(clip, clip_bytes, samples):
    on_disk = everything(VideoSource(clip("a.mkv")), samples)
    in_memory = open_source(clip_bytes("matroska"))
    assert everything(in_memory, samples) == on_disk
    one, other = in_memory.frames(3), in_memory.frames(20)
    assert [next(one).index, next(other).index, next(one).index] == [3, 20, 4]


def test_any_binary_file_object_will_do(clip, samples):
    path = clip("a.mp4")
    with path.open("rb") as file:
        assert everything(open_source(file), samples, 15) == everything(
            open_source(path), samples, 15
        )


def test_what_an_edit_list_hides_is_not_read(tmp_path, clip, samples):
    given = clip("whole.mp4", frames=30)
    whole = everything(VideoSource(given), samples)
    path = tmp_path / "cut.mp4"
    with av.open(str(given)) as source, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                # Negative times make the muxer write an edit list, like `ffmpeg -ss 0.28 -c copy`.
                packet.pts -= 7 * 512
                packet.dts -= 7 * 512
                packet.stream = stream
                output.mux(packet)
    with VideoSource(path) as source:
        shown = everything(source, samples)
        assert [picture for _, _, picture in shown] == [picture for _, _, picture in whole[7:]]
        assert [time for _, time, _ in shown] == [Fraction(i, 25) for i in range(23)]
        assert everything(source, samples, 2, 4) == shown[2:4]
        assert source.shortfall() is None


def test_a_raw_stream_takes_the_rate_it_is_given(clip):
    path = clip("a.h264", frames=8)
    with open_source(path, input_rate=Fraction(24000, 1001)) as source:
        assert [frame.time for frame in source.frames()] == [
            Fraction(1001 * i, 24000) for i in range(8)
        ]


def test_frames_before_the_zero_of_matroska_keep_their_distance_to_the_sound(
    tmp_path, clip, samples, caplog
):
    given = clip("a.mp4", frames=30, rate=Fraction(24))
    path = tmp_path / "early.mkv"
    with (
        av.open(str(given)) as source,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as output,
    ):
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.pts -= round(1 / packet.time_base)
                packet.dts -= round(1 / packet.time_base)
                packet.stream = stream
                output.mux(packet)
    whole = everything(VideoSource(given), samples)
    with VideoSource(path) as source:
        # FFmpeg's demuxer gives no times below 0; players show these frames at the right distance
        assert "24 of the 30 packets have no timestamps" in caplog.text
        shown = everything(source, samples)
        assert source.info.start == -1
        assert [picture for _, _, picture in shown] == [picture for _, _, picture in whole]
        assert [time for _, time, _ in shown] == [Fraction(i, 24) - 1 for i in range(30)]
        assert everything(source, samples, 20) == shown[20:]


def test_a_rate_for_a_file_that_has_one_is_refused(clip):
    with pytest.raises(SourceError, match="timestamps of its own"):
        open_source(clip("a.mp4", frames=4), input_rate=Fraction(30))


def test_one_frame_is_a_source(clip):
    with VideoSource(clip("a.mp4", frames=1)) as source:
        assert source.info.frame_count == 1
        assert [frame.index for frame in source.frames()] == [0]
        assert list(source.frames(1)) == []
        assert list(source.frames(0, 0)) == []


def test_a_size_that_changes_midway_stops_at_that_frame(tmp_path, clip):
    path = tmp_path / "joined.ts"
    first = clip("a.ts", frames=10)
    second = clip("b.ts", frames=10, size=(96, 48))
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with VideoSource(path) as source:
        delivered = []
        frames = (delivered.append(frame.index) for frame in source.frames())
        with pytest.raises(SourceError, match=r"from 64x48 to 96x48 at frame 10"):
            list(frames)
        assert delivered == list(range(10))


def test_a_pixel_format_that_changes_midway_stops_at_that_frame(tmp_path, clip):
    path = tmp_path / "joined.h264"
    first = clip("a.h264", frames=5)
    second = clip("b.h264", frames=5, pix_fmt="yuv444p")
    path.write_bytes(first.read_bytes() + second.read_bytes())
    with VideoSource(path) as source, pytest.raises(SourceError, match="yuv420p to yuv444p"):
        list(source.frames())


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_of_a_truncated_file_the_rest_is_read_and_the_loss_told(tmp_path, clip, samples, suffix):
    whole = clip(f"a.{suffix}", frames=50)
    if suffix == "mp4":
        faststart = tmp_path / "fast.mp4"
        with av.open(str(whole)) as given:
            options = {"movflags": "faststart"}
            with av.open(str(faststart), "w", options=options) as output:
                stream = output.add_stream_from_template(given.streams.video[0])
                for packet in given.demux(video=0):
                    if packet.size:
                        packet.stream = stream
                        output.mux(packet)
        whole = faststart
    expected = everything(VideoSource(whole), samples)
    data = whole.read_bytes()
    path = tmp_path / f"cut.{suffix}"
    path.write_bytes(data[: len(data) * 6 // 10])
    with VideoSource(path) as source:
        kept = everything(source, samples)
        assert 20 < len(kept) < 40
        assert kept == expected[: len(kept)]
        loss = source.shortfall()
        assert loss is not None
        assert "cut off" in loss
        assert f"({len(kept)}{' of 50' if suffix == 'mp4' else ''} frames left)" in loss


@pytest.mark.parametrize("name", ["a.mkv", "a.avi", "a.nut"])
def test_a_disk_that_fails_once_while_a_file_is_read_costs_no_frame(
    clip, samples, monkeypatch, name
):
    path = clip(name, codec="rawvideo", frames=12, size=(160, 120))
    expected, read, done = everything(VideoSource(path), samples), SourceFile.read, []

    def fail_at(number):
        def failing(file, size):
            done.append(size)
            if len(done) == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return read(file, size)

        done.clear()
        monkeypatch.setattr(SourceFile, "read", failing)

    fail_at(0)
    assert everything(VideoSource(path), samples) == expected
    for number in range(1, len(done) + 1):
        fail_at(number)
        with pytest.raises(SourceError, match=rf"{name} cannot be read \(.*\): check the disk"):
            everything(VideoSource(path), samples)


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # interrupted as it was opened
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="Windows has no interval timer")
@pytest.mark.parametrize("name", ["a.mkv", "a.mov"])
def test_ctrl_c_while_a_file_is_read_ends_that_and_never_shortens_it(clip, monkeypatch, name):
    path = clip(name, codec="rawvideo", pix_fmt="uyvy422", frames=60, size=(160, 120))
    dropped = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda what: dropped.append(f"{what.object} {what.err_msg}")
    )

    def interrupt(*_):
        raise KeyboardInterrupt

    def is_interrupted(seconds):
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            with VideoSource(path) as source:
                assert source.timestamps.count == 60
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            return True
        return False

    begun = time.monotonic()
    assert not is_interrupted(60)
    whole = time.monotonic() - begun
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        assert sum(is_interrupted(whole * n / 150) for n in range(1, 150)) > 0
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.collect()
    assert not [each for each in dropped if "pyio" in each]


@pytest.mark.parametrize("name", ["slow.mp4", "slow.mkv"])
def test_a_last_frame_that_is_shown_for_long_is_no_loss(clip, samples, name):
    with VideoSource(clip(name, frames=4, rate=Fraction(1, 2))) as source:
        assert len(everything(source, samples)) == 4
        assert source.shortfall() is None


@pytest.mark.parametrize("suffix", ["mkv", "nut", "mp4", "ts"])
def test_a_late_start_is_no_loss(clip, suffix):
    late = tuple(range(10_000 * 25, 10_000 * 25 + 30))
    path = clip(f"a.{suffix}", pts=late, time_base=Fraction(1, 25))
    with VideoSource(path) as source:
        assert source.info.start >= 10_000
        assert len(list(source.frames())) == 30
        assert source.shortfall() is None


def test_a_subtitle_that_is_shown_longer_than_the_pictures_is_no_loss(tmp_path, clip, samples):
    (tmp_path / "a.srt").write_text("1\n00:00:00,100 --> 00:00:06,000\nThe end\n")
    with (
        av.open(str(clip("a.mkv", frames=4))) as given,
        av.open(str(tmp_path / "a.srt")) as lines,
        av.open(str(tmp_path / "b.mkv"), "w") as out,
    ):
        for source in (given, lines):
            out.add_stream_from_template(source.streams[0])
        for number, source in enumerate((given, lines)):
            for packet in source.demux():
                if packet.size:
                    packet.stream = out.streams[number]
                    out.mux(packet)
    with VideoSource(tmp_path / "b.mkv") as source:
        assert len(everything(source, samples)) == 4
        assert source.shortfall() is None


def test_pictures_that_are_cut_off_behind_all_of_the_sound_are_a_loss(tmp_path, clip, samples):
    options = {"movflags": "faststart", "max_interleave_delta": "1"}
    with (
        av.open(str(clip("sound.mp4", frames=48, has_audio=True))) as sound,
        av.open(str(clip("pictures.mp4", frames=50))) as pictures,
        av.open(str(tmp_path / "whole.mp4"), "w", options=options) as out,
    ):
        given = sound.streams.audio[0], pictures.streams.video[0]
        streams = [out.add_stream_from_template(each) for each in given]
        for source, stream in zip(given, streams, strict=True):
            for packet in source.container.demux(source):
                if packet.size:
                    packet.stream = stream
                    out.mux(packet)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) * 6 // 10])
    with VideoSource(tmp_path / "cut.mp4") as source:
        kept = everything(source, samples)
        assert 20 < len(kept) < 40
        assert f"({len(kept)} of 50 frames left)" in str(source.shortfall())


def test_an_mp4_without_its_index_is_refused(tmp_path, clip):
    data = clip("a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    with pytest.raises(SourceError, match=r"cut\.mp4 is not a video, or is too damaged"):
        VideoSource(tmp_path / "cut.mp4")


def damaged(tmp_path, clip, begin, end):
    """(clip with one packet per frame, copy of it with packets `begin` to `end` zeroed)."""
    path = clip("a.mp4", frames=40)
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = sorted(p.pos for p in container.demux(video=0) if p.size)
    data[packets[begin] + 30 : packets[end] - 10] = bytes(packets[end] - packets[begin] - 40)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(bytes(data))
    return path, damaged


def test_damage_within_keeps_count_and_order_and_is_told(tmp_path, clip, samples):
    whole, path = damaged(tmp_path, clip, 14, 16)
    expected = everything(VideoSource(whole), samples)
    with VideoSource(path) as source:
        found = everything(source, samples)
        assert [pair[:2] for pair in found] == [pair[:2] for pair in expected]
        assert found[:12] == expected[:12]
        assert found[20:] == expected[20:]
        for start in range(len(found)):
            assert everything(source, samples, start, start + 1) == [found[start]]
        assert "damaged inside" in str(source.shortfall())


def test_damage_in_a_video_with_a_palette_repeats_the_frame_before(tmp_path):
    path, count = tmp_path / "palette.mov", 6
    with av.open(str(path), "w") as out:
        stream = out.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "pal8"
        for number in range(count):
            picture = av.VideoFrame(64, 48, "pal8")
            picture.planes[0].update(bytes([number]) * picture.planes[0].buffer_size)
            picture.planes[1].update(np.arange(256, dtype="<u4") * 0x010101 + 0xFF000000)
            picture.pts = number
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        third = [packet.pos for packet in container.demux(video=0) if packet.size][2]
    data = bytearray(path.read_bytes())
    data[third : third + 60] = bytes(60)
    path.write_bytes(bytes(data))
    with VideoSource(path) as source:
        shown = [to_rgb(frame.picture, resolve(source.info)) for frame in source.frames()]
        assert [round(255 * float(rgb[0].mean())) for rgb in shown] == [0, 1, 1, 3, 4, 5]
        assert "damaged inside" in str(source.shortfall())


@pytest.mark.parametrize(
    ("name", "mark", "at"), [("a.apng", b"fdAT", 40), ("a.mov", b"IDAT", 4)], ids=["apng", "png"]
)
def test_damage_in_png_pictures_holds_up_no_thread_for_ever(clip, name, mark, at):
    path = clip(name, codec=name[2:].replace("mov", "png"), pix_fmt="rgba", frames=8)
    content = path.read_bytes()
    places = [found.start() + at for found in re.finditer(mark, content)][1:-1]
    assert len(places) > 4
    done = []

    def read():
        with VideoSource(path) as source:
            assert len(list(source.frames())) == 8
        assert not verify_file(path, deep=True).ok
        done.append(True)

    for number, place in enumerate(places, 1):
        path.write_bytes(content[:place] + b"\xff" * 4 + content[place + 4 :])
        thread = threading.Thread(target=read, daemon=True)
        thread.start()
        thread.join(30)
        assert len(done) == number


def test_a_file_of_nothing_but_damage_is_refused(tmp_path, clip):
    data = bytearray(clip("a.mkv", frames=6, options={"qp": "0", "g": "1"}).read_bytes())
    start = data.index(b"\x1f\x43\xb6\x75")  # the first cluster
    data[start + 24 :] = b"\x55" * (len(data) - start - 24)
    (tmp_path / "b.mkv").write_bytes(bytes(data))
    with pytest.raises(SourceError, match=r"no frame that can be decoded"):
        VideoSource(tmp_path / "b.mkv")


def test_an_interlaced_file_is_read_with_a_warning(clip, caplog):
    options = {"qp": "0", "preset": "ultrafast", "x264-params": "interlaced=1:tff=1"}
    with VideoSource(clip("a.mkv", frames=6, options=options)) as source:
        assert len(list(source.frames())) == 6
    assert len([r for r in caplog.records if "interlaced" in r.getMessage()]) == 1


def open_files():
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else None


def test_an_iterator_given_up_early_gives_its_file_back(clip):
    path = clip("a.mp4", frames=60)
    source = VideoSource(path)
    before = open_files()
    for _ in range(5):
        frames = source.frames(3)
        assert next(frames).index == 3
        frames.close()
    gc.collect()
    assert open_files() == before


def test_closing_from_another_thread_ends_the_iterator(clip):
    source = VideoSource(clip("a.mp4", frames=60))
    seen, may_go_on = [], threading.Event()

    def read():
        for frame in source.frames():
            seen.append(frame.index)
            may_go_on.wait(10)

    reader = threading.Thread(target=read)
    reader.start()
    while not seen:
        pass
    source.close()
    may_go_on.set()
    reader.join(10)
    assert not reader.is_alive()
    assert len(seen) < 60


def test_identity_follows_the_content_and_not_the_name(tmp_path, clip):
    path = clip("a.mkv")
    copy = tmp_path / "b.mkv"
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert VideoSource(path).identity == VideoSource(copy).identity
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(bytes(data))
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    assert VideoSource(path).identity != VideoSource(copy).identity


def test_identity_reads_only_the_ends(clip):
    class Counting(io.BytesIO):
        total = 0

        def read(self, size=-1):
            data = super().read(size)
            self.total += len(data)
            return data

    source = VideoSource(clip("a.mkv", frames=3))
    file = Counting(bytes(10 << 20))
    source._source = file  # only the ends of the file matter here
    source.identity  # noqa: B018
    assert file.total == 2 << 20


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_reading_from_the_middle_decodes_little_of_what_comes_before(clip, monkeypatch, name):
    decoded, decode = [], reader.decode

    def counting(*arguments):
        for picture in decode(*arguments):
            decoded.append(picture)
            yield picture

    with VideoSource(clip(name, frames=100)) as source:
        monkeypatch.setattr(reader, "decode", counting)
        assert [frame.index for frame in source.frames(90, 92)] == [90, 91]
    assert len(decoded) < 40


# Not ru_maxrss: a process inherits it from its parent, here a large test runner.
MEASURE = """
import re, sys
from importlib.util import module_from_spec, spec_from_file_location
root, path = sys.argv[1:]
spec = spec_from_file_location("pack", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["pack"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.encoding.source import open_source
count = sum(1 for _ in open_source(path).frames())
print(count, re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures peak memory as Linux reports it")
def test_memory_does_not_grow_with_the_length(clip, root):
    peaks = []
    for name, frames in (("short.mp4", 100), ("long.mp4", 1000)):
        options = {"preset": "ultrafast", "g": "50", "threads": "2"}
        path = clip(name, frames=frames, size=(320, 240), options=options)
        command = [sys.executable, "-c", MEASURE, str(root), str(path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        count, peak = map(int, output.split())
        assert count == frames
        peaks.append(peak)
    assert peaks[1] < 1.05 * peaks[0]


LEAVE = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

root = Path(sys.argv[1])
spec = spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[str(root)])
sys.modules["pack"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.encoding.reader import VideoSource

with VideoSource(sys.argv[2]) as source:
    for start in range(20):
        next(source.frames(start))
"""


def test_a_video_of_png_pictures_can_be_left_at_any_frame(root, clip):
    path = clip("a.mov", codec="png", pix_fmt="rgb24")
    command = [sys.executable, "-c", LEAVE, str(root), str(path)]
    subprocess.run(command, check=True, timeout=60)  # it waited forever


def test_reading_goes_on_where_another_stopped(clip, samples):
    source = VideoSource(clip("a.mp4"))
    whole = everything(source, samples)
    first = [(f.index, f.time, samples(f.picture)) for f in islice(source.frames(), 11)]
    assert first + everything(source, samples, 11) == whole


@pytest.mark.parametrize(
    ("name", "codec", "hide"),
    [
        ("a.webm", "libvpx", lambda head: head & ~0x10),
        ("a.nut", "libvpx-vp9", lambda head: head & ~0x02),
    ],
)
def test_packets_that_show_no_frame_count_as_none(tmp_path, clip, samples, name, codec, hide):
    # Two-pass encoders hide a picture before some of those shown, which refer to it.
    path, hiding = clip(name, codec=codec, options={"g": "1", "crf": "10"}), tmp_path / f"h{name}"
    with av.open(str(path)) as given, av.open(str(hiding), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        for number, packet in enumerate(given.demux(video=0)):
            packet.stream = stream
            if packet.size and number % 7 == 3:
                hidden = av.Packet(bytes([hide(bytes(packet)[0])]) + bytes(packet)[1:])
                hidden.pts, hidden.time_base, hidden.stream = packet.pts, packet.time_base, stream
                hidden.dts = packet.dts - 1
                out.mux_one(hidden)
            if packet.size:
                out.mux_one(packet)
    whole = everything(VideoSource(path), samples)
    source = VideoSource(hiding)
    assert everything(source, samples) == whole
    assert everything(source, samples, 17) == whole[17:]
    assert source.shortfall() is None
    assert probe(hiding, count=True).frame_count == 30


@pytest.mark.parametrize(
    ("codec", "options"),
    [("libx264", {"bf": "0"}), ("libx264", {}), ("mpeg4", {"bf": "2"}), ("mpeg2video", {})],
)
def test_avi_begins_with_its_sound_whatever_times_are_guessed_for_it(clip, codec, options):
    with VideoSource(clip("a.avi", codec=codec, options=options)) as source:
        assert [frame.time for frame in source.frames()] == [Fraction(i, 25) for i in range(30)]


def test_frames_missing_in_avi_are_missed_where_they_are(tmp_path, clip):
    path, numbers = tmp_path / "dropped.avi", [0, 1, 2, 3, 9, 10, 11, 12]
    with (
        av.open(str(clip("a.avi", frames=8, options={"bf": "0"}))) as given,
        av.open(str(path), "w") as out,
    ):
        stream = out.add_stream_from_template(given.streams.video[0])
        packets = (packet for packet in given.demux(video=0) if packet.size)
        for number, packet in zip(numbers, packets, strict=True):
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            out.mux_one(packet)
    with VideoSource(path) as source:
        assert [frame.time * 25 for frame in source.frames()] == numbers


DIVX_PACKED = b"\0\0\1\xb2DivX503b1393p"
VOP = b"\0\0\1\xb6"
NO_PICTURE = VOP + b"\x51\x00\x7f"


def test_two_pictures_in_a_packet_of_divx_are_both_read_in_their_turn(tmp_path, clip, samples):
    # DivX and Xvid put the first B-picture behind the one it refers to, and leave an empty packet.
    path = clip("a.avi", codec="mpeg4", options={"bf": "2", "b_strategy": "0", "g": "9"})
    packed = tmp_path / "packed.avi"
    with av.open(str(path)) as given, av.open(str(packed), "w") as out:
        stream = out.add_stream_from_template(given.streams.video[0])
        data = [bytes(packet) for packet in given.demux(video=0) if packet.size]
        is_b = [each[each.index(VOP) + 4] >> 6 == 2 for each in data]
        assert is_b[:4] == [False, False, True, True]
        followed = [*is_b[1:], False]
        for number, each in enumerate(data):
            if is_b[number]:  # one packet late
                body = data[number + 1] if followed[number] else NO_PICTURE
            else:
                body = each + data[number + 1] if followed[number] else each
            packet = av.Packet(body if number else DIVX_PACKED + body)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream = Fraction(1, 25), stream
            out.mux_one(packet)
    whole = [picture for _, _, picture in everything(VideoSource(path), samples)]
    source = VideoSource(packed)
    found = everything(source, samples)
    assert [picture for _, _, picture in found] == whole
    assert [time - found[0][1] for _, time, _ in found] == [Fraction(i, 25) for i in range(30)]
    assert everything(source, samples, 17) == found[17:]
    assert source.shortfall() is None
