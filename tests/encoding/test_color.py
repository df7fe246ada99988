"""Color conversion against the closed form, and round trips."""

import threading
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from comfyui_tlbvfi.encoding import color
from comfyui_tlbvfi.encoding.color import convert, from_rgb, resolve, skim, stream_tags, to_rgb
from comfyui_tlbvfi.encoding.errors import SourceError
from comfyui_tlbvfi.encoding.frame import ColorTags
from comfyui_tlbvfi.encoding.layout import UNPACKED, channel_views, pixel_layout
from comfyui_tlbvfi.encoding.probe import VideoInfo
from hypothesis import given, settings
from hypothesis import strategies as st

KR_KB = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}
LIMITED_709 = ColorTags(matrix=1, range=1)

YUV = [
    "yuv420p", "yuv422p", "yuv444p", "yuv440p", "yuv411p", "yuvj420p", "nv12", "nv21", "nv16",
    "p010le", "yuyv422", "uyvy422", "yuv420p10le", "yuv420p12le", "yuv420p16le", "yuv422p10le",
    "yuv422p12le", "yuv444p10le", "yuv444p12le", "yuv444p16le", "yuv444p16be", "yuva420p",
    "yuva444p10le", "yuva444p12le",
]  # fmt: skip
RGB = [
    "rgb24", "bgr24", "rgba", "bgra", "argb", "bgr0", "0rgb", "rgb48le", "rgb48be", "rgba64le",
    "rgba64be", "gbrp", "gbrp10le", "gbrp12le", "gbrp16le", "gbrap", "gbrap10le", "gbrap12le",
    "gbrap16le", "gbrpf32le", "gbrapf32le", "gbrpf16le", "rgbf32le", "gray", "gray10le", "gray12le",
    "gray16le", "gray16be", "ya8", "ya16be", "grayf32le",
]  # fmt: skip


def random_picture(pix_fmt, width=62, height=34, seed=0):
    """Random samples from all codes of the format, including those outside the RGB cube."""
    rng = np.random.default_rng(seed)
    layout = pixel_layout(pix_fmt)
    picture = av.VideoFrame(width, height, pix_fmt)
    for view in channel_views(picture):
        if layout.is_float:
            view[...] = rng.normal(0.5, 2, view.shape)
        else:
            view[...] = rng.integers(0, 1 << layout.bits, view.shape) << layout.shift
    return picture


def same_samples(one, other):
    return all(
        np.array_equal(a, b) for a, b in zip(channel_views(one), channel_views(other), strict=True)
    )


def patch(codes, pix_fmt, size=(32, 16)):
    picture = av.VideoFrame(*size, pix_fmt)
    for view, code in zip(channel_views(picture), codes, strict=True):
        view[...] = code << pixel_layout(pix_fmt).shift
    return picture


def codes_of(values, bits, tags):
    """Closed form: R'G'B' in [0, 1] to unrounded Y'CbCr codes (H.273, 8.3), in float64."""
    kr, kb = KR_KB[tags.matrix]
    red, green, blue = values
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    cb, cr = (blue - luma) / (2 - 2 * kb), (red - luma) / (2 - 2 * kr)
    unit = 2.0 ** (bits - 8)
    if tags.range == 1:
        return [(16 + 219 * luma) * unit, (128 + 224 * cb) * unit, (128 + 224 * cr) * unit]
    return [luma * (2**bits - 1), *(c * (2**bits - 1) + 2 ** (bits - 1) for c in (cb, cr))]


def rgb_of(codes, bits, tags):
    """Closed form: Y'CbCr codes to R'G'B', in float64."""
    kr, kb = KR_KB[tags.matrix]
    unit = 2.0 ** (bits - 8)
    if tags.range == 1:
        luma = (codes[0] / unit - 16) / 219
        cb, cr = ((code / unit - 128) / 224 for code in codes[1:])
    else:
        luma = codes[0] / (2**bits - 1)
        cb, cr = ((code - 2 ** (bits - 1)) / (2**bits - 1) for code in codes[1:])
    red, blue = luma + (2 - 2 * kr) * cr, luma + (2 - 2 * kb) * cb
    return np.array([red, (luma - kr * red - kb * blue) / (1 - kr - kb), blue])


