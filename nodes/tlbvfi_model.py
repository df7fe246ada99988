"""TLB-VFI under ComfyUI's memory management: loaded once, moved between RAM and VRAM by ComfyUI."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

import comfy.model_management as mm
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..tlbvfi.checkpoint import load_checkpoint, weights_hash
from ..tlbvfi.errors import MemoryBudgetError
from ..tlbvfi.method import PairKey
from ..tlbvfi.methods.tlbvfi import TlbvfiMethod
from ..tlbvfi.model import TLBVFI, Bands, FrameFeatures, SamplingOptions, default_bands

log = logging.getLogger("tlbvfi.nodes")

T = TypeVar("T")

FINEST_CHANNELS = 64
"""Channels of the maps at the size of the frame."""
LARGEST_BAND, SMALLEST_BAND = 1 << 26, 1 << 16
"""Values of a band after the first shortage of memory, and the least."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class HostedNetwork(nn.Module):
    """The network as ModelPatcher wants it: with a `device` that can be set."""

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
    """The model of a checkpoint; read from disk only if it is not the one loaded last.

    Raises:
        CheckpointError: the file is damaged, unsafe or of another network.
    """
    facts = path.stat()
    return read_model(
        path, (facts.st_mtime_ns, facts.st_size), dtype_for(precision, device), device
    )


@lru_cache(maxsize=1)
def read_model(
    path: Path, version: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> LoadedModel:
    """The model of a file as it is in this `version`.

    The pack's one piece of state: the last model, in RAM, so that a graph that names it by
    model_name does not read it from disk at every run. ComfyUI alone decides when it is on the GPU;
    TLBVFI_ClearModelCache forgets it.
    """
    network = load_checkpoint(path, dtype=dtype, device=mm.unet_offload_device())
    patcher = ModelPatcher(
        HostedNetwork(network), load_device=device, offload_device=mm.unet_offload_device()
    )
    return LoadedModel(patcher=patcher, network=network, weights_hash=weights_hash(path))


def dtype_for(precision: str, device: torch.device) -> torch.dtype:
    """The type `precision` means on `device`; auto is bfloat16 where a GPU computes in it."""
    if precision == "auto":
        return torch.bfloat16 if mm.should_use_bf16(device) else torch.float32
    return DTYPES[precision]


class HostedTlbvfi:
    """TlbvfiMethod whose weights ComfyUI brings to the device before the first frame of a size.

    Where memory runs out, other models are unloaded and maps are computed in smaller and smaller
    bands; frames stay the same to float rounding.
    """

    name = TlbvfiMethod.name
    any_time = TlbvfiMethod.any_time

    def __init__(self, model: LoadedModel, options: SamplingOptions, *, tile_size: int = 0) -> None:
        """`tile_size`: side in pixels of about what is computed at a time; 0: what suits the device."""
        bands = Bands(FINEST_CHANNELS * tile_size**2) if tile_size else None
        self._patcher = model.patcher
        self._method = TlbvfiMethod(model.network, options, weights=model.weights_hash, bands=bands)
        self.settings = self._method.settings
        self.device: torch.device = model.patcher.load_device
        self._size = torch.Size()

    def prepare(self, frame: Tensor) -> FrameFeatures:
        """Features of a frame, [C, H, W] float32 in [0, 1]."""
        if self._size != frame.shape:
            self._load(*frame.shape[1:])
            self._size = frame.shape
        prepare = partial(self._method.prepare, frame)
        return self._with_room(prepare, prepare)

    def between(
        self,
        features0: FrameFeatures,
        features1: FrameFeatures,
        times: Sequence[Fraction],
        key: PairKey,
    ) -> Iterator[Tensor]:
        """Frames at `times`, [C, H, W] float32 on the CPU each, computed as they are asked for."""
        frames = iter(self._method.between(features0, features1, times, key))

        def again(n: int) -> Tensor:
            nonlocal frames
            frames = iter(self._method.between(features0, features1, times[n:], key))
            return next(frames)

        for n in range(len(times)):
            yield self._with_room(lambda: next(frames), partial(again, n))

    def memory_needed(self, height: int, width: int) -> int:
        """Bytes at the peak for frames of this size, weights included."""
        return self._method.memory_needed(height, width)

    def release(self) -> None:
        """Give the VRAM back; the weights stay in RAM."""
        mm.unload_model_and_clones(self._patcher)

    def _load(self, height: int, width: int) -> None:
        # weights are small against what frames take, and layers left in RAM would slow every step
        needed = self.memory_needed(height, width)
        mm.load_models_gpu([self._patcher], memory_required=needed, force_full_load=True)

    def _with_room(self, compute: Callable[[], T], again: Callable[[], T]) -> T:
        """`compute()`; `again()` in smaller bands while it does not fit.

        Raises:
            MemoryBudgetError: it does not fit in the smallest.
        """
        while True:
            try:
                return compute()
            except mm.OOM_EXCEPTION as error:
                self._make_room(error)
            compute = again

    def _make_room(self, error: Exception) -> None:
        now = self._method.bands or default_bands(self.device)
        values = LARGEST_BAND if now.values is None else now.values // 4
        if values < SMALLEST_BAND:
            _, height, width = self._size
            raise MemoryBudgetError(
                f"frames of {width}x{height} do not fit into the memory of {self.device}: set "
                "precision to bfloat16 and padding to tight, or scale the frames down."
            ) from error
        log.warning("out of memory: unloading other models, then in bands of %d values.", values)
        self._method.bands = Bands(values)
        mm.free_memory(1e30, self.device, keep_loaded=self._own())
        mm.soft_empty_cache()

    def _own(self) -> list[Any]:  # ComfyUI's untyped record of what is loaded
        return [loaded for loaded in mm.current_loaded_models if loaded.model is self._patcher]
