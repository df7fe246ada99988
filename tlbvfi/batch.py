"""Many videos, one after the other: a failure is reported, and the rest is still done."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from av.error import FFmpegError

from ..encoding.delivery import IMAGE_CODECS, output_path
from ..encoding.errors import VideoError
from ..encoding.images import DECODERS
from ..encoding.profiles import find_profile
from ..encoding.sequence import is_image
from .errors import InterpolationError, SettingsError

if TYPE_CHECKING:
    from .job import JobResult

log = logging.getLogger("tlbvfi.batch")

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".nut", ".ts", ".mts", ".m2ts", ".mpg",
    ".mpeg", ".mxf", ".wmv", ".flv", ".ogv", ".3gp",
)  # fmt: skip
"""Suffixes by which videos are found in a folder."""

AUTO_CONTAINERS = (".mp4", ".mov", ".mkv", ".webm")
"""Containers of the source that codec `auto` keeps; others become the first of these."""

FAILURES = (VideoError, InterpolationError, FFmpegError, OSError, RuntimeError, MemoryError)
"""Errors from one video, its codec, the disk or a GPU; the next video may still succeed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTask:
    """One video of many."""

    source: Path
    """Video file or folder of images."""
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoOutcome:
    """How one video's job ended."""

    task: VideoTask
    result: JobResult | None
    """None if it failed."""
    error: str = ""
    """Why it failed, in one sentence."""


def plan_videos(inputs: Sequence[Path], folder: Path, *, codec: str) -> list[VideoTask]:
    """A task for each input, with an output in `folder` named after the input.

    A folder stands for the videos in it, in the order of their names, or, if there are none, for
    its images as one video. The source's container is kept if `codec` fits into it; image codecs
    get a folder for each input.

    Raises:
        SettingsError: two outputs would have the same name, an output is one of the inputs, or a
            folder holds neither videos nor images.
        EncoderError: there is no such codec.
    """
    sources = [source for path in inputs for source in _sources(path)]
    tasks = [VideoTask(source=source, output=_output(source, folder, codec)) for source in sources]
    _refuse_collisions(tasks)
    return tasks


def run_videos(
    tasks: Iterable[VideoTask], run: Callable[[VideoTask], JobResult]
) -> Iterator[VideoOutcome]:
    """Run every task and yield its outcome as soon as it ends."""
    for task in tasks:
        try:
            yield VideoOutcome(task=task, result=run(task))
        except FAILURES as error:
            log.debug("%s failed", task.source, exc_info=error)
            yield VideoOutcome(task=task, result=None, error=_reason(error))


def _sources(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if not file.name.startswith("."))
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()]
    if not videos and not any(file.suffix.lower() in DECODERS for file in files):
        raise SettingsError(f"{path} holds neither videos nor images: name another folder.")
    return videos or [path]


def _output(source: Path, folder: Path, codec: str) -> Path:
    stem = source.resolve().name if source.is_dir() else source.stem
    if codec.lower() in IMAGE_CODECS:
        return output_path(f"{folder / stem}/", codec)
    fitting = AUTO_CONTAINERS if codec.lower() == "auto" else find_profile(codec).containers
    suffix = source.suffix.lower()
    is_kept = suffix in fitting and not source.is_dir()
    return folder / f"{stem}{suffix if is_kept else fitting[0]}"


def _refuse_collisions(tasks: Sequence[VideoTask]) -> None:
    sources = {task.source.resolve(): task.source for task in tasks}
    taken: dict[str, VideoTask] = {}
    for task in tasks:
        place = task.output.parent if is_image(task.output.suffix) else task.output
        if place.resolve() in sources:
            raise SettingsError(
                f"{place} is one of the inputs and would be overwritten: choose another --out-dir."
            )
        # Some file systems do not distinguish names that differ only in case.
        other = taken.setdefault(str(task.output).casefold(), task)
        if other is not task:
            raise SettingsError(
                f"{other.source} and {task.source} would both become {task.output}: leave one out, "
                "or give it an --out-dir of its own."
            )


def _reason(error: BaseException) -> str:
    if isinstance(error, VideoError | InterpolationError):
        return str(error)
    return f"{type(error).__name__}: {error}"
