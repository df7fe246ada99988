"""Frames decoded on a GPU, with the samples and the pixel format of the software decoder.

A conforming decoder of H.264 or H.265 gives samples "exactly equal to" those the standard specifies
(ITU-T H.265.1, 6.5.3; H.264.1 alike), and those of VP8, VP9 and AV1 are specified in integers, with
checksums of every frame of their test vectors. So a GPU decodes the same samples; it only arranges
them differently: chroma interleaved, and depths over 8 bits in the upper bits of 16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.error import FFmpegError
from av.video.reformatter import VideoReformatter

from .errors import DecoderError, SourceError
from .frame import side_data
from .layout import PixelLayout, channel_views, pixel_layout, unpacked

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """A decoder on a GPU, for one video."""

    device: str
    """FFmpeg's type of device: cuda, vaapi, videotoolbox, ..."""
    decoder: str
    """FFmpeg's name of the decoder that can use it."""
    pix_fmt: str
    """Pixel format that the software decoder gives, to which frames are converted."""

    is_default: bool
    """Whether that decoder is FFmpeg's default for the codec; for AV1 the default is libdav1d."""

    @property
    def accelerator(self) -> HWAccel:
        """The device, not yet opened; it never falls back to software silently."""
        return HWAccel(self.device, allow_software_fallback=False)

    def context(self, stream: VideoStream) -> VideoCodecContext:
        """The decoder of an open stream; if `is_default`, the file was opened with the device.

        Raises:
            DecoderError: the device cannot be opened.
        """
        if self.is_default:
            return stream.codec_context
        created = self.create()
        created.extradata = stream.codec_context.extradata
        return created

    def create(self) -> VideoCodecContext:
        """A separate decoder on the device.

        Raises:
            DecoderError: the device cannot be opened.
        """
        try:
            created = av.CodecContext.create(self.decoder, "r", self.accelerator)
        except FFmpegError as error:
            raise DecoderError(f"no such device can be opened ({error.strerror})") from error
        return cast("VideoCodecContext", created)


def in_software_format(
    pictures: Iterable[av.VideoFrame | None], hardware: Hardware
) -> Iterator[av.VideoFrame]:
    """Frames decoded on a GPU, as the software decoder would give them, with their time and tags.

    Raises:
        DecoderError: a frame is None (it failed), or its format does not hold the same samples.
    """
    reformatter = VideoReformatter()
    for picture in pictures:
        if picture is None:
            raise DecoderError(f"the {hardware.device} decoder fails")
        yield regrouped(picture, hardware.pix_fmt, reformatter)


def regrouped(picture: av.VideoFrame, pix_fmt: str, reformatter: VideoReformatter) -> av.VideoFrame:
    """The same samples in `pix_fmt`, with the picture's time, tags and side data.

    Raises:
        DecoderError: the two formats do not hold the same samples.
    """
    picture = unpacked(picture)
    if picture.format.name == pix_fmt:
        return picture
    shift = _shift(picture.format.name, pix_fmt)
    if shift is None:
        raise DecoderError(f"it gives {picture.format.name} instead of {pix_fmt}")
    target = _blank(picture, pix_fmt, reformatter)
    for given, wanted in zip(channel_views(picture), channel_views(target), strict=True):
        np.right_shift(given, shift, out=wanted)
    target.pts, target.dts = picture.pts, picture.dts
    if picture.time_base:  # none on frames that come out when the decoder is flushed
        target.time_base = picture.time_base
    target.colorspace, target.color_range = picture.colorspace, picture.color_range
    target.color_primaries, target.color_trc = picture.color_primaries, picture.color_trc
    return target


def _shift(have: str, want: str) -> int | None:
    """Unused bits below each sample; None if the formats differ in more than arrangement."""
    try:
        ours, theirs = pixel_layout(have), pixel_layout(want)
    except SourceError:
        return None
    # 10 and 12 bits come as p010 and p012, or in the upper bits of 16-bit formats.
    holds_same = ours.bits == theirs.bits or ours.bits == 16 > theirs.bits > 8
    if _kind(ours) != _kind(theirs) or ours.is_float or not holds_same:
        return None
    return ours.shift + ours.bits - theirs.bits


def _kind(layout: PixelLayout) -> tuple[object, ...]:
    return layout.family, layout.has_alpha, layout.is_float, layout.log2_x, layout.log2_y


def _blank(picture: av.VideoFrame, pix_fmt: str, reformatter: VideoReformatter) -> av.VideoFrame:
    """A picture to fill. Side data cannot be set, only carried along by a conversion.

    The samples of that conversion are not used: swscale rounds where a shift is exact.
    """
    if len(side_data(picture)):
        return reformatter.reformat(picture, format=pix_fmt)
    return av.VideoFrame(picture.width, picture.height, pix_fmt)
