"""Opening video files for reading, and decoding them past damage."""

from __future__ import annotations

import ctypes
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

import av
from av.error import EOFError as EndOfFileError
from av.error import FFmpegError
from av.stream import Disposition

from .clock import STEADY, Clock
from .errors import DecoderError, SourceError
from .hardware import Hardware, in_software_format
from .png import chunks_without_deflated, without_deflated
from .text import printable

if TYPE_CHECKING:
    from types import TracebackType

    from av.codec.hwaccel import HWAccel
    from av.container import InputContainer
    from av.packet import Packet
    from av.rational import AVRational
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

VideoInput = str | Path | BinaryIO
"""A video file by path, or its bytes in a seekable binary file object such as BytesIO."""

Threads = Literal["AUTO", "NONE"]

Way = Threads | Hardware
"""How to decode: in software with this threading, or on a GPU."""

MISSING = -(1 << 63)
"""FFmpeg's number in place of a time that a packet does not have."""

PLAYLISTS = {"concat", "dash", "hls", "imf", "rtsp", "sdp", "webm_dash_manifest"}
"""Formats that refer to other files, which are unchecked and may change or lie elsewhere."""
SCRIPTS = {"avisynth", "vapoursynth"}
"""Formats whose files are programs; the FFmpeg of some systems runs them."""
ONLY_ITSELF = {
    "protocol_whitelist": "file",
    "format_whitelist": ",".join(sorted(av.formats_available - PLAYLISTS - SCRIPTS)),
}
"""Options by which FFmpeg reads nothing but the source itself."""
PYAV = tuple(int(number) for number in av.__version__.split(".")[:2])
"""Major and minor version."""
if PYAV < (17, 1):  # as ComfyUI may bring: frames and streams lack what we set
    raise ImportError(
        f"PyAV {av.__version__} is installed and 17.1 or newer is needed: pip install -r requirements.txt"
    )
TAG_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if PYAV < (19, 0) else {}
"""For PyAV to open files with tags that are not UTF-8; from version 19 on it keeps their bytes."""
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
DEFLATED = {"png": without_deflated, "apng": chunks_without_deflated}
"""What removes, for these decoders, what they would inflate besides the pixels: texts of any size,
and color profiles, which must go for another reason too: PyAV 18 crashes on frames with their name.
"""


def exact(rational: Fraction | AVRational | None) -> Fraction | None:
    """PyAV's rates and time bases as fractions: from version 19 on they have their own type."""
    return Fraction(rational.numerator, rational.denominator) if rational else None


def begin_of(packet: Packet) -> Fraction | None:
    """Seconds at which a packet is presented, or else decoded; None if it has no time."""
    time, base = packet.pts if packet.pts is not None else packet.dts, exact(packet.time_base)
    return None if time is None or base is None else time * base


def text_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """A file's tags as text that can be stored and shown.

    Some old files have tags in the code page of the machine that made them; characters that are not
    UTF-8 are replaced.
    """

    def text(kept: str) -> str:
        return kept.encode(errors="surrogateescape").decode(errors="replace")

    return {text(key): text(value) for key, value in tags.items()}


def source_name(source: VideoInput) -> str:
    """What to call the source in messages and logs, on one line."""
    if not isinstance(source, str | Path):
        return "the video in memory"
    return printable(Path(source).name).replace("\n", "\\n")


