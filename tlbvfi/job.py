"""One video, from file to file: decode thread, pipeline, encode thread, session, join.

Memory use is constant: the queues between the three threads hold `QUEUE_FRAMES` frames each. A
crash costs at most the chunk in progress; running the same job again resumes it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import BinaryIO

import torch
from av import VideoFrame

from ..encoding.color import convert, from_rgb, skim, to_rgb
from ..encoding.concat import JoinResult
from ..encoding.delivery import Final, clean_up, deliver, final_to_json
from ..encoding.durable import remove_stale_lock, size_in_words, sole_writer
from ..encoding.errors import OutputError, SessionError
from ..encoding.frame import Frame
from ..encoding.images import ImageFormat
from ..encoding.manifest import Manifest, manifest_to_json
from ..encoding.progress import ChunkRecord
from ..encoding.sequence import (
    image_pattern,
    is_image,
    problem_with_images,
    refuse_other_images,
    total_bytes,
)
from ..encoding.session import ChunkWriter, FinalFile, Session
from ..encoding.source import Source
from ..encoding.stored import stored_fraction
from ..encoding.unchanged import Facts, file_facts, require_unchanged
from ..encoding.verify import Check, VerifyReport, expected_output, verify_file
from ..encoding.window import Window
from .config import JobConfig
from .memory import free_memory
from .method import Method, announce
from .pipeline import OutputFrame, interpolate
from .plan import ChunkRange, Plan, chunks_to_make, make_plan
from .progress import Encoding, Joining, Meter, Notice, OnEvent, Reading, Started, log_notices
from .scenes import FRAMES_AFTER, FRAMES_BEFORE, marked, sampling_step
from .spans import LONGEST_RUN, SourceFrame
from .threads import background, prefetch

QUEUE_FRAMES = 2
"""Enough to overlap decode, method and encode; a 4K frame in float32 is 100 MB."""


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
    origin = {
        **destination.begun,
        "metadata": {**source.info.metadata, **(destination.metadata or {})},
        "sound": str(destination.sound.absolute()) if isinstance(destination.sound, Path) else None,
    }
    with session.locked():
        session.note_origin(origin)
    return session


def default_session_id(source: Source, plan: Plan) -> str:
    """The source's name and a hash of all that decides the output: a job finds its own session."""
    text = json.dumps(manifest_to_json(plan.manifest), sort_keys=True)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source.info.name).stem).strip("-")[:40] or "video"
    return f"{stem}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def is_joined(session: Session, output: Path | None = None) -> bool:
    """Whether the file this session was joined into exists and has the right size and times.

    `output`: which file; None: the last one.
    """
    return session.result(output) is not None and verify_joined(session, output).ok


def verify_joined(
    session: Session, output: Path | None = None, *, deep: bool = False
) -> VerifyReport:
    """Check the file this session was joined into against the session's records.

    `output`: which file; None: the last one. `deep` also decodes every frame of a video.

    Raises:
        SessionError: the session was not joined into that file.
    """
    made = session.result(output)
    if made is None:
        raise SessionError(f"Session {session.id} was not joined into {output or 'anything'} yet.")
    path = made.output
    if is_image(path.suffix):
        pattern, frames = image_pattern(path), len(expected_output(session).times.pts)
        problem = problem_with_images(pattern, frames)
        checks = [Check(name="images", ok=not problem, what=problem or f"{frames} without a gap")]
        size = total_bytes(pattern)
    elif not path.is_file():
        checks, size = [Check(name="file", ok=False, what="is missing")], 0
    else:
        checks, size = (), path.stat().st_size
        if size == made.bytes:  # otherwise it is some other file, perhaps a long one
            expected = expected_output(session, shift=made.shift)
            checks = verify_file(path, expected, deep=deep).checks
    what = f"{size} bytes" if size == made.bytes else f"{size} bytes of {made.bytes}"
    is_whole = Check(name="size", ok=size == made.bytes, what=what)
    return VerifyReport(subject=str(path), checks=(is_whole, *checks))


def join_session(
    session: Session,
    output: Path,
    *,
    final: Final = None,
    sound: Path | BinaryIO | None = None,
    sound_facts: Facts | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    keep_chunks: bool = False,
    on_event: OnEvent = log_notices,
) -> JoinResult:
    """Join the chunks and verify the result; then remove the chunks, unless `keep_chunks`.

    `final`: what the chunks become; None: they are joined as they are. `sound`: file whose sound,
    subtitles, chapters and metadata are carried over, within the job's window. `sound_facts`: what
    that file must be to the end; None: whatever it is. The caller must be the `sole_writer` of
    `output`.

    Raises:
        SessionError: chunks are missing, or another process works on the session.
        SourceError: `sound` has changed.
        VerificationError: a chunk or the joined file is damaged.
        OutputError: `output` exists or cannot be written.
    """
    require_unchanged(sound, sound_facts)
    window = used_window(session.manifest)

    def note(joined: JoinResult) -> None:
        require_unchanged(sound, sound_facts)
        session.note_result(
            FinalFile(
                output=output.absolute(),
                bytes=joined.bytes,
                shift=joined.shift,
                final=final_to_json(final),
                chunks=session.content(),
            )
        )

    with session.locked():
        joined = deliver(
            session,
            output,
            final,
            source=sound,
            window=window,
            metadata=metadata,
            overwrite=overwrite,
            on_encode=lambda done, total: on_event(Encoding(done=done, total=total)),
            on_join=lambda done, total: on_event(Joining(done=done, total=total)),
            on_made=note,
        )
        for text in joined.notes:
            on_event(Notice(text=text))
        clean_up(session, keep_chunks=keep_chunks)
    return joined


