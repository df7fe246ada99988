"""Starts a process for every measurement and collects their results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import InterpolationError, ModelMissingError, SettingsError
from ..methods import MethodConfig
from ..models import find_model
from .figures import BaselineFigures, JobFigures, ModelFigures, Row
from .pictures import pictures
from .plain import require_plain
from .sizes import Size
from .tasks import Kind, Task, task_to_json
from .turns import run_in_turns

ROOT = Path(__file__).parents[2]

START = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
root = sys.argv[1]
spec = spec_from_file_location(
    "comfyui_tlbvfi", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["comfyui_tlbvfi"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
from comfyui_tlbvfi.tlbvfi.bench.child import main
main(sys.argv[2])
"""
"""Runs this very package, installed or not, under the name by which the baseline imports it."""

JOB_SECONDS = 10
"""Length of a job: long enough that one-time work (session, join, verification) does not show."""

JOB_PAIRS = (4, 1000)
"""Fewest and most pairs of a job."""

MOST_THREADS = 1024
"""More than any machine has; torch fails to start millions."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchOptions:
    """What to measure."""

    sizes: tuple[Size, ...]
    method: MethodConfig
    """Options of tlbvfi. Without a model, the one a job would find, else stand-in weights."""
    pairs: int | None = None
    """Mid frames that the median is taken over; None: a number that suits the device."""
    baseline: bool = False
    clip: Path | None = None
    """Frames to measure on; None: generated ones."""
    threads: int | None = None
    """Number of torch threads; None: its default."""

    def __post_init__(self) -> None:
        for name in ("pairs", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, got {value}.")
        if self.threads is not None and self.threads > MOST_THREADS:
            raise SettingsError(f"threads must be at most {MOST_THREADS}, got {self.threads}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """A running benchmark: what it runs on, and the tasks it can start."""

    options: BenchOptions
    task: Task
    """The task that all others are derived from."""
    machine: dict[str, Any]
    """Facts; `matmul_tflops` by precision."""
    has_stand_in: bool
    """Whether the weights are stand-ins."""
    say: Say

    def rows(self) -> Iterator[Row]:
        """The measurements at each size, as they finish."""
        for size in self.options.sizes:
            yield self._row(replace(self.task, size=size))

    def _row(self, task: Task) -> Row:
        compared = [replace(task, kind="model")]
        if self.options.baseline:
            compared.append(replace(task, kind="baseline"))
        row = self._measured(Row(size=task.size), compared)
        if row.model is None:
            return row
        clip = replace(task, kind="clip", pairs=job_pairs(row.model.ms))
        return self._measured(row, [clip, replace(task, kind="job")])

    def _measured(self, row: Row, tasks: Sequence[Task]) -> Row:
        """The row with the figures of the tasks added, or with the reason why there are none."""
        self.say(f"{row.size}: {' and '.join(WORDS[task.kind] for task in tasks)} ...")
        for task, found in zip(tasks, run_tasks(*tasks), strict=False):  # fewer if one failed
            row = _with(row, task.kind, found)
        return row


WORDS: dict[Kind, str] = {
    "machine": "matrix products",
    "weights": "stand-in weights",
    "model": "the model",
    "baseline": "the plain implementation",
    "clip": "a clip",
    "job": "a job from file to file",
}
FIGURES: dict[Kind, Callable[..., Any]] = {
    "model": ModelFigures,
    "baseline": BaselineFigures,
    "job": JobFigures,
}


def _with(row: Row, kind: Kind, found: dict[str, Any]) -> Row:
    if "problem" in found:
        name = "job" if kind == "clip" else kind
        return replace(row, problems={**row.problems, name: found["problem"]})
    return replace(row, **{kind: FIGURES[kind](**found)}) if kind in FIGURES else row


@contextmanager
def open_bench(options: BenchOptions, say: Say) -> Iterator[Bench]:
    """Measure the machine and find weights, using a temporary folder.

    Raises:
        ModelMissingError: the model named in the options does not exist.
        SettingsError: an option is out of range, or `baseline` is set outside a checkout.
        SourceError: the clip cannot be read.
        InterpolationError: the machine cannot be measured.
    """
    if options.baseline:
        require_plain()
    if options.clip is not None:
        pictures(options.sizes[0], options.clip, 2)  # as every process will read it
    model = installed_model(options.method)
    with TemporaryDirectory(prefix="tlbvfi-bench-") as name:
        task = Task(
            kind="machine",
            folder=Path(name),
            method=replace(options.method, model=model),
            threads=options.threads,
            size=options.sizes[0],
            pairs=options.pairs,
            clip=options.clip,
        )
        say("matrix products ...")
        machine = required(task)
        if model is None:
            say("stand-in weights ...")
            required(replace(task, kind="weights"))
            task = replace(task, method=replace(task.method, model=task.weights))
        yield Bench(
            options=options, task=task, machine=machine, has_stand_in=model is None, say=say
        )


def installed_model(config: MethodConfig) -> Path | None:
    """The weights a job would run; None if none are installed and none are named."""
    try:
        return find_model("tlbvfi", path=config.model)
    except ModelMissingError:
        if config.model is not None:
            raise
        return None


def job_pairs(ms: float) -> int:
    """Pairs of a job at `ms` milliseconds per mid frame."""
    fewest, most = JOB_PAIRS
    return max(fewest, min(most, round(1e3 * JOB_SECONDS / ms)))


def required(task: Task) -> dict[str, Any]:
    """The result of a task that all others need.

    Raises:
        InterpolationError: it failed.
    """
    (found,) = run_tasks(task)
    if "problem" in found:
        raise InterpolationError(found["problem"])
    return found


def run_tasks(*tasks: Task) -> list[dict[str, Any]]:
    """The result of each task, or a `problem`, run in turns; fewer if one failed."""
    commands = ([sys.executable, "-c", START, str(ROOT), task_to_json(task)] for task in tasks)
    return run_in_turns(*commands)