@pytest.mark.parametrize("matrix", KR_KB)
@pytest.mark.parametrize("range_", [1, 2])
@pytest.mark.parametrize(
    ("pix_fmt", "bits"),
    [("yuv420p", 8), ("yuv420p10le", 10), ("p010le", 10), ("yuv422p12le", 12), ("yuv444p16le", 16)],
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_flat_patches_meet_the_closed_form_within_a_thousandth_of_a_code(
    pix_fmt, bits, matrix, range_, seed
):
    tags = ColorTags(matrix=matrix, range=range_)
    codes = [int(code) for code in np.random.default_rng(seed).integers(0, 2**bits, 3)]
    rgb = to_rgb(patch(codes, pix_fmt), tags)
    expected = rgb_of(codes, bits, tags)
    assert np.abs(rgb - expected[:, None, None]).max() * 255 < 1e-3


@pytest.mark.parametrize("matrix", KR_KB)
@pytest.mark.parametrize("range_", [1, 2])
@pytest.mark.parametrize(
    ("pix_fmt", "bits"), [("yuv420p", 8), ("nv12", 8), ("yuv420p10le", 10), ("yuv444p16le", 16)]
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_codes_are_the_nearest_integers(pix_fmt, bits, matrix, range_, seed):
    tags = ColorTags(matrix=matrix, range=range_)
    values = np.random.default_rng(seed).random(3).astype(np.float32)
    picture = from_rgb(np.broadcast_to(values[:, None, None], (3, 16, 32)), pix_fmt, tags)
    for view, exact in zip(channel_views(picture), codes_of(values, bits, tags), strict=True):
        assert np.ptp(view) == 0
        assert abs(float(view[0, 0]) - np.clip(exact, 0, 2**bits - 1)) < 0.5 + 0.002 * 2 ** (
            bits - 8
        )


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuv444p12le"])
def test_a_ramp_meets_the_closed_form_in_every_pixel(pix_fmt):
    layout = pixel_layout(pix_fmt)
    picture = av.VideoFrame(128, 64, pix_fmt)
    unit = 1 << (layout.bits - 8)
    for number, view in enumerate(channel_views(picture)):
        # Chroma rises from row to row and luma from column to column; with left siting, chroma
        # row j lies at luma row 2j + 0.5, so chroma is linear there.
        rows, columns = np.mgrid[0 : view.shape[0], 0 : view.shape[1]]
        step = 2 << layout.log2_y >> 1 if number else 1
        view[...] = (
            (60 + (columns if not number else 0)) * unit
            if not number
            else (100 * unit + rows * step * unit)
        )
    rgb = to_rgb(picture, LIMITED_709)
    rows, columns = np.mgrid[0:64, 0:128]
    shift = (2**layout.log2_y - 1) / 2
    chroma = (100 + rows - shift) * unit
    expected = rgb_of([(60 + columns) * unit, chroma, chroma], layout.bits, LIMITED_709)
    inner = np.s_[:, 2:-2, 2:-2]
    assert np.abs(rgb[inner] - expected[inner]).max() * 255 < 1e-3


@pytest.mark.parametrize("pix_fmt", YUV + RGB)
@pytest.mark.parametrize("tags", [LIMITED_709, ColorTags(matrix=6, range=2)])
def test_every_format_returns_from_rgb_as_it_went(pix_fmt, tags):
    picture = random_picture(pix_fmt)
    rgb = to_rgb(picture, tags)
    assert rgb.dtype == np.float32
    assert rgb.flags.c_contiguous
    assert rgb.shape == (4 if pixel_layout(pix_fmt).has_alpha else 3, 34, 62)
    assert same_samples(picture, from_rgb(rgb, pix_fmt, tags))


@pytest.mark.parametrize("pix_fmt", ["rgb8", "bgr8", "rgb555le", "rgb565le"])
def test_colors_that_share_a_byte_or_two_are_unpacked(pix_fmt):
    picture = av.VideoFrame(6, 4, pix_fmt)
    for value, byte in ((0, 0), (1, 255)):
        picture.planes[0].update(bytes([byte]) * picture.planes[0].buffer_size)
        rgb = to_rgb(picture, LIMITED_709)
        assert rgb.shape == (3, 4, 6)
        assert np.abs(rgb - value).max() * 255 <= 3  # FFmpeg's white of three bits is 252


def test_no_format_is_read_whose_channels_differ_in_depth():
    for name in av.video.format.names:
        try:
            pixel_layout(name)
        except SourceError:
            continue
        fmt = av.VideoFormat(UNPACKED.get(name, name))
        assert len({component.bits for component in fmt.components}) == 1, name


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 150).map(lambda n: 2 * n))
def test_chroma_of_420_survives_rgb_at_any_width(width, height):
    picture = random_picture("yuv420p", width, height, seed=width * height)
    assert same_samples(picture, from_rgb(to_rgb(picture, LIMITED_709), "yuv420p", LIMITED_709))


def test_an_odd_height_costs_at_most_the_last_chroma_row():
    picture = random_picture("yuv420p", 40, 33)
    back = from_rgb(to_rgb(picture, LIMITED_709), "yuv420p", LIMITED_709)
    for one, other in zip(channel_views(picture), channel_views(back), strict=True):
        assert np.array_equal(one[:-4], other[:-4])
    assert np.array_equal(channel_views(picture)[0], channel_views(back)[0])


