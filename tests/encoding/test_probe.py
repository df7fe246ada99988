"""What is reported about a video, and the messages that refuse one."""

import os
import struct
import wave
from contextlib import nullcontext
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
from comfyui_tlbvfi.encoding.container import source_name
from comfyui_tlbvfi.encoding.errors import SourceError
from comfyui_tlbvfi.encoding.frame import ColorTags
from comfyui_tlbvfi.encoding.probe import StreamInfo, _mastering, probe
from comfyui_tlbvfi.encoding.verify import verify_file

X265 = {"x265-params": "log-level=none:lossless=1", "preset": "ultrafast"}


def test_the_facts_of_a_clip(clip):
    path = clip(
        "a.mp4",
        frames=24,
        rate=Fraction(24000, 1001),
        tags=(1, 1, 1, 1),
        sample_aspect_ratio=Fraction(4, 3),
        has_audio=True,
    )
    info = probe(path, count=True)
    assert (info.name, info.codec, info.container) == ("a.mp4", "h264", "mov,mp4,m4a,3gp,3g2,mj2")
    assert (info.width, info.height, info.pix_fmt, info.bit_depth) == (64, 48, "yuv420p", 8)
    assert (info.rate, info.is_vfr, info.start) == (Fraction(24000, 1001), False, 0)
    assert (info.frame_count, info.duration) == (24, Fraction(1001, 1000))
    assert info.color == ColorTags(primaries=1, transfer=1, matrix=1, range=1)
    assert (info.sample_aspect_ratio, info.rotation) == (Fraction(4, 3), 0)
    assert not info.has_alpha
    assert not info.is_interlaced
    assert info.audio == (StreamInfo(index=1, codec="aac", language=None),)


@pytest.mark.skipif(
    not hasattr(av.video.stream.VideoStream, "set_display_rotation"),
    reason="this PyAV cannot write a rotation",
)
def test_rotation_is_told(clip):
    assert abs(probe(clip("a.mp4", frames=3, rotation=90)).rotation) == 90


def test_an_untagged_clip_stays_untagged(clip):
    assert probe(clip("a.mkv", frames=3)).color == ColorTags()


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "mov"])
@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(16), Fraction(60000, 1001)])
def test_the_rate_is_exact_in_every_container(clip, suffix, rate):
    info = probe(clip(f"a.{suffix}", frames=20, rate=rate))
    assert (info.rate, info.is_vfr) == (rate, False)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_variable_rate_is_recognized(clip, suffix):
    pts = tuple(i * 40 + (20 if i % 3 else 0) for i in range(30))
    info = probe(clip(f"a.{suffix}", pts=pts, time_base=Fraction(1, 1000)), count=True)
    assert info.is_vfr
    assert info.rate == Fraction(29 * 1000, pts[-1])


def test_a_long_clip_is_not_read_whole_unless_it_is_to_be_counted(clip, monkeypatch):
    path = clip("a.mkv", frames=200)
    monkeypatch.setitem(probe.__globals__, "QUICK_SCAN", 60)
    quick, counted = probe(path), probe(path, count=True)
    assert (quick.rate, quick.is_vfr, quick.frame_count, quick.duration) == (25, False, None, 8)
    assert (counted.rate, counted.frame_count, counted.duration) == (25, 200, 8)


def test_depth_and_alpha(clip):
    info = probe(clip("a.mkv", frames=2, codec="libx265", pix_fmt="yuv420p10le", options=X265))
    assert (info.pix_fmt, info.bit_depth) == ("yuv420p10le", 10)
    info = probe(clip("a.mov", frames=2, codec="prores_ks", pix_fmt="yuva444p10le"))
    assert info.has_alpha
    assert info.codec == "prores"


