"""A session's missing chunks: decoded, converted, interpolated, converted back and encoded.

Each of these five stages has a thread, the third the caller's. Memory use is constant: queues of images
hold `QUEUE_FRAMES` frames each, that of pictures for the encoder `pictures_ahead`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import torch
from av import VideoFormat, VideoFrame

from ..encoding.chunk import ChunkWriter
from ..encoding.color import convert, from_rgb, skim, to_rgb
from ..encoding.durable import size_in_words
from ..encoding.frame import Frame
from ..encoding.progress import ChunkRecord
from ..encoding.session import Session
from ..encoding.source import Source
from .memory import free_memory
from .method import Method, announce
from .pipeline import OutputFrame, interpolate
from .plan import ChunkRange, Plan, chunks_to_make
from .progress import Meter, Notice, OnEvent, Reading, Started, log_notices
from .scenes import FRAMES_AFTER, FRAMES_BEFORE, marked, sampling_step
from .spans import LONGEST_RUN, SourceFrame
from .threads import background, prefetch
from .timeline import Slot

QUEUE_FRAMES = 2
"""Enough to overlap the stages; a 4K frame in float32 is 100 MB."""
MOST_AHEAD = 64
"""Pictures that may wait for the encoder, so that the method need not wait at the end of a chunk: there
the encoder still encodes what it has held back (libx264: 50 frames), and the next one is opened."""
MOST_BYTES_AHEAD = 512 * 10**6
"""All of them together; a 4K picture of 8 bits has 12 MB."""


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
            encode_frames(frames, write, plan, meter, on_event)
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
    with closing(prefetch(_watched(seen, plan), QUEUE_FRAMES)) as frames:
        for frame, begins_scene, repeats in frames:
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


def _watched(frames: Generator[Frame], plan: Plan) -> Generator[tuple[Frame, bool, bool]]:
    """(frame, begins a scene, repeats the one before) of every frame; both False if unneeded."""
    size = plan.manifest.stream
    step = sampling_step(size.height, size.width)

    def thumbnail(frame: Frame) -> torch.Tensor:
        return torch.from_numpy(skim(frame.picture, plan.tags, step))

    with closing(frames):
        yield from marked(frames, thumbnail, look=plan.rules.look)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """An output frame as the encoder gets it, without the images it was made from."""

    pair: int
    slot: Slot
    picture: VideoFrame
    is_held: bool
    is_retimed: bool


def encode_frames(
    frames: Iterable[OutputFrame[VideoFrame]],
    write: Callable[[Iterator[Drawn]], Iterable[ChunkRecord]],
    plan: Plan,
    meter: Meter,
    on_event: OnEvent,
) -> None:
    """Feed frames to `write` in a thread, drawn in another; report progress from this one."""
    committed: deque[ChunkRecord] = deque()

    def tell_commits() -> None:
        while committed:
            record = committed.popleft()
            on_event(meter.chunk(record.frames, record.bytes))

    def consume(items: Iterator[Drawn]) -> None:
        committed.extend(write(items))

    def draw(items: Iterator[OutputFrame[VideoFrame]]) -> None:
        for frame in items:
            encode(drawn(frame, plan))

    with (
        background(consume, pictures_ahead(plan)) as encode,
        background(draw, QUEUE_FRAMES) as feed,
    ):
        for frame in frames:
            feed(frame)
            on_event(meter.frame(frame.image))
            tell_commits()
    tell_commits()


def pictures_ahead(plan: Plan) -> int:
    """How many pictures may wait for the encoder: at most half a chunk, because a crash costs them."""
    stream, pix_fmt = plan.manifest.stream, plan.manifest.encoder.pix_fmt
    bits = VideoFormat(pix_fmt, 16, 16).padded_bits_per_pixel * stream.width * stream.height
    most = min(MOST_AHEAD, plan.pairs_per_chunk or MOST_AHEAD, 8 * MOST_BYTES_AHEAD // bits)
    return max(QUEUE_FRAMES, most)


def write_chunks(
    frames: Iterable[Drawn],
    *,
    session: Session,
    plan: Plan,
    todo: ChunkRange,
) -> Iterator[ChunkRecord]:
    """Encode frames into the chunks of a range and yield each chunk as it is committed.

    Closing the iterator, or an error in `frames`, leaves the chunk in progress uncommitted.
    """

    def is_full(chunk: ChunkWriter, last: int, following: int) -> bool:
        """Whether `chunk`, whose last frame is of pair `last`, ends before one of `following`."""
        if chunk.frames == 0 or following <= last:
            return False
        return plan.ends_chunk(following - start, chunk.bytes) if end is None else following >= end

    remaining = iter(frames)
    frame = next(remaining, None)
    index, start = todo.index, todo.start
    while frame is not None:
        end = _known_end(todo, index)
        if end is not None and frame.pair >= end:  # a chunk without a record, of a guessed length
            index, start = index + 1, end
            continue
        with session.new_chunk(index) as chunk:
            first_frame, pair = frame.slot.number, frame.pair
            notes: dict[str, list[int]] = {}
            while frame is not None and not is_full(chunk, pair, frame.pair):
                chunk.write(frame.picture, plan.ticks(frame.slot.time))
                _note(notes, frame)
                pair, frame = frame.pair, next(remaining, None)
            stop = end or (frame.pair if frame else pair + 1)
            yield chunk.commit(
                pairs=(start, stop),
                first_frame=first_frame,
                is_last=frame is None and todo.is_last,
                notes=notes,
            )
        index, start = index + 1, stop


def _known_end(todo: ChunkRange, index: int) -> int | None:
    """The pair before which chunk `index` ends, if that is decided already."""
    place = index - todo.index
    return todo.ends[place] if place < len(todo.ends) else None


def _note(notes: dict[str, list[int]], frame: Drawn) -> None:
    """Note a frame's pair, once, if it was held at a cut or retimed."""
    for word, is_so in (("cuts", frame.is_held), ("retimed", frame.is_retimed)):
        if is_so and frame.pair not in notes.get(word, [])[-1:]:
            notes.setdefault(word, []).append(frame.pair)


def drawn(frame: OutputFrame[VideoFrame], plan: Plan) -> Drawn:
    """What the encoder gets: a source frame as it was decoded, or a mid frame rounded once."""
    pix_fmt, written = plan.manifest.encoder.pix_fmt, plan.manifest.stream.color
    if frame.source is not None:
        picture = convert(frame.source.picture, pix_fmt, plan.tags, written)
    else:
        assert frame.image is not None  # an output frame is one or the other
        picture = from_rgb(frame.image.numpy(), pix_fmt, written)
    return Drawn(
        pair=frame.pair,
        slot=frame.slot,
        picture=picture,
        is_held=frame.is_held,
        is_retimed=frame.is_retimed,
    )
