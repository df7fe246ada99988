"""What a final file takes from its source besides the video: sound, subtitles, fonts.

Packets are copied if the container can hold them, which is tried on a throw-away file, because
muxers refuse only when a header or a packet is written. Otherwise audio and text subtitles are
converted to a codec that is usual in the container, and anything else is left out with a note. If
the window is stretched, sound is slowed and encoded, and subtitles last longer.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, cast

import av
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.format import Flags
from av.packet import Packet
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

from .channels import channel_layout, is_custom
from .clock import Clock
from .container import VideoInput, exact, is_cover_art, open_container, packets, pictures
from .errors import OutputError
from .sound import SMALLEST_GAP, SlowSound, UnbrokenSound
from .window import Window
from .writer import ISO_MEDIA, MUXERS

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream

log = logging.getLogger("tlbvfi.tracks")

AUDIO = {
    ".mp4": "aac",
    ".mov": "aac",
    ".webm": "libopus",
    ".mkv": "flac",
    ".avi": "pcm_s16le",
    ".nut": "pcm_s16le",
}
"""Audio codec of each container for sound that it cannot hold as it is."""
LOSSLESS_AUDIO = {**AUDIO, ".mov": "pcm_s16le"}
"""The same for sound that has lost nothing so far."""
DEEPER = {"pcm_s16le": ("pcm_s24le", "s32"), "flac": ("flac", "s32")}
"""Codec and sample format that hold 24 bits, in place of codecs with 16 bits by default."""
TRIED = 32
"""Packets of sound by which to tell whether AVI or NUT keep their times."""
SUBTITLES = {".mp4": "mov_text", ".mov": "mov_text", ".webm": "webvtt", ".mkv": "subrip"}
MOV_LANGUAGES = {
    **{"cym": "wel", "cze": "ces", "deu": "ger", "ell": "gre", "eus": "baq"},
    **{"fas": "per", "fre": "fra", "gle": "iri", "hye": "arm", "isl": "ice", "kat": "geo"},
    **{"mkd": "mac", "msa": "may", "mya": "bur", "nld": "dut", "nno": "nor", "nob": "nor"},
    **{"rum": "ron", "slo": "slk", "sqi": "alb", "swe": "sve", "zho": "chi"},
}
"""Languages by the names that FFmpeg's muxer of .mov knows, which drops all others."""
AAC_BITS_PER_CHANNEL = 96_000
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""Layout assumed for this many unnamed channels; swresample assumes the same."""

Convert = Callable[[Packet | None], Iterable[Packet]]
"""Packets to write for one that was read; None means the end."""
Decode = Callable[[Packet | None], Iterable["AudioFrame"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A stream of the source on its way into the final file."""

    source: Stream
    target: Stream
    convert: Convert
    is_slowed: bool = False
    """Whether `convert` takes packets as they were read, and cuts and moves them itself."""


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
            if isinstance(stream, AudioStream) and not stream.codec_context:
                notes.append(f"audio stream {stream.index} is in an unknown codec: it is left out.")
                continue
            if isinstance(stream, AudioStream) and not channel_layout(stream).nb_channels:
                notes.append(f"audio stream {stream.index} holds no sound: it is left out.")
                continue
            if isinstance(stream, AudioStream) and window is not None and window.stretch != 1:
                tracks.append(_add_slowed(out, stream, suffix, window))
                continue
            track, note = _add_track(out, stream, origin, suffix, window)
            tracks += [track] if track else []
            notes += [note] if note else []
    return tracks, notes