def test_hdr10_metadata_is_told_in_the_words_of_x265(clip):
    display = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    params = f"log-level=none:master-display={display}:max-cll=1000,400:hdr10=1:repeat-headers=1"
    info = probe(
        clip(
            "a.mp4",
            frames=5,
            codec="libx265",
            pix_fmt="yuv420p10le",
            options={"x265-params": params, "preset": "ultrafast"},
            tags=(9, 16, 9, 1),
        )
    )
    assert info.mastering == {"master-display": display, "max-cll": "1000,400"}
    assert info.color == ColorTags(primaries=9, transfer=16, matrix=9, range=1)


def test_side_data_that_pyav_does_not_know_is_passed_over(tmp_path, clip):
    given = clip("a.mkv", frames=2, codec="mjpeg", pix_fmt="yuvj420p")
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)  # turned by 90 degrees
    exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    with av.open(str(given)) as source, av.open(str(tmp_path / "b.mkv"), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                tagged = av.Packet(bytes(packet)[:2] + exif + bytes(packet)[2:])
                tagged.pts, tagged.dts, tagged.time_base = packet.pts, packet.dts, packet.time_base
                tagged.is_keyframe, tagged.stream = True, stream
                out.mux(tagged)
    info = probe(tmp_path / "b.mkv", count=True)
    assert (info.frame_count, info.mastering) == (2, {})


def test_interlacing_is_seen(clip):
    options = {"qp": "0", "preset": "ultrafast", "x264-params": "interlaced=1:tff=1"}
    assert probe(clip("a.mkv", frames=3, options=options)).is_interlaced


def test_a_video_in_memory_is_probed(clip_bytes):
    info = probe(clip_bytes("matroska", frames=5), count=True)
    assert (info.frame_count, info.name) == (5, "the video in memory")


def test_metadata_and_languages_are_told(tmp_path, clip):
    path = tmp_path / "b.mkv"
    with av.open(str(clip("a.mkv", has_audio=True))) as given, av.open(str(path), "w") as output:
        output.metadata["title"] = "A clip"
        streams = {s.index: output.add_stream_from_template(s) for s in given.streams}
        streams[1].metadata["language"] = "kor"
        for packet in given.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    info = probe(path)
    assert info.metadata["title"] == "A clip"
    assert info.audio[0].language == "kor"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a video"),
        (b"hello, this is text\n" * 50, "not a video"),
        (None, "does not exist"),
    ],
)
def test_what_is_no_video_is_refused_in_one_sentence(tmp_path, content, words):
    path = tmp_path / "strange.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        probe(path)
    assert "strange.mp4" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_video_file(tmp_path):
    with pytest.raises(SourceError, match="is a folder"):
        probe(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither")
def test_pipes_and_devices_are_refused_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(SourceError, match=r"pipe\.mp4 is a pipe; save its content to a file first"):
        probe(tmp_path / "pipe.mp4")
    with pytest.raises(SourceError, match="/dev/zero is a device, not a file; save"):
        probe("/dev/zero")


def test_sound_alone_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(1600))
    with pytest.raises(SourceError, match="no video stream; it holds only sound"):
        probe(path)


def test_cover_art_is_no_video(tmp_path, paint):
    path = tmp_path / "a.mp3"
    with av.open(str(path), "w") as output:
        sound = output.add_stream("libmp3lame", rate=48000, layout="mono")
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        output.mux(cover.encode(paint(0, pix_fmt="yuvj420p")))
        output.mux(cover.encode())
        silence = av.AudioFrame(format="fltp", layout="mono", samples=1152)
        silence.rate = 48000
        silence.planes[0].update(bytes(silence.planes[0].buffer_size))
        output.mux(sound.encode(silence))
        output.mux(sound.encode())
    with pytest.raises(SourceError, match="only sound"):
        probe(path)


def test_a_playlist_fetches_nothing(tmp_path):
    path = tmp_path / "list.m3u8"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n")
    with pytest.raises(SourceError):
        probe(path)


HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
DASH = """<?xml version="1.0"?><MPD><Period><AdaptationSet><Representation bandwidth="1">
<BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>"""


