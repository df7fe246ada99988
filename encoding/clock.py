"""One clock for a file with several: concatenated recordings (`cat a.ts b.ts`) or reset clocks.

Where the clock jumps back, a new piece begins, placed right after the piece before. A packet's
number in its stream tells which piece it belongs to; that number is the same for everyone who
reads the file from its beginning.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet
    from av.stream import Stream

BACK = 0.1
"""Seconds by which a packet must come too early to count as a jump, as in ffmpeg."""
FORWARD = 3600.0
"""Seconds longer than any pause. Demuxers take a clock that was set far back for one that wrapped
(after 2**33 ticks of 1/90000 s), and give times hours ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """The packets of one stream in a piece of the file."""

    first: int
    """Number of the first one in the stream."""
    shift: int
    """Ticks to add to get from their own clock to the file's one clock."""
    start: int | None = None
    """Own pts before which pictures lack their references, and are left out."""

    def leaves_out(self, pts: int) -> bool:
        """Whether a picture with this pts on its own clock is left out."""
        return self.start is not None and pts < self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Maps the times of packets to one clock."""

    pieces: dict[int, tuple[Piece, ...]] = field(default_factory=dict)
    """Pieces of each stream, by its index; empty if the clock never jumps."""
    jumps: tuple[tuple[float, float], ...] = ()
    """Each jump, as (seconds at which a packet was due, its own time)."""

    def piece(self, stream: Stream, number: int) -> Piece | None:
        """The piece that packet `number` of a stream belongs to; None if the clock never jumps."""
        pieces = self.pieces.get(stream.index, ())
        place = bisect_right(pieces, number, key=lambda piece: piece.first)
        return pieces[max(0, place - 1)] if pieces else None

    def moved(self, packet: Packet, number: int) -> bool:
        """Whether packet `number` of its stream is used; its times are moved to the one clock."""
        piece = self.piece(packet.stream, number)
        if piece is None:
            return True
        if packet.pts is not None:
            if piece.leaves_out(packet.pts):
                return False
            packet.pts += piece.shift
        if packet.dts is not None:
            packet.dts += piece.shift
        return True

    def on_it(self, packets: Iterable[Packet], stream: Stream) -> Iterator[Packet | None]:
        """The packets of `stream`, from its first, with their times moved; None between pieces."""
        edges = {piece.first for piece in self.pieces.get(stream.index, ())} - {0}
        number = 0
        for packet in packets:
            if not packet.size:
                continue
            if number in edges:
                yield None
            if self.moved(packet, number):
                yield packet
            number += 1


STEADY = Clock()
"""A clock that never jumps."""


@dataclass(slots=True)
class _Span:
    """Where a piece begins and ends in one stream, on its own clock."""

    start: int
    end: int
    base: Fraction
    has_keyframe: bool = False


@dataclass(slots=True)
class _Follower:
    """State of one stream while the file is read."""

    is_leader: bool
    """Whether a jump of this stream alone begins a new piece."""
    count: int = 0
    due: float | None = None
    """Seconds at which its next packet is due, if the clock does not jump."""
    firsts: list[tuple[int, int]] = field(default_factory=list)
    """(piece, number of its first packet there), ascending."""
    spans: dict[int, _Span] = field(default_factory=dict)
    """Keyed by piece."""


class ClockReader:
    """Finds the jumps in the packets of a file, fed to it in file order from the beginning.

    clock = ClockReader(main)
    for packet in packets(container, ...): clock.see(packet)
    clock.clock()

    Where streams of two pieces are interleaved, a packet belongs to the piece whose time is nearer.
    """

    def __init__(self, main: Stream) -> None:
        """`main`: the stream in which pieces follow each other without a gap."""
        self._main = main
        self._followers: dict[int, _Follower] = {}
        self._now: list[float] = [0.0]
        """Seconds of the newest packet of each piece, on its own clock."""
        self._jumps: list[tuple[float, float]] = []

    def see(self, packet: Packet) -> None:
        """Record the next packet; empty ones do not count."""
        if not packet.size:
            return
        stream = packet.stream
        follower = self._followers.get(stream.index)
        if follower is None:
            follower = _Follower(is_leader=stream.type in ("video", "audio"))
            self._followers[stream.index] = follower
        time = packet.dts if packet.dts is not None else packet.pts
        if time is not None:
            seconds = time * float(packet.time_base)
            self._place(follower, seconds)
            follower.due = seconds + (packet.duration or 0) * float(packet.time_base)
            self._measure(follower, packet)
        follower.count += 1

    def clock(self) -> Clock:
        """The one clock for the packets seen."""
        if not self._jumps:
            return STEADY
        shifts = self._shifts()
        pieces = {
            index: tuple(_piece(follower, *place, shifts) for place in follower.firsts)
            for index, follower in self._followers.items()
        }
        return Clock(pieces=pieces, jumps=tuple(self._jumps))

    def _place(self, follower: _Follower, seconds: float) -> None:
        """Find the piece of a packet, which may start a new one."""
        newest, due = len(self._now) - 1, follower.due
        piece = follower.firsts[-1][0] if follower.firsts else None
        if piece is None or due is None:
            piece = newest
        elif piece < newest:
            if abs(seconds - self._now[newest]) < abs(seconds - due):
                piece = newest
        elif follower.is_leader and not -BACK < seconds - due < FORWARD:
            self._jumps.append((due, seconds))
            self._now.append(seconds)
            piece = newest + 1
        self._now[piece] = seconds
        if not follower.firsts or follower.firsts[-1][0] != piece:
            follower.firsts.append((piece, follower.count))

    def _measure(self, follower: _Follower, packet: Packet) -> None:
        time = packet.pts if packet.pts is not None else packet.dts
        assert time is not None  # `see` checked
        end, piece = time + (packet.duration or 0), follower.firsts[-1][0]
        span = follower.spans.get(piece)
        is_keyframe = packet.is_keyframe and packet.stream.type == "video"
        if span is None or (is_keyframe and not span.has_keyframe):
            base = Fraction(packet.time_base.numerator, packet.time_base.denominator)
            follower.spans[piece] = _Span(time, end, base, is_keyframe)
        else:
            span.start = span.start if span.has_keyframe else min(span.start, time)
            span.end = max(span.end, end)

    def _shifts(self) -> list[Fraction]:
        """Seconds from the clock of each piece to the one clock, which is the first piece's."""
        shifts, end = [], None
        for piece in range(len(self._now)):
            start, stop = self._extent(piece)
            shifts.append(Fraction(0) if end is None else end - start)
            end = stop + shifts[-1]
        return shifts

    def _extent(self, piece: int) -> tuple[Fraction, Fraction]:
        """Seconds at which a piece begins and ends, by its main stream, or else by any."""
        main = self._followers.get(self._main.index)
        if main is not None and piece in main.spans:
            spans = [main.spans[piece]]
        else:
            spans = [f.spans[piece] for f in self._followers.values() if piece in f.spans]
        starts, ends = zip(*((s.start * s.base, s.end * s.base) for s in spans), strict=True)
        return min(starts), max(ends)


def _piece(follower: _Follower, number: int, first: int, shifts: list[Fraction]) -> Piece:
    span = follower.spans[number]
    is_cut = span.has_keyframe and number > 0
    return Piece(
        first=first,
        shift=round(shifts[number] / span.base),
        start=span.start if is_cut else None,
    )
