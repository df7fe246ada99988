"""TLB-VFI behind the Method protocol: bisection, with every frame encoded once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..checkpoint import load_identified
from ..device import choose_device, has_bfloat16, require_dtype
from ..errors import FrameError, MemoryBudgetError, SettingsError
from ..memory import free_memory, give_back_freed_memory, is_out_of_memory, used_memory
from ..method import PairKey, Request
from ..model import (
    TLBVFI,
    FrameFeatures,
    Geometry,
    MemoryPlan,
    SamplingOptions,
    plan_memory,
)
from ..model.compiled import compile_blocks, pays_off
from ..model.graphs import Graphs
from ..model.memory import LIBRARIES
from ..model.precision import matmul_precision
from ..model.sampling import check_values, draw_noise
from ..model.whole_frames import Encoding, Halfway, Walk
from ..models import cache_folder
from ..transfer import Uploads
from .config import Compile, MethodConfig

log = logging.getLogger("tlbvfi.model")

T = TypeVar("T")

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""Dtype of the decoder's convolutions for each precision."""

FREE_SHARE = 0.9
"""Share of the free memory to take; the rest is left for what other programs start meanwhile."""

SHRINK = 0.75
"""After a plan ran out of memory, the next plan may take this share of its memory."""


def open_tlbvfi(path: Path, config: MethodConfig) -> TlbvfiMethod:
    """The method with the weights at `path`, in the precision and on the device of `config`.

    Raises:
        ModelMissingError, CheckpointError: as `load_checkpoint`.
        SettingsError: an option is out of range, or there is no such device, or it does not compute in
            that precision.
    """
    options = SamplingOptions(
        steps=config.steps,
        flow_scale=config.flow_scale,
        padding=config.padding,
        tf32=config.precision == "tf32",
    )
    device, dtype = choose_device(config.device), DTYPES[config.precision]
    require_dtype(dtype, device)
    model, weights = load_identified(path, dtype=dtype, device=device)
    return TlbvfiMethod(
        model,
        options,
        weights=weights,
        available=memory_left(device, config.memory),
        compile=config.compile,
    )


def memory_left(device: torch.device, budget: int | None) -> int:
    """Bytes that frames may take once the weights are loaded, of a budget or of what is free."""
    libraries = LIBRARIES.get(device.type, 0)
    left = FREE_SHARE * free_memory(device) if budget is None else budget - used_memory(device)
    return max(0, int(left) - libraries)


LONG_JOB = 5000
"""Output frames from which compiling saves more than the minutes it takes."""