@pytest.mark.parametrize("is_in_memory", [False, True])
@pytest.mark.parametrize(
    ("name", "text"),
    [("list.m3u8", HLS), ("list.ffconcat", "ffconcat version 1.0\nfile {}\n"), ("list.mpd", DASH)],
)
def test_a_playlist_of_files_is_no_video(tmp_path, clip, monkeypatch, name, text, is_in_memory):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    path.write_text(text.format(clip("a.ts", codec="mpeg2video", pix_fmt="yuv420p").name))
    source = BytesIO(path.read_bytes()) if is_in_memory else path
    with pytest.raises(SourceError, match="is a playlist, which names other files: join those"):
        probe(source)
    assert not verify_file(path).ok


@pytest.mark.parametrize("number", [(0, 0), (1, 0)])
def test_mastering_metadata_with_numbers_that_are_none_is_passed_over(number):
    whole = struct.pack("=20i", *[1, 50_000] * 10) + struct.pack("=2i", 1, 1)
    display = struct.pack("=2i", *number) + whole[8:]
    picture = SimpleNamespace(side_data={"MASTERING_DISPLAY_METADATA": display})
    assert _mastering(picture) == {}
    picture.side_data["MASTERING_DISPLAY_METADATA"] = whole
    assert _mastering(picture).keys() == {"master-display"}


def test_names_are_taken_literally(clip):
    names = ("a:b.mkv", "50%d off.mkv", "ünï çode.mkv")
    for name in names[os.name == "nt" :]:  # Windows takes no colon
        assert probe(clip(name, frames=2), count=True).frame_count == 2


def patched(path, tag, replacement, number=-1):
    """Replace one occurrence of `tag` in the file; returns its path."""
    data = path.read_bytes()
    places = [i for i in range(len(data)) if data.startswith(tag, i)]
    place = places[number]
    path.write_bytes(data[:place] + replacement + data[place + len(tag) :])
    return path


def test_pictures_in_an_unknown_codec_are_told(clip):
    path = patched(clip("a.mp4", codec="libx264", pix_fmt="yuv420p"), b"avc1", b"zzzz")
    with pytest.raises(SourceError, match="a video codec that no decoder here supports"):
        probe(path)


def test_tags_in_an_old_code_page_are_read_all_the_same(tmp_path, paint):
    path = tmp_path / "old.avi"
    with av.open(str(path), "w") as output:
        output.metadata["title"] = "Caf____"
        stream = output.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        output.mux(stream.encode(paint(0, pix_fmt="yuvj420p")))
        output.mux(stream.encode())
    patched(path, b"Caf____", "Caf\xe9 bar"[:4].encode("latin-1") + b"bar")
    assert probe(path).metadata["title"] == "Caf\ufffdbar"


@pytest.mark.parametrize("where", ["file", "memory"])
def test_an_animated_webp_is_read_or_called_one(tmp_path, where):
    path = tmp_path / "a.webp"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libwebp_anim", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(3):
            picture = av.VideoFrame(64, 48, "yuv420p")
            for plane in picture.planes:
                plane.update(bytes([90 * number]) * plane.buffer_size)
            picture.pts = number
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    source = path if where == "file" else BytesIO(path.read_bytes())
    told = pytest.raises(SourceError, match=r"is an animated WebP, .* convert it to GIF")
    with nullcontext() if av.__version__ >= "19" else told:
        assert probe(source, count=True).frame_count == 3


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(SourceError, match="has a NUL in its name: check the path"):
        probe("a\0b.mp4")


def test_a_file_for_which_nothing_is_left_is_said_to_be_unopened(clip):
    resource = pytest.importorskip("resource")
    path = clip("a.mp4")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        with pytest.raises(SourceError, match=r"a.mp4 cannot be opened \(Too many open files\)"):
            probe(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_name_in_a_log_is_one_line_that_commands_no_terminal():
    assert source_name(Path("x") / "a\x1b[2J\nb.mp4") == r"a\x1b[2J\nb.mp4"
