"""The two small values passed around in this layer, a frame with its time and color tags; and what
else a picture carries."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av import VideoFrame
    from av.video.codeccontext import VideoCodecContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ColorTags:
    """Color description of a stream, as code points of ISO/IEC 23091-2 (FFmpeg's numbers).

    2 means unspecified, except for `range`: 0 unspecified, 1 limited (tv), 2 full (pc).
    """

    primaries: int = 2
    transfer: int = 2
    matrix: int = 2
    range: int = 0

    @classmethod
    def of(cls, context: VideoCodecContext) -> ColorTags:
        """The tags that a stream has according to its codec context."""
        return cls(
            primaries=int(context.color_primaries),
            transfer=int(context.color_trc),
            matrix=int(context.colorspace),
            range=int(context.color_range),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A source frame: the decoded picture, unmodified, and the time at which it is shown."""

    picture: VideoFrame
    index: int
    """Number of the frame in its source, from 0 at the source's first frame."""
    time: Fraction
    """Seconds, exact, on the source's own clock (its first frame need not be at 0)."""


def side_data(picture: VideoFrame) -> Mapping[Any, Any]:
    """The side data of a picture by type; empty if one is of a type that PyAV does not know.

    Such are EXIF (photographs, and motion JPEG of cameras) and the view of stereoscopic video.
    """
    try:
        return picture.side_data
    except ValueError:
        return {}


def is_mirrored(picture: VideoFrame) -> bool:
    """Whether players mirror the picture, besides rotating it: its display matrix reverses sides."""
    matrix = side_data(picture).get("DISPLAYMATRIX")
    if matrix is None:
        return False
    a, b, _, c, d = struct.unpack_from("=5i", bytes(matrix))
    return a * d < b * c
