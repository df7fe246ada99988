"""Frames in memory as a source: a sequence or an iterator of arrays or tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import chain
from typing import Any, cast

import av
import numpy as np
from numpy.typing import NDArray

from .callbacks import OnProgress, no_progress
from .closable import Closable
from .errors import SourceError
from .frame import ColorTags, Frame
from .layout import channel_views, pixel_layout
from .probe import VideoInfo
from .timestamps import Timestamps

PIXEL_FORMATS = {
    ("u1", 1): "gray", ("u1", 3): "rgb24", ("u1", 4): "rgba",
    ("u2", 1): "gray16le", ("u2", 3): "rgb48le", ("u2", 4): "rgba64le",
    ("f4", 1): "grayf32le", ("f4", 3): "gbrpf32le", ("f4", 4): "gbrapf32le",
}  # fmt: skip
"""Keyed by dtype and number of channels."""


class MemorySource(Closable):
    """Frames from memory, each copied into its own picture when it is its turn.

    `frames`: arrays or CPU tensors [H, W, C] with C = 1, 3 or 4 (gray, RGB, RGBA) of uint8, uint16
    or float (nominally in [0, 1]; kept as float32, values outside included). A sequence, such as
    an array [N, H, W, C], can be read from any index and repeatedly; an iterator only once.

    Raises:
        SourceError: no frame, or one with another shape or dtype, or with NaN or infinite pixels.
    """

    def __init__(self, frames: Iterable[Any], *, rate: Fraction) -> None:
        super().__init__()
        rate = Fraction(rate)
        self._sequence: Sequence[Any] | None = None
        self._rest: Iterator[Any] = iter(())
        if hasattr(frames, "__len__") and hasattr(frames, "__getitem__"):
            self._sequence = cast("Sequence[Any]", frames)  # arrays and tensors are not Sequences
        else:
            self._rest = iter(frames)
        first = self._first()
        self._shape, self._kind = first.shape, first.dtype.str[1:]
        self._position = 0
        self._hash = hashlib.sha256()
        self._is_hashed = False
        self.timestamps = Timestamps(
            start=Fraction(0),
            rate=rate,
            count=None if self._sequence is None else len(self._sequence),
            time_base=1 / rate,
        )
        self.info = _describe(first, self.timestamps)

    def identify(self, on_frame: OnProgress = no_progress) -> None:
        """Read every frame of a sequence for `identity`, which else does it when asked first.

        `on_frame` is called with the frames read and their number, and may raise to stop.
        """
        if self._sequence is None or self._is_hashed:
            return
        digest = hashlib.sha256()
        for index, frame in enumerate(self._sequence):
            digest.update(self._checked(frame, index).tobytes())
            on_frame(index + 1, len(self._sequence))
        self._hash, self._is_hashed = digest, True

    @property
    def identity(self) -> dict[str, Any]:
        """Shape and a hash of all frames; for an iterator the hash is None until it has ended."""
        self.identify()
        return {
            "kind": "memory",
            "shape": list(self._shape),
            "dtype": self._kind,
            "frame_count": self.timestamps.count,
            "rate": str(self.timestamps.rate),
            "sha256": self._hash.hexdigest() if self._is_hashed else None,
        }

    def frames(self, start: int = 0, stop: int | None = None) -> Generator[Frame]:
        """Frames `start` to `stop` (exclusive; None: to the end).

        Raises:
            SourceError: a frame has another shape or dtype than the first, or NaN or infinite
                pixels, or the iterator is already past `start`.
        """
        with closing(self._arrays(start, stop)) as arrays:
            for index, array in arrays:
                if self.is_closed:
                    return
                time = self.timestamps.time(index)
                yield Frame(picture=_picture(array, self.info.pix_fmt), index=index, time=time)

    def shortfall(self) -> str | None:
        """None: frames in memory are always complete."""
        return None

    def _first(self) -> NDArray[Any]:
        if self._sequence is not None:
            if not len(self._sequence):
                raise SourceError("No frame was given; at least one is needed.")
            return _array(self._sequence[0], 0)
        first = next(self._rest, None)
        if first is None:
            raise SourceError("The iterator gave no frame; at least one is needed.")
        self._rest = chain([first], self._rest)
        return _array(first, 0)

    def _arrays(
        self, start: int, stop: int | None
    ) -> Generator[tuple[int, NDArray[Any]], None, None]:
        if self._sequence is not None:
            count = len(self._sequence)
            for index in range(start, count if stop is None else min(stop, count)):
                yield index, self._checked(self._sequence[index], index)
            return
        if start < self._position:
            raise SourceError(
                f"Frame {start} was requested, but the iterator has already given {self._position} "
                f"frames; pass a sequence to read it twice."
            )
        while stop is None or self._position < stop:
            frame = next(self._rest, None)
            if frame is None:
                self._is_hashed = True
                return
            index, self._position = self._position, self._position + 1
            array = self._checked(frame, index)
            self._hash.update(array.tobytes())
            if index >= start:
                yield index, array

    def _checked(self, frame: Any, index: int) -> NDArray[Any]:  # noqa: ANN401
        array = _array(frame, index)
        if (array.shape, array.dtype.str[1:]) != (self._shape, self._kind):
            raise SourceError(
                f"Frame {index} is {array.dtype} {list(array.shape)}, but frame 0 is "
                f"{self._kind} {list(self._shape)}; all frames must be alike."
            )
        return array


def _array(frame: Any, index: int) -> NDArray[Any]:  # noqa: ANN401 - arrays and tensors alike
    """[H, W, C] of uint8, uint16 or float32."""
    try:
        array = np.asarray(frame)
    except (TypeError, RuntimeError) as error:  # what torch raises for bfloat16, CUDA, gradients
        raise SourceError(
            f"Frame {index} cannot be read as an array ({error}); pass CPU tensors or arrays."
        ) from error
    if array.dtype.kind == "f":
        array = array.astype(np.float32, copy=False)
    if array.ndim != 3 or (array.dtype.str[1:], array.shape[-1]) not in PIXEL_FORMATS:
        raise SourceError(
            f"Frame {index} is {array.dtype} {list(array.shape)}; frames must be [height, width, "
            f"1, 3 or 4 channels] of uint8, uint16 or float."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SourceError(f"Frame {index} holds NaN or infinite pixels: repair it or leave it out.")
    return array


def _picture(array: NDArray[Any], pix_fmt: str) -> av.VideoFrame:
    picture = av.VideoFrame(array.shape[1], array.shape[0], pix_fmt)
    for channel, view in enumerate(channel_views(picture)):
        view[...] = array[..., channel]
    return picture


def _describe(first: NDArray[Any], times: Timestamps) -> VideoInfo:
    height, width, channels = first.shape
    pix_fmt = PIXEL_FORMATS[first.dtype.str[1:], channels]
    return VideoInfo(
        name="frames in memory",
        container="memory",
        codec="rawvideo",
        width=width,
        height=height,
        pix_fmt=pix_fmt,
        bit_depth=pixel_layout(pix_fmt).bits,
        has_alpha=channels == 4,
        color=ColorTags(),
        sample_aspect_ratio=None,
        rotation=0,
        time_base=times.time_base,
        rate=times.rate,
        is_vfr=False,
        start=Fraction(0),
        duration=None if times.count is None else times.count / times.rate,
        frame_count=times.count,
        is_interlaced=False,
    )
