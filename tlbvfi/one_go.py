"""One video in one go: nothing but its target is written, and it cannot be resumed.

For a source or target in memory. From file to file, use a job (`job.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ..encoding.carried import Carried, open_carried
from ..encoding.errors import OutputError
from ..encoding.progress import ChunkRecord
from ..encoding.source import Source
from ..encoding.timetable import start_ticks
from ..encoding.unchanged import file_facts, require_unchanged
from ..encoding.window import Window, output_window
from ..encoding.writer import MUXERS, VideoWriter
from .chunks import QUEUE_FRAMES, Drawn, encode_frames, load_frames
from .config import JobConfig
from .join import used_window
from .method import Method, announce
from .pipeline import interpolate
from .plan import ChunkRange, Plan, make_plan
from .progress import Meter, Notice, OnEvent, log_notices
from .threads import prefetch

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet


def run_in_one_go(
    source: Source,
    method: Method,
    config: JobConfig,
    target: Path | BinaryIO,
    *,
    suffix: str,
    sound: Path | BytesIO | None = None,
    metadata: Mapping[str, str] | None = None,
    on_event: OnEvent = log_notices,
) -> int:
    """Interpolate `source` into `target`, a video file of type `suffix`; return the frame count.

    A path appears once the file is complete; a file object keeps what was written before a failure.
    `sound`: file whose sound, subtitles, chapters and metadata are carried over. `on_event` is
    called in this thread, once per output frame, and may raise to stop.

    Raises:
        VideoError: the source, encoder or target is unusable.
        InterpolationError: settings or frames do not fit together.
    """
    if suffix not in MUXERS:
        raise OutputError(
            f"{suffix or 'a name without suffix'} is not a type of video file: choose one of "
            f"{', '.join(MUXERS)}."
        )
    plan = make_plan(source, method, config, suffix=suffix, identify=False)
    window = output_window(used_window(plan.manifest), plan.manifest.start, suffix)
    todo = ChunkRange(index=0, start=plan.first, stop=None, is_last=True)
    meter = Meter(frames_total=plan.frames_total)
    heard = sound if config.has_sound else None
    heard_facts = file_facts(heard)
    texts = {**source.info.metadata, **(metadata or {})}
    notes: list[str] = []
    announce(method, plan.frames_total)
    with (
        open_carried(heard, window=window, metadata=texts) as carried,
        _open_writer(plan, target, suffix, window, carried, notes) as writer,
        closing(prefetch(load_frames(source, plan, todo), QUEUE_FRAMES)) as loaded,
    ):

        def write(frames: Iterator[Drawn]) -> Iterable[ChunkRecord]:
            first, unit = _clock(plan, window)
            for frame in frames:
                writer.write(frame.picture, first + unit * plan.ticks(frame.slot.time))
            return ()

        frames = interpolate(loaded, method, plan.timeline, plan.rules, first=plan.first)
        encode_frames(frames, write, plan, meter, on_event)
        require_unchanged(heard, heard_facts)
    for text in filter(None, [source.shortfall(), *notes]):
        on_event(Notice(text=text))
    return meter.frames_made


def _open_writer(
    plan: Plan,
    target: Path | BinaryIO,
    suffix: str,
    window: Window | None,
    carried: Carried,
    notes: list[str],
) -> VideoWriter:
    """The writer of the target; `notes` get a sentence for each thing not carried over as it is."""

    def beside(out: OutputContainer) -> Iterator[tuple[float, Packet]]:
        rate = None if plan.manifest.is_vfr else stream.rate
        tracks, more = carried.add_to(out, suffix, rate)
        notes.extend(more)
        return carried.packets(tracks, notes)

    stream = plan.manifest.stream
    base = stream.time_base / _clock(plan, window)[1]
    return VideoWriter(
        target,
        plan.manifest.encoder,
        replace(stream, time_base=base),
        suffix=suffix,
        options=carried.options(suffix, base, has_name=isinstance(target, Path)),
        beside=beside,
    )


def _clock(plan: Plan, window: Window | None) -> tuple[int, int]:
    """(first frame's tick, ticks per tick of the plan) on the output's clock.

    That is the source's clock, which its sound uses, or begins with the window.
    """
    origin = plan.manifest.start - (window.start if window else 0)
    return start_ticks(origin, plan.manifest.stream.time_base)
