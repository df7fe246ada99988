"""A whole job from file to file, and its first and last stage alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from av import VideoFrame

from ...encoding.source import Source, open_source
from ..chunks import encode_frames, load_frames, write_chunks
from ..config import JobConfig
from ..job import Destination, run_job, start_session
from ..method import Method
from ..pipeline import OutputFrame
from ..plan import ChunkRange, Plan, make_plan
from ..progress import Meter, log_notices
from ..spans import SourceFrame
from .cuda import forget_peak, peak_bytes
from .figures import JobFigures
from .pictures import as_frames, pictures, there_and_back, write_clip
from .rate import (
    FRAMES,
    measured_pairs,
    mid_frames,
    open_method,
    pairs_at_once,
    timed,
    warm_up_pairs,
)
from .tasks import Task

CONFIG = JobConfig(times=1)
EVERYTHING = ChunkRange(index=0, start=0, stop=None, is_last=True)


def make_clip(task: Task) -> dict[str, Any]:
    """Write the clip that `measure_job` reads."""
    assert task.pairs is not None
    write_clip(task.source, pictures(task.size, task.clip), task.pairs + 1)
    return {}


def measure_job(task: Task) -> JobFigures:
    """Measure the model alone, the job as a user runs it, then its other stages alone."""
    method = open_method(task)
    model_ms = _model_ms(method, task)
    forget_peak(method.device)
    with open_source(task.source) as source:
        destination = Destination(output=task.folder / "out.mp4", overwrite=True)
        began = time.perf_counter()
        result = run_job(source, method, CONFIG, destination)
        seconds = time.perf_counter() - began
        peak = peak_bytes(method.device)
        plan = make_plan(source, method, CONFIG, suffix=destination.output.suffix)
        pairs = result.frames // 2
        return JobFigures(
            pairs=pairs,
            mid_frames=pairs - result.cuts,
            frames=result.frames,
            seconds=seconds,
            model_ms=model_ms,
            decode_ms=1e3 * seconds_of(lambda: _decode(source, plan)) / pairs,
            encode_ms=1e3 * _encode_seconds(source, plan, task.folder) / pairs,
            peak_bytes=peak,
            encoder=plan.manifest.encoder.name,
        )


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds `work` takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _model_ms(method: Method, task: Task) -> float:
    """Milliseconds per mid frame of the model alone; afterwards it is warm."""
    at_once = pairs_at_once(method, task)
    pairs = measured_pairs(task, method.device, at_once)
    frames = as_frames(pictures(task.size, task.clip, FRAMES))
    with closing(mid_frames(method, frames)) as found:
        clock, _ = timed(found, warm_up_pairs(method.device, at_once), pairs, at_once)
    return clock.ms


def _decode(source: Source, plan: Plan) -> None:
    """Do everything ahead of the model."""
    for _ in load_frames(source, plan, EVERYTHING):
        pass


def _encode_seconds(source: Source, plan: Plan, folder: Path) -> float:
    """Seconds for everything behind the model: all frames, from a few decoded ones."""
    few = list(islice(load_frames(source, plan, EVERYTHING), FRAMES))
    session = start_session(source, plan, Destination(output=folder / "alone.mp4", overwrite=True))
    with session.locked():
        frames = _output_frames(few, source, plan)
        write = partial(write_chunks, session=session, plan=plan, todo=EVERYTHING)
        meter = Meter(frames_total=plan.frames_total)
        return seconds_of(lambda: encode_frames(frames, write, plan, meter, log_notices))


def _output_frames(
    few: Sequence[SourceFrame[VideoFrame]], source: Source, plan: Plan
) -> Iterator[OutputFrame[VideoFrame]]:
    """The frames of the job, except the very last, taken from `few`: mid frames cost nothing."""
    assert plan.stop is not None  # the clip's length is known
    times = (plan.output_time(source.timestamps.time(n)) for n in range(plan.stop))
    for pair, (time0, time1) in enumerate(pairwise(times)):
        shown = few[there_and_back(pair, len(few))]
        for slot in plan.timeline.slots(pair, time0, time1):
            if slot.t == 0:
                yield OutputFrame(pair=pair, slot=slot, source=shown, image=None)
            else:
                yield OutputFrame(pair=pair, slot=slot, source=None, image=shown.image)
