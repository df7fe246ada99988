"""Sessions whose chunks are saved one by one, in any order, by a graph that interpolates pairs."""

from __future__ import annotations

import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ..encoding.color import from_rgb, resolve
from ..encoding.frame import ColorTags
from ..encoding.manifest import Manifest
from ..encoding.probe import VideoInfo, probe
from ..encoding.profiles import EncoderSettings, resolve_encoder, written_tags
from ..encoding.progress import ChunkRecord
from ..encoding.reader import file_identity
from ..encoding.session import ORIGIN, Session
from ..encoding.source import open_source
from ..encoding.writer import StreamSpec
from ..tlbvfi.progress import Meter
from ..tlbvfi.timeline import storable_tick
from .clip import BatchFrames
from .host import NodeProgress, running_prompt_id
from .images import as_frame, require_images
from .output_settings import container_of, encoder_notices, encoder_settings

FOLLOWED = ("h264", "hevc", "av1", "vp9", "prores")
"""Codecs of a source video that its chunks keep if the codec is auto."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSettings:
    """How the chunks of a session are stored; the same for all of them."""

    rate: Fraction
    encoder: EncoderSettings
    info: VideoInfo
    """Size of the frames, and whether they have alpha."""
    color: ColorTags
    """What they are stored with."""
    sound: Path | None
    """Video whose sound goes into the joined file."""


def chunk_settings(
    frames: Tensor, *, rate: Fraction, codec: str, crf: int, source: Path | None
) -> ChunkSettings:
    """Settings for chunks with these frames. `source`: the video they come from, if known.

    Raises:
        FrameError: the frames are not color pictures.
        SourceError: the source is not a video.
        EncoderError: there is no such codec.
    """
    require_images(frames)
    with open_source(BatchFrames(frames[:1]), input_rate=rate) as batch:
        info = batch.info
    color = resolve(info)
    if source is not None:
        origin = probe(source)
        color = resolve(origin)
        codec = origin.codec if codec == "auto" and origin.codec in FOLLOWED else codec
    encoder = encoder_settings(codec, crf, "", info, is_video=False)
    return ChunkSettings(rate=rate, encoder=encoder, info=info, color=color, sound=source)


def new_session_id() -> str:
    """An id made from the current time: `chunks-20261120-134502-118`."""
    now = time.time()
    return (
        f"chunks-{time.strftime('%Y%m%d-%H%M%S', time.localtime(now))}-{int(now * 1000) % 1000:03}"
    )


def save_chunk(
    frames: Tensor,
    index: int,
    root: Path,
    session_id: str,
    settings: ChunkSettings,
    progress: NodeProgress,
) -> tuple[Session, ChunkRecord]:
    """Commit `frames`, [N, H, W, C], as chunk `index`, replacing an existing one.

    `progress` is told every frame and may raise to stop: the chunk is then not saved.
    A session that was joined and cleaned up starts over; its next joins replace those files.

    Raises:
        SessionMismatch: the session's chunks have another source, size, rate or codec.
        SettingsError: no file can store the rate.
        FrameError: a frame holds NaN or infinite pixels.
        EncoderError, SessionError, OutputError: as in `Session` and `ChunkWriter`.
    """
    manifest = _manifest(settings, progress)
    former = Session.find(root, session_id)
    joined = former.results() if former is not None and not former.has_chunks() else []
    if former is not None and joined:
        former.remove()
    session = Session.start(root, session_id, manifest)
    for made in joined:
        session.note_result(made)
    _note_run(session, settings.sound)
    tags = manifest.stream.color
    meter = Meter(frames_total=len(frames))
    with session.locked(), session.new_chunk(index) as chunk:
        for n, image in enumerate(frames):
            frame = as_frame(image, n)
            chunk.write(from_rgb(frame.numpy(), manifest.encoder.pix_fmt, tags), n)
            progress(meter.frame(frame))
        return session, chunk.commit(pairs=(index, index + 1))


def chunks_of_earlier_runs(session: Session) -> list[int]:
    """Numbers of the chunks that were there before this run saved its own; empty if it saved none.

    Only the one who queues the graph knows whether they belong to the same clip.
    """
    if session.origin().get("run") != running_prompt_id():
        return []
    begun = (session.folder / ORIGIN).stat().st_mtime_ns
    chunks = {index: session.chunk_path(index) for index in sorted(session.records())}
    return [n for n, path in chunks.items() if path.is_file() and path.stat().st_mtime_ns < begun]


def _note_run(session: Session, sound: Path | None) -> None:
    """Note what the session's sound is and which run saves chunks, once before its first chunk."""
    origin = {"sound": None if sound is None else str(sound), "run": running_prompt_id()}
    if session.origin() != origin:
        session.note_origin(origin)


def _manifest(settings: ChunkSettings, progress: NodeProgress) -> Manifest:
    info = settings.info
    encoder = resolve_encoder(
        settings.encoder,
        info,
        container=container_of(settings.encoder.codec),
        software_twin=True,
    )
    for notice in encoder_notices(settings.encoder.codec, encoder, info):
        progress(notice)
    return Manifest(
        source={
            "kind": "chunks saved one by one",
            "video": None if settings.sound is None else file_identity(settings.sound),
        },
        settings={},
        encoder=encoder,
        stream=StreamSpec(
            width=info.width,
            height=info.height,
            time_base=storable_tick(1 / settings.rate),
            rate=settings.rate,
            color=written_tags(settings.color, encoder),
        ),
    )
