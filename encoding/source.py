"""Where frames come from: one protocol for video files, folders of images and memory."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol, cast

from .container import VideoInput
from .errors import DecoderError, SourceError
from .frame import Frame
from .images import ImageSource
from .memory import MemorySource
from .probe import VideoInfo
from .reader import VideoSource
from .timestamps import Timestamps


class Source(Protocol):
    """Frames in order, from any index, each unmodified and with its exact time.

    A context manager. Iterators are independent of each other and of the thread that closes the
    source: they end at their next frame after it is closed.
    """

    info: VideoInfo
    timestamps: Timestamps

    @property
    def identity(self) -> dict[str, Any]:
        """What identifies this source among others: plain values, for storing and comparing."""
        ...

    def frames(self, start: int = 0, stop: int | None = None) -> Generator[Frame]:
        """Frames `start` to `stop` (exclusive; None: to the end), without a gap in `index`.

        Close the iterator early to release its file and threads.

        Raises:
            SourceError: a frame has another size or pixel format than the first, or its file has
                changed since the source was opened; all frames before it were delivered.
        """
        ...

    def shortfall(self) -> str | None:
        """After iterating: one sentence on what is missing of what the source declares, or None."""
        ...

    def close(self) -> None:
        """End all iterators at their next frame."""
        ...

    def __enter__(self) -> Source: ...

    def __exit__(self, *_: object) -> None: ...


def open_source(
    source: VideoInput | Iterable[Any],
    *,
    input_rate: Fraction | None = None,
    hwaccel: str = "auto",
) -> Source:
    """Frames of a video file, a folder of images, a binary file object, or arrays or tensors.

    `input_rate`: frames per second of sources without timestamps of their own: folders, memory and
    raw streams; for other files it must be left out. `hwaccel`: the decoder of video files, see
    `hwaccel.find_hardware`.

    Raises:
        SourceError: the source is not usable, or the input rate is missing or out of place.
        DecoderError: the hardware that `hwaccel` names cannot decode this here.
    """
    if isinstance(source, str | Path):
        if not str(source):
            raise SourceError("The source name is empty: write that of a video or a folder.")
        if not Path(source).is_dir():
            return VideoSource(source, input_rate=input_rate, hwaccel=hwaccel)
        _refuse_hardware(hwaccel, f"the images in {source}")
        return ImageSource(Path(source), rate=_required(input_rate, f"The folder {source}"))
    if hasattr(source, "read") and hasattr(source, "seek"):
        return VideoSource(cast("VideoInput", source), input_rate=input_rate, hwaccel=hwaccel)
    _refuse_hardware(hwaccel, "frames in memory")
    frames = cast("Iterable[Any]", source)
    return MemorySource(frames, rate=_required(input_rate, "A series of frames in memory"))


def _required(rate: Fraction | None, what: str) -> Fraction:
    if rate is None:
        raise SourceError(
            f"{what} has no frame rate of its own; set the input rate (input_fps, on the command "
            "line --input-fps), such as 24."
        )
    if rate <= 0:
        raise SourceError(f"The input rate must be above 0, got {rate}.")
    return Fraction(rate)


def _refuse_hardware(hwaccel: str, what: str) -> None:
    if hwaccel not in ("auto", "none"):
        raise DecoderError(f"No {hwaccel} decoder is used for {what}; choose hwaccel auto or none.")