@contextmanager
def open_video(
    source: VideoInput, way: Way = "AUTO"
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and its first video stream (cover art does not count), open for the block.

    `way`: AUTO decodes several frames at once, about twice as fast; but how it handles damage
    depends on chance, so its decoder stops at damage, where NONE conceals it. A GPU stops as
    well, and has its own parallelism: threads would only take more of its memory.

    Raises:
        SourceError: missing, a folder, not readable, not a video, or without a video stream.
        DecoderError: the GPU cannot be opened.
    """
    with _opened(source, way) as container:
        stream = pictures(container)
        if stream is None:
            only_audio = "; it holds only sound" if container.streams.audio else ""
            raise SourceError(
                f"{source_name(source)} has no video stream{only_audio}; choose a file with pictures."
            )
        _require_decoder(source, stream)
        make_safe(stream, "NONE" if isinstance(way, Hardware) else way)
        if way != "NONE":
            stream.codec_context.options = {"err_detect": "explode"}
        yield container, stream


def make_safe(stream: VideoStream, threads: Threads = "AUTO") -> None:
    """Prepare to `decode` a stream: with these threads, and nothing but pixels is inflated."""
    context = stream.codec_context
    context.thread_type = threads
    if context.name == "apng" and context.extradata:
        context.extradata = chunks_without_deflated(context.extradata)


def _require_decoder(source: VideoInput, stream: VideoStream) -> None:
    if not stream.codec_context:  # PyAV's types do not show it
        raise SourceError(
            f"{source_name(source)} uses a video codec that no decoder here supports; convert it "
            "to another codec first."
        )


def pictures(container: InputContainer) -> VideoStream | None:
    """The first video stream that is not cover art, if there is one."""
    streams = container.streams.video
    return next((each for each in streams if not is_cover_art(each)), None)


def is_cover_art(stream: Stream) -> bool:
    """Whether a video stream is only a cover picture."""
    return Disposition.attached_pic in stream.disposition


@contextmanager
def _opened(source: VideoInput, way: Way) -> Iterator[InputContainer]:
    accelerator = way.accelerator if isinstance(way, Hardware) and way.is_default else None
    with ExitStack() as stack:
        try:
            container = stack.enter_context(open_container(source, accelerator))
        except SourceError as error:
            if accelerator is None:
                raise
            # Software is tried next, and can tell if the file is at fault.
            raise DecoderError("the device does not open with the file") from error
        yield container


def file_url(path: str | Path) -> str:
    """A path for FFmpeg in which colons and percent signs are not taken as protocol or pattern."""
    return f"file:{path}"


@contextmanager
def open_container(
    source: VideoInput, accelerator: HWAccel | None = None
) -> Iterator[InputContainer]:
    """The source's container, at its beginning, open for the block. Playlists are refused.

    Raises:
        SourceError: missing, a folder, a pipe, not a video, or not readable, now or in the block.
    """
    with ExitStack() as stack:
        yield _open(source, accelerator, stack)


def _open(source: VideoInput, accelerator: HWAccel | None, stack: ExitStack) -> InputContainer:
    try:
        if isinstance(source, str | Path):
            _refuse_streams(Path(source))
            file: BinaryIO = stack.enter_context(SourceFile(source))
        else:  # readers open a file several times at once; BytesIO objects share their bytes
            file = io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source
            file.seek(0)
        return stack.enter_context(
            av.open(file, "r", container_options=ONLY_ITSELF, **TAG_OPTIONS, hwaccel=accelerator)
        )
    except FileNotFoundError as error:
        is_pattern = isinstance(source, str | Path) and re.search(r"%\d*d|\*", Path(source).name)
        remedy = "name the folder that holds the images" if is_pattern else "check the path"
        raise SourceError(f"{source} does not exist: {remedy}.") from error
    except (IsADirectoryError, PermissionError) as error:  # Windows refuses to open a folder
        if isinstance(source, str | Path) and Path(source).is_dir():
            raise SourceError(f"{source} is a folder; name a video file.") from error
        raise SourceError(f"{source} is not readable; check its permissions.") from error
    except FFmpegError as error:
        if _is_playlist(source):
            raise SourceError(
                f"{source_name(source)} is a playlist, which names other files: join those first."
            ) from error
        raise SourceError(
            f"{source_name(source)} is not a video, or is too damaged to be opened "
            f"({error.strerror}); play it elsewhere to make sure."
        ) from error
    except OSError as error:
        if error.filename is None:
            raise  # SourceFile names it
        raise SourceError(f"{source} cannot be opened ({error.strerror}).") from error
    except ValueError as error:
        raise SourceError(f"{source!r} has a NUL in its name: check the path.") from error


class SourceFile(io.FileIO):
    """A file on a disk or a network that may fail while it is read, open for a `with` block.

    FFmpeg would take that for damage, or for the end of the file, and go on without the frames;
    what reading this raises, PyAV raises. No method that FFmpeg calls may be written in Python:
    Ctrl-C would be raised inside of it, and PyAV drops all that is no `Exception`.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(path)
        self._path = path
        self.name = file_url(path)
        self.seek = _c_seek(self.fileno())

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file.

        Raises:
            SourceError: reading it failed in the block.
        """
        super().__exit__(kind, error, trace)
        is_named = getattr(error, "filename", None) is not None  # then it is another file
        if isinstance(error, OSError) and not isinstance(error, FFmpegError) and not is_named:
            with reading(self._path):
                raise error


def _c_seek(descriptor: int) -> Callable[..., int]:
    """C's own `lseek`: it returns -1, FFmpeg's sign of failure, where Python's raises."""
    library = ctypes.CDLL("ucrtbase" if os.name == "nt" else None)
    seek = library["_lseeki64" if os.name == "nt" else "lseek"]
    seek.restype, seek.argtypes = ctypes.c_int64, (ctypes.c_int, ctypes.c_int64, ctypes.c_int)
    return partial(seek, descriptor)


@contextmanager
def reading(source: VideoInput) -> Iterator[None]:
    """Name the source in what the system says about a failing disk or network.

    Raises:
        SourceError: it cannot be read.
    """
    try:
        yield
    except OSError as error:
        raise SourceError(
            f"{source_name(source)} cannot be read ({error.strerror}): check the disk or network "
            "that it is on, then run the same command again."
        ) from error


def _refuse_streams(path: Path) -> None:
    """Refuse what can be read only once: opening it might wait forever, and it is opened often."""
    if path.exists() and not path.is_file() and not path.is_dir():
        what = "a pipe" if path.is_fifo() else "a device, not a file"
        raise SourceError(f"{path} is {what}; save its content to a file first.")


def first_bytes(source: VideoInput, count: int) -> bytes:
    """The first bytes of a file, fewer if it is shorter."""
    named = isinstance(source, str | Path)
    with reading(source), Path(source).open("rb") if named else nullcontext(source) as file:
        file.seek(0)
        return file.read(count)


def _is_playlist(source: VideoInput) -> bool:
    head = first_bytes(source, 1024)
    return head.startswith((b"#EXTM3U", b"ffconcat")) or b"<MPD" in head


def packets(container: InputContainer, *streams: Stream) -> Iterator[Packet]:
    """Packets of the streams, and at the end the empty ones that flush their decoders.

    A demuxer raises at damage it cannot pass; the packets before it are good, so they end there.
    """
    demuxed = container.demux(*streams)
    while True:
        try:
            packet = next(demuxed, None)
        except FFmpegError:
            return
        if packet is None:
            return
        yield packet


def decode(
    container: InputContainer, stream: VideoStream, way: Way = "AUTO", clock: Clock = STEADY
) -> Iterator[av.VideoFrame | None]:
    """Frames from the container's position to its end; None where a packet was damaged.

    `way` as given to `open_video`; with a `clock` that jumps the container must stand at its
    beginning. `container.decode` ends for good at the first damaged packet and loses the frames
    after it.

    Raises:
        DecoderError: the GPU fails.
    """
    if isinstance(way, Hardware):
        return in_software_format(_decode(container, stream, way.context(stream), clock), way)
    return _decode(container, stream, _decoder(stream), clock)


def _decode(
    container: InputContainer, stream: VideoStream, decoder: VideoCodecContext, clock: Clock
) -> Iterator[av.VideoFrame | None]:
    for packet in clock.on_it(packets(container, stream), stream):
        if packet is None:  # the next piece does not refer to this one
            yield from _drained(decoder)
            decoder.flush_buffers()
            continue
        try:
            yield from decoder.decode(_without_deflated(packet, decoder))
        except FFmpegError:
            yield None
    yield from _drained(decoder)


def _without_deflated(packet: Packet, decoder: VideoCodecContext) -> Packet:
    """The packet without what `DEFLATED` removes."""
    clean = DEFLATED.get(decoder.name)
    if clean is None:
        return packet
    cleaned = packet_of(clean(bytes(packet)))
    cleaned.pts, cleaned.dts, cleaned.time_base = packet.pts, packet.dts, packet.time_base
    cleaned.is_keyframe = packet.is_keyframe  # other pictures depend on the one before
    return cleaned


def packet_of(data: bytes) -> Packet:
    """A packet with a copy of the data, followed by the zeros that FFmpeg's decoders read.

    A packet made of the bytes themselves needs Python to be freed: a decoder with threads that is
    closed while one of them does so waits forever.
    """
    packet = av.Packet(len(data))
    packet.update(data)
    return packet


def _drained(decoder: VideoCodecContext) -> Iterator[av.VideoFrame | None]:
    try:
        yield from decoder.decode(None)
    except EndOfFileError:
        return  # it was already drained
    except FFmpegError:
        yield None


def _decoder(stream: VideoStream) -> VideoCodecContext:
    """The stream's own decoder, or the one that supports alpha."""
    name = alpha_decoder(stream)
    return (
        cast("VideoCodecContext", av.CodecContext.create(name, "r"))
        if name
        else stream.codec_context
    )


def alpha_decoder(stream: VideoStream) -> str | None:
    """The decoder that a stream with alpha needs because FFmpeg's default silently drops alpha."""
    if stream.metadata.get("alpha_mode") != "1":
        return None
    return ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
