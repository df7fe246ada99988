"""What the packets of a file tell about its frames, without decoding them."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING

from av.format import Flags

from .clock import STEADY, Clock, ClockReader
from .container import MISSING, VideoInput, exact, open_container, packets, pictures
from .errors import SourceError
from .timestamps import Timestamps, ascending, filled, timestamps
from .vpx import is_hidden

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.stream import Stream
    from av.video.stream import VideoStream

log = logging.getLogger("tlbvfi.scan")

REORDER = 32
"""Frames that may be missing before the last packets of a scan that stopped early."""

VOP = b"\0\0\1\xb6"
"""What a picture of MPEG-4 part 2 begins with."""

NOTICEABLE = Fraction(1, 2)
"""Seconds by which a declared duration may exceed the actual one: rounding, not damage."""

FROM_ZERO = {"matroska,webm", "nut"}
"""Formats in which FFmpeg declares when a file ends, not how long it lasts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """The frames of a video stream that are shown, from the first that can be decoded."""

    timestamps: Timestamps
    ticks: Sequence[int]
    """Presentation times, ascending, in units of the stream's time base."""
    is_ordered: bool
    """Whether a decoded frame is identified by its pts; otherwise only by its position."""
    missing_seconds: Fraction
    """How much shorter the file is than declared."""
    clock: Clock = STEADY
    """The clock that the times are on, which differs from the file's own if that jumps."""


@dataclass(slots=True, kw_only=True)
class _Packets:
    """Facts gathered while demuxing."""

    pts: array[int]
    """In decoding order; MISSING where a packet has none."""
    dts: array[int]
    """Of the same packets."""
    end: int = MISSING
    """When the last picture ends, in units of the stream's time base."""
    is_reordered: bool = False
    is_packed: bool = False
    """Whether a packet holds two pictures, as DivX and Xvid wrote them into AVI: then the decoder
    returns pictures with the times of later packets."""
    end_beside: Fraction = Fraction(0)
    """When the last sound or subtitle ends, in seconds."""
    clock: Clock = STEADY


def scan(
    container: InputContainer,
    stream: VideoStream,
    first: VideoFrame,
    *,
    limit: int | None = None,
    input_rate: Fraction | None = None,
) -> Scan:
    """Times of all frames, or of those in the first `limit` packets (the count is then unknown).

    `first` is the first frame that can be decoded. Packets that an edit list hides (flag discard),
    packets that show no frame (VP8) and frames before `first` are left out. Frames without pts
    follow each other at `input_rate` or else the declared rate. If the demuxer makes up the pts (AVI
    has none: it numbers packets in decoding order), packets hold two pictures or some pts are equal,
    frames take the times in ascending order, equal ones moved later by a tick.

    Raises:
        SourceError: `input_rate` is given although the file has timestamps of its own.
    """
    base = exact(stream.time_base) or Fraction(1, 1000)
    found = _demux(container, stream, limit)
    rates = (
        input_rate,
        exact(stream.codec_context.framerate),
        exact(stream.average_rate),
        exact(stream.guessed_rate),
        exact(stream.base_rate),
    )
    without = found.pts.count(MISSING)
    if without == len(found.pts):
        return _numbered(found, base, rates)
    if input_rate is not None:
        folder = ", or name the folder that holds the images" if len(found.pts) == 1 else ""
        raise SourceError(
            "An input rate was given for a file that has timestamps of its own; leave it "
            f"out{folder}."
        )
    shown = _on_one_clock(found, stream)
    ticks = _with_missing(shown, base, rates) if without else sorted(shown)
    has_invented = bool(stream.codec_context.has_b_frames) and not found.is_reordered
    is_known = not has_invented and not found.is_packed and first.pts in ticks
    is_ordered = is_known and not without and len(set(ticks)) == len(ticks)
    if is_known:
        ticks = [tick for tick in ticks if tick >= (first.pts or 0)]
    shown_at = _decoded_at(found, ticks) if container.format.name == "avi" else ticks
    is_stopped = limit is not None and len(found.pts) >= limit
    kept = slice(-REORDER if is_stopped else None)
    ticks = array("q", ascending(ticks[kept]))
    times = timestamps(array("q", ascending(shown_at[kept])), base, rates)
    return Scan(
        timestamps=replace(times, count=None) if is_stopped else times,
        ticks=ticks,
        is_ordered=is_ordered,
        missing_seconds=(
            Fraction(0)  # the declared duration ignores jumps
            if found.clock.jumps
            else _missing(
                container, stream, base, max(ticks[-1], found.end) * base, found.end_beside
            )
        ),
        clock=found.clock,
    )


def read_clock(source: VideoInput) -> Clock:
    """The one clock of a file of a kind that `may_jump`; this reads the whole file.

    Raises:
        SourceError: the file cannot be opened.
    """
    with open_container(source) as container:
        main = pictures(container) or next(iter(container.streams.audio), None)
        if main is None:
            return STEADY
        watch = ClockReader(main)
        for packet in packets(container, *_timed_streams(container, main)):
            watch.see(packet)
        return watch.clock()


