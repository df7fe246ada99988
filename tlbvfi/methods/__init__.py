"""One file per interpolation method, each an adapter behind the Method protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..errors import SettingsError
from ..method import Method

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
Padding = Literal["reference", "tight"]

METHODS = ("tlbvfi", "film", "flow", "blend")
"""Names the command line and the nodes accept."""

WITHOUT_WEIGHTS = ("flow", "blend")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """Which method, and how it computes. Options a method does not have are not looked at."""

    name: str = "tlbvfi"
    model: Path | None = None
    """Weights file; None: the one `models.find_model` finds."""
    steps: int = 10
    """tlbvfi: steps of the sampler, from 1 up."""
    flow_scale: float = 0.5
    """tlbvfi: scale in (0, 1] of the frames the flow is estimated on."""
    padding: Padding = "reference"
    """tlbvfi: to multiples of 512 as the paper's code, or of 256, the least the network needs."""
    precision: Precision = "float32"
    """tlbvfi, film: arithmetic of the network."""
    device: str = "auto"
    """tlbvfi, film: `auto` is a GPU where there is one."""

    def __post_init__(self) -> None:
        for field, allowed in (
            ("name", METHODS),
            ("precision", get_args(Precision)),
            ("padding", get_args(Padding)),
        ):
            if getattr(self, field) not in allowed:
                raise SettingsError(
                    f"{field} must be one of {', '.join(allowed)}, got {getattr(self, field)!r}."
                )


def create_method(config: MethodConfig, *, folders: Iterable[Path] = ()) -> Method:
    """The method, its weights loaded; torch and the networks are imported only here.

    `folders`: where weights files may lie, beside the places `models.find_model` knows.

    Raises:
        ModelMissingError: the method needs weights that were not found.
        CheckpointError: the weights file is not usable.
        SettingsError: an option is out of its range.
    """
    if config.name == "flow":
        from .flow import FlowMethod

        return FlowMethod()
    if config.name == "blend":
        from .blend import BlendMethod

        return BlendMethod()
    from ..models import find_model

    path = find_model(config.name, path=config.model, folders=folders)
    if config.name == "film":
        from .film import open_film

        return open_film(path, config)
    from .tlbvfi import open_tlbvfi

    return open_tlbvfi(path, config)
