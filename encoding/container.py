"""Opening video files for reading, and decoding them past damage."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import av
from av.error import EOFError as EndOfFileError
from av.error import FFmpegError

from .errors import SourceError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.stream import Stream
    from av.video.stream import VideoStream

VideoInput = str | Path | BinaryIO
"""A video file by path, or its bytes in a seekable binary file object such as BytesIO."""

Threads = Literal["AUTO", "NONE"]

ATTACHED_PICTURE = 0x400  # AV_DISPOSITION_ATTACHED_PIC


def source_name(source: VideoInput) -> str:
    """What to call the source in messages."""
    return Path(source).name if isinstance(source, str | Path) else "the video in memory"


@contextmanager
def open_video(
    source: VideoInput, threads: Threads = "AUTO"
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The container and the first video stream in it (cover art is none), open for the block.

    `threads`: AUTO decodes several frames at once, twice as fast as slice threads alone.

    Raises:
        SourceError: missing, a folder, not readable, not a video, or without a video stream.
    """
    with _open(source) as container:
        for stream in container.streams.video:
            if not int(stream.disposition) & ATTACHED_PICTURE:
                stream.codec_context.thread_type = threads
                yield container, stream
                return
        only_audio = "; it holds only sound" if container.streams.audio else ""
        raise SourceError(
            f"{source_name(source)} has no video stream{only_audio}; choose a file with pictures."
        )


def _open(source: VideoInput) -> InputContainer:
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


def decode(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Frames from where the container stands to its end, stepping over damaged packets.

    `container.decode` ends for good at the first damaged packet, with the frames behind it.
    """
    for packet in packets(container, stream):
        try:
            pictures = packet.decode()
        except FFmpegError:
            continue
        yield from pictures  # type: ignore[misc]
    try:
        yield from stream.decode(None)
    except EndOfFileError:
        return  # flushed already, by the empty packet at the end of an undamaged file
