"""Encodes frames with explicit timestamps into one file that is either complete or absent.

    with VideoWriter(path, encoder, stream) as writer:
        writer.write(picture, pts)

Decode timestamps are recomputed here, because encoders give unusable ones for files of one or two
frames (x264: too late by the reorder delay; x265: none at all).
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import av
from av import VideoFormat
from av.error import FFmpegError
from av.filter import Graph
from av.video.stream import VideoStream

from .color import rounded_to_half
from .container import file_url
from .durable import AtomicFile, StepHook, disk_errors, no_step
from .errors import EncoderError
from .frame import ColorTags
from .profiles import Encoder, configure_context, quiet_encoders, require_rate

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import OutputContainer
    from av.video.codeccontext import VideoCodecContext

log = logging.getLogger("tlbvfi.writer")

MUXERS = {
    ".mp4": "mp4",
    ".mov": "mov",
    ".mkv": "matroska",
    ".webm": "webm",
    ".nut": "nut",
    ".avi": "avi",
}
"""FFmpeg's muxer for each suffix we write."""
MOST_TERM = 2**31 - 1
"""FFmpeg holds the terms of a fraction in signed 32-bit integers."""
ISO_MEDIA = (".mp4", ".mov")
"""The ISO base media file format: it holds any time exactly, has edit lists and tags of codecs."""

Beside = Callable[["OutputContainer"], Iterator[tuple[float, "Packet"]]]
"""Adds streams and metadata to a container whose header is not yet written, and yields the packets
of these streams as (decode time in seconds, packet), in decode order."""


def nothing_beside(out: OutputContainer) -> Iterator[tuple[float, Packet]]:
    """Add nothing: the video stays the only stream."""
    return iter(())


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSpec:
    """Description of a stream of frames, apart from its compression."""

    width: int
    height: int
    time_base: Fraction
    """Seconds per tick of the pts handed to the writer."""
    rate: Fraction
    """Frames per second, constant or average; encoders use it for rate control."""
    color: ColorTags = field(default_factory=ColorTags)
    """The tags to write; see `color.stream_tags` for RGB."""
    sample_aspect_ratio: Fraction | None = None
    rotation: int = 0
    """Degrees for the display matrix, as `VideoInfo.rotation`."""
    is_mirrored: bool = False
    mastering: dict[str, str] = field(default_factory=dict)
    """HDR10 static metadata in x265's notation (`master-display`, `max-cll`)."""

    @property
    def step(self) -> int:
        """Ticks from frame to frame, rounded where the rate is an average; at least 1."""
        return max(1, round(1 / (self.rate * self.time_base)))


