"""The task of a benchmark process, and its form as JSON; this module does not need torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..methods import MethodConfig
from .sizes import Size

Kind = Literal["machine", "weights", "model", "baseline", "clip", "job"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One measurement, or one file made for others."""

    kind: Kind
    folder: Path
    """Where processes leave files for each other."""
    method: MethodConfig
    """Its model is an existing file, except for `machine` and `weights`."""
    threads: int | None
    size: Size
    pairs: int | None = None
    """None: a number that suits the device."""
    clip: Path | None = None

    @property
    def weights(self) -> Path:
        """Stand-in weights."""
        return self.folder / "stand_in.safetensors"

    @property
    def last_number(self) -> Path:
        """The number of the last frame of `model`, with which `baseline` ends, too."""
        return self.folder / f"{self.size}.txt"

    @property
    def last_frame(self) -> Path:
        """The last frame of `model`, with which `baseline` compares its own."""
        return self.folder / f"{self.size}.safetensors"

    @property
    def source(self) -> Path:
        """The clip that a job reads."""
        return self.folder / f"{self.size}.mp4"


def task_to_json(task: Task) -> str:
    """The task as a text for a command line."""
    return json.dumps(asdict(task), default=str)


def task_from_json(text: str) -> Task:
    """The task that `task_to_json` was given."""
    found = json.loads(text)
    method, size = found.pop("method"), found.pop("size")
    return Task(
        folder=Path(found.pop("folder")),
        clip=_path(found.pop("clip")),
        method=MethodConfig(model=_path(method.pop("model")), **method),
        size=Size(**size),
        **found,
    )


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
