"""Decodes sound for re-encoding, in flat memory: as it is, or slowed by an exact factor.

    decode = SlowSound(stream, Window(start=Fraction(0), stretch=Fraction(4)))
    for packet in container.demux(stream):
        for frame in decode(packet): ...
    for frame in decode(None): ...

Either way it stays in sync with the video: missing or damaged sound becomes silence. Slowed sound
keeps its pitch, by FFmpeg's `atempo` (waveform similarity overlap-add). That does not drift, but it
drops the first half of a window, which makes all that follows too early, and does not finish the
last one. So half a window is added before the sound and some silence after it, and as much is cut
off.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from av import AudioFifo, AudioFrame
from av.error import FFmpegError
from av.filter import Graph

from .container import begin_of, exact

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.packet import Packet

    from .window import Window

log = logging.getLogger("tlbvfi.sound")

PREROLL = Fraction(1)
"""Seconds decoded before a window begins, because decoders start with noise: Opus needs 80 ms."""
SMALLEST_GAP = 0.03
"""Shortest gap, in seconds, to fill with silence; shorter ones are the container's coarse clock."""
WITHOUT_GAPS = f"async=1:min_comp=1e-6:min_hard_comp={SMALLEST_GAP}"
"""Options of `aresample` that fill gaps."""
SILENCE = 10
"""Seconds of silence that FFmpeg may fill a gap with at once: it holds all of them."""
TAIL = 0.2
"""Seconds of silence that flush the last sound: two of the longest windows of `atempo`."""
SLOWEST = Fraction(1, 2)
"""The slowest tempo of one `atempo`."""


class SlowSound:
    """Decodes a window of an audio stream, slowed, on the output's clock."""

    def __init__(self, stream: AudioStream, window: Window) -> None:
        self._stream, self._window = stream, window
        self._decoded = replace(window, start=window.start - PREROLL)
        self._graph: Graph | None = None
        self._slowed = AudioFifo()
        self._start = 0
        self._end = window.start

    def __call__(self, packet: Packet | None) -> Iterator[AudioFrame]:
        """Frames that are ready after a packet, given as read; None marks the end."""
        if packet is not None and not self._is_near(packet):
            return
        for frame in _undamaged(self._stream, packet):
            last = self._end
            begin, self._end = _span(frame, last)
            if self._graph is None:
                self._graph = self._begun(frame, max(begin, self._window.start))
                last = begin
            for each in _in_short_gaps(frame, last):
                self._graph.push(each)
                yield from self._ready(self._graph)
        if packet is None and self._graph is not None:
            self._graph.push(None)
            yield from self._ready(self._graph)

    def _is_near(self, packet: Packet) -> bool:
        begin = begin_of(packet)
        return begin is not None and self._decoded.holds(begin)

    def _begun(self, like: AudioFrame, begin: Fraction) -> Graph:
        """The graph for sound whose first output sample is at `begin` in the source."""
        self._start = round(self._window.output_time(begin) * like.sample_rate)
        return _slowing(like, round(begin * like.sample_rate), 1 / self._window.stretch)

    def _ready(self, graph: Graph) -> Iterator[AudioFrame]:
        """The graph's output so far, up to the end of the sound that went in."""
        window, slowed = self._window, self._slowed
        for frame in _pulled(graph):
            frame.pts = None  # these are in unslowed time
            slowed.write(frame)
        if not slowed.samples_written:
            return
        end = self._end if window.end is None else min(self._end, window.end)
        position = self._start + slowed.samples_read
        left = round(window.output_time(end) * slowed.sample_rate) - position
        frame = slowed.read(left, partial=True) if left > 0 else None
        if frame is not None:
            frame.pts, frame.time_base = position, Fraction(1, slowed.sample_rate)
            yield frame


