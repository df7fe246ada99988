"""`blend`: the two frames mixed in proportion to time. No motion, and the cheapest method."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from ..method import PairKey

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Increased when the frames change, so that a session of an older release is not resumed."""


class BlendMethod:
    """Mixes two frames linearly, (1 - t) * frame0 + t * frame1, on their values as given."""

    name = "blend"
    any_time = True
    device = torch.device("cpu")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its frames."""
        return {"version": VERSION}

    def memory_needed(self, height: int, width: int) -> int:
        """0: negligible."""
        return 0

    def prepare(self, frame: Tensor) -> Tensor:
        """The frame itself. [C, H, W] float32."""
        return frame

    def between(
        self, features0: Tensor, features1: Tensor, times: Sequence[Fraction], key: PairKey
    ) -> Iterator[Tensor]:
        """Frames at `times`, each [C, H, W] float32, made on demand; `key` is unused: no noise."""
        return (torch.lerp(features0, features1, float(t)) for t in times)
