"""Sound and text subtitles in another codec than the source's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import av
from av.audio.layout import AudioLayout
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.error import FFmpegError
from av.packet import Packet
from av.subtitles.stream import SubtitleStream
from av.subtitles.subtitle import AssSubtitle, SubtitleSet

from .channels import channel_layout, is_custom
from .container import exact
from .errors import OutputError
from .sound import SlowSound, UnbrokenSound
from .track import Track, label
from .window import Window
from .writer import ISO_MEDIA

if TYPE_CHECKING:
    from av.audio.codeccontext import AudioCodecContext
    from av.audio.frame import AudioFrame
    from av.container import OutputContainer

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
SUBTITLES = {".mp4": "mov_text", ".mov": "mov_text", ".webm": "webvtt", ".mkv": "subrip"}
AAC_BITS_PER_CHANNEL = 96_000
LAYOUTS = {1: "mono", 2: "stereo", 3: "2.1", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
"""Layout assumed for this many unnamed channels; swresample assumes the same."""

Decode = Callable[[Packet | None], Iterable["AudioFrame"]]


def add_sound(out: OutputContainer, stream: AudioStream, suffix: str) -> Track:
    """A track of `out` for sound in a codec that is usual in files with this suffix.

    Raises:
        FFmpegError, ValueError, OutputError: it cannot be converted.
    """
    decode = UnbrokenSound(stream, from_zero=suffix == ".avi")
    codecs = LOSSLESS_AUDIO if stream.codec_context.codec.lossless else AUDIO
    return _encoded(out, stream, codecs[suffix], decode)


def add_slowed_sound(
    out: OutputContainer, stream: AudioStream, suffix: str, window: Window
) -> Track:
    """The same for sound that is slowed as the window says.

    Raises:
        FFmpegError, ValueError, OutputError: it cannot be converted.
    """
    made = _encoded(out, stream, AUDIO[suffix], SlowSound(stream, window))
    return replace(made, is_slowed=True)


def _encoded(out: OutputContainer, stream: AudioStream, codec: str, decode: Decode) -> Track:
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

    label(target, stream, out)
    return Track(source=stream, target=target, convert=convert)


def _is_deep(stream: AudioStream) -> bool:
    """Whether 16 bits cannot hold the samples; what is lossy has no depth.

    The format is not known if the file shows no packet of the track within its first megabytes.
    """
    context = stream.codec_context
    is_known = context.format is not None  # PyAV's types do not show it
    return context.codec.lossless and is_known and context.format.bits > 16


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


def words_for(track: Track) -> str:
    """The codec that the sound was converted to, and what it lost."""
    given = cast("AudioStream", track.source)
    made = cast("AudioCodecContext", track.target.codec_context)
    has_all = made.channels == channel_layout(given).nb_channels
    fewer = "" if has_all else f" in {made.layout.name}"
    lower = (
        "" if made.sample_rate >= given.codec_context.sample_rate else f" at {made.sample_rate} Hz"
    )
    return f"{made.name}{fewer}{lower}"


def add_text(out: OutputContainer, stream: SubtitleStream, suffix: str) -> Track:
    """A track of `out` for text subtitles in the codec of files with this suffix.

    Raises:
        FFmpegError, ValueError: they cannot be converted.
    """
    stream.codec_context.open(strict=False)
    target = cast(SubtitleStream, out.add_stream(SUBTITLES[suffix]))
    target.codec_context.subtitle_header = stream.codec_context.subtitle_header
    target.codec_context.time_base = target.time_base = Fraction(1, 1000)
    arranged = _one_at_a_time() if suffix in ISO_MEDIA else _as_they_come

    def convert(packet: Packet | None) -> Iterator[Packet]:
        for text in arranged(_texts(stream, packet)):
            made = _encoded_text(target, text, exact(stream.time_base) or Fraction(1, 1000))
            if made.size:  # players lose the cluster after an empty WebVTT block
                yield made

    label(target, stream, out)
    return Track(source=stream, target=target, convert=convert)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Text:
    """A text and when it is shown, in ticks of its stream."""

    begin: int
    end: float
    """Infinite if it lasts until the next one."""
    ass: bytes
    """ReadOrder, Layer, Style, Name, three margins, Effect, Text."""


Arrange = Callable[[Iterable[_Text] | None], Iterable[_Text]]
"""Texts to write for those of a packet; None means the end."""


def _texts(stream: SubtitleStream, packet: Packet | None) -> Iterable[_Text] | None:
    if packet is None:
        return None
    if packet.pts is None:  # never shown
        return ()
    lasts = packet.duration or math.inf
    return [
        _Text(begin=packet.pts, end=packet.pts + lasts, ass=line.ass)
        for line in stream.decode2(packet) or ()
        if isinstance(line, AssSubtitle)
    ]


def _as_they_come(texts: Iterable[_Text] | None) -> Iterable[_Text]:
    return texts or ()


def _one_at_a_time() -> Arrange:
    """Puts texts of the same time into one: those of mp4 and mov follow each other.

    FFmpeg would show the next one when the one before ends, and all that overlap ever later.
    """
    shown: list[_Text] = []

    def until(end: float) -> Iterator[_Text]:
        """What is shown before `end`, where the next text begins."""
        while shown and (begin := max(each.begin for each in shown)) < end:
            stop = min(end, *(each.end for each in shown))
            if stop > begin:
                lines = dict.fromkeys(each.ass.split(b",", 8)[-1] for each in shown)
                fields = shown[0].ass.split(b",", 8)[:-1]
                joined = b",".join([*fields, rb"{\r}\N".join(lines)])
                yield _Text(begin=begin, end=stop, ass=joined)
            shown[:] = [
                replace(each, begin=int(stop)) for each in shown if stop < each.end < math.inf
            ]

    def arrange(texts: Iterable[_Text] | None) -> Iterator[_Text]:
        if texts is None:
            yield from until(math.inf)
            return
        for text in texts:
            yield from until(text.begin)
            shown.append(text)

    return arrange


def _encoded_text(target: SubtitleStream, text: _Text, base: Fraction) -> Packet:
    lasts = 0 if text.end == math.inf else int(text.end) - text.begin
    made = target.codec_context.encode_subtitle(
        SubtitleSet.create(text.ass, 0, round(lasts * base * 1000))
    )
    made.time_base = base
    made.pts = made.dts = text.begin
    made.duration = lasts
    return made