def _notes_on_pictures(source: InputContainer) -> list[str]:
    """A note on each video stream other than the one that frames are read from."""
    shown = pictures(source)
    return [
        f"{'cover art' if is_cover_art(stream) else 'another video'} (stream {stream.index}, "
        f"{_codec_name(stream)}) is not carried over: it is left out."
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
    for each track that lost some.
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
        yield float(seconds), packet


def _move_into(packet: Packet, window: Window | None) -> bool:
    """Whether the packet belongs to the output; its times are moved to the output's clock."""
    if window is None:
        return True
    if packet.stream.type == "subtitle":
        _clip(packet, window)
    time = packet.pts if packet.pts is not None else packet.dts
    if time is None:
        return False
    seconds = time * packet.time_base
    if seconds < window.start or (window.end is not None and seconds >= window.end):
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


def _add_slowed(out: OutputContainer, stream: AudioStream, suffix: str, window: Window) -> Track:
    decode = SlowSound(stream, window)
    try:
        return replace(_encoded_audio(out, stream, AUDIO[suffix], decode), is_slowed=True)
    except (FFmpegError, ValueError) as error:
        raise OutputError(
            f"audio stream {stream.index} ({_codec_name(stream)}) cannot be slowed into {suffix} "
            f"({error}): choose .mkv for the output."
        ) from error


def _add_track(
    out: OutputContainer, stream: Stream, origin: VideoInput, suffix: str, window: Window | None
) -> tuple[Track | None, str]:
    name = f"{suffix} cannot hold {stream.type} stream {stream.index} ({_codec_name(stream)})"
    if suffix == ".avi" and _has_gap(stream, origin, window):
        name += ", which begins late or has a gap"  # all tracks begin together and never pause
    elif _holds(stream, origin, suffix):
        convert = _heard(suffix) if stream.type == "audio" else _as_is
        return Track(source=stream, target=_template(out, stream), convert=convert), ""
    try:
        if isinstance(stream, AudioStream):
            decode = UnbrokenSound(stream, from_zero=suffix == ".avi")
            codecs = LOSSLESS_AUDIO if stream.codec_context.codec.lossless else AUDIO
            track = _encoded_audio(out, stream, codecs[suffix], decode)
            return track, f"{name}: it becomes {_words_for(track)}."
        if isinstance(stream, SubtitleStream) and suffix in SUBTITLES and _is_text(stream):
            codec = SUBTITLES[suffix]
            return _encoded_text(out, stream, codec), f"{name}: it becomes {codec}."
    except (FFmpegError, ValueError) as error:
        raise OutputError(
            f"{name}, and it cannot be converted ({error}): choose .mkv for the output."
        ) from error
    return None, f"{name}: it is left out."


def _has_gap(stream: Stream, origin: VideoInput, window: Window | None) -> bool:
    """Whether sound begins late or pauses, so that a copy without silence would be heard too early.

    A copy begins with the first packet in the window.
    """
    if stream.type != "audio":
        return False
    start, end = (window.start, window.end) if window is not None else (Fraction(0), None)
    due, shortest = start, None
    with open_container(origin) as source:
        for packet in _full(source, source.streams[stream.index]):
            begin = _begin(packet)
            if begin < start or (end is not None and begin >= end):
                continue
            if begin - due > SMALLEST_GAP:
                return True
            lasts = (packet.duration or 0) * (exact(packet.time_base) or Fraction(0))
            # The last packet before a gap lasts as long as the gap in mp4.
            shortest = lasts if shortest is None else min(lasts, shortest)
            due = max(due, begin + shortest)
    return False


def _codec_name(stream: Stream) -> str:
    return stream.codec_context.name if stream.codec_context else "no codec"


def _is_text(stream: SubtitleStream) -> bool:
    """Whether these are texts, in a codec that there is a decoder for (not teletext, TTML)."""
    return bool(stream.codec_context) and stream.codec_context.codec.text_sub


def _holds(stream: Stream, origin: VideoInput, suffix: str) -> bool:
    """Whether a file of this kind can hold a copy of the stream."""
    if suffix == ".mp4" and _codec_name(stream).startswith("pcm"):
        return False  # FFmpeg writes it (ISO/IEC 23003-5), but browsers and QuickTime play no sound
    if suffix == ".webm" and stream.type == "attachment":
        return False  # FFmpeg does not say that it writes none
    if suffix == ".avi" and _codec_name(stream) == "flac":
        return False  # FFmpeg writes it and up to version 5 cannot read it
    is_doubtful = suffix in (".avi", ".nut") and not _codec_name(stream).startswith("pcm")
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
    """Seconds at which a packet is presented, or else decoded."""
    time = packet.pts if packet.pts is not None else packet.dts
    return (time or 0) * (exact(packet.time_base) or Fraction(0))


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


def _template(out: OutputContainer, stream: Stream) -> Stream:
    """A stream for copied packets. Opaque: a decoder's name (mp3float) is not an encoder's."""
    target = out.add_stream_from_template(stream, opaque=True)
    return _labeled(out, target, stream)


def _labeled(out: OutputContainer, target: Stream, source: Stream) -> Stream:
    target.metadata.update(track_tags(source, out))
    target.disposition = source.disposition
    return target


def track_tags(source: Stream, out: OutputContainer) -> dict[str, str]:
    """The tags of a track in the words of the muxer of `out`."""
    tags = dict(source.metadata)
    if "name" in tags:  # so says the demuxer of mp4, whose muxer says title
        tags.setdefault("title", tags.pop("name"))
    if out.format.name == "mov" and "language" in tags:
        tags["language"] = MOV_LANGUAGES.get(tags["language"], tags["language"])
    return tags


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


def _encoded_audio(out: OutputContainer, stream: AudioStream, codec: str, decode: Decode) -> Track:
    codec, form = DEEPER.get(codec, (codec, None)) if _is_deep(stream) else (codec, None)
    rate = _taken_rate(codec, stream.codec_context.sample_rate)
    target = cast(AudioStream, out.add_stream(codec, rate=rate))
    context = target.codec_context
    context.format = form or context.format
    context.time_base = Fraction(1, rate)
    _open(context, _taken_layout(context, _named_layout(stream)))
    resampler = AudioResampler(
        format=context.format,
        layout=context.layout,
        rate=rate,
        frame_size=context.frame_size or None,
    )

    def convert(packet: Packet | None) -> Iterator[Packet]:
        for frame in decode(packet):
            for resampled in resampler.resample(frame):
                yield from target.encode(resampled)
        if packet is None:
            for resampled in resampler.resample(None):
                yield from target.encode(resampled)
            yield from target.encode(None)

    return Track(source=stream, target=_labeled(out, target, stream), convert=convert)


def _is_deep(stream: AudioStream) -> bool:
    """Whether 16 bits cannot hold the samples; what is lossy has no depth."""
    context = stream.codec_context
    return context.codec.lossless and context.format.bits > 16


def _taken_rate(codec: str, rate: int) -> int:
    """The sample rate itself if the encoder takes it, else the next higher one, or its highest."""
    rates = av.Codec(codec, "w").audio_rates or [rate]
    return min((taken for taken in rates if taken >= rate), default=max(rates))


def _taken_layout(context: AudioCodecContext, layout: str) -> str:
    """The channel layout itself, or the usual one with as many channels, or stereo.

    Opus has no 5.1(side), which is what AC-3 and DTS call their 5.1.
    """
    usual = LAYOUTS.get(AudioLayout(layout).nb_channels)
    for wanted in (layout, usual) if usual else (layout,):
        # Tried on another context: one that could not be opened must not be opened again.
        trial = cast("AudioCodecContext", av.CodecContext.create(context.codec, "w"))
        trial.sample_rate, trial.format = context.sample_rate, context.format
        try:
            _open(trial, wanted)
        except FFmpegError:
            continue
        return wanted
    return "stereo"


def _open(context: AudioCodecContext, layout: str) -> None:
    context.layout = layout
    if context.name in ("aac", "libopus"):
        context.bit_rate = AAC_BITS_PER_CHANNEL * context.layout.nb_channels
    context.open()


def _named_layout(stream: AudioStream) -> str:
    """The channel layout; raw PCM may have only a channel count, which encoders refuse.

    Raises:
        OutputError: the frames cannot be decoded: see `channel_layout`.
    """
    layout = channel_layout(stream)
    if is_custom(layout):
        raise OutputError(
            f"audio stream {stream.index} has its channels in an unusual order ({layout.name}), "
            "which can be copied but not converted: choose .mkv or .mov for the output, without "
            "stretching the sound, or leave the sound out."
        )
    is_unnamed = layout.name.endswith("channels")
    return LAYOUTS.get(layout.nb_channels, layout.name) if is_unnamed else layout.name


def _words_for(track: Track) -> str:
    """The codec that the sound was converted to, and what it lost."""
    given = cast("AudioStream", track.source)
    made = cast("AudioCodecContext", track.target.codec_context)
    has_all = made.channels == channel_layout(given).nb_channels
    fewer = "" if has_all else f" in {made.layout.name}"
    lower = (
        "" if made.sample_rate >= given.codec_context.sample_rate else f" at {made.sample_rate} Hz"
    )
    return f"{made.name}{fewer}{lower}"


def _encoded_text(out: OutputContainer, stream: SubtitleStream, codec: str) -> Track:
    stream.codec_context.open(strict=False)
    target = cast(SubtitleStream, out.add_stream(codec))
    target.codec_context.subtitle_header = stream.codec_context.subtitle_header
    target.codec_context.time_base = target.time_base = Fraction(1, 1000)

    def convert(packet: Packet | None) -> Iterator[Packet]:
        found = stream.decode2(packet) if packet is not None else None
        for line in found or ():
            if isinstance(line, AssSubtitle) and packet is not None:
                made = _encoded_line(target, line, packet)
                if made.size:  # players lose the cluster after an empty WebVTT block
                    yield made

    return Track(source=stream, target=_labeled(out, target, stream), convert=convert)


def _encoded_line(target: SubtitleStream, line: AssSubtitle, like: Packet) -> Packet:
    length = round((like.duration or 0) * like.time_base * 1000)
    made = target.codec_context.encode_subtitle(SubtitleSet.create(line.ass, 0, length))
    made.time_base = like.time_base
    made.pts = made.dts = like.pts
    made.duration = like.duration
    return made
