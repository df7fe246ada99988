"""Video files as a source of frames: streamed, decoded with all cores, exact from any index."""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_left
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
from av.error import FFmpegError

from .closable import Closable
from .container import Threads, VideoInput, decode, open_video, packets, source_name
from .errors import SourceError
from .frame import Frame
from .layout import copied
from .probe import VideoInfo, describe, first_picture
from .scan import scan
from .timestamps import Timestamps

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

log = logging.getLogger("tlbvfi.reader")

Pictures = Generator[tuple[int, av.VideoFrame], None, None]

MEGABYTE = 1 << 20
SEEKS = 8
"""Keyframes to try, each before the last, until decoding from the beginning is no slower."""


class VideoSource(Closable):
    """Frames of a video file, or of its bytes in memory.

    Opening it decodes one frame and reads through the packets once, for the exact times; iterating
    needs memory for a handful of frames, whatever the length. A frame in the middle that cannot be
    decoded is replaced by the one before it, so that count, order and sound stay right; the loss
    is told by `shortfall`.

    Raises:
        SourceError: missing, not a video, nothing in it can be decoded, or `input_rate` given for a
            file that has timestamps.
    """

    def __init__(self, source: VideoInput, *, input_rate: Fraction | None = None) -> None:
        super().__init__()
        self._source = source
        first = first_picture(source)
        with open_video(source) as (container, stream):
            self._scan = scan(container, stream, first, input_rate=input_rate)
            self._declared_count = stream.frames
            self.timestamps: Timestamps = self._scan.timestamps
            self.info: VideoInfo = describe(
                source_name(source), container, stream, first, self.timestamps
            )
        self._repeated: set[int] = set()
        self._end: int | None = None
        if self.info.is_interlaced:
            log.warning(
                "%s is interlaced; mid frames of moving parts will comb. Deinterlace it first.",
                self.info.name,
            )

    @property
    def identity(self) -> dict[str, Any]:
        """Size, modification time, stream facts, and a hash of the first and the last megabyte."""
        info = self.info
        return {
            **_file_identity(self._source),
            "codec": info.codec,
            "width": info.width,
            "height": info.height,
            "pix_fmt": info.pix_fmt,
            "frame_count": info.frame_count,
            "rate": str(info.rate),
            "start": str(info.start),
        }

    def frames(self, start: int = 0, stop: int | None = None) -> Generator[Frame]:
        """Frames `start` to `stop` (exclusive; None: to the end), without a gap in `index`.

        Raises:
            SourceError: a frame has another size or pixel format than the first; all frames before
                it were delivered.
        """
        if stop is not None and stop <= start:
            return
        with closing(self._without_gaps(start, None)) as pictures:
            for index, picture in pictures:
                yield Frame(picture=picture, index=index, time=self.timestamps.time(index))
                if index + 1 == stop:
                    return

    def shortfall(self) -> str | None:
        """What was lost, once `frames` has come to the end of the file; None if nothing."""
        count = self.timestamps.count or 0
        kept = count if self._end is None else self._end
        losses = []
        if self._scan.missing_seconds:
            seconds = float(self._scan.missing_seconds)
            of = f" of {self._declared_count}" if self._declared_count > kept else ""
            losses.append(
                f"cut off {seconds:.2f} s before its declared end ({kept}{of} frames left)"
            )
        elif self._scan.ticks and kept < count:
            losses.append(f"damaged at its end ({kept} of {count} frames left)")
        if self._repeated:
            losses.append(
                f"damaged within (frames shown as the one before them: {len(self._repeated)})"
            )
        return f"{self.info.name} is {' and '.join(losses)}." if losses else None

    def _without_gaps(
        self,
        start: int,
        stop: int | None,
        last: av.VideoFrame | None = None,
        threads: Threads = "AUTO",
    ) -> Pictures:
        """(index, picture) from `start` on; what cannot be decoded repeats the picture before it.

        Frame threads lose good frames beside damaged ones, so gaps are looked at once more by a
        single thread. Up to `stop`, if given, every index is filled.
        """
        following = start
        with closing(self._pictures(start, threads)) as pictures:
            for index, picture in pictures:
                if self.is_closed:
                    return
                if stop is not None and index >= stop:
                    break
                if index > following and last is not None:
                    yield from self._fill(following, index, last, threads)
                if index >= following:
                    self._require_same(picture, index)
                    yield index, picture
                    following = index + 1
                last = picture
        if stop is not None and last is not None:
            yield from self._fill(following, stop, last, threads)
            return
        self._end = following
        if threads == "AUTO" and following < len(self._scan.ticks):
            yield from self._without_gaps(following, None, last, "NONE")

    def _fill(
        self, start: int, stop: int, last: av.VideoFrame, threads: Threads
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        if threads == "AUTO":
            yield from self._without_gaps(start, stop, last, "NONE")
            return
        for missed in range(start, stop):
            self._repeated.add(missed)
            yield missed, copied(last)

    def _require_same(self, picture: av.VideoFrame, index: int) -> None:
        info = self.info
        if (picture.width, picture.height) != (info.width, info.height):
            raise SourceError(
                f"{info.name} changes from {info.width}x{info.height} to "
                f"{picture.width}x{picture.height} at frame {index}; cut or scale it to one size."
            )
        if picture.format.name != info.pix_fmt:
            raise SourceError(
                f"{info.name} changes from {info.pix_fmt} to {picture.format.name} at frame "
                f"{index}; convert it to one pixel format."
            )

    def _pictures(self, start: int, threads: Threads) -> Pictures:
        """(index, picture) from `start` or the beginning, each as decoded from the beginning.

        Seeking lands on a keyframe. What is shown before that keyframe may lack its references
        (open GOP), and an intra refresh shows nothing for a while; so where `start` does not come
        out, the keyframe before is tried.
        """
        ticks = self._scan.ticks
        if self._scan.is_ordered and 0 < start < len(ticks):
            target = ticks[start]
            for _ in range(SEEKS):
                with open_video(self._source, threads) as (container, stream):
                    keyframe = _seek(container, stream, target)
                    if keyframe is None or keyframe <= ticks[0]:
                        break
                    found = self._from_keyframe(decode(container, stream), keyframe)
                    first = next((pair for pair in found if pair[0] >= start), None)
                    if first is not None and first[0] == start:
                        yield first
                        yield from found
                        return
                    target = min(keyframe, target) - 1
        with open_video(self._source, threads) as (container, stream):
            decoded = decode(container, stream)
            if self._scan.is_ordered:
                yield from self._from_keyframe(decoded, ticks[0])
            else:
                yield from enumerate(decoded)

    def _from_keyframe(
        self, decoded: Iterator[av.VideoFrame], keyframe: int
    ) -> Iterator[tuple[int, av.VideoFrame]]:
        """(index, picture) of what is shown from the keyframe's pts on."""
        ticks = self._scan.ticks
        for picture in decoded:
            if picture.pts is not None and picture.pts >= keyframe:
                index = bisect_left(ticks, picture.pts)
                if index < len(ticks) and ticks[index] == picture.pts:
                    yield index, picture


def _seek(container: InputContainer, stream: VideoStream, target: int) -> int | None:
    """Go to the keyframe before `target` (ticks); its pts, or None where the file cannot seek."""
    try:
        container.seek(target, stream=stream)
        for packet in packets(container, stream):
            if packet.is_keyframe and packet.pts is not None:
                container.seek(target, stream=stream)
                return packet.pts
    except FFmpegError:
        log.debug("The file cannot seek to %d; it is decoded from the beginning.", target)
    return None


def _file_identity(source: VideoInput) -> dict[str, Any]:
    if isinstance(source, str | Path):
        path = Path(source)
        facts = path.stat()
        with path.open("rb") as file:
            return {
                "kind": "file",
                "size": facts.st_size,
                "mtime_ns": facts.st_mtime_ns,
                "sha256_of_ends": _hash_of_ends(file),
            }
    return {
        "kind": "bytes",
        "size": source.seek(0, os.SEEK_END),
        "sha256_of_ends": _hash_of_ends(source),
    }


def _hash_of_ends(file: BinaryIO) -> str:
    """SHA-256 of the first and the last megabyte."""
    size = file.seek(0, os.SEEK_END)
    digest = hashlib.sha256()
    for position in (0, max(0, size - MEGABYTE)):
        file.seek(position)
        digest.update(file.read(MEGABYTE))
    return digest.hexdigest()