def test_results_do_not_depend_on_the_bands_they_were_made_in(monkeypatch):
    picture = random_picture("yuv420p", 64, 200)
    whole = to_rgb(picture, LIMITED_709)
    monkeypatch.setitem(to_rgb.__globals__, "BAND_SAMPLES", 64 * 16)
    banded = to_rgb(picture, LIMITED_709)
    assert np.abs(whole - banded).max() < 1e-6
    assert same_samples(picture, from_rgb(banded, "yuv420p", LIMITED_709))


@pytest.mark.parametrize("width", [62, 64, 65, 96, 97])
def test_the_same_picture_gives_the_same_bits_every_time(width):
    picture = random_picture("yuv420p10le", width, 40)
    first = to_rgb(picture, LIMITED_709)
    codes = from_rgb(first, "yuv420p", LIMITED_709)
    for _ in range(5):
        assert np.array_equal(to_rgb(picture, LIMITED_709), first)
        assert same_samples(from_rgb(first, "yuv420p", LIMITED_709), codes)


def test_integer_rgb_is_scaled_exactly_and_floats_are_not_touched():
    picture = random_picture("rgb48be")
    codes = np.stack(channel_views(picture)).astype(np.float32)
    assert np.array_equal(to_rgb(picture, LIMITED_709), codes / np.float32(65535))
    floats = random_picture("gbrapf32le")
    values = np.stack(channel_views(floats))
    assert values.min() < 0 < 1 < values.max()
    assert np.array_equal(to_rgb(floats, LIMITED_709), values)


def test_integers_are_rounded_and_clipped():
    rgb = np.empty((3, 2, 2), np.float32)
    rgb[0], rgb[1], rgb[2] = -0.3, 1.7, 100.6 / 255
    picture = from_rgb(rgb, "rgb24", LIMITED_709)
    assert [int(view[0, 0]) for view in channel_views(picture)] == [0, 255, 101]


def test_gray_stays_gray_to_the_last_bit():
    gray = np.random.default_rng(0).random((1, 32, 48), dtype=np.float32).repeat(3, axis=0)
    _, cb, cr = channel_views(from_rgb(gray, "yuv444p16le", LIMITED_709))
    assert np.all(cb == 32768)
    assert np.all(cr == 32768)


def test_alpha_is_dropped_or_made_opaque_as_the_format_asks():
    rgba = np.random.default_rng(0).random((4, 16, 16), dtype=np.float32)
    assert to_rgb(from_rgb(rgba, "gbrp", LIMITED_709), LIMITED_709).shape[0] == 3
    opaque = to_rgb(from_rgb(rgba[:3], "yuva444p10le", LIMITED_709), LIMITED_709)
    assert np.all(opaque[3] == 1)


def test_new_pictures_are_tagged():
    yuv = from_rgb(np.zeros((3, 16, 16), np.float32), "yuv420p", ColorTags(matrix=9, range=2))
    assert (yuv.colorspace, yuv.color_range) == (9, 2)
    assert stream_tags(LIMITED_709, "gbrp16le") == replace(LIMITED_709, matrix=0, range=2)
    assert stream_tags(LIMITED_709, "yuv420p10le") == LIMITED_709


def test_convert_hands_back_a_picture_that_needs_no_change():
    picture = random_picture("yuv420p")
    assert convert(picture, "yuv420p", LIMITED_709) is picture


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("yuv420p", "yuv420p10le"), ("yuv420p", "nv12"), ("yuv420p10le", "p010le"),
        ("yuvj420p", "yuv420p"), ("yuv422p10le", "yuv422p12le"), ("yuv444p", "yuva444p10le"),
        ("yuv420p", "yuv422p12le"), ("yuv420p10le", "yuv444p16le"), ("yuv420p", "yuv444p12le"),
        ("rgb24", "gbrp"), ("rgba", "bgra"), ("bgr0", "rgb24"), ("rgb24", "gbrp16le"),
        ("rgb48be", "gbrp16le"), ("rgba64le", "gbrap16le"), ("gbrpf16le", "gbrpf32le"),
        ("gray", "yuv420p"), ("gray16be", "gray16le"), ("rgb24", "bgra"),
    ],
)  # fmt: skip
def test_a_format_that_holds_more_gives_every_sample_back(narrow, wide):
    picture = random_picture(narrow)
    picture.pts, picture.time_base = 7, Fraction(1, 24)
    wider = convert(picture, wide, LIMITED_709)
    assert (wider.format.name, wider.pts, wider.time_base) == (wide, 7, Fraction(1, 24))
    assert same_samples(picture, convert(wider, narrow, LIMITED_709))


