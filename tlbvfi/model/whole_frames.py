"""The work of a frame as functions of tensors alone, as `graphs.Graphs` takes them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .geometry import Geometry
from .memory import MemoryPlan
from .tlbvfi import TLBVFI, FrameFeatures


@dataclass(frozen=True, slots=True)
class Walk:
    """`TLBVFI.walk_bridge`."""

    model: TLBVFI

    def __call__(self, y: Tensor, noise: Tensor, *walk: Tensor) -> list[Tensor]:
        """[clean latent]; `walk`: from `TLBVFI.prepare_walk`."""
        return [self.model.walk_bridge(y, noise, *walk)]


@dataclass(frozen=True, slots=True)
class Encoding:
    """`TLBVFI.encode`, with a plan that keeps everything."""

    model: TLBVFI
    geometry: Geometry
    plan: MemoryPlan

    def __call__(self, frame: Tensor) -> list[Tensor]:
        """The `tensors` of its features."""
        return self.model.encode(frame, self.geometry, self.plan).tensors


@dataclass(frozen=True, slots=True)
class Halfway:
    """`TLBVFI.forward`, with the features that `Encoding` gives."""

    model: TLBVFI
    geometry: Geometry
    plan: MemoryPlan
    steps: int

    def inputs(
        self,
        features0: FrameFeatures,
        unknown: Tensor,
        features1: FrameFeatures,
        noise: Tensor,
        *walk: Tensor,
    ) -> list[Tensor]:
        """The arguments of a call; `walk`: from `TLBVFI.prepare_walk`."""
        return [*features0.tensors, *features1.tensors, unknown, noise, *walk]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """[mid frame]."""
        number = FrameFeatures.number_of_tensors(self.geometry)
        features0, features1 = (
            FrameFeatures.of_tensors(self.geometry, inputs[start : start + number])
            for start in (0, number)
        )
        unknown, noise, *walk = inputs[2 * number :]

        def sample(y: Tensor, _: int, noise: Tensor) -> Tensor:
            return self.model.walk_bridge(y, noise, *walk)

        return [self.model(features0, unknown, features1, self.steps, noise, self.plan, sample)]
