"""Pictures to RGB arrays and back, with the source's own matrix and range.

Computed from the closed form of ITU-T H.273 (8.2, 8.3) in float32, because swscale's planar float
output is up to one 8-bit code off (measured, libswscale 9.5: mean 0.5, a shift of the whole
picture). Sums are per sample, so that a result depends only on its own neighborhood.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from .chroma import downsample, upsample
from .errors import SourceError
from .frame import ColorTags
from .layout import PixelLayout, Samples, channel_views, copied, pixel_layout, unpacked
from .probe import VideoInfo

FloatPlane = NDArray[np.float32]

UNSPECIFIED = 2
BT709, BT601, BT2020 = 1, 6, 9
LIMITED, FULL = 1, 2

# H.273 table 4: Kr and Kb of each matrix that is a linear map of gamma-encoded R'G'B'.
LUMA_WEIGHTS = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}

BAND_SAMPLES = 128 * 1024
"""Work is done in bands of rows of about this size, which stay in a core's cache (3x faster)."""
THREAD_SAMPLES = 4_000_000
"""Samples of a channel that are worth a thread, as long as that is at most a quarter of the cores. Of
3840x2160, one core of a server converts 12 frames per second, no more than a fast GPU makes."""


def resolve(info: VideoInfo) -> ColorTags:
    """What the colors of a source mean: its tags, with the unspecified ones filled in.

    - Matrix: as tagged. Unspecified: BT.2020 if the primaries say so, else BT.709 from 720 lines
      up and BT.601 (smpte170m) below.
    - Range: as tagged. Unspecified: full for gray and `yuvj` formats, limited for other YUV.
    - Primaries and transfer: as tagged; unspecified ones stay unspecified.
    - RGB sources: the tags of YUV made from them, BT.709 limited (BT.2020 if the primaries say
      so), with BT.709 primaries and transfer if the source has none. RGB samples themselves are
      always full range.
    """
    tags = info.color
    if pixel_layout(info.pix_fmt).family == "rgb":
        return yuv_of_rgb(
            replace(
                tags,
                primaries=BT709 if tags.primaries == UNSPECIFIED else tags.primaries,
                transfer=BT709 if tags.transfer == UNSPECIFIED else tags.transfer,
            )
        )
    return replace(tags, matrix=_matrix(info), range=_range(info))


def stream_tags(tags: ColorTags, pix_fmt: str) -> ColorTags:
    """The tags to write for frames of `pix_fmt`: RGB formats have the identity matrix, full range."""
    if pixel_layout(pix_fmt).family == "rgb":
        return replace(tags, matrix=0, range=FULL)
    return tags


def yuv_of_rgb(tags: ColorTags) -> ColorTags:
    """Tags of YUV made from RGB: limited range, BT.2020 if the primaries say so, else BT.709."""
    matrix = BT2020 if tags.primaries == BT2020 else BT709
    return replace(tags, matrix=matrix, range=LIMITED)


def _matrix(info: VideoInfo) -> int:
    # 0 is RGB and 3 is reserved: on a YUV stream both are tagging mistakes.
    if info.color.matrix not in (0, UNSPECIFIED, 3):
        return info.color.matrix
    if info.color.primaries == BT2020:
        return BT2020
    return BT709 if info.height >= 720 else BT601


def _range(info: VideoInfo) -> int:
    if info.color.range in (LIMITED, FULL):
        return info.color.range
    is_full = info.pix_fmt.startswith("yuvj") or pixel_layout(info.pix_fmt).family == "gray"
    return FULL if is_full else LIMITED


def to_rgb(picture: av.VideoFrame, tags: ColorTags) -> FloatPlane:
    """[3, H, W] float32 RGB, or [4, H, W] with straight alpha, C-contiguous, nominally in [0, 1].

    Nothing is clipped: YUV outside the RGB cube and float samples keep their values, so that
    `from_rgb` can restore them. Integer RGB becomes value / (2**bits - 1), float RGB is copied.

    Raises:
        SourceError: the pixel format or the matrix is one that cannot be converted.
    """
    picture = unpacked(picture)
    layout = pixel_layout(picture.format.name)
    return _rgb(channel_views(picture), layout, tags, (picture.height, picture.width))