class UnbrokenSound:
    """Decodes an audio stream in sync: silent where sound is missing or damaged."""

    def __init__(self, stream: AudioStream, *, from_zero: bool = False) -> None:
        """`from_zero`: whether it is silent from 0 on where the sound begins later."""
        self._stream = stream
        self._from_zero = from_zero
        self._graph: Graph | None = None
        self._end = Fraction(0)

    def __call__(self, packet: Packet | None) -> Iterator[AudioFrame]:
        """Frames that are ready after a packet, given as read; None marks the end."""
        for frame in _undamaged(self._stream, packet):
            last = self._end
            begin, self._end = _span(frame, last)
            if frame.pts is None:
                frame.pts = round(begin / _base(frame))
            if self._graph is None:
                first = ":first_pts=0" if self._from_zero else ""
                self._graph = _linked(frame, [("aresample", f"{WITHOUT_GAPS}{first}")])
                last = last if self._from_zero else begin
            for each in _in_short_gaps(frame, last):
                self._graph.push(each)
                yield from _pulled(self._graph)
        if packet is None and self._graph is not None:
            self._graph.push(None)
            yield from _pulled(self._graph)


def _undamaged(stream: AudioStream, packet: Packet | None) -> Iterable[AudioFrame]:
    """The frames a packet decodes to; none if it is damaged."""
    try:
        frames = stream.decode(packet)
    except FFmpegError as error:
        log.debug("a packet of sound is damaged: %s", error)
        return ()
    for frame in frames:
        if frame.time_base is None:  # the one that WMA's decoder gives at the end; it has no pts
            frame.time_base = exact(stream.time_base)
    return frames


def _span(frame: AudioFrame, last: Fraction) -> tuple[Fraction, Fraction]:
    """A frame's span on the source's clock. The last may hold more than is meant to be heard."""
    base = _base(frame)
    begin = last if frame.pts is None else frame.pts * base
    whole, meant = Fraction(frame.samples, frame.sample_rate), frame.duration * base
    return begin, begin + (meant if 0 < meant < whole - base else whole)


def _in_short_gaps(frame: AudioFrame, last: Fraction) -> Iterator[AudioFrame]:
    """The frame, and before it single silent samples that divide a long gap since `last`."""
    base = _base(frame)
    step = round(SILENCE / base)
    if frame.pts is not None:
        for pts in range(math.ceil(last / base) + step, frame.pts - step, step):
            yield _silent_sample(frame, pts)
    yield frame


def _silent_sample(like: AudioFrame, pts: int) -> AudioFrame:
    channels, kind = like.layout.nb_channels, like.format.name
    zero = np.full(
        (channels, 1) if like.format.is_planar else (1, channels),
        128 if kind.startswith("u8") else 0,
        like.to_ndarray().dtype,
    )
    sample = AudioFrame.from_ndarray(cast(Any, zero), format=kind, layout=like.layout.name)
    sample.sample_rate, sample.pts, sample.time_base = like.sample_rate, pts, _base(like)
    return sample


def _base(frame: AudioFrame) -> Fraction:
    return exact(frame.time_base) or Fraction(1, frame.sample_rate)


def _slowing(like: AudioFrame, first: int, tempo: Fraction) -> Graph:
    """Takes timed frames like this one; gives slowed ones without gaps, from sample `first` on."""
    half = _half_window(like.sample_rate)
    filters = [
        ("aresample", f"{WITHOUT_GAPS}:first_pts={first - half}:osf=flt"),
        ("apad", f"pad_dur={TAIL}"),
        *(("atempo", repr(float(each))) for each in _tempos(tempo)),
        ("atrim", f"start_sample={half}"),
    ]
    return _linked(like, filters)


def _linked(like: AudioFrame, filters: Iterable[tuple[str, str]]) -> Graph:
    """The chain of these filters, by name and options, for frames like this one."""
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=like.sample_rate,
        format=like.format.name,
        layout=like.layout.name,
        time_base=like.time_base,
    )
    chain = [graph.add(name, options) for name, options in filters]
    graph.link_nodes(source, *chain, graph.add("abuffersink")).configure()
    return graph


def _half_window(rate: int) -> int:
    """Half of `atempo`'s window, in samples; the window is the power of 2 not below 1/24 s."""
    return 1 << (rate // 24 - 1).bit_length() >> 1


def _tempos(tempo: Fraction) -> Iterator[Fraction]:
    """Tempos within the range of one `atempo` each, whose product is `tempo`."""
    while tempo < SLOWEST:
        yield SLOWEST
        tempo /= SLOWEST
    yield tempo


def _pulled(graph: Graph) -> Iterator[AudioFrame]:
    while True:
        try:
            frame = graph.pull()
        except (BlockingIOError, EOFError):
            return
        assert isinstance(frame, AudioFrame)  # the graph has only sound
        yield frame
