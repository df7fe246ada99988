"""TLB-VFI behind the Method protocol: bisection, every frame encoded once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import load_checkpoint, weights_hash
from ..device import choose_device
from ..errors import FrameError, SettingsError
from ..memory import free_memory, used_memory
from ..method import PairKey
from ..model import (
    TLBVFI,
    FrameFeatures,
    Geometry,
    MemoryPlan,
    SamplingOptions,
    plan_memory,
)
from ..model.memory import LIBRARIES
from ..model.precision import matmul_precision
from ..model.sampling import check_values, draw_noise
from .config import MethodConfig

log = logging.getLogger("tlbvfi.model")

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Type the convolutions of the decoder compute in, by precision."""

FREE_SHARE = 0.9
"""Of the memory that is free; the rest is for what others begin to do meanwhile."""


def open_tlbvfi(path: Path, config: MethodConfig) -> TlbvfiMethod:
    """The method with the weights at `path`, in the precision and on the device of `config`.

    Raises:
        ModelMissingError, CheckpointError: as `load_checkpoint`.
        SettingsError: an option is out of its range, or there is no such device.
    """
    options = SamplingOptions(
        steps=config.steps,
        flow_scale=config.flow_scale,
        padding=config.padding,
        tf32=config.precision == "tf32",
    )
    device = choose_device(config.device)
    model = load_checkpoint(path, dtype=DTYPES[config.precision], device=device)
    available = memory_left(device, config.memory)
    return TlbvfiMethod(model, options, weights=weights_hash(path), available=available)


def memory_left(device: torch.device, budget: int | None) -> int:
    """Bytes of a budget, or of what is free, that frames may take once the weights are loaded."""
    libraries = LIBRARIES if device.type == "cpu" else 0
    if budget is None:
        return int(FREE_SHARE * free_memory(device)) - libraries
    return max(0, budget - used_memory(device) - libraries)


class TlbvfiMethod:
    """Frames between two frames by halving: at 1/2, between it and its neighbors, and so on.

    Only the mid frames asked for and those they descend from are made. Frames are clamped to
    [0, 1], the range the network knows. Alpha is moved and mixed as the picture is.
    """

    name = "tlbvfi"
    any_time = False

    def __init__(
        self,
        model: TLBVFI,
        options: SamplingOptions | None = None,
        *,
        weights: str = "",
        available: int | None = None,
    ) -> None:
        """`weights`: identity of the weights for `settings`, as `weights_hash` gives it.

        `available`: bytes that features and maps may take; None: as many as are fastest.
        """
        self.model = model
        self.options = options or SamplingOptions()
        self.weights = weights
        self.available = available
        self._plan: tuple[object, MemoryPlan] | None = None
        self._unknown: tuple[Geometry, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.model.device

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the frames, beside the frames they are made of."""
        dtype = str(self.model.compute_dtype).removeprefix("torch.")
        return {**asdict(self.options), "dtype": dtype, "weights": self.weights}

    def memory_needed(self, height: int, width: int) -> int:
        """Bytes that frames of this size take at the peak, beside the weights."""
        return self.plan(self.options.geometry(height, width)).peak

    def plan(self, geometry: Geometry) -> MemoryPlan:
        """How frames of this geometry are computed in the memory there is."""
        wanted = geometry, self.available
        if self._plan is None or self._plan[0] != wanted:
            self._plan = wanted, self._make_plan(geometry)
        return self._plan[1]

    def _make_plan(self, geometry: Geometry) -> MemoryPlan:
        plan = plan_memory(
            geometry,
            available=self.available,
            device=self.device.type,
            dtype=self.model.compute_dtype,
        )
        log.debug("%s", plan)
        if self.available is not None and plan.peak > self.available:
            log.warning(
                "frames of %dx%d take about %.1f GB beside the weights, more than the %.1f GB there "
                "are: allow more memory, or scale them down, if it fails.",
                geometry.width,
                geometry.height,
                plan.peak / 1e9,
                self.available / 1e9,
            )
        return plan

    def prepare(self, frame: Tensor) -> FrameFeatures:
        """Features of a frame [C, H, W], RGB or RGBA floats nominally in [0, 1].

        Raises:
            FrameError: another shape, a side under 16 pixels, or pixels that are NaN or infinite.
        """
        if frame.ndim != 3 or frame.shape[0] not in (3, 4):
            raise FrameError(
                f"TLB-VFI takes RGB or RGBA frames [C, H, W], got {list(frame.shape)}: convert them."
            )
        check_values(frame)
        geometry = self.options.geometry(*frame.shape[-2:])
        return self._encode(frame[None].to(self.device).clamp(0, 1), geometry)

    def between(
        self,
        features0: FrameFeatures,
        features1: FrameFeatures,
        times: Sequence[Fraction],
        key: PairKey,
    ) -> Iterator[Tensor]:
        """Frames at `times` of the pair, ascending, each j / 2**k; computed as they are asked for.

        [C, H, W] float32 on the CPU each.

        Raises:
            FrameError: the frames differ in size, or one of them alone has alpha.
            SettingsError: a time that halving cannot reach.
        """
        alike = features0.frame.shape == features1.frame.shape
        if not alike or features0.geometry != features1.geometry:
            raise FrameError("The frames of a pair differ in size or alpha: make them alike.")
        for t in times:
            if not 0 < t < 1 or t.denominator & (t.denominator - 1):
                raise SettingsError(f"TLB-VFI reaches times j / 2**k in (0, 1), got {t}.")
        return self._bisect(features0, features1, Fraction(0), Fraction(1), times, key)

    def _bisect(
        self,
        features0: FrameFeatures,
        features1: FrameFeatures,
        t0: Fraction,
        t1: Fraction,
        times: Sequence[Fraction],
        key: PairKey,
    ) -> Iterator[Tensor]:
        """Frames at all wanted times between t0 and t1, in order."""
        middle = (t0 + t1) / 2
        before = [t for t in times if t0 < t < middle]
        after = [t for t in times if middle < t < t1]
        if not (before or after or middle in times):
            return
        frame = self._halfway(features0, features1, key.node_seed(middle))
        features = self._encode(frame, features0.geometry) if before or after else None
        if features is not None and before:
            yield from self._bisect(features0, features, t0, middle, before, key)
        if middle in times:
            yield frame[0].cpu()
        if features is not None and after:
            yield from self._bisect(features, features1, middle, t1, after, key)

    @torch.no_grad()
    def _halfway(self, features0: FrameFeatures, features1: FrameFeatures, seed: int) -> Tensor:
        geometry, steps = features0.geometry, self.options.steps
        noise = draw_noise(seed, geometry, steps, self.device)
        with matmul_precision(tf32=self.options.tf32):
            unknown = self._unknown_of(geometry)
            return self.model(features0, unknown, features1, steps, noise, self.plan(geometry))

    @torch.no_grad()
    def _encode(self, frame: Tensor, geometry: Geometry) -> FrameFeatures:
        with matmul_precision(tf32=self.options.tf32):
            return self.model.encode(frame, geometry, self.plan(geometry))

    def _unknown_of(self, geometry: Geometry) -> Tensor:
        """Features of the unknown frame, kept for the geometry they were last needed for."""
        if self._unknown is None or self._unknown[0] != geometry:
            self.options.report(geometry)
            self._unknown = geometry, self.model.encode_unknown(geometry, self.plan(geometry))
        return self._unknown[1]
