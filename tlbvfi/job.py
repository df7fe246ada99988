"""One video, from file to file: a session is started or found, its chunks made and joined.

A crash costs at most the chunk in progress and half of the next, which is begun while it is finished;
running the same job again resumes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from ..encoding.delivery import Final, clean_up, final_to_json
from ..encoding.durable import remove_stale_lock, sole_writer
from ..encoding.errors import OutputError
from ..encoding.image_encoder import ImageFormat
from ..encoding.manifest import manifest_to_json
from ..encoding.sequence import image_pattern, is_image, refuse_other_images
from ..encoding.session import Session
from ..encoding.source import Source
from ..encoding.unchanged import file_facts
from .chunks import make_chunks
from .config import JobConfig
from .join import is_joined, join_session
from .method import Method
from .plan import Plan, make_plan
from .progress import OnEvent, log_notices


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """Where a job's session and its final file go, and what happens to existing files there."""

    output: Path
    """A video file, or numbered images such as `frames/f_%06d.png`."""
    root: Path | None = None
    """Folder of `tlbvfi_chunks/`; default: `output/` beside the final file."""
    session_id: str | None = None
    """Default: the source's name and a hash of source identity and settings."""
    overwrite: bool = False
    """Whether to start the session afresh and replace an existing `output`."""
    resume: bool = False
    """Whether to resume the session even with `overwrite`, which then only replaces `output`."""
    keep_chunks: bool = False
    sound: Path | BinaryIO | None = None
    """File whose sound, subtitles, chapters and metadata go into the final file, if any."""
    metadata: Mapping[str, str] | None = None
    """Tags for the final file in addition to the source's, such as a ComfyUI workflow."""
    begun: Mapping[str, object] = field(default_factory=dict)
    """What the command line needs to run this job again, in JSON types; stored in the session."""

    @property
    def sessions_root(self) -> Path:
        """`root`, or `output/` beside the final file or beside the folder of images."""
        if self.root is not None:
            return self.root
        place = self.output.parent
        return (place.parent if is_image(self.output.suffix) else place) / "output"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """The result of a job."""

    output: Path
    session_id: str
    session_folder: Path
    frames: int
    frames_made: int
    """Frames this run made; the others are from earlier runs."""
    was_done: bool
    """Whether the output already existed, verified, before this run."""
    cuts: int
    """Scene cuts that were not interpolated across."""
    retimed: int
    """Pairs of source frames in which repeated frames were replaced by motion."""


def run_job(
    source: Source,
    method: Method,
    config: JobConfig,
    destination: Destination,
    *,
    on_event: OnEvent = log_notices,
) -> JobResult:
    """Interpolate `source` into `destination.output`, or resume where an earlier run stopped.

    `on_event` is called in this thread, at least once per output frame, and may raise to stop: the
    chunks committed so far stay.

    Raises:
        VideoError: the source, encoder, session or destination is unusable.
        InterpolationError: settings or frames do not fit together.
    """
    sound = destination.sound if config.has_sound else None
    sound_facts = file_facts(sound)
    if isinstance(destination.sound, Path):
        refuse_the_source(destination.sound, destination.output)
    if is_image(destination.output.suffix):
        image_pattern(destination.output)  # raises before anything is made
    plan = make_plan(
        source, method, config, suffix=destination.output.suffix, sound=destination.sound
    )
    session_id = destination.session_id or default_session_id(source, plan)
    if Session.find(destination.sessions_root, session_id) is None:
        with sole_writer(destination.output):
            _refuse_to_overwrite(None, plan.final, destination)  # before a session is created
    session = start_session(source, plan, destination)
    with session.locked():
        if _is_done(session, destination.output, plan.final):
            # A run may have ended before it did this.
            clean_up(session, keep_chunks=destination.keep_chunks)
            remove_stale_lock(destination.output)
            return _result(session, destination, frames_made=0, was_done=True)
        with sole_writer(destination.output):
            _refuse_to_overwrite(session, plan.final, destination)
            made = make_chunks(session, source, method, plan, on_event=on_event)
            join_session(
                session,
                destination.output,
                final=plan.final,
                sound=sound,
                sound_facts=sound_facts,
                metadata=session.origin().get("metadata"),
                overwrite=destination.overwrite,
                keep_chunks=destination.keep_chunks,
                on_event=on_event,
            )
    return _result(session, destination, frames_made=made, was_done=False)


def start_session(source: Source, plan: Plan, destination: Destination) -> Session:
    """The session of this plan: a new one, or the one left by an earlier run of the same job."""
    root = destination.sessions_root
    session_id = destination.session_id or default_session_id(source, plan)
    anew = destination.overwrite and not destination.resume
    session = Session.start(root, session_id, plan.manifest, overwrite=anew)
    sound = destination.sound
    session.note_origin(
        {
            **destination.begun,
            "metadata": {**source.info.metadata, **(destination.metadata or {})},
            "sound": str(sound.absolute()) if isinstance(sound, Path) else None,
        }
    )
    return session


def default_session_id(source: Source, plan: Plan) -> str:
    """The source's name and a hash of all that decides the output: a job finds its own session."""
    text = json.dumps(manifest_to_json(plan.manifest), sort_keys=True)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source.info.name).stem).strip("-")[:40] or "video"
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _is_done(session: Session, output: Path, final: Final) -> bool:
    """Whether `output` exists, was made from this session and is encoded as `final` says."""
    made = session.result(output)
    is_alike = made is not None and made.final == final_to_json(final)
    return is_alike and is_joined(session, output)


def refuse_the_source(source: Path, output: Path) -> None:
    """Refuse an output that replaces its source, or lies among the images that are read.

    Raises:
        OutputError: it does.
    """
    place = output.parent if source.is_dir() and is_image(output.suffix) else output
    if source.exists() and place.exists() and place.samefile(source):
        raise OutputError(f"{place} is the source itself: choose another name for the output.")


def _refuse_to_overwrite(session: Session | None, final: Final, destination: Destination) -> None:
    """Refuse now what would otherwise fail after the job's last frame."""
    if destination.overwrite:
        return
    if isinstance(final, ImageFormat):
        refuse_other_images(session, image_pattern(destination.output), final)
    elif destination.output.exists():
        raise OutputError(
            f"{destination.output} exists and was not made by this job: choose another name or, "
            "on the command line, --overwrite to replace it."
        )


def _result(
    session: Session, destination: Destination, *, frames_made: int, was_done: bool
) -> JobResult:
    records = session.records().values()
    return JobResult(
        output=destination.output,
        session_id=session.id,
        session_folder=session.folder,
        frames=sum(record.frames for record in records),
        frames_made=frames_made,
        was_done=was_done,
        cuts=sum(len(record.notes.get("cuts", ())) for record in records),
        retimed=sum(len(record.notes.get("retimed", ())) for record in records),
    )