def may_jump(container: InputContainer) -> bool:
    """Whether FFmpeg expects clocks to jump in files of this kind (MPEG-TS, MPEG-PS)."""
    return bool(container.format.flags & Flags.ts_discont.value)


def _timed_streams(container: InputContainer, main: Stream) -> list[Stream]:
    """The streams that tell when the clock jumps; the same for every caller."""
    beside = (*container.streams.audio, *container.streams.subtitles)
    return [main, *(stream for stream in beside if stream.index != main.index)]


def _demux(container: InputContainer, stream: VideoStream, limit: int | None) -> _Packets:
    found = _Packets(pts=array("q"), dts=array("q"))
    watch = ClockReader(stream) if may_jump(container) else None
    codec = stream.codec_context.codec.canonical_name
    for packet in packets(container, *_timed_streams(container, stream)):
        if watch is not None:
            watch.see(packet)
        if packet.stream.index != stream.index:
            base = exact(packet.time_base)
            if packet.pts is not None and base is not None:
                end = (packet.pts + (packet.duration or 0)) * base
                found.end_beside = max(found.end_beside, end)
        elif packet.size and not packet.is_discard and not is_hidden(packet, codec):
            pts = MISSING if packet.pts is None else packet.pts
            found.is_reordered |= bool(found.pts) and MISSING < pts < found.pts[-1]
            found.is_packed |= codec == "mpeg4" and bytes(packet).count(VOP) > 1
            found.pts.append(pts)
            found.dts.append(MISSING if packet.dts is None else packet.dts)
            if pts != MISSING:
                found.end = max(found.end, pts + (packet.duration or 0))
            if limit is not None and len(found.pts) >= limit:
                break
    found.clock = watch.clock() if watch else STEADY
    return found


def _on_one_clock(found: _Packets, stream: VideoStream) -> array[int]:
    """The pts of the pictures that are used, on the one clock."""
    if not found.clock.jumps:
        return found.pts
    used = array("q")
    for number, pts in enumerate(found.pts):
        piece = found.clock.piece(stream, number)
        if piece is None or pts == MISSING:
            used.append(pts)
        elif not piece.leaves_out(pts):
            used.append(pts + piece.shift)
    return used


def _numbered(found: _Packets, base: Fraction, rates: Iterable[Fraction | None]) -> Scan:
    """Frames at a rate from 0 on, for streams without timestamps."""
    rate, count = _first_of(rates), len(found.pts)
    log.warning(
        "The file has no timestamps; its %d packets are treated as frames at %s per second.",
        count,
        rate,
    )
    return Scan(
        timestamps=Timestamps(start=Fraction(0), rate=rate, count=count, time_base=base),
        ticks=(),
        is_ordered=False,
        missing_seconds=Fraction(0),
    )


def _with_missing(
    pts: Sequence[int], base: Fraction, rates: Iterable[Fraction | None]
) -> list[int]:
    """All times, ascending, if only some packets have one."""
    log.warning(
        "%d of the %d packets have no timestamps; their frames are shown evenly between the others.",
        sum(tick == MISSING for tick in pts),
        len(pts),
    )
    known = [None if tick == MISSING else tick for tick in pts]
    return filled(known, 1 / (_first_of(rates) * base))


def _decoded_at(found: _Packets, ticks: Sequence[int]) -> Sequence[int]:
    """When the pictures with these ascending pts are shown in AVI: in turn, as they are decoded.

    AVI has no other times, and FFmpeg guesses pts that are up to some frames later, which the sound
    is not. Empty packets behind the first picture stand for a delay of the encoder, not for a longer
    duration, which is why that picture keeps its distance to the next.
    """
    if MISSING in found.dts:
        return ticks
    times = sorted(found.dts)[len(found.dts) - len(ticks) :]
    if len(times) > 1:
        times[0] = max(times[0], times[1] - (ticks[1] - ticks[0]))
    return times


def _first_of(rates: Iterable[Fraction | None]) -> Fraction:
    return next((rate for rate in rates if rate), Fraction(25))


def _missing(
    container: InputContainer,
    stream: VideoStream,
    base: Fraction,
    end: Fraction,
    end_beside: Fraction,
) -> Fraction:
    """Seconds between the declared end and the actual end."""
    whole, own = Fraction(container.duration or 0, 1_000_000), (stream.duration or 0) * base
    # One that equals the container's may be taken from there, unless an index counts the frames.
    if own and (stream.frames or abs(own - whole) > base):
        return _noticeable((stream.start_time or 0) * base + own - end)
    if whole:
        start = 0 if container.format.name in FROM_ZERO else container.start_time or 0
        declared = Fraction(start, 1_000_000) + whole
        return _noticeable(declared - max(end, end_beside))
    return Fraction(0)


def _noticeable(seconds: Fraction) -> Fraction:
    return seconds if seconds > NOTICEABLE else Fraction(0)