BUSY_PIXELS = 1 << 20
"""Padded pixels that keep a GPU busy; smaller pictures are computed several at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    """Two frames at t0 and t1 of a pair, and the times of the frames wanted between them."""

    features0: FrameFeatures
    features1: FrameFeatures
    t0: Fraction
    t1: Fraction
    times: Sequence[Fraction]
    key: PairKey

    @property
    def middle(self) -> Fraction:
        """Time halfway between the two frames."""
        return (self.t0 + self.t1) / 2

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return self.features0.geometry.height, self.features0.geometry.width

    def halves(self, features: FrameFeatures) -> tuple[_Node, _Node]:
        """The nodes before and after the frame at the middle, which has these `features`."""
        before = [t for t in self.times if t < self.middle]
        after = [t for t in self.times if t > self.middle]
        return (
            replace(self, features1=features, t1=self.middle, times=before),
            replace(self, features0=features, t0=self.middle, times=after),
        )


def _root(request: Request) -> _Node:
    """The node of a whole pair. Raises: as `TlbvfiMethod.between`."""
    features0, features1 = request.features0, request.features1
    alike = features0.frame.shape == features1.frame.shape
    if not alike or features0.geometry != features1.geometry:
        raise FrameError("The frames of a pair differ in size or alpha: make them alike.")
    for t in request.times:
        if not 0 < t < 1 or t.denominator & (t.denominator - 1):
            raise SettingsError(f"TLB-VFI needs times j / 2**k in (0, 1), got {t}.")
    return _Node(
        features0=features0,
        features1=features1,
        t0=Fraction(0),
        t1=Fraction(1),
        times=request.times,
        key=request.key,
    )


class TlbvfiMethod:
    """Frames between two frames by bisection: at 1/2, between that and its neighbors, and so on.

    Only the requested mid frames and those they are computed from are made. The network sees frames
    clamped to [0, 1], the range it knows; what lies beyond, and alpha, is warped and mixed like the
    picture.
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
        compile: Compile = "off",
        make_room: Callable[[], bool] | None = None,
    ) -> None:
        """`weights`: identity of the weights for `settings`, as `weights_hash` gives it.

        `available`: bytes that features and maps may take; None: no limit.
        `compile`: see `MethodConfig`.
        `make_room`: called when memory has run out, before a smaller plan is tried; it frees memory
        held by others and returns whether there was any.
        """
        self.model = model
        self.options = options or SamplingOptions()
        self.weights = weights
        self.available = available
        self._compile: Compile = compile
        self._make_room = make_room
        self._plans: dict[object, MemoryPlan] = {}
        self._unknown: tuple[Geometry, Tensor] | None = None
        self._prepared: tuple[object, tuple[Tensor, ...]] | None = None
        self._upload = Uploads()
        self._frames = Graphs(model, "kernels are launched one by one")
        self._sampler = Graphs(model.denoise_fn, "the sampler's steps run one by one")
        self.launches_frames_at_once = True
        """Whether frames are CUDA graphs where the plan says that they may be; the benchmark also
        measures them stage by stage."""

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return self.model.device

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides the mid frames, other than the source frames."""
        dtype = str(self.model.compute_dtype).removeprefix("torch.")
        return {**asdict(self.options), "dtype": dtype, "weights": self.weights}

    def expect(self, frames: int) -> None:
        """Compile the network's blocks, if that is wanted for a job of `frames` output frames."""
        is_long = frames >= LONG_JOB
        if self._compile == "on" or (self._compile == "auto" and is_long and pays_off(self.device)):
            self._compile = "off"  # once is enough
            log.info("compiling for %s: the first frames take minutes.", self.device)
            cache = cache_folder()
            compile_blocks(self.model, cache and str(cache / "compiled"))

    def memory_needed(self, height: int, width: int) -> int:
        """Peak bytes for frames of this size, without the weights."""
        return self.plan(self.options.geometry(height, width)).peak

    def has_memory_to_spare(self, height: int, width: int) -> bool:
        """Whether freed memory need not be given back to the system while frames of this size are made."""
        return not self.plan(self.options.geometry(height, width)).gives_back

    def plan(self, geometry: Geometry, pairs: int = 1) -> MemoryPlan:
        """How to compute `pairs` pairs of this geometry at once in the available memory."""
        wanted = geometry, pairs, self.available, self.device
        if wanted not in self._plans:
            self._plans[wanted] = self._make_plan(geometry, pairs)
        return self._plans[wanted]

    def planned(self, geometry: Geometry, available: int | None, pairs: int = 1) -> MemoryPlan:
        """The plan for that much memory; None: no limit."""
        return plan_memory(
            geometry,
            available=available,
            device=self.device.type,
            dtype=self.model.compute_dtype,
            batch=pairs,
        )

    def _make_plan(self, geometry: Geometry, pairs: int) -> MemoryPlan:
        plan = self.planned(geometry, self.available, pairs)
        log.debug("%d pairs of %s: %s", pairs, geometry, plan)
        if pairs == 1 and not self._fits(plan):
            log.warning(
                "frames of %dx%d take about %.1f GB without the weights, more than the %.1f GB "
                "available: if it fails, allow more memory or scale the frames down.",
                geometry.width,
                geometry.height,
                plan.peak / 1e9,
                (self.available or 0) / 1e9,
            )
        return plan

    def _fits(self, plan: MemoryPlan) -> bool:
        return self.available is None or plan.peak <= self.available

    def pairs_at_once(self, height: int, width: int) -> int:
        """Number of pairs that keep a GPU busy and fit into its memory; always 1 on a CPU."""
        if self.device.type == "cpu":
            return 1
        geometry = self.options.geometry(height, width)
        most = BUSY_PIXELS // (geometry.padded_height * geometry.padded_width)
        # Twice as many, because features are held both one by one and stacked.
        fitting = (n for n in range(most, 1, -1) if self._fits(self.plan(geometry, 2 * n)))
        return next(fitting, 1)

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
        return self._encode(self._upload(frame, self.device)[None], geometry)

    def between(
        self,
        features0: FrameFeatures,
        features1: FrameFeatures,
        times: Sequence[Fraction],
        key: PairKey,
    ) -> Iterator[Tensor]:
        """Frames at `times` of the pair, ascending, each j / 2**k; computed on demand.

        [C, H, W] float32 on the device each.

        Raises:
            FrameError: the frames differ in size, or only one of them has alpha.
            SettingsError: bisection cannot reach one of the times.
        """
        request = Request(features0=features0, features1=features1, times=times, key=key)
        root = _root(request)
        return self._bisect(root) if times else iter(())

    def between_many(self, requests: Sequence[Request]) -> Iterator[Tensor]:
        """Frames of the first request as `between` gives them, then those of the second, ...

        Computed level by level of the bisection, `pairs_at_once` frames at a time. A partial batch
        is filled by repeating its last member, because arithmetic may depend on the batch size.

        Raises:
            FrameError, SettingsError: as `between`.
        """
        nodes = [_root(request) for request in requests if request.times]
        size = self.pairs_at_once(*nodes[0].size) if nodes else 1
        if size == 1:
            for node in nodes:
                yield from self._bisect(node)
            return
        made: dict[tuple[PairKey, Fraction], Tensor] = {}
        while nodes:
            halves: list[_Node] = []
            for start in range(0, len(nodes), size):
                batch = nodes[start : start + size]
                frames = self._halfway([*batch, *[batch[-1]] * (size - len(batch))])
                for node, frame in zip(batch, frames, strict=False):
                    made[node.key, node.middle] = frame
                    halves += self._halves(node, frame)
            nodes = halves
        for request in requests:
            yield from (made[request.key, t] for t in request.times)

    def check(self, image: Tensor) -> None:
        """Check a finished frame, [C, H, W] on the CPU.

        Raises:
            FrameError: it holds NaN, for example because values grew too large for float16.
        """
        if torch.isfinite(image.sum()):
            return
        dtype = self.settings["dtype"]
        advice = "replace the weights" if dtype == "float32" else "set precision to float32"
        raise FrameError(f"TLB-VFI computed NaN or infinite pixels in {dtype}: {advice}.")

    def sample(self, y: Tensor, steps: int, noise: Tensor) -> Tensor:
        """The clean latent as `TLBVFI.sample_latent`; `noise` [steps - 1, B, 3, 3, h, w] on the CPU.

        On CUDA all steps are one graph, without gaps between its hundreds of small kernels.
        """
        if not y.is_cuda:
            return self.model.sample_latent(y, steps, noise.to(y.device))
        walk = self._prepare_walk(steps)
        return self._sampler(Walk(self.model), y, noise.pin_memory(), *walk)[0]

    def forget_graphs(self) -> None:
        """Give back the memory of CUDA graphs; they are recorded again after some frames."""
        self._frames.clear()
        self._sampler.clear()

    def _uses_graphs(self, plan: MemoryPlan) -> bool:
        """Whether whole frames are graphs, rather than the sampler alone."""
        return plan.in_graphs and self.launches_frames_at_once and self._frames.work

    def _prepare_walk(self, steps: int) -> tuple[Tensor, ...]:
        """`TLBVFI.prepare_walk`, computed once for each device and number of steps."""
        wanted = steps, self.device
        if self._prepared is None or self._prepared[0] != wanted:
            self._prepared = wanted, self.model.prepare_walk(steps)
        return self._prepared[1]

    def _bisect(self, node: _Node) -> Iterator[Tensor]:
        """Frames at all times of a node, in order."""
        (frame,) = self._halfway([node])
        halves = self._halves(node, frame)
        for half in halves:
            if half.t1 == node.middle:
                yield from self._bisect(half)
        if node.middle in node.times:
            yield frame
        for half in halves:
            if half.t0 == node.middle:
                yield from self._bisect(half)

    def _halves(self, node: _Node, frame: Tensor) -> list[_Node]:
        """What is left of a node around the frame at its middle, encoded only if that is needed."""
        if list(node.times) in ([], [node.middle]):
            return []
        features = self._encode(frame[None], node.features0.geometry)
        return [half for half in node.halves(features) if half.times]

    def _halfway(self, nodes: Sequence[_Node]) -> Tensor:
        """Frames at the middles of nodes of one geometry, [B, C, H, W]."""

        def compute(plan: MemoryPlan) -> Tensor:
            if len(nodes) == 1 or self._fits(plan):
                return self._mid_frames(nodes, plan)
            # Memory has become short since the batch was put together.
            return torch.cat([self._halfway([node]) for node in nodes])

        return self._in_memory(nodes[0].features0.geometry, len(nodes), compute)

    @torch.no_grad()
    def _mid_frames(self, nodes: Sequence[_Node], plan: MemoryPlan) -> Tensor:
        geometry, steps = nodes[0].features0.geometry, self.options.steps
        seeds = [node.key.node_seed(node.middle) for node in nodes]
        noise = torch.cat([draw_noise(seed, geometry, steps) for seed in seeds], dim=1)
        with matmul_precision(tf32=self.options.tf32):
            unknown = self._unknown_of(geometry)
            features0 = self.model.stack([node.features0 for node in nodes], plan)
            features1 = self.model.stack([node.features1 for node in nodes], plan)
            if self._uses_graphs(plan):
                halfway = Halfway(self.model, geometry, plan, steps)
                walk, noise = self._prepare_walk(steps), noise.pin_memory()
                inputs = halfway.inputs(features0, unknown, features1, noise, *walk)
                return self._frames(halfway, *inputs)[0]
            return self.model(features0, unknown, features1, steps, noise, plan, self.sample)

    @torch.no_grad()
    def _encode(self, frame: Tensor, geometry: Geometry) -> FrameFeatures:
        def compute(plan: MemoryPlan) -> FrameFeatures:
            self._unknown_of(geometry)  # now, while at most one other frame takes memory
            if self._uses_graphs(plan):
                made = self._frames(Encoding(self.model, geometry, plan), frame)
                return FrameFeatures.of_tensors(geometry, made)
            return self.model.encode(frame, geometry, plan)

        with matmul_precision(tf32=self.options.tf32):
            return self._in_memory(geometry, 1, compute)

    def _in_memory(self, geometry: Geometry, pairs: int, compute: Callable[[MemoryPlan], T]) -> T:
        """`compute(plan)`, retried with more room or a smaller plan whenever memory runs out.

        Raises:
            MemoryBudgetError: memory runs out with the smallest plan.
        """
        while True:
            plan = self.plan(geometry, pairs)
            try:
                return compute(plan)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                shortage = error.with_traceback(None)  # which would keep all intermediate results
            if self._make_room is None or not self._make_room():
                self._make_do(geometry, plan, shortage)

    def _make_do(self, geometry: Geometry, plan: MemoryPlan, shortage: Exception) -> None:
        """Make the next plan take less memory than the one that ran out of it."""
        least = self.planned(geometry, 0).peak
        if plan.peak <= least:
            half = "bfloat16" if has_bfloat16(self.device) else "float16"
            raise MemoryBudgetError(
                f"Frames of {geometry.width}x{geometry.height} do not fit into the memory of "
                f"{self.device}: set precision to {half} and padding to tight, allow more memory "
                "if a budget limits it, or scale the frames down."
            ) from shortage
        self.available = max(least, int(SHRINK * plan.peak))
        log.warning("out of memory: continuing with %.2f GB.", self.available / 1e9)
        self.forget_graphs()
        give_back_freed_memory(self.device)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _unknown_of(self, geometry: Geometry) -> Tensor:
        """Features of the unknown frame, cached for the last geometry."""
        if self._unknown is None or self._unknown[0] != geometry:
            self.options.report(geometry)
            self.forget_graphs()  # those of another size would take memory that no plan counts
            self._unknown = geometry, self.model.encode_unknown(geometry, self.plan(geometry))
        return self._unknown[1]