def test_fewer_bits_are_rounded_not_truncated():
    picture = patch([4 * 100 + 2, 4 * 128 + 3, 4 * 90 + 1], "yuv420p10le")
    assert [int(v[0, 0]) for v in channel_views(convert(picture, "yuv420p", LIMITED_709))] == [
        101, 129, 90,
    ]  # fmt: skip


def info(**facts):
    values = {
        "name": "x", "container": "matroska", "codec": "h264", "width": 1280, "height": 720,
        "pix_fmt": "yuv420p", "bit_depth": 8, "has_alpha": False, "color": ColorTags(),
        "sample_aspect_ratio": None, "rotation": 0, "time_base": Fraction(1, 24),
        "rate": Fraction(24), "is_vfr": False, "start": Fraction(0), "duration": None,
        "frame_count": None, "is_interlaced": False,
    }  # fmt: skip
    return VideoInfo(**(values | facts))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"height": 720}, ColorTags(matrix=1, range=1)),
        ({"height": 719}, ColorTags(matrix=6, range=1)),
        ({"height": 480, "pix_fmt": "yuvj420p"}, ColorTags(matrix=6, range=2)),
        ({"color": ColorTags(matrix=9, range=2)}, ColorTags(matrix=9, range=2)),
        ({"color": ColorTags(primaries=9)}, ColorTags(primaries=9, matrix=9, range=1)),
        ({"color": ColorTags(matrix=0)}, ColorTags(matrix=1, range=1)),
        ({"pix_fmt": "gray16be"}, ColorTags(matrix=1, range=2)),
        ({"pix_fmt": "rgb24", "height": 48}, ColorTags(primaries=1, transfer=1, matrix=1, range=1)),
        (
            {"pix_fmt": "gbrpf32le", "color": ColorTags(primaries=9, transfer=8)},
            ColorTags(primaries=9, transfer=8, matrix=9, range=1),
        ),
    ],
)
def test_untagged_colors_follow_the_usual_rule(facts, expected):
    assert resolve(info(**facts)) == expected


def test_what_cannot_be_converted_is_named():
    with pytest.raises(SourceError, match="matrix 8"):
        to_rgb(random_picture("yuv420p"), ColorTags(matrix=8, range=1))
    with pytest.raises(SourceError, match="bayer_rggb8"):
        pixel_layout("bayer_rggb8")
    with pytest.raises(SourceError, match="'yuv42p'"):
        pixel_layout("yuv42p")


@pytest.mark.parametrize("step", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("pix_fmt", "full"),
    [
        ("yuv420p", "yuv444p"),
        ("nv12", "yuv444p"),
        ("yuv422p10le", "yuv444p10le"),
        ("yuv410p", "yuv444p"),
        ("yuva420p", "yuva444p"),
    ],
)
def test_skimming_takes_every_nth_pixel_with_the_chroma_sample_that_covers_it(pix_fmt, full, step):
    picture, layout = random_picture(pix_fmt, 22, 18), pixel_layout(pix_fmt)
    spread = av.VideoFrame(picture.width, picture.height, full)
    rows, columns = np.arange(picture.height), np.arange(picture.width)
    for channel, view in enumerate(channel_views(picture)):
        is_coarse = channel in (1, 2)
        y, x = (rows >> layout.log2_y, columns >> layout.log2_x) if is_coarse else (rows, columns)
        channel_views(spread)[channel][...] = view[np.ix_(y, x)]
    expected = to_rgb(spread, LIMITED_709)[:, ::step, ::step]
    assert np.array_equal(skim(picture, LIMITED_709, step), expected)


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "rgb48le", "gray"])
def test_large_pictures_are_converted_in_several_threads_to_the_same_samples(pix_fmt, monkeypatch):
    picture = random_picture(pix_fmt, 65, 131)
    rgb = to_rgb(picture, LIMITED_709)
    back = from_rgb(rgb, pix_fmt, LIMITED_709)
    monkeypatch.setattr(color, "BAND_SAMPLES", 16 * 65)
    monkeypatch.setattr(color, "THREAD_SAMPLES", 65 * 131 // 3)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    used = set()

    def noting(*arguments):
        used.add(threading.current_thread().name)
        return encode(*arguments)

    encode = color._encode
    monkeypatch.setattr(color, "_encode", noting)
    assert np.array_equal(to_rgb(picture, LIMITED_709), rgb)
    assert same_samples(from_rgb(rgb, pix_fmt, LIMITED_709), back)
    assert used
    assert all("tlbvfi-color" in name for name in used)


def test_what_fails_in_a_thread_is_raised(monkeypatch):
    monkeypatch.setattr(color, "THREAD_SAMPLES", 100)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    with pytest.raises(ValueError, match="broadcast"):
        color._encode_full(np.zeros((40, 10), np.float32), pixel_layout("gray"), np.zeros((40, 9)))
