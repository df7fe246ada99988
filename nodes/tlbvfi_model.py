"""TLB-VFI under ComfyUI's memory management: loaded once, moved between RAM and VRAM by ComfyUI."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..encoding.unchanged import Facts, file_facts
from ..tlbvfi.checkpoint import load_identified
from ..tlbvfi.device import require_dtype
from ..tlbvfi.errors import SettingsError
from ..tlbvfi.methods.tlbvfi import FREE_SHARE, TlbvfiMethod
from ..tlbvfi.model import (
    MINIMUM_SIDE,
    TLBVFI,
    FrameFeatures,
    Geometry,
    MemoryPlan,
    SamplingOptions,
)

log = logging.getLogger("tlbvfi.nodes")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HostedNetwork(nn.Module):
    """The network in the form ModelPatcher needs: with a `device` that can be set."""

    device: torch.device | None = None

    def __init__(self, network: TLBVFI) -> None:
        super().__init__()
        self.network = network


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A checkpoint in memory: the value of a TLBVFI_MODEL link."""

    patcher: ModelPatcher
    network: TLBVFI
    weights_hash: str


def load_model(path: Path, precision: str, device: torch.device) -> LoadedModel:
    """The model of a checkpoint; read from disk only if it is not the last one loaded.

    Raises:
        CheckpointError: the file is damaged, unsafe or for another network.
        SettingsError: as `dtype_for`.
    """
    return read_model(path, file_facts(path), dtype_for(precision, device), device)


@lru_cache(maxsize=1)
def read_model(
    path: Path, facts: Facts | None, dtype: torch.dtype, device: torch.device
) -> LoadedModel:
    """The model in a file, as long as the file has these `facts`.

    The pack's only state beside `kept`: the last model, kept in RAM, so that a graph that names it by
    model_name does not read it from disk on every run. ComfyUI alone decides when it is on the GPU;
    TLBVFI_ClearModelCache drops it.
    """
    network, identity = load_identified(path, dtype=dtype, device=mm.unet_offload_device())
    patcher = ModelPatcher(
        HostedNetwork(network), load_device=device, offload_device=mm.unet_offload_device()
    )
    return LoadedModel(patcher=patcher, network=network, weights_hash=identity)


def dtype_for(precision: str, device: torch.device) -> torch.dtype:
    """The type `precision` means on `device`; auto is bfloat16 if a GPU computes in it.

    Raises:
        SettingsError: there is no such precision, which is possible over a link, or `device` does
            not compute in it.
    """
    if precision == "auto":
        return torch.bfloat16 if mm.should_use_bf16(device) else torch.float32
    if precision not in DTYPES:
        raise SettingsError(f"precision must be auto, {', '.join(DTYPES)}, got {precision!r}.")
    dtype = DTYPES[precision]
    require_dtype(dtype, device)
    return dtype


class HostedTlbvfi(TlbvfiMethod):
    """TlbvfiMethod whose weights ComfyUI loads to the device before the first frame of a size.

    ComfyUI is asked for the memory of the fastest plan; what is then free is the budget. If memory
    still runs out, other models are unloaded, then the budget shrinks; the frames stay the same
    (on a GPU to float rounding).
    """

    def __init__(self, model: LoadedModel, options: SamplingOptions, *, tile_size: int = 0) -> None:
        """`tile_size`: side in pixels of a tile whose memory is the budget; 0: no limit."""
        super().__init__(
            model.network,
            options,
            weights=model.weights_hash,
            # not a method of this object: a cycle would keep its VRAM until Python looks for cycles
            make_room=partial(unload_others, model.patcher),
        )
        self._patcher = model.patcher
        dtype = model.network.compute_dtype
        self._tile_memory = tile_memory(tile_size, options, dtype) if tile_size else None
        self._geometry: Geometry | None = None

    @property
    def device(self) -> torch.device:
        """Where ComfyUI loads the network, which may still be in RAM."""
        return self._patcher.load_device

    def prepare(self, frame: Tensor) -> FrameFeatures:
        """Features of a frame, [C, H, W] float32 in [0, 1]."""
        geometry = self.options.geometry(*frame.shape[-2:])
        if geometry != self._geometry:
            self._load(geometry)
        return super().prepare(frame)

    def memory_needed(self, height: int, width: int) -> int:
        """Peak bytes for frames of this size, without the weights, planned for the free memory."""
        geometry = self.options.geometry(height, width)
        return self.planned(geometry, self._budget(geometry)).peak

    def release(self) -> None:
        """Free the VRAM; the weights stay in RAM."""
        self.forget_graphs()
        mm.unload_model_and_clones(self._patcher)

    def _load(self, geometry: Geometry) -> None:
        self.forget_graphs()  # ComfyUI takes the memory they hold for free
        self.available = self._limit(geometry)
        self._bring(self.planned(geometry, self.available))
        # the fastest number of pairs at once is known only with the weights on the device
        pairs = self.pairs_at_once(geometry.height, geometry.width)
        if pairs > 1:
            self._bring(self.plan(geometry, pairs))
        self.available = self._budget(geometry)
        self._geometry = geometry

    def _bring(self, plan: MemoryPlan) -> None:
        """Have ComfyUI make room for a plan and for the weights, and load the weights."""
        # weights are small compared to frames, and layers left in RAM would slow down every step
        mm.load_models_gpu(
            [self._patcher], memory_required=plan.peak / FREE_SHARE, force_full_load=True
        )
        # started with --novram, ComfyUI leaves the weights of layers that are not its own in RAM
        self._patcher.model.to(self.device)

    def _budget(self, geometry: Geometry) -> int:
        """Bytes that frames may take of the memory that is free now."""
        free = mm.get_free_memory(self.device) - mm.extra_reserved_memory()
        budget = max(0, int(FREE_SHARE * free))
        limit = self._limit(geometry)
        return budget if limit is None else min(budget, limit)

    def _limit(self, geometry: Geometry) -> int | None:
        """Bytes that the tile size allows, but at least the minimum needed; None: no limit."""
        if self._tile_memory is None:
            return None
        return max(self._tile_memory, self.planned(geometry, 0).peak)


def unload_others(patcher: ModelPatcher) -> bool:
    """Have ComfyUI unload other models than this from its device; whether there were any."""
    own = [loaded for loaded in mm.current_loaded_models if loaded.model is patcher]
    unloaded = mm.free_memory(1e30, patcher.load_device, keep_loaded=own)
    mm.soft_empty_cache()
    if unloaded:
        log.warning("out of memory: other models were unloaded, trying again.")
    return bool(unloaded)


PLAIN_VALUES = 1700
"""Values that the reference's graph holds per padded pixel: the 2.15 GB of its plain implementation
at 512x512 (`tlbvfi bench --baseline`), less weights and libraries."""


def tile_memory(tile_size: int, options: SamplingOptions, dtype: torch.dtype) -> int:
    """Bytes that tiling packs need for a tile of `tile_size` pixels square, every map whole."""
    side = max(tile_size, MINIMUM_SIDE)
    geometry = options.geometry(side, side)
    return PLAIN_VALUES * dtype.itemsize * geometry.padded_height * geometry.padded_width
