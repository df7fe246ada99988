"""Where the samples of a pixel format are stored: every supported format as numpy views."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray

from .errors import SourceError

Samples = NDArray[Any]  # integers of 8 or 16 bits or floats, as the pixel format says

# Formats without one sample per byte or word: swscale unpacks them losslessly into these.
UNPACKED = {
    "pal8": "rgba",
    "monob": "gray",
    "monow": "gray",
    "rgb8": "rgb24",
    "bgr8": "rgb24",
    "rgb555le": "rgb24",
    "rgb565le": "rgb24",
    "x2rgb10le": "gbrp10le",
    "x2bgr10le": "gbrp10le",
    "y210le": "yuv422p10le",
}
PACKED_422 = {"yuyv422": "yuyv", "uyvy422": "uyvy", "yvyu422": "yvyu"}
PACKED = re.compile(r"(ya|[rgbax0]{3,4})(?:8|16|24|32|48|64)?(?:f16|f32)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """Samples of one channel: every `step`-th sample of `plane`, beginning at `first`."""

    plane: int
    first: int = 0
    step: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PixelLayout:
    """How a pixel format stores its channels: Y U V [A], R G B [A] or Y [A]."""

    family: Literal["yuv", "rgb", "gray"]
    channels: tuple[Channel, ...]
    has_alpha: bool
    bits: int
    shift: int
    """Unused bits below a sample (6 in p010)."""
    dtype: np.dtype
    log2_x: int
    """Chroma has 1 / 2**log2_x of the columns of luma."""
    log2_y: int

    @property
    def is_float(self) -> bool:
        """Whether samples are floating-point numbers, nominally in [0, 1], never clipped."""
        return self.dtype.kind == "f"

    def is_chroma(self, channel: int) -> bool:
        """Whether the channel with this number may be stored at a lower resolution."""
        return self.family == "yuv" and channel in (1, 2)


@cache
def pixel_layout(pix_fmt: str) -> PixelLayout:
    """Layout of the samples of `pix_fmt`.

    Raises:
        SourceError: the format is unknown or cannot be read sample by sample.
    """
    try:
        fmt = av.VideoFormat(UNPACKED.get(pix_fmt, pix_fmt))
    except ValueError as error:
        raise SourceError(f"There is no pixel format called {pix_fmt!r}.") from error
    base = re.sub("(le|be)$", "", fmt.name)
    channels = _channels(base, fmt)
    if not channels:
        raise SourceError(
            f"Pixel format {pix_fmt} cannot be read; convert the source to a planar YUV or RGB "
            f"format first."
        )
    bits = fmt.components[0].bits
    dtype = _dtype(base, bits, big_endian=fmt.is_big_endian)
    in_high_bits = base.endswith("msb") or re.fullmatch(r"p[024]1\d", base)
    return PixelLayout(
        family=_family(fmt),
        channels=channels,
        has_alpha=any(component.is_alpha for component in fmt.components),
        bits=bits,
        shift=8 * dtype.itemsize - bits if in_high_bits else 0,
        dtype=dtype,
        log2_x=_log2(fmt.chroma_width(64)),
        log2_y=_log2(fmt.chroma_height(64)),
    )


def _log2(chroma_of_64: int) -> int:
    return 6 - (chroma_of_64.bit_length() - 1)


def _family(fmt: av.VideoFormat) -> Literal["yuv", "rgb", "gray"]:
    if fmt.is_rgb:
        return "rgb"
    colors = [component for component in fmt.components if not component.is_alpha]
    return "yuv" if len(colors) == 3 else "gray"


def _dtype(base: str, bits: int, *, big_endian: bool) -> np.dtype:
    order = ">" if big_endian else "<"
    if re.search("f(16|32)$", base):
        return np.dtype(f"{order}f{bits // 8}")
    return np.dtype(np.uint8 if bits <= 8 else f"{order}u2")


def _channels(base: str, fmt: av.VideoFormat) -> tuple[Channel, ...]:
    """Channels in the order of `PixelLayout`; empty if the format is not supported."""
    planes = [component.plane for component in fmt.components]
    if base in PACKED_422:
        order = PACKED_422[base]
        luma = Channel(plane=0, first=order.index("y"), step=2)
        return luma, *(Channel(plane=0, first=order.index(c), step=4) for c in "uv")
    if base in ("nv21", "nv42"):
        return Channel(plane=0), Channel(plane=1, first=1, step=2), Channel(plane=1, step=2)
    if re.fullmatch(r"nv\d+|p[024]1\d", base):
        return Channel(plane=0), Channel(plane=1, step=2), Channel(plane=1, first=1, step=2)
    if re.fullmatch(r"(yuvj?a?\d+p|gbra?p)(\d+|f16|f32)?(msb)?|gray(\d+|f16|f32)?", base):
        return tuple(Channel(plane=plane) for plane in planes)
    if packed := PACKED.fullmatch(base):
        letters = packed[1]
        wanted = [c for c in ("ya" if letters == "ya" else "rgba") if c in letters]
        return tuple(Channel(plane=0, first=letters.index(c), step=len(letters)) for c in wanted)
    return ()


def channel_views(picture: av.VideoFrame) -> list[Samples]:
    """Writable views [h, w] on the samples of each channel, in the order of `PixelLayout`."""
    if picture.format.name in UNPACKED:
        raise SourceError(f"Samples of {picture.format.name} must be unpacked before use.")
    layout = pixel_layout(picture.format.name)
    views = []
    for number, channel in enumerate(layout.channels):
        log2_x, log2_y = (layout.log2_x, layout.log2_y) if layout.is_chroma(number) else (0, 0)
        width, height = -(-picture.width >> log2_x), -(-picture.height >> log2_y)
        plane = picture.planes[channel.plane]
        rows = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
        rows = rows[: plane.line_size * height].reshape(height, plane.line_size)
        used = rows.view(layout.dtype)[:, channel.first :: channel.step]
        views.append(used[:, :width])
    return views


def unpacked(picture: av.VideoFrame) -> av.VideoFrame:
    """The picture in a format whose samples can be viewed; itself in nearly all cases."""
    target = UNPACKED.get(picture.format.name)
    return picture if target is None else picture.reformat(format=target)


def copied(picture: av.VideoFrame) -> av.VideoFrame:
    """An independent picture with the same samples and tags, unpacked if it must be."""
    source = unpacked(picture)
    copy = av.VideoFrame(source.width, source.height, source.format.name)
    for given, kept in zip(channel_views(source), channel_views(copy), strict=True):
        kept[...] = given
    copy.colorspace, copy.color_range = picture.colorspace, picture.color_range
    return copy
