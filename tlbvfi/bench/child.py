"""One measurement, in a process of its own (see `report`)."""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import asdict
from typing import Any

import torch

from ...encoding.errors import VideoError
from ..allocator import use_expandable_segments
from ..device import choose_device
from ..errors import InterpolationError
from ..memory import is_out_of_memory
from .file_to_file import make_clip, measure_job
from .machine import measure_machine
from .process import stop_at_free_memory
from .rate import measure_baseline, measure_model
from .stand_in import write_stand_in
from .tasks import Task, task_from_json


def main(document: str) -> None:
    """Run a task given as JSON and print one line of JSON: its result, or a `problem`."""
    logging.basicConfig(level=logging.WARNING, format="tlbvfi: %(message)s", stream=sys.stderr)
    use_expandable_segments()
    task = task_from_json(document)
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    sys.stdout.write(json.dumps(find(task)) + "\n")


def find(task: Task) -> dict[str, Any]:
    """The result of the task, as plain values."""
    try:
        if choose_device(task.method.device).type == "cpu":
            stop_at_free_memory()
        return do(task)
    except (InterpolationError, VideoError) as error:
        return {"problem": str(error)}
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return {"problem": "out of memory"}
        raise


def do(task: Task) -> dict[str, Any]:
    """Run the task.

    Raises:
        InterpolationError, VideoError: as the measured parts.
    """
    if task.kind == "machine":
        return measure_machine(task)
    if task.kind == "weights":
        write_stand_in(task.weights)
        return {}
    if task.kind == "clip":
        return make_clip(task)
    if task.kind == "model":
        return asdict(measure_model(task))
    if task.kind == "baseline":
        return asdict(measure_baseline(task))
    return asdict(measure_job(task))
