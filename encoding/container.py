"""Opening video files for reading, and decoding them past damage."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

import av
from av.error import EOFError as EndOfFileError
from av.error import FFmpegError
from av.stream import Disposition

from .errors import SourceError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.rational import AVRational
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

VideoInput = str | Path | BinaryIO
"""A video file by path, or its bytes in a seekable binary file object such as BytesIO."""

Threads = Literal["AUTO", "NONE"]

ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}


def exact(rational: Fraction | AVRational | None) -> Fraction | None:
    """PyAV's rates and time bases as fractions: from version 19 on they are of a type of its own."""
    return Fraction(rational.numerator, rational.denominator) if rational else None


def source_name(source: VideoInput) -> str:
    """What to call the source in messages."""
    return Path(source).name if isinstance(source, str | Path) else "the video in memory"


@contextmanager
def open_video(
    source: VideoInput, threads: Threads = "AUTO"
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the first video stream in it (cover art is none), open for the block.

    `threads`: AUTO decodes several frames at once, about twice as fast; but what comes of damage
    then depends on chance, so that its decoder stops at damage where NONE patches it over.

    Raises:
        SourceError: missing, a folder, not readable, not a video, or without a video stream.
    """
    with open_container(source) as container:
        for stream in container.streams.video:
            if Disposition.attached_pic not in stream.disposition:
                stream.codec_context.thread_type = threads
                if threads == "AUTO":
                    stream.codec_context.options = {"err_detect": "explode"}
                yield container, stream
                return
        only_audio = "; it holds only sound" if container.streams.audio else ""
        raise SourceError(
            f"{source_name(source)} has no video stream{only_audio}; choose a file with pictures."
        )


def open_container(source: VideoInput) -> InputContainer:
    """The source's container, opened from its beginning; the caller closes it.

    Raises:
        SourceError: missing, a folder, not readable, or not a video.
    """
    try:
        if isinstance(source, str | Path):
            # `file:` keeps colons and percent signs in a name from meaning a protocol or a
            # pattern; the whitelist keeps playlists from fetching anything.
            return av.open(f"file:{source}", container_options={"protocol_whitelist": "file"})
        # Readers open a file several times at once; BytesIO objects share their bytes.
        file = io.BytesIO(source.getvalue()) if isinstance(source, io.BytesIO) else source
        file.seek(0)
        return av.open(file, "r")
    except FileNotFoundError as error:
        raise SourceError(f"{source} does not exist; check the path.") from error
    except IsADirectoryError as error:
        raise SourceError(f"{source} is a folder; a video file is wanted here.") from error
    except PermissionError as error:
        raise SourceError(f"{source} must not be read; check its permissions.") from error
    except FFmpegError as error:
        raise SourceError(
            f"{source_name(source)} is not a video, or too damaged to be opened "
            f"({error.strerror}); play it elsewhere to make sure."
        ) from error


def packets(container: InputContainer, *streams: Stream) -> Iterator[Packet]:
    """Packets of the streams, and at the end the empty ones that flush their decoders.

    A demuxer raises at damage it cannot pass; what it gave before is good, so that is the end.
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


def decode(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame | None]:
    """Frames from where the container stands to its end; None where a packet was damaged.

    `container.decode` ends for good at the first damaged packet, with the frames behind it.
    """
    decoder = _decoder(stream)
    for packet in packets(container, stream):
        try:
            yield from decoder.decode(packet)
        except FFmpegError:
            yield None
    try:
        yield from decoder.decode(None)
    except EndOfFileError:
        return  # flushed already, by the empty packet at the end of an undamaged file
    except FFmpegError:
        yield None


def _decoder(stream: VideoStream) -> VideoCodecContext:
    """The stream's own decoder, or the one that knows alpha where FFmpeg's drops it silently."""
    name = ALPHA_DECODERS.get(stream.codec_context.codec.canonical_name)
    if name and stream.metadata.get("alpha_mode") == "1":
        return cast("VideoCodecContext", av.CodecContext.create(name, "r"))
    return stream.codec_context
