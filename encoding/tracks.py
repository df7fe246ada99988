"""What a final file takes from its source besides the video: sound, subtitles, fonts.

Packets are copied if the container can hold them. Otherwise audio and text subtitles are converted
to a codec that is usual in the container, and anything else is left out with a note. If the window is
stretched, sound is slowed and encoded, and subtitles last longer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.format import Flags
from av.packet import Packet
from av.subtitles.stream import SubtitleStream

from .channels import channel_layout
from .clock import Clock
from .container import VideoInput, begin_of, exact, is_cover_art, packets, pictures
from .converted import SUBTITLES, add_slowed_sound, add_sound, add_text, words_for
from .copied import add_copy, has_gap, holds
from .errors import OutputError
from .track import Track, codec_name
from .window import Window
from .writer import ISO_MEDIA

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream


def add_tracks(
    out: OutputContainer,
    source: InputContainer,
    origin: VideoInput,
    suffix: str,
    window: Window | None = None,
) -> tuple[list[Track], list[str]]:
    """Tracks for all that `source` holds besides video, and notes on what could not be copied.

    `origin`: where `source` was opened from, to open it again for trials. `window`: the one that
    `track_packets` will get.

    Raises:
        OutputError: the container can hold the sound neither copied nor converted.
    """
    tracks, notes = [], [*_notes_on_pictures(source), *_notes_on_data(source)]
    for stream in source.streams:
        if stream.type in ("audio", "subtitle", "attachment"):
            track, note = _add_track(out, stream, origin, suffix, window)
            tracks += [track] if track else []
            notes += [note] if note else []
    return tracks, notes


def _notes_on_pictures(source: InputContainer) -> list[str]:
    """A note on each video stream other than the one that frames are read from."""
    shown = pictures(source)
    return [
        f"{'cover art' if is_cover_art(stream) else 'another video'} (stream {stream.index}, "
        f"{codec_name(stream)}) is not carried over: it is left out."
        for stream in source.streams.video
        if shown is not None and stream.index != shown.index
    ]


def _notes_on_data(source: InputContainer) -> list[str]:
    """A note on the streams of data, such as telemetry, which nothing carries over.

    The timecode and the chapters of mp4 and mov files show as such streams, too.
    """
    chapters = len(source.chapters())
    lost = [
        f"{stream.index} ({stream.name or 'no codec'})"
        for stream in source.streams.data
        if "timecode" not in stream.metadata and not 0 < stream.frames == chapters
    ]
    word = "stream" if len(lost) == 1 else "streams"
    return [f"data in {word} {', '.join(lost)} are left out."] if lost else []


def track_packets(
    source: InputContainer,
    tracks: list[Track],
    window: Window | None,
    clock: Clock,
    notes: list[str],
) -> Iterator[tuple[float, Packet]]:
    """(decode time in seconds, packet) of all tracks, in the order of the source.

    `clock`: that of the source's frames. With a window, only packets that begin inside it are kept,
    and subtitles that are shown inside it, on the output's clock. Packets that no muxer accepts,
    because they have no time or come out of order, are left out; at the end `notes` get a sentence
    for each track that lost some, or that is lost because it has none.
    """
    by_index = {track.source.index: track for track in tracks if track.source.type != "attachment"}
    if not by_index:
        return
    counts = dict.fromkeys(by_index, 0)
    orders = {index: _Order() for index in by_index}
    for packet in packets(source, *(track.source for track in by_index.values())):
        if packet.size == 0:  # marks the end, of no stream in particular
            continue
        track, number = by_index[packet.stream_index], counts[packet.stream_index]
        counts[packet.stream_index] += 1
        if not clock.moved(packet, number):
            continue
        if track.is_slowed or _move_into(packet, window):
            yield from _timed(track, track.convert(packet), orders[packet.stream_index])
    for index, track in by_index.items():
        yield from _timed(track, track.convert(None), orders[index])
        if orders[index].left_out:
            notes.append(_note_on(track, orders[index].left_out))
        if is_left_out(track, orders[index].count):
            notes.append(
                f"audio stream {index} has no sound in this part, and {_suffix(track)} keeps no empty "
                "track."
            )


def is_left_out(track: Track, count: int) -> bool:
    """Whether a file lacks a track with this many packets: mp4 and mov keep no sound without any."""
    return track.target.type == "audio" and not count and _suffix(track) in ISO_MEDIA


def _suffix(track: Track) -> str:
    """What names of files like that of the track end in, for mp4 and mov at least."""
    return f".{track.target.container.format.name}"


def _note_on(track: Track, left_out: int) -> str:
    of = f"of {track.source.type} stream {track.source.index}"
    if left_out == 1:
        return f"1 packet {of} has no time of its own or comes out of order: it is left out."
    return f"{left_out} packets {of} have no times of their own or come out of order: they are left out."


@dataclass(slots=True)
class _Order:
    """What was written of a track so far."""

    last: Fraction | None = None
    """Decode time, in seconds."""
    apart: Fraction | None = None
    """Seconds between the two packets that are closest to each other."""
    count: int = 0
    """Packets."""
    left_out: int = 0


def _timed(
    track: Track, packets: Iterable[Packet], order: _Order
) -> Iterator[tuple[float, Packet]]:
    """(decode time in seconds, packet) of those that a muxer accepts."""
    may_repeat = track.target.type == "subtitle" or (
        # Matroska's milliseconds, in which two packets of TrueHD often begin together
        exact(track.source.time_base) == Fraction(1, 1000)
        and bool(track.target.container.format.flags & Flags.ts_nonstrict.value)
    )
    is_sound = track.target.type == "audio"
    for packet in packets:
        packet.stream = track.target
        # Sound is presented when decoded; demuxers may guess another dts after damage.
        if packet.dts is None or (is_sound and packet.pts is not None):
            packet.dts = packet.pts
        seconds, last = (packet.dts or 0) * packet.time_base, order.last
        is_late = last is not None and (seconds < last or (seconds == last and not may_repeat))
        if packet.size and (packet.dts is None or is_late):  # FLAC ends with a header-only packet
            order.left_out += 1
            continue
        if last is not None:
            order.apart = min(seconds - last, order.apart or seconds - last)
        if is_sound and not packet.duration and order.apart:
            # Matroska tells none for ALAC and Speex; mp4 tracks end as long after the last packet.
            packet.duration = round(order.apart / packet.time_base)
        order.last = seconds
        order.count += packet.size > 0
        yield float(seconds), packet


def _move_into(packet: Packet, window: Window | None) -> bool:
    """Whether the packet belongs to the output; its times are moved to the output's clock."""
    if window is None:
        return True
    if packet.stream.type == "subtitle":
        _clip(packet, window)
    begin = begin_of(packet)
    if begin is None or not window.holds(begin):
        return False
    shift = round(window.start / packet.time_base)
    packet.pts = None if packet.pts is None else round((packet.pts - shift) * window.stretch)
    packet.dts = None if packet.dts is None else round((packet.dts - shift) * window.stretch)
    packet.duration = round((packet.duration or 0) * window.stretch)
    return True


