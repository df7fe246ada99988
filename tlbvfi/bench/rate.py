"""How long a mid frame takes: the model in the pipeline, and the plain implementation."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import count
from pathlib import Path
from statistics import fmean, median

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..allocator import set_up_memory
from ..checkpoint import load_checkpoint
from ..device import choose_device
from ..errors import FrameError, SettingsError
from ..method import Batching, Method, PairKey
from ..methods.tlbvfi import TlbvfiMethod, open_tlbvfi
from ..model import SamplingOptions
from ..model.graphs import CALLS_BEFORE_RECORDING
from ..model.precision import matmul_precision
from ..model.sampling import draw_noise
from ..pipeline import Rules, interpolate
from ..spans import SourceFrame
from ..timeline import Bisection
from .cuda import forget_peak, held_bytes, kernel_seconds, peak_bytes
from .figures import BaselineFigures, ModelFigures, psnr
from .pictures import RATE, as_frames, pictures, there_and_back
from .plain import load_plain
from .stages import count_gflop, stage_by_stage, watched
from .tasks import Task
from .turns import let_others_run

HALFWAY = Fraction(1, 2)
PLAIN_CANVAS = 128
"""Sides of the flow's canvas in the paper's code are multiples of this."""
SEED = 0
FRAMES = 3
"""Frames held in memory and shown back and forth; a pipeline holds about as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """Wall-clock and CPU times per mid frame."""

    seconds: Sequence[float]
    cpu_seconds: Sequence[float]

    @property
    def ms(self) -> float:
        """Median milliseconds."""
        return 1e3 * median(self.seconds)

    @property
    def cpu_ms(self) -> float:
        """Median milliseconds of CPU time, all threads."""
        return 1e3 * median(self.cpu_seconds)


def measure_model(task: Task) -> ModelFigures:
    """Rate, memory, stages and arithmetic of the model.

    Leaves the number of the last frame and then the frame itself to the baseline, and on a CPU
    lets it run before every frame.

    Raises:
        FrameError: the frames are NaN or infinite, as happens if the precision is too low.
    """
    method = open_method(task)
    device = method.device
    idle = held_bytes(device)
    at_once = pairs_at_once(method, task)
    warm_up, pairs = warm_up_pairs(device, at_once), measured_pairs(task, device, at_once)
    task.last_number.write_text(str(warm_up + pairs))
    busy = None
    with closing(mid_frames(method, _frames(task))) as frames:
        forget_peak(device)
        clock, last = timed(frames, warm_up, pairs, at_once, before_each=rest_on(device))
        peak = peak_bytes(device)
        _check(last)
        save_file({"frame": last.contiguous()}, task.last_frame)
        with stage_by_stage(method):
            if device.type == "cuda":  # until the sampler is a graph again
                take(frames, warm_up)
            with watched(method) as spent:
                take(frames, pairs)
        if device.type == "cuda":
            # The profiler slows down the program, from then on, but not the kernels: so it comes
            # last, and the clock is the one from above.
            take(frames, warm_up)
            running = kernel_seconds(lambda: take(frames, pairs), device)
            busy = running / pairs / fmean(clock.seconds)
    geometry = method.options.geometry(task.size.height, task.size.width)
    return ModelFigures(
        ms=clock.ms,
        cpu_ms=clock.cpu_ms,
        pairs=pairs,
        peak_bytes=peak,
        idle_bytes=idle,
        predicted_bytes=method.plan(geometry, at_once).peak,
        stages_ms={stage: 1e3 * total / pairs for stage, total in spent.items()},
        stages_gflop=count_gflop(geometry, method.options.steps),
        gpu_busy=busy,
    )


def measure_baseline(task: Task) -> BaselineFigures:
    """The plain implementation on the frames, weights and noise of `measure_model`.

    Raises:
        SettingsError: it is missing, because this is not a checkout.
    """
    device = choose_device(task.method.device)
    pairs = measured_pairs(task, device)
    warm_up = int(task.last_number.read_text()) - pairs  # so that both end at the same frame
    forget_peak(device)
    with matmul_precision(tf32=False), closing(plain_frames(task, device)) as frames:
        clock, last = timed(frames, warm_up, pairs, before_each=rest_on(device))
    peak = peak_bytes(device)
    off = load_file(task.last_frame)["frame"] - last
    return BaselineFigures(
        ms=clock.ms,
        cpu_ms=clock.cpu_ms,
        peak_bytes=peak,
        largest_difference=off.abs().max().item(),
        psnr=psnr(off.square().mean().item()),
        ms_torch_defaults=_with_torch_defaults(task, device, warm_up, pairs),
    )


def _with_torch_defaults(
    task: Task, device: torch.device, warm_up: int, pairs: int
) -> float | None:
    """Milliseconds with TF32 in cuDNN; None without cuDNN."""
    if device.type != "cuda":
        return None
    with closing(plain_frames(task, device)) as frames:
        return timed(frames, warm_up, pairs)[0].ms