def sound_of(session: Session) -> str | None:
    """File whose sound goes with a session's frames, if any, as the job set it."""
    settings = session.manifest.settings
    is_dropped = settings.get("slowmo", "1") != "1" and settings.get("slowmo_sound") != "stretch"
    is_silent = settings.get("audio") is False or is_dropped
    return None if is_silent else session.origin().get("sound")


def _is_done(session: Session, output: Path, final: Final) -> bool:
    """Whether `output` exists, was made from this session and is encoded as `final` says."""
    made = session.result(output)
    is_alike = made is not None and made.final == final_to_json(final)
    return is_alike and is_joined(session, output)


def used_window(manifest: Manifest) -> Window | None:
    """The part of the source's clock that a job covers; None if it is all of it, unstretched.

    An edit list would hide what is before 0 on that clock, so the window begins at the first frame.
    """
    settings = manifest.settings
    is_stretched = settings.get("slowmo_sound") == "stretch"
    stretch = _stored(settings.get("slowmo")) if is_stretched else Fraction(1)
    is_whole = settings.get("start") is None and settings.get("end") is None
    if is_whole and stretch == 1 and manifest.start >= 0:
        return None
    end = settings.get("end_time")
    return Window(start=manifest.start, end=None if end is None else _stored(end), stretch=stretch)


def _stored(text: object) -> Fraction:
    try:
        return stored_fraction(text)
    except ValueError as error:
        raise SessionError(
            f"The session's records are damaged ({error}): remove the session and start again."
        ) from error


def make_chunks(
    session: Session,
    source: Source,
    method: Method,
    plan: Plan,
    *,
    on_event: OnEvent = log_notices,
) -> int:
    """Make every chunk that is missing or damaged; return the number of frames made.

    The session must be locked.
    """
    intact = session.done(
        thorough=True,
        on_chunk=lambda done, total: on_event(Reading(what="chunk", done=done, total=total)),
    )
    meter = Meter(
        frames_total=plan.frames_total,
        frames_before=sum(record.frames for record in intact),
        chunks_done=len(intact),
        bytes_written=sum(record.bytes for record in intact),
    )
    on_event(
        Started(
            session_id=session.id,
            session_folder=session.folder,
            frames_total=plan.frames_total,
            frames_done=meter.frames_before,
            encoder=session.manifest.encoder.name,
        )
    )
    _warn_before_it_fails(session, method, plan, on_event)
    announce(method, plan.frames_total)
    for todo in chunks_to_make(session.records().values(), intact, plan):
        write = partial(write_chunks, session=session, plan=plan, todo=todo)
        with closing(prefetch(load_frames(source, plan, todo), QUEUE_FRAMES)) as loaded:
            frames = interpolate(
                loaded,
                method,
                plan.timeline,
                plan.rules,
                first=plan.first,
                start=todo.start,
                stop=todo.stop,
                ends_here=todo.is_last,
            )
            encode_frames(frames, write, meter, on_event)
    loss = source.shortfall()
    if loss:
        on_event(Notice(text=loss))
    return meter.frames_made


def _warn_before_it_fails(session: Session, method: Method, plan: Plan, on_event: OnEvent) -> None:
    """Warn now of what would stop the job hours later: too little disk or memory."""
    forecast = session.forecast(plan.frames_total or 0)
    if not forecast.fits:
        on_event(
            Notice(
                text=f"about {size_in_words(forecast.needed_bytes)} of disk space are needed and "
                f"{size_in_words(forecast.free_bytes)} are free at {session.folder}: free some "
                "space or, on the command line, choose another --root; a full disk stops the job, "
                "and running the same job again resumes it."
            )
        )
    stream = plan.manifest.stream
    needed = method.memory_needed(stream.height, stream.width)
    free = free_memory(method.device)
    if needed > free:
        on_event(
            Notice(
                text=f"{method.name} needs about {size_in_words(needed)} of memory at "
                f"{stream.width}x{stream.height} and {size_in_words(free)} are free: close other "
                "programs, or expect the job to fail."
            )
        )