def _clip(packet: Packet, window: Window) -> None:
    """Begin and end a subtitle within the window if it is shown there at all."""
    base = exact(packet.time_base)
    if packet.pts is None or base is None or not packet.duration:
        return
    first = -(-window.start // base)
    end = packet.pts + packet.duration
    if window.end is not None:
        end = min(end, window.end // base)
    begin = max(packet.pts, first)
    if begin < end:
        packet.pts, packet.duration = begin, end - begin
        packet.dts = None if packet.dts is None else max(packet.dts, begin)


def _fault(stream: AudioStream) -> str:
    """Why there is no sound to take from a stream; empty if there is."""
    if not stream.codec_context:
        return "is in an unknown codec"
    return "" if channel_layout(stream).nb_channels else "holds no sound"


def _add_slowed(out: OutputContainer, stream: AudioStream, suffix: str, window: Window) -> Track:
    try:
        return add_slowed_sound(out, stream, suffix, window)
    except (FFmpegError, ValueError) as error:
        raise OutputError(
            f"audio stream {stream.index} ({codec_name(stream)}) cannot be slowed into {suffix} "
            f"({error}): choose .mkv for the output."
        ) from error


def _add_track(
    out: OutputContainer, stream: Stream, origin: VideoInput, suffix: str, window: Window | None
) -> tuple[Track | None, str]:
    """A track for the stream, None if it is left out, and a note, empty if it is copied or slowed."""
    if isinstance(stream, AudioStream):
        if fault := _fault(stream):
            return None, f"audio stream {stream.index} {fault}: it is left out."
        if window is not None and window.stretch != 1:
            return _add_slowed(out, stream, suffix, window), ""
    name = f"{suffix} cannot hold {stream.type} stream {stream.index} ({codec_name(stream)})"
    if suffix == ".avi" and has_gap(stream, origin, window):
        name += ", which begins late or has a gap"  # all tracks begin together and never pause
    elif holds(stream, origin, suffix):
        return add_copy(out, stream, suffix), ""
    try:
        if isinstance(stream, AudioStream):
            track = add_sound(out, stream, suffix)
            return track, f"{name}: it becomes {words_for(track)}."
        if isinstance(stream, SubtitleStream) and suffix in SUBTITLES and _is_text(stream):
            track = add_text(out, stream, suffix)
            return track, f"{name}: it becomes {SUBTITLES[suffix]}."
    except (FFmpegError, ValueError) as error:
        raise OutputError(
            f"{name}, and it cannot be converted ({error}): choose .mkv for the output."
        ) from error
    return None, f"{name}: it is left out."


def _is_text(stream: SubtitleStream) -> bool:
    """Whether these are texts, in a codec that there is a decoder for (not teletext, TTML)."""
    return bool(stream.codec_context) and stream.codec_context.codec.text_sub