def open_method(task: Task) -> TlbvfiMethod:
    """The method that a job would run, with the weights file that the task names."""
    assert task.method.model is not None  # the process that starts us has found or made one
    method = open_tlbvfi(Path(task.method.model), task.method)
    set_up_memory(task.method.memory, method, task.size.height, task.size.width)
    method.expect(0)  # compiles it if `compile` is on, however short the job
    return method


def mid_frames(method: Method, frames: Sequence[Tensor]) -> Generator[Tensor]:
    """Mid frames of an endless sequence, made by the pipeline, [3, H, W] on the CPU."""
    source = (
        SourceFrame(
            index=n, time=n / RATE, image=frames[there_and_back(n, len(frames))], picture=None
        )
        for n in count()
    )
    for frame in interpolate(source, method, Bisection(times=1), Rules(seed=SEED)):
        if frame.image is not None:
            yield frame.image


def plain_frames(task: Task, device: torch.device) -> Generator[Tensor]:
    """The same frames from the plain implementation, every pair by itself.

    Raises:
        SettingsError: it is missing, or does not support the flow scale.
    """
    config = task.method
    options = SamplingOptions(
        steps=config.steps, flow_scale=config.flow_scale, padding=config.padding
    )
    geometry = options.geometry(task.size.height, task.size.width)
    if any(side % PLAIN_CANVAS for side in geometry.canvas):
        raise SettingsError(
            f"The baseline, like the paper's code, needs padded sides that are multiples of "
            f"{PLAIN_CANVAS} at flow scale {config.flow_scale:g}, got "
            f"{' and '.join(map(str, geometry.canvas))}: choose another flow scale."
        )
    assert config.model is not None
    model = load_checkpoint(config.model, device=device)
    # torch's types lack this overload.
    model.to(memory_format=torch.contiguous_format)  # pyright: ignore[reportCallIssue]
    baseline = load_plain()(model)
    frames = _frames(task)
    for n in count():
        seed = PairKey(SEED, n).node_seed(HALFWAY)
        noise = draw_noise(seed, geometry, config.steps).to(device)
        shown = (frames[there_and_back(i, len(frames))] for i in (n, n + 1))
        frame0, frame1 = (frame[None].to(device) for frame in shown)
        yield baseline(frame0, frame1, geometry, config.steps, noise)[0].cpu()


def timed(
    frames: Iterator[Tensor],
    warm_up: int,
    pairs: int,
    at_once: int = 1,
    before_each: Callable[[], None] | None = None,
) -> tuple[Clock, Tensor]:
    """Times of the frames after `warm_up` others, in groups of `at_once`, and the last frame.

    Does not wait for the device: a frame that is on the CPU is done, and work that a method starts
    ahead counts for it. The clock stands still in `before_each`, which is called before each group.
    """
    frame = take(frames, warm_up)
    arrived, spent = time.perf_counter(), time.process_time()
    seconds, cpu_seconds = [], []
    for _ in range(0, pairs, at_once):
        if before_each is not None:
            before_each()
            arrived, spent = time.perf_counter(), time.process_time()
        frame = take(frames, at_once)
        before, arrived = arrived, time.perf_counter()
        spent_before, spent = spent, time.process_time()
        seconds.append((arrived - before) / at_once)
        cpu_seconds.append((spent - spent_before) / at_once)
    return Clock(seconds=seconds, cpu_seconds=cpu_seconds), frame


def rest_on(device: torch.device) -> Callable[[], None] | None:
    """What a process does before each frame, so that those that are compared run in turns.

    Nothing on a GPU, whose speed does not change while they run one after the other, and whose
    memory they would have to share.
    """
    return let_others_run if device.type == "cpu" else None


def take(frames: Iterator[Tensor], number: int) -> Tensor:
    """The last of the next `number` frames; `number` is at least 1."""
    for _ in range(number - 1):
        next(frames)
    return next(frames)


def pairs_at_once(method: Method, task: Task) -> int:
    """Number of pairs the method does together at this size."""
    if isinstance(method, Batching):
        return method.pairs_at_once(task.size.height, task.size.width)
    return 1


def warm_up_pairs(device: torch.device, at_once: int = 1) -> int:
    """Pairs before the clock starts, after which nothing is chosen, compiled or recorded any more.

    Calls of the sampler alone are recorded last: the first is not counted, the last records.
    """
    return (CALLS_BEFORE_RECORDING + 2 if device.type == "cuda" else 1) * at_once


def measured_pairs(task: Task, device: torch.device, at_once: int = 1) -> int:
    """Pairs that the median is taken over."""
    return _whole_groups(task.pairs or (20 if device.type == "cuda" else 3), at_once)


def _whole_groups(pairs: int, at_once: int) -> int:
    return -(-pairs // at_once) * at_once


def _frames(task: Task) -> list[Tensor]:
    return as_frames(pictures(task.size, task.clip, FRAMES))


def _check(frame: Tensor) -> None:
    if not torch.isfinite(frame).all():
        raise FrameError(
            "The mid frame holds NaN or infinite pixels, so its time is meaningless: choose "
            "another precision."
        )