class VideoWriter:
    """A video stream being encoded into a file of its own.

    The file appears under its name only when the `with` block ends without an exception; `on_step`
    is called at each step (`durable`). Writing into a file object leaves its content undefined on
    failure.

    Raises:
        EncoderError: the encoder cannot be opened, fails, or gets a frame of another format.
        OutputError: the disk is full or the target is not writable.
    """

    def __init__(
        self,
        target: Path | BinaryIO,
        encoder: Encoder,
        stream: StreamSpec,
        *,
        suffix: str | None = None,
        options: dict[str, str] | None = None,
        beside: Beside = nothing_beside,
        if_full: str = "free some space",
        on_step: StepHook = no_step,
    ) -> None:
        """`suffix` picks the muxer where `target` has none; `options` are the muxer's.

        `beside`: streams next to the video, interleaved with its packets by decode time.
        `if_full` is the advice given when the disk is full.
        """
        self.packets = 0
        """Packets written, equal to the frames once the writer is closed."""
        self.bytes = 0
        """Bytes of these packets, without the container's share."""
        self._encoder, self._spec = encoder, stream
        self._on_step, self._if_full = on_step, if_full
        self._file = AtomicFile(target, on_step=on_step) if isinstance(target, Path) else None
        self._name = target if isinstance(target, Path) else Path("<memory>")
        ending = suffix or (target.suffix if isinstance(target, Path) else encoder.suffix)
        self._last_pts: int | None = None
        self._next_dts: deque[int] = deque(
            (i - encoder.reorder) * stream.step for i in range(encoder.reorder)
        )
        self._durations: dict[int, int] = {}
        self._held: deque[Packet] = deque()
        self._alike = _made_alike(stream, encoder.pix_fmt) if encoder.name == "ffv1" else None
        where = file_url(self._file.temporary) if self._file else target
        with self._disk_errors():
            self._container = av.open(
                where, "w", format=MUXERS[ending], container_options=options or {}
            )
        try:
            self._stream, self._beside = self._open_streams(ending, beside)
            self._next_beside = next(self._beside, None)
        except BaseException:
            self.abort()
            raise

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abort()
        else:
            self.finish()

    def write(self, picture: VideoFrame, pts: int) -> None:
        """Encode `picture` to be shown at `pts` ticks; its own pts and picture type are replaced.

        Raises:
            EncoderError: another size or pix_fmt than planned, or pts not after the last one.
        """
        self._refuse_other(picture)
        self._note_pts(pts)
        if self._encoder.options.get("format") == "half":
            picture = rounded_to_half(picture)
        if self._alike is not None:
            picture = self._alike(picture)
        picture.pts, picture.time_base = pts, self._spec.time_base
        picture.pict_type = 0  # else the source's I/P/B pattern is imposed on the encoder
        self._tag(picture)
        self._encode(picture)

    def finish(self, check: Callable[[Path], None] | None = None) -> None:
        """Flush, close and, for a path, fsync, check and rename.

        `check` gets the closed temporary file and may raise. It is not an attribute: a writer that
        refers to its owner would keep its encoder, 11 MB for x264, until the next full collection.

        Raises:
            EncoderError: the encoder fails or no frame was written.
            OutputError: the disk is full.
        """
        try:
            if self._last_pts is None:
                raise EncoderError(f"{self._name}: no frame was written, so there is no video.")
            self._durations[self._last_pts] = self._spec.step
            self._encode(None)
            self._on_step("before close")
            with self._disk_errors():
                self._mux_beside()
                self._container.close()
            self._on_step("after close")
            if self._file is not None:
                with self._disk_errors():
                    self._file.commit(check)
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Give up and leave nothing readable behind."""
        try:
            self._container.close()
        except (OSError, FFmpegError) as error:  # after a full disk, closing fails again
            log.debug("%s: %s while giving up", self._name, error)
        if self._file is not None:
            self._file.discard()

    def _open_streams(
        self, suffix: str, beside: Beside
    ) -> tuple[VideoStream, Iterator[tuple[float, Packet]]]:
        spec, encoder = self._spec, with_mastering(self._encoder, self._spec.mastering)
        require_rate(encoder, spec.rate, spec.time_base)
        try:
            stream = self._container.add_stream(encoder.name, rate=_in_32_bits(spec.rate))
            assert isinstance(stream, VideoStream)  # narrows the type; the catalog has only video
            self._describe(stream, encoder, suffix)
            with quiet_encoders():
                stream.codec_context.open()
            others = beside(self._container)
            with self._disk_errors():
                self._container.start_encoding()
        except (FFmpegError, ValueError) as error:
            raise EncoderError(
                f"{encoder.name} cannot be opened for {spec.width}x{spec.height} "
                f"{encoder.pix_fmt} in {suffix} ({error}): choose another codec."
            ) from error
        return stream, others

    def _describe(self, stream: VideoStream, encoder: Encoder, suffix: str) -> None:
        spec, context = self._spec, stream.codec_context
        stream.width, stream.height, stream.pix_fmt = spec.width, spec.height, encoder.pix_fmt
        stream.time_base = context.time_base = spec.time_base
        configure_context(context, encoder)
        self._tag(context)
        if spec.sample_aspect_ratio is not None:
            context.sample_aspect_ratio = spec.sample_aspect_ratio
        if encoder.tag and suffix in ISO_MEDIA:
            context.codec_tag = encoder.tag
        if spec.is_mirrored:  # PyAV rotates first; that reverses the upper row, from which we know
            stream.set_display_rotation(180 - spec.rotation, hflip=True)
        elif spec.rotation:
            stream.set_display_rotation(spec.rotation)

    def _refuse_other(self, picture: VideoFrame) -> None:
        # The encoder would rescale silently, with a matrix of its own choosing.
        planned = (self._spec.width, self._spec.height, self._encoder.pix_fmt)
        given = (picture.width, picture.height, picture.format.name)
        if given != planned:
            raise EncoderError(
                f"{self._name} was planned as {planned[0]}x{planned[1]} {planned[2]} but got a "
                f"frame of {given[0]}x{given[1]} {given[2]}: convert it first."
            )

    def _tag(self, target: VideoFrame | VideoCodecContext) -> None:
        # prores_ks writes the tags of each frame, all others those of the stream.
        color = self._spec.color
        target.color_primaries, target.color_trc = color.primaries, color.transfer
        target.colorspace, target.color_range = color.matrix, color.range

    def _note_pts(self, pts: int) -> None:
        if self._last_pts is not None:
            if pts <= self._last_pts:
                raise EncoderError(
                    f"{self._name}: pts {pts} does not come after {self._last_pts}: "
                    "write frames in presentation order."
                )
            self._durations[self._last_pts] = pts - self._last_pts
        else:
            self._next_dts = deque(pts + dts for dts in self._next_dts)
        self._last_pts = pts
        self._next_dts.append(pts)

    def _encode(self, picture: VideoFrame | None) -> None:
        try:
            self._held.extend(packet for packet in self._stream.encode(picture) if packet.size)
        except FFmpegError as error:
            raise EncoderError(
                f"{self._encoder.name} failed after {self.packets} frames of {self._name} "
                f"({error.strerror}): choose another codec."
            ) from error
        with self._disk_errors():
            while self._held and self._held[0].pts in self._durations:
                self._mux(self._held.popleft())

    def _mux(self, packet: Packet) -> None:
        assert packet.pts is not None  # `_encode` looked it up
        packet.dts = self._next_dts.popleft()
        packet.duration = self._durations.pop(packet.pts)
        if packet.dts > packet.pts:
            raise EncoderError(
                f"{self._encoder.name} reorders by more than {self._encoder.reorder} frames: "
                "choose another codec."
            )
        self._mux_beside(float(packet.dts * self._spec.time_base))
        self.packets += 1
        self.bytes += packet.size
        self._container.mux(packet)

    def _mux_beside(self, until: float | None = None) -> None:
        """Write the packets of other streams decoded up to `until` seconds; None: all of them."""
        while self._next_beside is not None:
            seconds, packet = self._next_beside
            if until is not None and seconds > until:
                return
            self._container.mux(packet)
            self._next_beside = next(self._beside, None)

    def _disk_errors(self) -> AbstractContextManager[None]:
        return disk_errors(self._name, if_full=self._if_full)


def _made_alike(spec: StreamSpec, pix_fmt: str) -> Callable[[VideoFrame], VideoFrame]:
    """Gives every frame the sample aspect ratio of the stream, and makes it progressive.

    FFV1 stores both with each frame. Source frames have their own and mid frames have none, and
    players would change the shape of the picture from frame to frame.
    """
    graph = Graph()
    source = graph.add_buffer(
        width=spec.width, height=spec.height, format=VideoFormat(pix_fmt), time_base=spec.time_base
    )
    aspect = graph.add("setsar", str(spec.sample_aspect_ratio or 0))
    graph.link_nodes(source, aspect, graph.add("setfield", "prog"), graph.add("buffersink"))
    graph.configure()

    def alike(picture: VideoFrame) -> VideoFrame:
        graph.vpush(picture)
        return graph.vpull()

    return alike


def stores_mastering(encoder: Encoder) -> bool:
    """Whether HDR10 static metadata reaches the file with this encoder."""
    return encoder.name in ("libx265", "libsvtav1")


def with_mastering(encoder: Encoder, mastering: dict[str, str]) -> Encoder:
    """The encoder with HDR10 static metadata among its options, where it can store them."""
    if not mastering or not stores_mastering(encoder):
        return encoder
    if encoder.name == "libx265":
        key, added = "x265-params", [*_pairs(mastering), "hdr10=1", "repeat-headers=1"]
    else:
        key, added = "svtav1-params", _pairs(_svt_words(mastering))
    joined = ":".join(filter(None, [encoder.options.get(key, ""), *added]))
    return replace(encoder, options={**encoder.options, key: joined})


def _pairs(values: dict[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


def _svt_words(mastering: dict[str, str]) -> dict[str, str]:
    """x265 takes chromaticity in 1/50000 and luminance in 1/10000 cd/m2, SVT-AV1 plain values."""
    words = {}
    if "max-cll" in mastering:
        words["content-light"] = mastering["max-cll"]
    if "master-display" in mastering:
        words["mastering-display"] = "".join(
            f"{name}({','.join(_scaled(number, name) for number in numbers.split(','))})"
            for name, numbers in (
                part.rstrip(")").split("(") for part in mastering["master-display"].split(")")[:-1]
            )
        )
    return words


def _scaled(number: str, name: str) -> str:
    return f"{int(number) / (10_000 if name == 'L' else 50_000):.5f}"


def _in_32_bits(rate: Fraction) -> Fraction:
    """`rate`, or the nearest one whose terms FFmpeg can hold: an average may have longer ones."""
    if max(rate.as_integer_ratio()) <= MOST_TERM:
        return rate
    return rate.limit_denominator(MOST_TERM // math.ceil(rate))