def load_frames(source: Source, plan: Plan, todo: ChunkRange) -> Iterator[SourceFrame[VideoFrame]]:
    """The source frames of a range and a few around it, as RGB on the output's clock.

    Cuts and repetitions are found on thumbnails of still more frames, within the job, so that they
    do not depend on where the range begins.
    """
    reach = LONGEST_RUN if plan.rules.retime else 0
    start = max(plan.first, todo.start - reach)
    stop = plan.stop if todo.stop is None else plan.last_stop(todo.stop + 1 + reach)
    seen = source.frames(
        max(plan.first, start - FRAMES_BEFORE + 1),
        plan.stop if stop is None else plan.last_stop(stop + FRAMES_AFTER),
    )
    with closing(seen) as frames:
        for frame, begins_scene, repeats in _watched(frames, plan):
            if frame.index < start:
                continue
            if stop is not None and frame.index >= stop:
                break
            yield SourceFrame(
                index=frame.index,
                time=plan.output_time(frame.time),
                image=torch.from_numpy(to_rgb(frame.picture, plan.tags)[: plan.channels]),
                picture=frame.picture,
                begins_scene=begins_scene,
                repeats=repeats,
            )


def _watched(frames: Iterator[Frame], plan: Plan) -> Iterator[tuple[Frame, bool, bool]]:
    """(frame, begins a scene, repeats the one before) of every frame; both False if unneeded."""
    size = plan.manifest.stream
    step = sampling_step(size.height, size.width)

    def thumbnail(frame: Frame) -> torch.Tensor:
        return torch.from_numpy(skim(frame.picture, plan.tags, step))

    return marked(frames, thumbnail, look=plan.rules.look)


def encode_frames(
    frames: Iterable[OutputFrame[VideoFrame]],
    write: Callable[[Iterator[OutputFrame[VideoFrame]]], Iterable[ChunkRecord]],
    meter: Meter,
    on_event: OnEvent,
) -> None:
    """Feed frames to `write` in the encode thread and report its progress from this thread."""
    committed: deque[ChunkRecord] = deque()

    def tell_commits() -> None:
        while committed:
            record = committed.popleft()
            on_event(meter.chunk(record.frames, record.bytes))

    def consume(items: Iterator[OutputFrame[VideoFrame]]) -> None:
        committed.extend(write(items))

    with background(consume, QUEUE_FRAMES) as feed:
        for frame in frames:
            feed(frame)
            on_event(meter.frame(frame.image))
            tell_commits()
    tell_commits()


def write_chunks(
    frames: Iterable[OutputFrame[VideoFrame]],
    *,
    session: Session,
    plan: Plan,
    todo: ChunkRange,
) -> Iterator[ChunkRecord]:
    """Encode frames into the chunks of a range and yield each chunk as it is committed.

    Closing the iterator, or an error in `frames`, leaves the chunk in progress uncommitted.
    """

    def is_full(chunk: ChunkWriter, first: int, last: int, following: int) -> bool:
        """Whether a chunk of pairs `first` to `last` ends before a frame of pair `following`."""
        is_between_pairs = todo.stop is None and chunk.frames > 0 and following > last
        return is_between_pairs and plan.ends_chunk(following - first, chunk.bytes)

    remaining = iter(frames)
    frame = next(remaining, None)
    index, start = todo.index, todo.start
    while frame is not None:
        with session.new_chunk(index) as chunk:
            first_frame, pair = frame.slot.number, frame.pair
            notes: dict[str, list[int]] = {}
            while frame is not None and not is_full(chunk, start, pair, frame.pair):
                chunk.write(output_picture(frame, plan), plan.ticks(frame.slot.time))
                _note(notes, frame)
                pair, frame = frame.pair, next(remaining, None)
            yield chunk.commit(
                pairs=(start, todo.stop or (frame.pair if frame else pair + 1)),
                first_frame=first_frame,
                is_last=frame is None and todo.is_last,
                notes=notes,
            )
        index, start = index + 1, frame.pair if frame else pair + 1


def _note(notes: dict[str, list[int]], frame: OutputFrame[VideoFrame]) -> None:
    """Note a frame's pair, once, if it was held at a cut or retimed."""
    for word, is_so in (("cuts", frame.is_held), ("retimed", frame.is_retimed)):
        if is_so and frame.pair not in notes.get(word, [])[-1:]:
            notes.setdefault(word, []).append(frame.pair)


def output_picture(frame: OutputFrame[VideoFrame], plan: Plan) -> VideoFrame:
    """What the encoder gets: a source frame as it was decoded, or a mid frame rounded once."""
    pix_fmt, written = plan.manifest.encoder.pix_fmt, plan.manifest.stream.color
    if frame.source is not None:
        return convert(frame.source.picture, pix_fmt, plan.tags, written)
    assert frame.image is not None  # an output frame is one or the other
    return from_rgb(frame.image.numpy(), pix_fmt, written)


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
