"""Alpha is interpolated with the picture, and high dynamic range never goes through 8 bits."""

import json
import shutil
import subprocess
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from comfyui_tlbvfi import interpolate_video
from comfyui_tlbvfi.encoding.layout import channel_views
from comfyui_tlbvfi.encoding.profiles import EncoderSettings

PQ, HLG = (9, 16, 9, 1), (9, 18, 9, 1)
MASTER = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
FFV1 = EncoderSettings(codec="ffv1")


@pytest.fixture
def film(tmp_path):
    """Factory for clips of slow ramps in any format, each channel and alpha at its own phase."""

    def make(name, pix_fmt, *, codec="ffv1", options=None, tags=PQ, frames=4, size=(96, 64)):
        path = tmp_path / name
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=Fraction(24000, 1001))
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            stream.options = options or {}
            context = stream.codec_context
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = (
                tags
            )
            for number in range(frames):
                picture = av.VideoFrame(*size, pix_fmt)
                for channel, view in enumerate(channel_views(picture)):
                    depth = picture.format.components[channel].bits
                    low, high = 2**depth // 8, 2**depth * 3 // 4
                    ramp = np.linspace(low, high, view.size).reshape(view.shape)
                    view[...] = np.rint(ramp + (number + channel) * 2**depth / 64)
                picture.pts = number
                picture.colorspace, picture.color_range = tags[2], tags[3]
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
        return path

    return make


@pytest.fixture
def hdr10(film):
    params = f"master-display={MASTER}:max-cll=1000,400:hdr10=1:repeat-headers=1:log-level=error"
    options = {"x265-params": params, "preset": "ultrafast", "crf": "4"}
    return film("in.mkv", "yuv420p10le", codec="libx265", options=options)


def probed(path):
    """ffprobe's report on the first frame: stream and frame facts in one dictionary."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", "-show_frames"]
    command += ["-select_streams", "v", "-read_intervals", "%+#1", str(path)]
    found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    frame = found["frames"][0]
    sides = {each["side_data_type"]: each for each in frame.get("side_data_list", [])}
    return {**frame, **found["streams"][0], "sides": sides}


def channels(path):
    """[channel][frame, h, w] codes of a video."""
    with av.open(str(path)) as container:
        frames = [[v.astype(int) for v in channel_views(f)] for f in container.decode(video=0)]
    return [np.stack(each) for each in zip(*frames, strict=True)]


def two_frames(path):
    """A frame of transparent black, then one of opaque gray (192), whose codec says nothing of alpha."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "bgra"
        for color, alpha in ((0, 0), (192, 255)):
            picture = av.VideoFrame(64, 64, "bgra")
            for channel, view in enumerate(channel_views(picture)):
                view[...] = alpha if channel == 3 else color
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("out.mp4", "hevc", "yuv420p10le"),
        ("out.mkv", "av1", "yuv420p10le"),
        ("out.mov", "prores", "yuv422p10le"),
        ("out.mp4", "h264", "yuv420p10le"),
        ("out.mkv", "ffv1", "yuv420p10le"),
    ],
)
@pytest.mark.parametrize("mezzanine", [None, FFV1])
def test_hdr_keeps_its_tags_and_its_ten_bits(run, hdr10, name, codec, pix_fmt, mezzanine):
    result = run(hdr10, name, codec=codec, mezzanine=mezzanine)
    found = probed(result.output)
    tags = ("color_primaries", "color_transfer", "color_space", "color_range")
    assert found["pix_fmt"] == pix_fmt
    assert [found[tag] for tag in tags] == ["bt2020", "smpte2084", "bt2020nc", "tv"]
    luma = channels(result.output)[0]
    assert luma.shape[0] == 7
    assert len(np.unique(luma[1] % 4)) == 4  # codes that 8 bits do not have
    if codec in ("hevc", "av1"):
        display = found["sides"]["Mastering display metadata"]
        assert float(Fraction(display["red_x"])) == pytest.approx(0.68, abs=1e-4)
        assert float(Fraction(display["max_luminance"])) == pytest.approx(1000, rel=1e-3)
        assert float(Fraction(display["min_luminance"])) == pytest.approx(0.005, rel=0.02)
        light = found["sides"]["Content light level metadata"]
        assert (light["max_content"], light["max_average"]) == (1000, 400)


def test_hlg_and_twelve_bits_go_through_lossless(run, film):
    source = film("in.mkv", "yuv422p12le", tags=HLG)
    result = run(source, "out.mkv", codec="ffv1")
    found = probed(result.output)
    assert (found["pix_fmt"], found["color_transfer"]) == ("yuv422p12le", "arib-std-b67")
    given, made = channels(source), channels(result.output)
    for before, after in zip(given, made, strict=True):
        assert np.array_equal(after[::2], before)
        middle = (before[:-1] + before[1:]) / 2
        assert np.abs(after[1::2] - middle).max() <= 1