def skim(picture: av.VideoFrame, tags: ColorTags, step: int) -> FloatPlane:
    """Every `step`-th pixel of every `step`-th row as `to_rgb` gives it, [3 or 4, h, w].

    For viewing, not for output: chroma is the nearest sample's. Costs a fraction of `to_rgb`.
    """
    picture = unpacked(picture)
    layout = pixel_layout(picture.format.name)
    rows, columns = np.arange(0, picture.height, step), np.arange(0, picture.width, step)
    samples = []
    for channel, view in enumerate(channel_views(picture)):
        log2_x, log2_y = (layout.log2_x, layout.log2_y) if layout.is_chroma(channel) else (0, 0)
        if step % (1 << max(log2_x, log2_y)) == 0:
            samples.append(view[:: step >> log2_y, :: step >> log2_x])
        else:  # eight times faster than indexing by rows and columns at once
            samples.append(view.take(rows >> log2_y, 0).take(columns >> log2_x, 1))
    full = replace(layout, log2_x=0, log2_y=0)
    return _rgb(samples, full, tags, (len(rows), len(columns)))


def _rgb(
    samples: list[Samples], layout: PixelLayout, tags: ColorTags, size: tuple[int, int]
) -> FloatPlane:
    rgb = np.empty((4 if layout.has_alpha else 3, *size), np.float32)
    if layout.family == "yuv":
        _yuv_to_rgb(samples, layout, tags, rgb)
    elif layout.family == "rgb":
        for channel, plane in zip(samples, rgb, strict=True):
            _decode_full(channel, layout, plane)
    else:
        _decode(samples[0], layout, tags, 0, rgb[0])
        rgb[1:3] = rgb[0]
    if layout.has_alpha:
        _decode_full(samples[-1], layout, rgb[3])
    return rgb


def from_rgb(rgb: FloatPlane, pix_fmt: str, tags: ColorTags) -> av.VideoFrame:
    """Picture of `pix_fmt` from [3, H, W] RGB or [4, H, W] RGBA float32, tagged.

    Integer samples are rounded to the nearest and clipped to what the format holds; float samples
    are written as they are. Alpha that the format cannot hold is dropped; missing alpha is opaque.

    Raises:
        SourceError: the pixel format or the matrix is one that cannot be converted.
    """
    layout = pixel_layout(pix_fmt)
    _, height, width = rgb.shape
    picture = _blank(width, height, pix_fmt, tags)
    samples = channel_views(picture)
    if layout.family == "rgb":
        for plane, channel in zip(rgb[:3], samples, strict=False):
            _encode_full(plane, layout, channel)
    else:
        _rgb_to_yuv(rgb, layout, tags, samples)
    if layout.has_alpha:
        _fill_alpha(rgb[3] if len(rgb) == 4 else None, layout, samples[-1])
    return picture


def convert(
    picture: av.VideoFrame, pix_fmt: str, tags: ColorTags, written: ColorTags | None = None
) -> av.VideoFrame:
    """The picture in another pixel format; the same object if it already has that format.

    `tags` are those of the picture; `written` those of the result, if they differ in range.
    YUV stays YUV, with its matrix, and is rounded once; other depths of the same
    subsampling keep each value exactly where the new depth can hold it. RGB layouts of equal
    depth are repacked exactly. Integer samples of a lower depth are rounded, never truncated.
    """
    source, target = pixel_layout(picture.format.name), pixel_layout(pix_fmt)
    has_rgb = "rgb" in (source.family, target.family)
    written = written or tags
    if picture.format.name == pix_fmt and (has_rgb or written.range == tags.range):
        return picture
    if has_rgb:
        converted = from_rgb(to_rgb(picture, tags), pix_fmt, written)
    else:
        converted = _blank(picture.width, picture.height, pix_fmt, written)
        _yuv_to_yuv(unpacked(picture), source, tags, converted, target, written)
    converted.pts = picture.pts
    if picture.time_base is not None:
        converted.time_base = picture.time_base
    return converted


def rounded_to_half(picture: av.VideoFrame) -> av.VideoFrame:
    """A copy of a float picture, rounded to values a half can hold; beyond 65504 to infinity.

    FFmpeg's EXR encoder truncates what a half cannot hold, which darkens.
    """
    rounded = copied(picture)
    with np.errstate(over="ignore"):
        for plane in channel_views(rounded):
            plane[...] = plane.astype(np.float16)
    return rounded


def _blank(width: int, height: int, pix_fmt: str, tags: ColorTags) -> av.VideoFrame:
    picture = av.VideoFrame(width, height, pix_fmt)
    written = stream_tags(tags, pix_fmt)
    picture.colorspace, picture.color_range = written.matrix, written.range
    return picture


