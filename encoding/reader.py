"""Video files as a source of frames: streamed, decoded on all cores, frame-exact from any index."""

from __future__ import annotations

import hashlib
import logging
import os
from bisect import bisect_left
from collections.abc import Generator, Iterator
from contextlib import closing
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
from av.error import FFmpegError

from .closable import Closable
from .container import VideoInput, Way, decode, open_video, packets, reading, source_name
from .errors import DecoderError, SourceError
from .frame import Frame
from .hwaccel import find_hardware
from .layout import copied
from .probe import VideoInfo, describe, first_picture
from .scan import scan
from .timestamps import Timestamps
from .unchanged import file_facts, require_unchanged, unchanged

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

log = logging.getLogger("tlbvfi.reader")

Decoded = Iterator[av.VideoFrame | None]
Pictures = Generator[tuple[int, av.VideoFrame], None, None]
PicturesOrDamage = Generator[tuple[int, av.VideoFrame | None], None, None]

MEGABYTE = 1 << 20
SEEKS = 8
"""Keyframes to try, each before the last; after that, decoding from the beginning is no slower."""


class VideoSource(Closable):
    """Frames of a video file, or of its bytes in memory.

    Opening it decodes one frame and reads all packets once, for the exact times; iterating needs
    memory for a handful of frames, whatever the length. A frame in the middle that cannot be
    decoded is replaced by the one before it, so that count, order and sound stay right;
    `shortfall` reports the loss.

    `hwaccel`: the decoder, see `hwaccel.find_hardware`. The frames are the same, so it is not part
    of `identity`; but only software notices damage inside a picture.

    Raises:
        SourceError: missing, not a video, nothing in it can be decoded, or `input_rate` given for a
            file that has timestamps.
        DecoderError: the hardware that `hwaccel` names cannot decode this video here.
    """

    def __init__(
        self,
        source: VideoInput,
        *,
        input_rate: Fraction | None = None,
        hwaccel: str = "auto",
    ) -> None:
        super().__init__()
        self._source = source
        first = first_picture(source)
        self._facts = file_facts(source)
        with open_video(source) as (container, stream):
            self._scan = scan(container, stream, first, input_rate=input_rate)
            self._declared_count = stream.frames
            self.timestamps: Timestamps = self._scan.timestamps
            self.info: VideoInfo = describe(
                source_name(source), container, stream, first, self.timestamps
            )
            self._hardware = find_hardware(
                hwaccel, source, stream, first, has_times=self._scan.is_ordered
            )
        self._count = len(self._scan.ticks)
        self._repeated: set[int] = set()
        self._end: int | None = None
        for due, found in self._scan.clock.jumps:
            log.warning(
                "The clock of %s jumps from %.2f s to %.2f s; the rest follows without a gap.",
                self.info.name,
                due,
                found,
            )
        if self.info.is_interlaced:
            log.warning(
                "%s is interlaced; mid frames of moving parts will comb. Deinterlace it first.",
                self.info.name,
            )

    @property
    def decoder(self) -> str:
        """The decoder in use: the type of GPU device (`cuda`), or `software`."""
        return self._hardware.device if self._hardware else "software"

    @property
    def identity(self) -> dict[str, Any]:
        """Size, modification time, stream facts, and a hash of the first and the last megabyte."""
        info = self.info
        return {
            **file_identity(self._source),
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
            SourceError: a frame has another size or pixel format than the first, or the file has
                changed since it was opened; all frames before it were delivered.
        """
        if (stop is not None and stop <= start) or (self._scan.is_ordered and start >= self._count):
            return
        with (
            unchanged(self._source, self._facts),
            closing(self._without_gaps(start)) as pictures,
        ):
            for index, picture in pictures:
                require_unchanged(self._source, self._facts)  # so that no chunk holds other frames
                yield Frame(picture=picture, index=index, time=self.timestamps.time(index))
                if index + 1 == stop:
                    return

    def shortfall(self) -> str | None:
        """What was lost, once `frames` has reached the end of the file; None if nothing."""
        count = self._count
        kept = count if self._end is None else self._end
        losses = []
        if self._scan.missing_seconds:
            seconds = float(self._scan.missing_seconds)
            of = f" of {self._declared_count}" if self._declared_count > kept else ""
            losses.append(
                f"cut off {seconds:.2f} s before its declared end ({kept}{of} frames left)"
            )
        elif self._scan.is_ordered and kept < count:
            losses.append(f"damaged at its end ({kept} of {count} frames left)")
        if self._repeated:
            losses.append(
                f"damaged inside (frames replaced by the one before: {len(self._repeated)})"
            )
        return f"{self.info.name} is {' and '.join(losses)}." if losses else None

    def _without_gaps(self, start: int) -> Pictures:
        """(index, picture) from `start` on; an undecodable frame repeats the picture before it.

        From the first sign of damage on, a single thread decodes: frame threads handle damage
        differently from run to run, and lose good frames next to bad ones.
        """
        following, last = start, None
        for read in (self._by_hardware, self._undamaged) if self._scan.is_ordered else ():
            with closing(read(following)) as pictures:
                for index, picture in pictures:
                    yield index, picture
                    following, last = index + 1, picture
        if not self._scan.is_ordered or following < self._count:
            with closing(self._patched(following, last)) as pictures:
                for index, picture in pictures:
                    yield index, picture
                    following = index + 1
        if not self.is_closed:
            self._end = following

    def _by_hardware(self, start: int) -> Pictures:
        """Frames from `start` on while the GPU gives them; after a failure it is not used again."""
        hardware = self._hardware
        if hardware is None:
            return
        following, problem = start, "a frame is missing or damaged"
        try:
            with closing(self._undamaged(start, hardware)) as pictures:
                for index, picture in pictures:
                    yield index, picture
                    following = index + 1
        except DecoderError as error:
            problem = str(error)
        if following < self._count and not self.is_closed:
            log.warning(
                "%s: %s stops at frame %d (%s); software continues from there.",
                self.info.name,
                hardware.device,
                following,
                problem,
            )
            self._hardware = None

    def _undamaged(self, start: int, way: Way = "AUTO") -> Pictures:
        """Frames from `start` up to the first sign of damage."""
        if start >= self._count or self.is_closed:
            return
        following = start
        with closing(self._decoded(start, way)) as pictures:
            for index, picture in pictures:
                if self.is_closed:
                    return
                if picture is None or index > following:
                    log.debug("Damage near frame %d: continuing with one thread.", following)
                    return
                if index == following:
                    self._require_same(picture, index)
                    yield index, picture
                    following += 1

    def _patched(self, start: int, last: av.VideoFrame | None) -> Pictures:
        """Frames from `start` on, each missing one as a copy of the one before it (first: `last`)."""
        following = start
        with closing(self._decoded(start, "NONE")) as pictures:
            for index, picture in pictures:
                if self.is_closed:
                    return
                if picture is None:
                    continue
                if last is not None:
                    for missed in range(following, index):
                        self._repeated.add(missed)
                        yield missed, copied(last)
                if index >= following:
                    self._require_same(picture, index)
                    yield index, picture
                    following = index + 1
                last = picture

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

    def _decoded(self, start: int, way: Way) -> PicturesOrDamage:
        """(index, picture) from `start` or the frame before it; picture None where one was damaged.

        Seeking lands on a keyframe. Frames shown before that keyframe may lack their references
        (open GOP), and an intra refresh outputs nothing for a while; so if nothing comes out up
        to `start`, the previous keyframe is tried. If the clock jumps, the times to seek by may
        occur twice: everything is decoded from the beginning.
        """
        ticks = self._scan.ticks
        if self._scan.is_ordered and start > 0 and not self._scan.clock.jumps:
            target = ticks[start]
            for _ in range(SEEKS):
                with open_video(self._source, way) as (container, stream):
                    keyframe = _seek(container, stream, target)
                    if keyframe is None or keyframe <= ticks[0]:
                        break
                    found = self._by_pts(decode(container, stream, way), keyframe)
                    if first := _skipped(found, start, way):
                        yield from chain(first, found)
                        return
                    target = min(keyframe, target) - 1
        with open_video(self._source, way) as (container, stream):
            decoded = decode(container, stream, way, self._scan.clock)
            yield from (
                self._by_pts(decoded, ticks[0]) if self._scan.is_ordered else _by_turn(decoded)
            )

    def _by_pts(self, decoded: Decoded, keyframe: int) -> PicturesOrDamage:
        """Pictures shown from the keyframe's pts on; damage before it does not matter."""
        ticks = self._scan.ticks
        index = -1
        for picture in decoded:
            if picture is None:
                if index >= 0:
                    yield index, None
            elif picture.pts is not None and picture.pts >= keyframe:
                position = bisect_left(ticks, picture.pts)
                if position < len(ticks) and ticks[position] == picture.pts:
                    index = position
                    yield index, picture


def _skipped(
    found: PicturesOrDamage, start: int, way: Way
) -> list[tuple[int, av.VideoFrame | None]]:
    """Read up to `start`; the last items read, or none if `found` began too late."""
    last: list[tuple[int, av.VideoFrame | None]] = []
    for index, picture in found:
        if picture is None and way == "NONE":
            continue
        if picture is None or index == start:
            return [(index, picture)]
        if index > start:
            return [*last, (index, picture)] if last else []
        last = [(index, picture)]
    return last


def _by_turn(decoded: Decoded) -> PicturesOrDamage:
    index = -1
    for picture in decoded:
        index += picture is not None
        yield index, picture


def _seek(container: InputContainer, stream: VideoStream, target: int) -> int | None:
    """Seek to the keyframe before `target` (ticks); its pts, or None if the file cannot seek."""
    try:
        container.seek(target, stream=stream)
        for packet in packets(container, stream):
            if packet.is_keyframe and packet.pts is not None:
                container.seek(target, stream=stream)
                return packet.pts
    except FFmpegError:
        log.debug("The file cannot seek to %d; it is decoded from the beginning.", target)
    return None


def file_identity(source: VideoInput) -> dict[str, Any]:
    """Size, modification time if it has one, and a hash of the first and the last megabyte."""
    if isinstance(source, str | Path):
        path = Path(source)
        with reading(path), path.open("rb") as file:
            facts = path.stat()
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
