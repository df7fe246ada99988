"""The one lossy encode of a session whose chunks are lossless.

    final = encode_session(session, resolve_encoder(EncoderSettings(crf=18), decoded_picture(session)))
    join(final, Path("smooth.mp4"))

The encode is a separate session next to the first, so it is just as durable and resumable, and its
chunks need not match those of the mezzanine: hundreds of short chunks become a few long ones.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby, islice
from typing import TYPE_CHECKING

from .callbacks import OnProgress, no_progress
from .color import convert, yuv_of_rgb
from .errors import SessionError, VerificationError
from .frame import ColorTags
from .layout import pixel_layout
from .manifest import Manifest, differences
from .packets import CHUNK
from .profiles import Encoder, PictureFacts, written_tags
from .progress import ChunkRecord
from .session import Session
from .timetable import timetable
from .verify import open_whole, require_whole

if TYPE_CHECKING:
    from pathlib import Path

    from av import VideoFrame

FRAMES_PER_CHUNK = 240
"""Ten seconds of film: what a crash costs at most, for 0.3 % more bytes than one piece."""
SUFFIX = ".final"


def decoded_picture(session: Session) -> PictureFacts:
    """The frames a session's chunks hold."""
    stream = session.manifest.stream
    return picture_after(session.manifest.encoder, stream.width, stream.height)


def picture_after(encoder: Encoder, width: int, height: int) -> PictureFacts:
    """What frames of that size become when encoded and decoded."""
    pix_fmt = encoder.pix_fmt
    return PictureFacts(
        width=width,
        height=height,
        pix_fmt=pix_fmt.replace("f32", "f16")
        if encoder.options.get("format") == "half"
        else pix_fmt,
        has_alpha=pixel_layout(pix_fmt).has_alpha,
    )


def decoded_frames(session: Session, start: int = 0) -> Generator[VideoFrame, None, None]:
    """The frames of a session's chunks from number `start` on, one chunk open at a time.

    Raises:
        VerificationError: a chunk is missing, damaged or has another length.
    """
    first = 0
    for record in session.in_order():
        if first + record.frames > start:
            frames = _chunk_frames(session, record)
            with closing(frames):
                yield from islice(frames, max(0, start - first), None)
        first += record.frames


def encode_session(
    session: Session,
    encoder: Encoder,
    *,
    on_progress: OnProgress = no_progress,
) -> Session:
    """The session `<id>.final`: the same frames and times, encoded with `encoder`; resumable.

    What an earlier run left there with another encoder is removed. `on_progress` is called with
    frames done and total frames, and may raise to stop.

    Raises:
        SessionError: chunks are missing, or the final session is in use or has another's name.
        VerificationError: a chunk is damaged.
        EncoderError: the encoder fails.
        OutputError: the disk is full.
    """
    require_whole(session)
    records = session.in_order()
    times = timetable(session.manifest, records, shift=session.manifest.start).pts.tolist()
    final = _final_session(session, _final_manifest(session, encoder))
    with final.locked():
        intact = {record.index for record in final.done(thorough=True)}
        chunks = [
            range(begin, min(begin + FRAMES_PER_CHUNK, len(times)))
            for begin in range(0, len(times), FRAMES_PER_CHUNK)
        ]
        for is_intact, some in groupby(enumerate(chunks), key=lambda chunk: chunk[0] in intact):
            if is_intact:
                for _, numbers in some:
                    on_progress(numbers.stop, len(times))
            else:
                _encode_chunks(session, final, list(some), times, on_progress)
    return final


def remove_encode(session: Session) -> None:
    """Remove the session `<id>.final`, if there is one.

    Raises:
        SessionError: it is in use.
    """
    found = Session.find(*_final_place(session))
    if found is not None and _is_encode_of(session, found):
        found.remove()


def _final_place(session: Session) -> tuple[Path, str]:
    return session.folder.parent.parent, session.id[: 64 - len(SUFFIX)] + SUFFIX


def _is_encode_of(session: Session, found: Session) -> bool:
    """Whether a session found at `_final_place` is that; any session may be called `<id>.final`."""
    return found.manifest.source.get("session") == session.id


def _final_session(session: Session, manifest: Manifest) -> Session:
    root, name = _final_place(session)
    found = Session.find(root, name)
    if found is not None and not _is_encode_of(session, found):
        raise SessionError(
            f"Session {name} belongs to another job, and the final encode of session {session.id} "
            f"needs its name: rename the folder {found.folder}."
        )
    is_stale = found is not None and bool(differences(found.manifest, manifest))
    return Session.start(root, name, manifest, overwrite=is_stale)


def _encode_chunks(
    session: Session,
    final: Session,
    chunks: Sequence[tuple[int, range]],
    times: list[int],
    on_progress: OnProgress,
) -> None:
    """Encode chunks that follow each other, given as (index, numbers of the frames)."""
    manifest = final.manifest
    with closing(decoded_frames(session, chunks[0][1].start)) as frames:
        for index, numbers in chunks:
            with final.new_chunk(index) as chunk:
                for number, picture in zip(numbers, frames, strict=False):
                    converted = convert(
                        picture,
                        manifest.encoder.pix_fmt,
                        session.manifest.stream.color,
                        manifest.stream.color,
                    )
                    chunk.write(converted, times[number])
                    on_progress(number + 1, len(times))
                pairs = numbers.start, numbers.stop
                is_last = numbers.stop == len(times)
                chunk.commit(pairs=pairs, first_frame=numbers.start, is_last=is_last)


def _final_manifest(session: Session, encoder: Encoder) -> Manifest:
    source = {"session": session.id, "chunks": session.content()}
    manifest = session.manifest
    color = _final_color(manifest.stream.color, manifest.encoder.pix_fmt, encoder)
    return replace(
        manifest,
        source=source,
        settings={},
        encoder=encoder,
        stream=replace(manifest.stream, color=color),
        plan={"frames": FRAMES_PER_CHUNK},
    )


def _final_color(color: ColorTags, source: str, encoder: Encoder) -> ColorTags:
    """RGB gets the tags of `yuv_of_rgb`; YUV keeps its own, as far as the file can store them."""
    was_rgb = pixel_layout(source).family == "rgb"
    return written_tags(yuv_of_rgb(color) if was_rgb else color, encoder)


def _chunk_frames(session: Session, record: ChunkRecord) -> Generator[VideoFrame, None, None]:
    count = 0
    with open_whole(session, record, CHUNK) as container:
        container.streams.video[0].thread_type = "AUTO"
        for picture in container.decode(video=0):
            count += 1
            yield picture
    if count != record.frames:
        raise VerificationError(
            f"{session.chunk_path(record.index).name} decodes to {count} frames instead of {record.frames}: "
            "remove it and resume."
        )