def _bands(height: int, width: int, log2_y: int) -> Iterator[tuple[int, int]]:
    """Half-open ranges of rows, each beginning on a chroma row."""
    step = max(16, BAND_SAMPLES // width >> log2_y << log2_y)
    for top in range(0, height, step):
        yield top, min(top + step, height)


def _each_band(work: Callable[[int, int], None], height: int, width: int, log2_y: int) -> None:
    """Call `work` with every band, in several threads; it must write to no row but the band's."""
    bands = list(_bands(height, width, log2_y))
    threads = min((os.cpu_count() or 1) // 4, height * width // THREAD_SAMPLES)

    def do(share: list[tuple[int, int]]) -> None:
        for top, bottom in share:
            work(top, bottom)

    if threads < 2:
        do(bands)
        return
    with ThreadPoolExecutor(threads, "tlbvfi-color") as pool:
        shares = [bands[first::threads] for first in range(threads)]
        list(pool.map(do, shares))  # raises what a call raises


def _code(layout: PixelLayout, tags: ColorTags, channel: int) -> tuple[float, float]:
    """(scale, offset) with code = offset + scale * value; luma in [0, 1], chroma in [-0.5, 0.5]."""
    if layout.is_float:
        return 1.0, 0.0
    if tags.range == LIMITED:
        unit = 1 << (layout.bits - 8)
        return (224.0 * unit, 128.0 * unit) if channel else (219.0 * unit, 16.0 * unit)
    return (1 << layout.bits) - 1.0, float(1 << (layout.bits - 1)) if channel else 0.0


def _decode(
    samples: Samples, layout: PixelLayout, tags: ColorTags, channel: int, out: FloatPlane
) -> None:
    """Codes of luma or chroma to values; divided, because a reciprocal would round twice."""
    scale, offset = _code(layout, tags, channel)
    if layout.shift:
        samples = samples >> layout.shift
    np.subtract(samples, np.float32(offset), out=out, dtype=np.float32)
    np.divide(out, np.float32(scale), out=out)


def _decode_full(samples: Samples, layout: PixelLayout, out: FloatPlane) -> None:
    """Codes of R, G, B or alpha to values."""
    if layout.is_float:
        out[...] = samples
        return
    if layout.shift:
        samples = samples >> layout.shift
    np.divide(samples, np.float32((1 << layout.bits) - 1), out=out, dtype=np.float32)


def _encode(
    values: FloatPlane, layout: PixelLayout, scale: float, offset: float, out: Samples
) -> None:
    """Values to codes, rounded (a conversion truncates, so half a code is added) and clipped."""
    codes = np.multiply(values, np.float32(scale))
    if layout.is_float:
        out[...] = codes
        return
    np.add(codes, np.float32(offset + 0.5), out=codes)
    np.clip(codes, 0, np.float32((1 << layout.bits) - 0.5), out=codes)
    whole = codes.astype(layout.dtype)
    out[...] = whole << layout.shift if layout.shift else whole


def _encode_full(values: FloatPlane, layout: PixelLayout, out: Samples) -> None:
    if layout.is_float:
        out[...] = values
        return
    height, width = values.shape
    most = float((1 << layout.bits) - 1)

    def convert_band(top: int, bottom: int) -> None:
        _encode(values[top:bottom], layout, most, 0.0, out[top:bottom])

    _each_band(convert_band, height, width, 0)


def _fill_alpha(alpha: FloatPlane | None, layout: PixelLayout, out: Samples) -> None:
    if alpha is None:
        out[...] = 1 if layout.is_float else ((1 << layout.bits) - 1) << layout.shift
    else:
        _encode_full(alpha, layout, out)


def _weights(tags: ColorTags) -> tuple[float, float, float]:
    """Kr, Kg, Kb of the matrix."""
    if tags.matrix not in LUMA_WEIGHTS:
        raise SourceError(
            f"Color matrix {tags.matrix} (ITU-T H.273) cannot be converted to RGB; "
            f"re-encode the source as BT.709, BT.601 or BT.2020 non-constant luminance."
        )
    kr, kb = LUMA_WEIGHTS[tags.matrix]
    return kr, 1 - kr - kb, kb


def _window(rows: int, first: int, last: int, halo: int) -> slice | NDArray[np.intp]:
    """Rows [first - halo, last + halo) with the edge rows repeated outside the picture."""
    if halo <= first and last + halo <= rows:
        return slice(first - halo, last + halo)
    return np.clip(np.arange(first - halo, last + halo), 0, rows - 1)


def _halo(layout: PixelLayout) -> int:
    """Chroma rows beyond a band that its own rows depend on."""
    return 1 + layout.log2_y if layout.log2_y else 0


def _yuv_to_rgb(
    samples: list[Samples], layout: PixelLayout, tags: ColorTags, rgb: FloatPlane
) -> None:
    kr, kg, kb = _weights(tags)
    _, height, width = rgb.shape
    halo = _halo(layout)

    def convert_band(top: int, bottom: int) -> None:
        rows = _window(len(samples[1]), top >> layout.log2_y, -(-bottom >> layout.log2_y), halo)
        cb, cr = (
            _chroma_at_luma(samples[channel][rows], layout, tags, channel, halo)[
                : bottom - top, :width
            ]
            for channel in (1, 2)
        )
        red, green, blue = rgb[:3, top:bottom]
        _decode(samples[0][top:bottom], layout, tags, 0, green)
        cv2.scaleAdd(cr, 2 * (1 - kr), green, red)
        cv2.scaleAdd(cb, 2 * (1 - kb), green, blue)
        cv2.scaleAdd(cr, -2 * (1 - kr) * kr / kg, green, green)
        cv2.scaleAdd(cb, -2 * (1 - kb) * kb / kg, green, green)

    _each_band(convert_band, height, width, layout.log2_y)


def _chroma_at_luma(
    samples: Samples, layout: PixelLayout, tags: ColorTags, channel: int, halo: int
) -> FloatPlane:
    values = np.empty(samples.shape, np.float32)
    _decode(samples, layout, tags, channel, values)
    fine = upsample(values, layout.log2_x, layout.log2_y)
    skip = halo << layout.log2_y
    return fine[skip : len(fine) - skip]


def _rgb_to_yuv(
    rgb: FloatPlane, layout: PixelLayout, tags: ColorTags, samples: list[Samples]
) -> None:
    kr, _, kb = _weights(tags)
    _, height, width = rgb.shape
    halo = _halo(layout)

    def convert_band(top: int, bottom: int) -> None:
        end = -(-bottom >> layout.log2_y) << layout.log2_y
        rows = _window(height, top, end, halo << layout.log2_y)
        red, green, blue = rgb[:3, rows]
        # Kr R + Kg G + Kb B in the form that keeps gray exact to the last bit.
        luma = cv2.scaleAdd(red - green, kr, green)
        luma = cv2.scaleAdd(blue - green, kb, luma)
        skip = halo << layout.log2_y
        _encode(
            luma[skip : skip + bottom - top],
            layout,
            *_code(layout, tags, 0),
            samples[0][top:bottom],
        )
        if layout.family == "gray":
            return
        for channel, primary, weight in ((1, blue, kb), (2, red, kr)):
            coarse = downsample(primary - luma, layout.log2_x, layout.log2_y)
            scale, offset = _code(layout, tags, channel)
            _encode(
                coarse[halo : len(coarse) - halo],
                layout,
                scale * 0.5 / (1 - weight),
                offset,
                samples[channel][top >> layout.log2_y : end >> layout.log2_y],
            )

    _each_band(convert_band, height, width, layout.log2_y)


def _yuv_to_yuv(
    picture: av.VideoFrame,
    source: PixelLayout,
    tags: ColorTags,
    converted: av.VideoFrame,
    target: PixelLayout,
    written: ColorTags,
) -> None:
    given, wanted = channel_views(picture), channel_views(converted)
    for channel in range(3 if target.family == "yuv" else 1):
        code = _code(target, written, channel)
        if channel and source.family == "gray":
            wanted[channel][...] = int(code[1]) << target.shift
            continue
        values = np.empty(given[channel].shape, np.float32)
        _decode(given[channel], source, tags, channel, values)
        if channel:
            values = _resample(values, source, target, wanted[channel].shape)
        _encode(values, target, *code, wanted[channel])
    if target.has_alpha:
        alpha = None
        if source.has_alpha:
            alpha = np.empty(given[-1].shape, np.float32)
            _decode_full(given[-1], source, alpha)
        _fill_alpha(alpha, target, wanted[-1])


def _resample(
    values: FloatPlane, source: PixelLayout, target: PixelLayout, shape: tuple[int, ...]
) -> FloatPlane:
    """A chroma plane from the subsampling of `source` to that of `target`."""
    more_x, more_y = source.log2_x - target.log2_x, source.log2_y - target.log2_y
    values = upsample(values, max(more_x, 0), max(more_y, 0))
    values = downsample(values, max(-more_x, 0), max(-more_y, 0))
    return values[: shape[0], : shape[1]]
