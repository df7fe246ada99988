"""What a video is, before a frame of it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from .frame import ColorTags


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """An audio or subtitle stream."""

    index: int
    codec: str
    language: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoInfo:
    """Facts of a video stream and the file around it."""

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
    """Degrees, as the display matrix says; decoded frames are not rotated."""
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
    """HDR10 static metadata in the words of x265 (`master-display`, `max-cll`), if any."""
