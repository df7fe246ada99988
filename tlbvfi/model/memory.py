"""How a pair is computed within a memory budget: which maps are stored, how large bands are.

The frames are the same under every plan, up to float rounding. Memory and cost of a stage are counted
per padded pixel from the sizes of its layers, so that choosing a plan is plain arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil

import torch

from ..memory import give_back_freed_memory
from .bands import WHOLE_MAPS, Bands
from .geometry import Geometry

LIBRARIES = {"cpu": 110_000_000, "cuda": 128_000_000}
"""Bytes that torch and its libraries take once they have computed something, by type of device.

On a GPU this is cuBLAS's workspace, of which PyTorch counts 32 MB for each stream.
"""

IN_HAND = {"cpu": 4, "cuda": 1}
"""Frames on their way from the decoder and to the encoder, in the memory that is counted."""

FLOAT = 4
"""Bytes of a value that is float32 whatever the decoder computes in."""
FRAMES = 2
FRAME_VALUES, LEVEL_VALUES = 3, 26.75
"""Per padded pixel: the frame, and the outputs of the encoder's levels."""
CANVAS_VALUES = 93
"""Per pixel of the reduced canvas: the canvas and all that the flow is estimated from."""
FIRST_VALUES = 67
"""Per pixel, if the flow is estimated at full size: what it needs in addition to the levels."""

SPARE = 2
"""Times the memory of a plan that must be available for a CPU to keep what stages have freed.

Between blocks in use that may come to as much again.
"""

