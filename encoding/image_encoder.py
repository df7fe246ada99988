"""Single images to write: their formats and depths, and the content of their files."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, cast

import av
import cv2
import numpy as np

from .color import BT601, FULL, convert, from_rgb, rounded_to_half, to_rgb
from .errors import OutputError
from .frame import ColorTags
from .images import DECODERS
from .layout import pixel_layout

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext

    from .profiles import Picture

log = logging.getLogger("tlbvfi.images")

JFIF = ColorTags(matrix=BT601, range=FULL)

Depth = Literal["8", "16", "half", "float"]
"""Bits per sample, or floating-point samples of 16 (half) or 32 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFormat:
    """How single images are written."""

    suffix: str
    encoder: str
    """FFmpeg's encoder, or `opencv` for TIFF with floating-point samples, which FFmpeg lacks."""
    pix_fmt: str
    options: dict[str, str] = field(default_factory=dict)

    @property
    def keeps_aspect(self) -> bool:
        """Whether files tell the sample aspect ratio."""
        return self.encoder not in ("libwebp", "opencv")


def image_format(suffix: str, info: Picture, *, depth: Depth | None = None) -> ImageFormat:
    """How to write pictures like `info` as images with `suffix`, losing as little as possible.

    `depth` None: the source's, as far as the format has it. PNG: 8 or 16. TIFF: 8, 16 or float.
    EXR: half if it holds every value (8 to 10 bits and half-float sources), else float. JPEG
    (quality 2 of FFmpeg's scale, 4:4:4) and WebP (lossless): 8. JPEG loses alpha, WebP the color
    of fully transparent pixels.

    Raises:
        OutputError: not an image format, or one without that depth.
    """
    suffix = suffix.lower()
    wanted = depth or _default_depth(suffix, info)
    table = _formats(alpha=info.has_alpha)
    kind = DECODERS.get(suffix)
    if kind is None:
        raise OutputError(f"{suffix} is not an image format; use one of {', '.join(DECODERS)}.")
    if (kind, wanted) not in table:
        depths = ", ".join(held for name, held in table if name == kind)
        raise OutputError(f"{suffix} images cannot have depth {wanted}; choose {depths}.")
    if kind == "mjpeg" and info.has_alpha:
        log.warning("JPEG images cannot store alpha: it is dropped. Choose .png to keep it.")
    encoder, pix_fmt, options = table[kind, wanted]
    return ImageFormat(suffix=suffix, encoder=encoder, pix_fmt=pix_fmt, options=options)


def _default_depth(suffix: str, info: Picture) -> Depth:
    layout = pixel_layout(info.pix_fmt)
    kind = DECODERS.get(suffix)
    if kind == "exr":
        return "half" if layout.bits <= 10 or (layout.is_float and layout.bits == 16) else "float"
    if kind in ("mjpeg", "webp") or layout.bits <= 8:
        return "8"
    return "float" if layout.is_float and kind == "tiff" else "16"


def _formats(*, alpha: bool) -> dict[tuple[str, Depth], tuple[str, str, dict[str, str]]]:
    """(encoder, pix_fmt, options) by format and depth; options balance time and size at 1080p."""
    png = {"pred": "up", "compression_level": "1"}
    tiff = {"compression_algo": "deflate"}
    floats = "gbrapf32le" if alpha else "gbrpf32le"
    lossless = {"lossless": "1", "compression_level": "0", "quality": "0"}
    return {
        ("png", "8"): ("png", "rgba" if alpha else "rgb24", png),
        ("png", "16"): ("png", "rgba64be" if alpha else "rgb48be", png),
        ("tiff", "8"): ("tiff", "rgba" if alpha else "rgb24", tiff),
        ("tiff", "16"): ("tiff", "rgba64le" if alpha else "rgb48le", tiff),
        ("tiff", "float"): ("opencv", floats, {}),
        ("exr", "half"): ("exr", floats, {"format": "half", "compression": "zip1"}),
        ("exr", "float"): ("exr", floats, {"format": "float", "compression": "zip1"}),
        ("mjpeg", "8"): ("mjpeg", "yuvj444p", {"qmin": "2", "qmax": "2"}),
        ("webp", "8"): ("libwebp", "bgra", lossless),
    }


def encoded_image(
    picture: av.VideoFrame,
    image_format: ImageFormat,
    tags: ColorTags,
    aspect: Fraction | None = None,
) -> bytes:
    """The content of an image file; `tags` are those of the picture (`color.resolve`).

    Samples that the format can hold are stored exactly; others are rounded to its depth. `aspect`:
    the sample aspect ratio, for formats that keep it.
    """
    return _encoded(_converted(picture, image_format, tags), image_format, aspect)


def _converted(picture: av.VideoFrame, image_format: ImageFormat, tags: ColorTags) -> av.VideoFrame:
    if image_format.options.get("format") == "half":
        return rounded_to_half(convert(picture, image_format.pix_fmt, tags))
    if image_format.encoder == "mjpeg" and not picture.format.name.startswith("yuvj"):
        # JPEG files have no tags: their readers expect full-range BT.601 (JFIF 1.02).
        return from_rgb(to_rgb(picture, tags), image_format.pix_fmt, JFIF)
    return convert(picture, image_format.pix_fmt, tags)


def _encoded(picture: av.VideoFrame, image_format: ImageFormat, aspect: Fraction | None) -> bytes:
    if image_format.encoder == "opencv":
        pixels = np.moveaxis(to_rgb(picture, ColorTags()), 0, -1)
        order = [2, 1, 0, 3][: pixels.shape[-1]]
        # OpenCV 4 would store floats of three channels as LogLuv, with loss, which FFmpeg cannot read.
        uncompressed = [cv2.IMWRITE_TIFF_COMPRESSION, 1]
        _, data = cv2.imencode(".tif", np.ascontiguousarray(pixels[..., order]), uncompressed)
        return data.tobytes()
    encoder = cast("VideoCodecContext", av.CodecContext.create(image_format.encoder, "w"))
    encoder.width, encoder.height = picture.width, picture.height
    encoder.pix_fmt = image_format.pix_fmt
    encoder.time_base = Fraction(1)
    encoder.options = dict(image_format.options)
    encoder.thread_count = 1
    if aspect is not None:
        encoder.sample_aspect_ratio = aspect
    return b"".join(bytes(packet) for packet in [*encoder.encode(picture), *encoder.encode(None)])