@pytest.mark.parametrize(
    ("name", "codec", "mezzanine", "told"),
    [
        ("out.mov", "prores", None, ["prores"]),
        ("out.mp4", "h264", FFV1, ["h264"]),
        ("out.mp4", "hevc", FFV1, []),
        ("f_%d.png", "png", None, [".png"]),
    ],
)
def test_mastering_metadata_that_the_output_cannot_store_is_told_once(
    run, hdr10, caplog, name, codec, mezzanine, told
):
    run(hdr10, name, codec=codec, mezzanine=mezzanine)
    lost = [text for text in caplog.messages if "mastering" in text]
    assert lost == [f"{each} drops the HDR10 mastering metadata." for each in told]


def test_mastering_metadata_that_a_file_in_memory_cannot_store_is_told(hdr10, caplog):
    source = BytesIO(hdr10.read_bytes())
    interpolate_video(source, BytesIO(), method="blend", codec="prores", container="mov")
    assert "prores drops the HDR10 mastering metadata." in caplog.messages


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("ffv1", "yuva444p10le"), ("ffv1", "bgra"), ("ffv1", "gbrap16le")]
)
def test_alpha_goes_through_a_lossless_job_bit_for_bit(run, film, codec, pix_fmt):
    tags = (1, 1, 1, 1) if pix_fmt.startswith("yuv") else (1, 1, 0, 2)
    source = film("in.mkv", pix_fmt, tags=tags)
    made = channels(run(source, "out.mkv", codec=codec).output)
    given = channels(source)
    assert len(given) == len(made) == 4
    for before, after in zip(given, made, strict=True):
        assert np.array_equal(after[::2], before)
    alpha = given[3]
    assert np.abs(made[3][1::2] - (alpha[:-1] + alpha[1:]) / 2).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("mezzanine", [None, FFV1])
def test_prores_4444_keeps_alpha(run, film, mezzanine):
    options = {"profile": "4444", "alpha_bits": "16"}
    source = film("in.mov", "yuva444p10le", codec="prores_ks", options=options, tags=(1, 1, 1, 1))
    result = run(source, "out.mov", codec="prores", mezzanine=mezzanine)
    assert probed(result.output)["codec_tag_string"] == "ap4h"
    with av.open(str(result.output)) as container:
        kind = container.streams.video[0].codec_context.pix_fmt
    given, made = channels(source), channels(result.output)
    assert len(made) == 4
    unit = 2 ** (int(kind[8:10]) - 10)
    alpha = given[3]
    assert np.abs(made[3][::2] - alpha).max() <= unit
    assert np.abs(made[3][1::2] - (alpha[:-1] + alpha[1:]) / 2).max() <= 2 * unit
    assert np.ptp(alpha) > 300


def test_alpha_of_frames_reaches_prores_and_images(run, film, tmp_path):
    source = film("in.mkv", "bgra", tags=(1, 1, 0, 2))
    run(source, "out/%d.png", codec="auto")
    pictures = sorted((tmp_path / "out").iterdir(), key=lambda path: int(path.stem))
    given = channels(source)
    for number in range(4):
        made = channels(pictures[2 * number])
        assert all(np.array_equal(a[number], b[0]) for a, b in zip(given, made, strict=True))
    alpha = channels(run(source, "out.mov", codec="prores").output)[3]
    with av.open(str(tmp_path / "out.mov")) as container:
        depth = container.streams.video[0].format.components[3].bits
    assert np.abs(alpha[::2] / (2**depth - 1) - given[3] / 255).max() <= 1.5 / 1023


@pytest.mark.parametrize(
    ("alpha", "expected"), [(None, 96), ("straight", 192), ("premultiplied", 96)]
)
def test_colors_are_mixed_as_visible_where_alpha_is_straight(run, tmp_path, alpha, expected):
    """The first frame is black and transparent, the second is opaque: what counts is its color."""
    source = two_frames(tmp_path / "in.mkv")
    made = channels(run(source, "out.mkv", codec="ffv1", cuts="ignore", alpha=alpha).output)
    assert [int(channel[1, 0, 0]) for channel in made] == [expected] * 3 + [128]


def test_png_is_straight_and_exr_is_premultiplied_as_their_specifications_say(run, tmp_path):
    for suffix, expected in ((".png", 192), (".exr", 96)):
        source = two_frames(tmp_path / "in.mkv")
        run(source, f"{suffix[1:]}/%d{suffix}", codec="auto", cuts="ignore")
        frames = tmp_path / suffix[1:]
        (frames / f"3{suffix}").replace(frames / f"2{suffix}")
        name = f"{suffix[1:]}.mkv"
        made = channels(run(frames, name, codec="ffv1", cuts="ignore", input_rate=25).output)
        unit = 255 if suffix == ".png" else 65535
        assert [round(channel[1, 0, 0] / unit * 255) for channel in made] == [expected] * 3 + [128]


def test_alpha_that_a_codec_drops_is_told(run, film, caplog):
    source = film("in.mkv", "yuva420p", tags=(1, 1, 1, 1))
    run(source, "out.mp4", codec="h264")
    assert "h264 stores yuva420p as yuv420p and drops alpha." in caplog.messages
