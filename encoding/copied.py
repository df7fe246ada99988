"""Tracks whose packets are copied as they are, if a file of the wanted kind can hold them.

Muxers refuse only when a header or a packet is written, so that is tried on a throw-away file.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING

import av
from av.error import FFmpegError
from av.packet import Packet

from .container import VideoInput, begin_of, exact, open_container, packets
from .sound import SMALLEST_GAP
from .track import Convert, Track, codec_name, label
from .window import Window
from .writer import ISO_MEDIA, MUXERS

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream

log = logging.getLogger("tlbvfi.copied")

TRIED = 32
"""Packets of sound by which to tell whether AVI or NUT keep their times."""


def add_copy(out: OutputContainer, stream: Stream, suffix: str) -> Track:
    """A track of `out` for the packets of a stream that it `holds`."""
    convert = _heard(suffix) if stream.type == "audio" else _as_is
    return Track(source=stream, target=_template(out, stream), convert=convert)


def holds(stream: Stream, origin: VideoInput, suffix: str) -> bool:
    """Whether a file of this kind can hold a copy of the stream."""
    if suffix == ".mp4" and codec_name(stream).startswith("pcm"):
        return False  # FFmpeg writes it (ISO/IEC 23003-5), but browsers and QuickTime play no sound
    if suffix == ".webm" and stream.type == "attachment":
        return False  # FFmpeg does not say that it writes none
    if suffix == ".avi" and codec_name(stream) == "flac":
        return False  # FFmpeg writes it and up to version 5 cannot read it
    is_doubtful = suffix in (".avi", ".nut") and not codec_name(stream).startswith("pcm")
    file, times = io.BytesIO(), []
    try:
        with open_container(origin) as source, av.open(file, "w", MUXERS[suffix]) as trial:
            like = source.streams[stream.index]
            target = _template(trial, like)
            trial.start_encoding()
            if stream.type == "audio":  # some muxers learn what they need from the first packet
                for packet in islice(_full(source, like), TRIED if is_doubtful else 1):
                    times.append(_begin(packet))
                    packet.stream = target
                    trial.mux(packet)
        if stream.type == "audio" and not times:
            return False
        return not is_doubtful or _is_playable(times, file)
    except (FFmpegError, ValueError) as error:
        log.debug("%s: stream %d is not copied: %s", suffix, stream.index, error)
        return False


def _full(container: InputContainer, stream: Stream) -> Iterator[Packet]:
    return (packet for packet in packets(container, stream) if packet.size)


def _begin(packet: Packet) -> Fraction:
    """Seconds at which a packet begins; 0 if it has no time."""
    return begin_of(packet) or Fraction(0)


def _is_playable(times: list[Fraction], file: io.BytesIO) -> bool:
    """Whether packets of sound that began at `times` are as far apart in the file as they were.

    AVI counts bytes in some codecs, such as E-AC-3, DTS and Vorbis, or AAC that comes from AVI
    itself, and readers put the packets too close together. NUT lacks what decoders of WMA need.
    """
    file.seek(0)
    with av.open(file) as trial:
        trial.streams[0].codec_context.open(strict=False)
        found = [_begin(packet) for packet in _full(trial, trial.streams[0])]
    return len(found) == len(times) and all(
        abs((ours - found[0]) - (theirs - times[0])) <= SMALLEST_GAP
        for ours, theirs in zip(found, times, strict=True)
    )


def has_gap(stream: Stream, origin: VideoInput, window: Window | None) -> bool:
    """Whether sound begins late or pauses, so that a copy without silence would be heard too early.

    A copy begins with the first packet in the window.
    """
    if stream.type != "audio":
        return False
    window = window or Window(start=Fraction(0))
    due, shortest = window.start, None
    with open_container(origin) as source:
        for packet in _full(source, source.streams[stream.index]):
            begin = _begin(packet)
            if not window.holds(begin):
                continue
            if begin - due > SMALLEST_GAP:
                return True
            lasts = (packet.duration or 0) * (exact(packet.time_base) or Fraction(0))
            # The last packet before a gap lasts as long as the gap in mp4.
            shortest = lasts if shortest is None else min(lasts, shortest)
            due = max(due, begin + shortest)
    return False


def _template(out: OutputContainer, stream: Stream) -> Stream:
    """A stream for copied packets. Opaque: a decoder's name (mp3float) is not an encoder's."""
    target = out.add_stream_from_template(stream, opaque=True)
    label(target, stream, out)
    return target


def _as_is(packet: Packet | None) -> Iterable[Packet]:
    return () if packet is None else (packet,)


def _heard(suffix: str) -> Convert:
    """Copies sound without what the source's edit list hides, which other files would play.

    A decoder may need some of it to begin with, such as AAC's priming. Edit lists hide it again, as
    it comes before 0; elsewhere no more than one packet is heard too much.
    """
    has_begun, needed = False, None

    def convert(packet: Packet | None) -> Iterator[Packet]:
        nonlocal has_begun, needed
        if packet is None:
            return
        if not packet.is_discard:
            if needed is not None:
                yield needed
            has_begun, needed = True, None
            yield packet
        elif not has_begun:
            if suffix in ISO_MEDIA and packet.pts is not None and packet.pts < 0:
                yield packet
            else:
                needed = packet

    return convert