CPU_BANDS = (1 << 20, 1 << 19)
"""Values of a band on a CPU: more than 4 MB of float32 is slower, much less saves nothing."""
CPU_FLOW_BANDS = (1 << 22, 1 << 21, 1 << 20)
"""The same for the flow, where many layers in a row make a band need many rows beyond its own."""
GPU_BANDS = (None, *(1 << n for n in range(29, 18, -1)))
WHOLE_VALUES = (1 << 30) - 1
"""Values of the widest map that a GPU computes in one step.

Kernels with 32-bit indices stop at twice as many, and attention of older PyTorch at 65535 groups.
"""
GRAPH_PIXELS = 1 << 23
"""Padded pixels up to which a GPU may be faster than the program that launches its kernels.

By roofline an H100 needs 42 ms for the 3.1 million of 1080p, while launching takes about 65 ms.
"""
GRAPH_FEATURES = 4
"""Frames whose features exist in addition if frames are made by graphs.

Both inputs and the result of graphs are copies; and the graphs' own memory is still held while the
second frame's features, which are encoded in it, are kept outside as well.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """How the stages of a pair are computed."""

    encode: Bands = WHOLE_MAPS
    canvas: Bands = WHOLE_MAPS
    """The encoder on the reduced canvas."""
    flow: Bands = WHOLE_MAPS
    clip: Bands = WHOLE_MAPS
    """The part of the encoder that takes both frames together."""
    decode: Bands = WHOLE_MAPS
    keeps_flow_features: bool = True
    """Whether these are kept for both pairs of a frame, or computed again for each pair."""
    gives_back: bool = True
    """Whether a CPU returns freed memory to the system after each stage; it costs time to get it anew."""
    in_graphs: bool = False
    """Whether a GPU may encode frames and make the ones between them as CUDA graphs."""
    peak: int = 0
    """Approximate peak bytes of features and maps, without the weights."""

    def give_back(self, device: torch.device) -> None:
        """Return what a stage has freed to the system, if it may be missed."""
        if self.gives_back:
            give_back_freed_memory(device)


WHOLE = MemoryPlan()
"""Every map whole, everything kept."""


def plan_memory(
    geometry: Geometry,
    *,
    available: int | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    batch: int = 1,
) -> MemoryPlan:
    """The fastest plan within `available` bytes; if there is none, the one that takes least.

    `available` is what features and maps may take, None for no limit; `device` the type of the
    device, `dtype` that of the decoder.
    """
    stages = _Stages(geometry, device, batch, dtype.itemsize, keeps=True)
    again = _Stages(geometry, device, batch, dtype.itemsize, keeps=False)
    plans = [_fastest(each, available) for each in (stages, again)]
    fitting = [found for found in plans if available is None or found[0].peak <= available]
    if not fitting:
        return min(plans, key=lambda found: found[0].peak)[0]
    fastest = min(fitting, key=lambda found: found[1])[0]
    if device == "cpu" and (available is None or SPARE * fastest.peak <= available):
        fastest = replace(fastest, gives_back=False)
    in_graphs = replace(fastest, in_graphs=True, peak=fastest.peak + stages.held_for_graphs)
    fits = available is None or in_graphs.peak <= available
    return in_graphs if fits and stages.gain_from_graphs and _is_whole(fastest) else fastest


def _is_whole(plan: MemoryPlan) -> bool:
    return replace(plan, peak=0) == WHOLE


def _fastest(stages: _Stages, available: int | None) -> tuple[MemoryPlan, float]:
    """The fastest plan of these stages, or the one that takes least, and the FLOPs it needs."""
    bands, flow_bands = (
        (CPU_BANDS, CPU_FLOW_BANDS) if stages.device == "cpu" else (GPU_BANDS, GPU_BANDS)
    )
    encode = stages.encode().choose(bands, available)
    canvas = stages.canvas().choose(bands, available)
    flow = stages.flow().choose(flow_bands, available)
    decode = stages.decode().choose(bands, available)
    clip = stages.clip().choose(bands, available)
    coarse = stages.coarse_flow().choose((None,), available)  # IFNet has no bands
    choices = [encode, canvas, coarse, flow, clip, decode]
    plan = MemoryPlan(
        encode=encode.bands,
        canvas=canvas.bands,
        flow=flow.bands,
        clip=clip.bands,
        decode=decode.bands,
        keeps_flow_features=stages.keeps,
        peak=ceil(max(choice.peak for choice in choices)),
    )
    return plan, sum(choice.spent for choice in choices)


@dataclass(frozen=True, slots=True)
class _Storable:
    """A map that may be stored so that it is not computed again."""

    values: float
    """Values of this map and of what is stored at the same time."""
    cost: float
    """FLOPs that storing it saves."""


@dataclass(frozen=True, slots=True)
class _Choice:
    bands: Bands
    spent: float
    peak: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """Memory and cost of a stage."""

    needed: float
    """Bytes that are taken in any case."""
    itemsize: int = FLOAT
    """Bytes of a value of its maps."""
    storable: Sequence[_Storable] = ()
    widest: float
    """Values of its widest map."""
    row: float
    """Values of the widest map for each row of the map that is walked over."""
    maps: float
    """Number of maps of that width that a band holds at once; may be fractional."""
    around: float
    """Values that each of these maps has beyond the band's own rows."""
    halo: int
    """Rows that are computed beyond the band's own."""
    cost: float
    """FLOPs with everything stored, nothing computed twice."""

    def choose(self, sizes: Sequence[int | None], available: int | None) -> _Choice:
        """The fastest choice that fits; if none does, the one that takes least."""
        sizes = [size for size in sizes if size is not None or self.widest <= WHOLE_VALUES]
        choices = [self._choice(values, available) for values in sizes]
        fitting = [c for c in choices if available is None or c.peak <= available]
        if fitting:
            return min(fitting, key=lambda choice: choice.spent)
        return min(choices, key=lambda choice: choice.peak)

    def _choice(self, values: int | None, available: int | None) -> _Choice:
        band = self.widest if values is None else min(values, self.widest)
        taken = self.needed + self.maps * self.itemsize * min(self.widest, band + self.around)
        everything = max((map_.values for map_ in self.storable), default=0.0)
        room = everything
        if available is not None:
            room = min(everything, max(0.0, available - taken) / self.itemsize)
        again = sum(map_.cost for map_ in self.storable if map_.values > room)
        beyond = 0.0 if band == self.widest else self.halo / max(1, band // self.row)
        return _Choice(
            bands=Bands(values=values, room=None if room == everything else int(room)),
            spent=(self.cost + again) * (1 + beyond),
            peak=taken + room * self.itemsize,
        )


class _Stages:
    """The stages for frames of one geometry; figures are values and kFLOP per padded pixel."""

    def __init__(
        self, geometry: Geometry, device: str, batch: int, itemsize: int, *, keeps: bool
    ) -> None:
        """`itemsize`: of the decoder's values; `keeps`: see `MemoryPlan.keeps_flow_features`."""
        self.device = device
        self.in_hand = IN_HAND.get(device, 0)
        self.pixels = batch * geometry.padded_height * geometry.padded_width
        self.columns = batch * geometry.padded_width
        self.scale = float(geometry.flow_scale)
        self.area = self.scale**2
        self.itemsize = itemsize
        self.reduces = geometry.reduces_flow
        self.keeps = keeps
        self.keeps_canvas = keeps and self.reduces
        self.frame = FRAME_VALUES * FLOAT
        self.features = self.frame + LEVEL_VALUES * (itemsize if self.reduces else FLOAT)
        self.canvas_features = CANVAS_VALUES * self.area * FLOAT

    @property
    def kept(self) -> float:
        """Bytes per pixel of both frames' features, outside the flow's stages."""
        return FRAMES * (self.features + (self.canvas_features if self.keeps_canvas else 0))

    @property
    def gain_from_graphs(self) -> bool:
        """Whether launching the kernels of whole maps may take longer than they run."""
        return self.device == "cuda" and self.pixels <= GRAPH_PIXELS

    @property
    def held_for_graphs(self) -> int:
        """Bytes that graphs take in addition to what is taken without them."""
        frames = 2 * self.frame  # one that is encoded, one between two others
        return ceil((GRAPH_FEATURES * self.kept / FRAMES + frames) * self.pixels)

    @property
    def known_to_flow(self) -> float:
        """Bytes per pixel of both frames' features while the flow is estimated."""
        if not self.reduces:
            return FRAMES * (self.features + FIRST_VALUES * FLOAT)
        if self.keeps_canvas:
            return self.kept
        # The second frame's levels are computed after the flow.
        return self.features + self.frame + FRAMES * self.canvas_features

    def on_gpu(self, *storable: tuple[float, float]) -> Sequence[tuple[float, float]]:
        """Maps that are stored on a GPU only, see `bands.settle_if_all_fits`."""
        return storable if self.device == "cuda" else ()

    def encode(self) -> _Stage:
        other = self.features + (self.canvas_features if self.keeps_canvas else 0)
        return self._stage(
            needed=other + 30 * FLOAT,  # the frame twice, and its first two levels
            storable=((64, 74), (32, 37), *self.on_gpu((128, 7))),
            widest=64,
            row=128,
            maps=(10, 6.5),
            halo=3,
            cost=375,
        )

    def canvas(self) -> _Stage:
        return self._stage(
            needed=self.known_to_flow if self.reduces else 0,
            storable=((64 * self.area, 74 * self.area), (32 * self.area, 37 * self.area)),
            widest=64 * self.area,
            row=128 * self.scale,
            maps=(10, 6.5),
            halo=3,
            cost=(1 if self.keeps_canvas else FRAMES) * 343 * self.area if self.reduces else 0,
        )

    def coarse_flow(self) -> _Stage:
        return self._stage(
            needed=self.known_to_flow + 45 * self.area * FLOAT,
            widest=0,
            row=1,
            maps=(0, 0),
            halo=0,
            cost=44 * 4 * self.area,
        )

    def flow(self) -> _Stage:
        return self._stage(
            needed=self.known_to_flow + (12 * self.area + 4) * FLOAT,
            widest=130 * self.area,
            row=130 * self.scale,
            maps=(9, 5),
            halo=10,
            cost=1460 * self.area,
        )

    def clip(self) -> _Stage:
        return self._stage(
            needed=self.kept + (4 + 3 + 3 + 16 + 4) * FLOAT,
            widest=16,
            row=64,
            maps=(10, 5),
            halo=2,
            cost=76,
        )

    def decode(self) -> _Stage:
        return self._stage(
            needed=self.kept + 6 * FLOAT + 32 * self.itemsize,
            itemsize=self.itemsize,
            storable=(
                *((32, 65), (48, 18), (64, 33), (32, 33), (64, 180), (96, 37)),
                *self.on_gpu((128, 33)),
            ),
            widest=64,
            row=128,
            maps=(14, 6),
            halo=6,
            cost=640,
        )

    def _stage(
        self,
        *,
        needed: float,
        widest: float,
        row: float,
        maps: tuple[float, float],
        halo: int,
        cost: float,
        itemsize: int = FLOAT,
        storable: Sequence[tuple[float, float]] = (),
    ) -> _Stage:
        """`maps`: on a CPU, where it includes the halo of its small bands, and on a GPU."""
        on_cpu, on_gpu = maps
        is_cpu = self.device == "cpu"
        return _Stage(
            needed=(needed + self.in_hand * self.frame) * self.pixels,
            itemsize=itemsize,
            storable=[_Storable(v * self.pixels, c * 1e3 * self.pixels) for v, c in storable],
            widest=widest * self.pixels,
            row=row * self.columns,
            maps=on_cpu if is_cpu else on_gpu,
            around=0 if is_cpu else halo * row * self.columns,
            halo=halo,
            cost=cost * 1e3 * self.pixels,
        )
