"""Which methods there are, and the options they take."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import SettingsError

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
Padding = Literal["reference", "tight"]
Compile = Literal["auto", "on", "off"]

METHODS = ("tlbvfi", "film", "flow", "blend")
"""Names the command line and the nodes accept."""

WITHOUT_WEIGHTS = ("flow", "blend")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """Which method, and how it computes. A method ignores options it does not have."""

    name: str = "tlbvfi"
    model: str | Path | None = None
    """Weights file; None: the one `models.find_model` finds."""
    steps: int = 10
    """tlbvfi: steps of the sampler, at least 1."""
    flow_scale: float = 0.5
    """tlbvfi: scale in (0, 1] of the frames the flow is estimated on."""
    padding: Padding = "reference"
    """tlbvfi: to multiples of 512 like the paper's code, or of 256, the least the network needs."""
    precision: Precision = "float32"
    """tlbvfi, film: arithmetic of the network."""
    device: str = "auto"
    """tlbvfi, film: `auto` is a GPU if there is one."""
    compile: Compile = "auto"
    """tlbvfi: whether blocks go through torch.compile; `auto`: on a GPU with Triton, for long jobs.

    The first time, this takes minutes before the first frame. Frames are equal up to rounding.
    """
    memory: int | None = None
    """tlbvfi: bytes it may take, weights included: GPU memory, or RAM for the whole process.

    None: all that is free. Frames are the same, up to float rounding; with less they take longer.
    """

    def __post_init__(self) -> None:
        if self.memory is not None and (not isinstance(self.memory, int) or self.memory <= 0):
            raise SettingsError(
                f"memory must be a whole number of bytes above 0, got {self.memory!r}."
            )
        for field, allowed in (
            ("name", METHODS),
            ("precision", get_args(Precision)),
            ("padding", get_args(Padding)),
            ("compile", get_args(Compile)),
        ):
            if getattr(self, field) not in allowed:
                raise SettingsError(
                    f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}."
                )
