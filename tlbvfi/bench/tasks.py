"""The task of a benchmark process, and its form as JSON; this module does not need torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

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
    def last_frame(self) -> Path:
        """The last frame of `model`, with which `baseline` compares its own."""
        return self.folder / f"{self.size}.safetensors"

    @property
    def source(self) -> Path:
        """The clip that a job reads."""
        return self.folder / f"{self.size}.mp4"


def task_to_json(task: Task) -> dict[str, Any]:
    """Plain values, for a command line."""
    method = {name: getattr(task.method, name) for name in task.method.__slots__}
    return {
        "kind": task.kind,
        "folder": str(task.folder),
        "method": {**method, "model": str(task.method.model) if task.method.model else None},
        "threads": task.threads,
        "size": [task.size.width, task.size.height],
        "pairs": task.pairs,
        "clip": str(task.clip) if task.clip else None,
    }


def task_from_json(document: dict[str, Any]) -> Task:
    """The task that `task_to_json` was given."""
    method = document["method"]
    model = Path(method["model"]) if method["model"] else None
    return Task(
        kind=document["kind"],
        folder=Path(document["folder"]),
        method=MethodConfig(**{**method, "model": model}),
        threads=document["threads"],
        size=Size(*document["size"]),
        pairs=document["pairs"],
        clip=Path(document["clip"]) if document["clip"] else None,
    )
