"""What a video is, before its frames are read."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

import av

from .container import VideoInput, decode, exact, first_bytes, open_video, source_name, text_tags
from .errors import SourceError
from .frame import ColorTags, is_mirrored, side_data
from .scan import scan
from .timestamps import Timestamps
from .webp import is_animated

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

STRAIGHT_ALPHA = {"png", "apng", "webp", "gif", "vp8", "vp9"}
"""Codecs whose specifications say that colors are not multiplied by alpha."""

QUICK_SCAN = 1000
"""Packets by which `probe` tells a constant rate from a variable one, unless it counts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """An audio or subtitle stream."""

    index: int
    codec: str
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """Facts about a video stream and its file."""

    name: str
    """File or folder name, for messages."""
    container: str
    """FFmpeg's demuxer name (`mov,mp4,m4a,3gp,3g2,mj2`), or `images`, `memory`."""
    codec: str
    width: int
    height: int
    pix_fmt: str
    bit_depth: int
    has_alpha: bool
    color: ColorTags
    """As tagged; `color.resolve` decides what unspecified tags mean."""
    sample_aspect_ratio: Fraction | None
    rotation: int
    """Degrees, from the display matrix; decoded frames are not rotated."""
    is_mirrored: bool = False
    """Whether the display matrix also mirrors: the rotation is then that of its upper row."""
    time_base: Fraction
    rate: Fraction
    """Exact frames per second: the constant rate, or the average where `is_vfr`."""
    is_vfr: bool
    start: Fraction
    """Seconds of the first frame on the file's clock."""
    duration: Fraction | None
    frame_count: int | None
    """Declared number of frames; exact where `probe(..., count=True)`; None if not known."""
    is_interlaced: bool
    audio: tuple[StreamInfo, ...] = ()
    subtitles: tuple[StreamInfo, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    mastering: dict[str, str] = field(default_factory=dict)
    """HDR10 static metadata in x265's notation (`master-display`, `max-cll`), if any."""

    @property
    def alpha_is_straight(self) -> bool:
        """Whether colors are known not to be multiplied by alpha: by specification, or in memory."""
        return self.codec in STRAIGHT_ALPHA or self.container == "memory"


def probe(source: VideoInput, *, count: bool = False) -> VideoInfo:
    """Facts about a video file, from its headers, its first frame and its packets' timestamps.

    `count`: scan the packets of the whole file (all of it is read, one frame is decoded), so
    that `frame_count`, `duration`, `rate` and `is_vfr` are exact; otherwise the first 1000 stand
    for the rest and the count and duration are as declared. A folder of images is probed by
    opening it: `open_source(folder, input_rate=...).info`.

    Raises:
        SourceError: missing, a folder, not a video, or no frame in it can be decoded.
    """
    first = first_picture(source)
    with open_video(source) as (container, stream):
        limit = None if count else QUICK_SCAN
        times = scan(container, stream, first, limit=limit).timestamps
        return describe(source_name(source), container, stream, first, times)


def first_picture(source: VideoInput) -> av.VideoFrame:
    """The first frame that can be decoded.

    Raises:
        SourceError: there is none, or the file cannot be opened.
    """
    with open_video(source, "NONE") as (container, stream):
        picture = next((picture for picture in decode(container, stream) if picture), None)
    if picture is not None:
        return picture
    if is_animated(first_bytes(source, 32)):
        raise SourceError(
            f"{source_name(source)} is an animated WebP, which this FFmpeg does not decode: convert "
            "it to GIF, APNG or a video first."
        )
    raise SourceError(
        f"{source_name(source)} contains no frame that can be decoded; it is empty or damaged."
    )


def describe(
    name: str,
    container: InputContainer,
    stream: VideoStream,
    first: av.VideoFrame,
    times: Timestamps,
) -> VideoInfo:
    """Facts about an open video whose first frame was decoded and whose packets were scanned."""
    codec = stream.codec_context
    components = first.format.components
    return VideoInfo(
        name=name,
        container=container.format.name,
        codec=codec.codec.canonical_name,
        width=first.width,
        height=first.height,
        pix_fmt=first.format.name,
        bit_depth=max(component.bits for component in components),
        has_alpha=any(component.is_alpha for component in components),
        color=ColorTags.of(codec),
        sample_aspect_ratio=exact(stream.sample_aspect_ratio),
        rotation=first.rotation,
        is_mirrored=is_mirrored(first),
        time_base=times.time_base,
        rate=times.rate,
        is_vfr=times.is_vfr,
        start=times.start,
        duration=_duration(container, times),
        frame_count=times.count or stream.frames or None,
        is_interlaced=first.interlaced_frame,
        audio=_streams(container.streams.audio),
        subtitles=_streams(container.streams.subtitles),
        metadata=text_tags(container.metadata),
        mastering=_mastering(first),
    )


def _duration(container: InputContainer, times: Timestamps) -> Fraction | None:
    """Seconds from the first frame to the end of the last one; as declared if not counted."""
    if times.count is not None:
        return times.time(times.count - 1) + 1 / times.rate - times.start
    return Fraction(container.duration, 1_000_000) if container.duration else None


def _streams(streams: Iterable[Stream]) -> tuple[StreamInfo, ...]:
    return tuple(
        StreamInfo(
            index=stream.index,
            codec=stream.codec.canonical_name if stream.codec_context else "unknown",
            language=None if stream.language == "und" else stream.language,
        )
        for stream in streams
    )


def _mastering(picture: av.VideoFrame) -> dict[str, str]:
    """HDR10 metadata of a decoded frame (SMPTE ST 2086, CTA-861.3) in x265's notation."""
    found = {}
    beside = side_data(picture)
    display = beside.get("MASTERING_DISPLAY_METADATA")
    if display is not None and _is_whole(bytes(display)):
        found["master-display"] = _master_display(bytes(display))
    light = beside.get("CONTENT_LIGHT_LEVEL")
    if light is not None:
        found["max-cll"] = "{},{}".format(*struct.unpack_from("=2I", bytes(light)))
    return found


def _is_whole(display: bytes) -> bool:
    """Whether all numbers are there and finite; Matroska's floats may be infinite or NaN."""
    denominators = struct.unpack_from("=20i", display)[1::2]
    return display[80:] == struct.pack("=2i", 1, 1) and all(denominators)


def _master_display(data: bytes) -> str:
    """AVMasteringDisplayMetadata: rationals x, y of R, G, B, white; then minimum and maximum."""
    numbers = struct.unpack_from("=20i", data)
    values = [Fraction(n, d) for n, d in zip(numbers[0::2], numbers[1::2], strict=True)]
    chromaticity = [round(value * 50_000) for value in values[:8]]
    least, most = (round(value * 10_000) for value in values[8:])
    red, green, blue, white = (chromaticity[i : i + 2] for i in range(0, 8, 2))
    points = zip(("G", "B", "R", "WP"), (green, blue, red, white), strict=True)
    return "".join(f"{name}({x},{y})" for name, (x, y) in points) + f"L({most},{least})"
