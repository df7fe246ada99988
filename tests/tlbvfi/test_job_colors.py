"""Colors through a whole job: tags, and the error of RGB and back beyond that of 4:2:0 itself."""

import json
import shutil
import subprocess

import av
import cv2
import numpy as np
import pytest

BT709, BT601 = (1, 1, 1, 1), (6, 6, 6, 1)
UNTAGGED = (2, 2, 2, 0)
KR_KB = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114)}


def rgb_of(path, matrix, depth):
    """[N, H, W, 3] float64 RGB in 8-bit units by the closed form, chroma repeated."""
    kr, kb = KR_KB[matrix]
    scale = 2 ** (depth - 8)
    frames = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            y, u, v = (_plane(frame, i, depth) / scale for i in range(3))
            u, v = (np.kron(each, np.ones((2, 2))) for each in (u, v))
            y, pb, pr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
            red, blue = y + 2 * (1 - kr) * pr, y + 2 * (1 - kb) * pb
            green = (y - kr * red - kb * blue) / (1 - kr - kb)
            frames.append(255 * np.stack([red, green, blue], -1))
    return np.stack(frames)


def _plane(frame, index, depth):
    plane = frame.planes[index]
    kind = np.uint8 if depth == 8 else np.uint16
    rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
    return rows[:, : plane.width].astype(np.float64)


def still(path, tags, depth, lines):
    """A clip of one picture shown five times: its mid frames should be that picture."""
    width = lines * 4 // 3
    noise = np.random.default_rng(5).uniform(0, 1, (lines // 12, width // 12, 3))
    rgb = cv2.resize(noise, (width, lines), interpolation=cv2.INTER_CUBIC).clip(0.05, 0.95)
    kr, kb = KR_KB["bt709" if tags == BT709 or (tags == UNTAGGED and lines >= 720) else "smpte170m"]
    luma = rgb @ (kr, 1 - kr - kb, kb)
    chroma = [(rgb[..., 2] - luma) / (2 - 2 * kb), (rgb[..., 0] - luma) / (2 - 2 * kr)]
    scale, kind = 2 ** (depth - 8), np.uint8 if depth == 8 else np.uint16
    half = [cv2.resize(c, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for c in chroma]
    planes = [luma * 219 + 16, *(c * 224 + 128 for c in half)]
    pix_fmt = "yuv420p" if depth == 8 else "yuv420p10le"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, lines, pix_fmt
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = tags
        for number in range(5):
            picture = av.VideoFrame(width, lines, pix_fmt)
            for plane, values in zip(picture.planes, planes, strict=True):
                row = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
                row[:, : plane.width] = np.rint(values * scale)
                plane.update(row.tobytes())
            picture.pts = number
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("depth", [8, 10])
@pytest.mark.parametrize(
    ("tags", "lines", "matrix"),
    [
        (BT709, 96, "bt709"),
        (BT601, 96, "smpte170m"),
        (UNTAGGED, 96, "smpte170m"),
        (UNTAGGED, 720, "bt709"),
    ],
)
def test_rgb_and_back_shifts_no_color(run, pictures, tmp_path, tags, lines, matrix, depth):
    source = still(tmp_path / "in.mkv", tags, depth, lines)
    result = run(source, "out.mkv", codec="ffv1")
    assert pictures(result.output)[::2] == pictures(source)
    out = rgb_of(result.output, matrix, depth)
    originals, mids = out[::2][0], out[1::2][0]
    # Both have been through 4:2:0 once; the remaining error is that of RGB and rounding alone.
    assert np.abs(mids - originals).mean() <= 0.1
    assert np.abs((mids - originals).mean(axis=(0, 1))).max() <= 0.1


@pytest.mark.parametrize(
    ("tags", "lines", "expected"),
    [
        (BT709, 96, ("bt709", "bt709", "bt709", "tv")),
        (BT601, 96, ("smpte170m", "smpte170m", "smpte170m", "tv")),
        (UNTAGGED, 96, ("smpte170m", "unknown", "unknown", "tv")),
        (UNTAGGED, 720, ("bt709", "unknown", "unknown", "tv")),
    ],
)
@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
def test_tags_are_written_and_right_by_ffprobe(run, tmp_path, tags, lines, expected):
    source = still(tmp_path / "in.mkv", tags, 8, lines)
    result = run(source, "out.mp4", codec="h264", preset="ultrafast")
    fields = ("color_space", "color_transfer", "color_primaries", "color_range")
    command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", str(result.output)]
    stream = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["streams"][
        0
    ]
    assert tuple(stream.get(field, "unknown") for field in fields) == expected


def ramp(path):
    """A clip of every gray from black to white, in full range and tagged so."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 256, 128, "yuvj420p"
        stream.options = {"qp": "0"}
        context = stream.codec_context
        context.color_primaries, context.color_trc = 1, 1
        context.colorspace, context.color_range = 1, 2
        for number in range(3):
            picture = av.VideoFrame(256, 128, "yuvj420p")
            for plane in picture.planes:
                row = np.full(plane.line_size, 128, np.uint8)
                if plane.width == 256:
                    row[:256] = np.arange(256)
                plane.update(np.tile(row, plane.height).tobytes())
            picture.pts = number
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path


def grays(path):
    """[256] the ramp as a reader interprets the file, in [0, 1]."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        frames = list(container.decode(video=0))
        picture = frames[len(frames) // 2]
        bits = picture.format.components[0].bits
        scale = 2 ** (bits - 8)
        values = _plane(picture, 0, bits)[16] / scale
        is_full = context.color_range == 2
        return values * scale / (2**bits - 1) if is_full else (values - 16) / 219


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out.mov", {"codec": "prores"}),
        ("out.mkv", {"codec": "prores"}),
        ("out.mov", {"codec": "prores_4444"}),
        ("out.mov", {"codec": "dnxhr"}),
        ("out.avi", {"codec": "utvideo"}),
        ("out.nut", {"codec": "ffv1"}),
        ("out.mp4", {"codec": "h264", "crf": 1}),
        ("final.mov", {"codec": "prores", "mezzanine": "ffv1"}),
        ("final.mp4", {"codec": "h264", "crf": 1, "mezzanine": "prores"}),
    ],
)
def test_blacks_and_whites_of_full_range_survive_where_files_cannot_say_it(
    run, tmp_path, name, options
):
    from comfyui_tlbvfi.encoding.profiles import EncoderSettings

    if "mezzanine" in options:
        options = {**options, "mezzanine": EncoderSettings(codec=options["mezzanine"])}
    result = run(ramp(tmp_path / "in.mp4"), name, **options)
    assert np.abs(grays(result.output) - np.arange(256) / 255).max() < 1.2 / 255
