"""Timecodes at other rates, and on their way from source to output."""

from fractions import Fraction

import av
import pytest
from av.stream import Disposition
from comfyui_tlbvfi.encoding import carried
from comfyui_tlbvfi.encoding.concat import join
from comfyui_tlbvfi.encoding.timecode import moved_timecode
from comfyui_tlbvfi.encoding.window import Window

NTSC, FILM = Fraction(30000, 1001), Fraction(24000, 1001)


@pytest.mark.parametrize(
    ("label", "rate", "new_rate", "frames", "moved"),
    [
        ("01:00:00:12", Fraction(24), Fraction(48), 0, "01:00:00:24"),
        ("01:00:00:23", FILM, 2 * FILM, 1, "01:00:01:00"),
        ("23:59:59:24", Fraction(25), Fraction(50), 1, "00:00:00:00"),
        ("01:00:59;28", NTSC, 2 * NTSC, 0, "01:00:59;56"),
        ("01:00:59;29", NTSC, NTSC, 1, "01:01:00;02"),
        ("01:09:59;29", NTSC, NTSC, 1, "01:10:00;00"),
        ("00:00:00;00", NTSC, NTSC, 1, "00:00:00;01"),
        ("00:00:00;00", NTSC, 2 * NTSC, 17982 * 6, "01:00:00;00"),
        ("01:00:00:12", Fraction(24), Fraction(60), 0, "01:00:00:30"),
        ("01:00:00:11", Fraction(24), Fraction(60), 0, None),
        ("01:00:00:12", FILM, Fraction(60), 0, None),
        ("00:16:40:00", FILM, Fraction(60), 0, None),
        ("00:00:00:00", Fraction(1, 3), Fraction(2, 3), 0, None),
        ("01:00:00;00", Fraction(25), Fraction(50), 0, None),
        ("01:00:00;00", Fraction(25), Fraction(150), 0, None),
        ("00:00:00;00", NTSC, FILM, 0, None),
        ("noon", FILM, FILM, 0, None),
    ],
)
def test_a_label_names_the_same_frame_at_another_rate(label, rate, new_rate, frames, moved):
    assert moved_timecode(label, rate, new_rate, frames / rate) == moved


@pytest.fixture
def labeled(tmp_path):
    """Factory for a source of 24 frames at 24000/1001 with a timecode and optional cover art."""

    def make(name="source.mov", *, cover=False):
        path = tmp_path / name
        with av.open(str(path), "w") as out:
            video = out.add_stream("mpeg4", rate=FILM)
            video.width, video.height = 64, 48
            video.metadata["timecode"] = "01:00:00:12"
            art = None
            if cover:
                art = out.add_stream("mjpeg", rate=1)
                art.width, art.height, art.pix_fmt = 64, 48, "yuvj420p"
                art.disposition = Disposition.attached_pic
            for number in range(24):
                picture = av.VideoFrame(64, 48, "yuv420p")
                picture.pts = number
                out.mux(video.encode(picture))
            out.mux(video.encode(None))
            if art is not None:
                out.mux([*art.encode(av.VideoFrame(64, 48, "yuvj420p")), *art.encode(None)])
        return path

    return make


def label(path):
    with av.open(str(path)) as container:
        tags = container.streams.video[0].metadata.items()
        return next((text for key, text in tags if key.lower() == "timecode"), None)


@pytest.mark.parametrize("suffix", [".mov", ".mp4", ".mkv"])
def test_the_timecode_of_the_source_is_kept(tmp_path, filled, labeled, ffprobe, suffix):
    if carried.PYAV < carried.GIVES_RATES and suffix != ".mkv":
        pytest.skip("this PyAV cannot")
    output = tmp_path / f"out{suffix}"
    assert join(filled("h264"), output, source=labeled()).notes == ()  # at twice the rate
    assert label(output) == "01:00:00:24"
    kinds = [stream.get("codec_tag_string") for stream in ffprobe(output)["streams"]]
    assert ("tmcd" in kinds) == (suffix != ".mkv")
    window = Window(start=Fraction(18, 1) / FILM)
    late = filled("h264", id="late", start=window.start)
    join(late, output, source=labeled(), window=window, overwrite=True)
    assert label(output) == "01:00:01:12"


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [("prores", ".mov"), ("av1", ".mp4"), ("vp9", ".mp4"), ("ffv1", ".mkv")],
)
def test_every_codec_keeps_the_timecode(tmp_path, filled, labeled, codec, suffix):
    if carried.PYAV < carried.GIVES_RATES and suffix != ".mkv":
        pytest.skip("this PyAV cannot")
    output = tmp_path / f"out{suffix}"
    assert join(filled(codec), output, source=labeled()).notes == ()
    assert label(output) == "01:00:00:24"


def test_a_timecode_beside_pictures_whose_rate_is_only_guessed_is_kept(tmp_path, filled, stream):
    source, output = tmp_path / "source.mxf", tmp_path / "out.mkv"
    with av.open(str(source), "w") as out:
        video = out.add_stream("jpeg2000", rate=24)
        video.width, video.height, video.pix_fmt = 64, 48, "rgb24"
        out.metadata["timecode"] = "01:00:00:12"
        for number in range(3):
            picture = av.VideoFrame(64, 48, "rgb24")
            picture.pts = number
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
    with av.open(str(source)) as container:
        assert not container.streams.video[0].average_rate
    assert join(filled("ffv1", stream=stream(rate=Fraction(48))), output, source=source).notes == ()
    assert label(output) == "01:00:00:24"


def test_a_timecode_that_an_old_pyav_cannot_write_is_told(tmp_path, filled, labeled, monkeypatch):
    monkeypatch.setattr(carried, "GIVES_RATES", (99, 0))
    notes = join(filled("h264"), tmp_path / "out.mov", source=labeled()).notes
    assert notes == ("The timecode 01:00:00:12 needs PyAV 18.1 in .mov files: it is left out.",)
    assert label(tmp_path / "out.mov") is None


def test_a_timecode_that_fits_no_frame_is_told(tmp_path, filled, labeled, stream):
    session = filled("h264", stream=stream(rate=Fraction(60)))
    notes = join(session, tmp_path / "out.mov", source=labeled()).notes
    assert notes == ("The timecode 01:00:00:12 matches no frame of this output: it is left out.",)
    assert label(tmp_path / "out.mov") is None


def test_cover_art_that_is_left_out_is_told(tmp_path, filled, labeled):
    notes = join(filled("h264"), tmp_path / "out.mkv", source=labeled("a.mp4", cover=True)).notes
    assert notes == ("cover art (stream 2, mjpeg) is not carried over: it is left out.",)
