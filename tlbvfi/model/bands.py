"""Maps whose rows are computed on demand, so that a map need never exist whole.

A `Rows` is a map [B, C, H, W] as a function from a range of rows to their values; convolutions,
norms and resampling turn one into another and request the rows around a range that they need (the
halo). Nothing is computed until `keep` walks over the rows in bands. A band small enough for the
cache is also faster on a CPU than the whole map, for which fresh memory costs more than arithmetic.

What is global, such as the moments of a group norm, is gathered in one walk and used in the next:
the result is that of the whole map, up to float rounding. Moments are gathered row by row and
combined at the end, so they do not depend on the bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .activation import Activation, activated, summed
from .activation import is_available as can_fuse
from .norm import Gathering, Moments, factor_and_offset, scaled
from .norm_kernel import NormActivation
from .split import conv2d as conv2d_split
from .split import fits as can_be_split
from .split import is_available as can_split

SPLITS = "splits_factors"
"""Attribute of a convolution layer that sets its `Kernel.splits`."""

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""(row, column) in a block of 2x2 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bands:
    """How maps are walked over, and which of them are stored on the way."""

    values: int | None = None
    """Approximate values of a band's widest map; None walks over every map in one step."""
    room: int | None = None
    """Values of the maps that may be stored so that they are not computed again; None: all."""

    def cut(self, height: int, values_per_row: int) -> Iterator[tuple[int, int]]:
        """Row ranges [start, stop) that together cover 0..height.

        Their heights differ by at most a row: for a last band of few rows, libraries may sum in
        another order.
        """
        rows = height if self.values is None else max(1, self.values // max(1, values_per_row))
        number = ceil(height / rows)
        edges = [height * band // number for band in range(number + 1)]
        yield from pairwise(edges)

    def have_room(self, source: Rows) -> bool:
        """Whether a map may be stored."""
        return self.room is None or source.values <= self.room

    def beside(self, source: Rows) -> Bands:
        """The same bands with the room left beside `source`, if that is stored."""
        if self.room is None or source.widest > 0:
            return self
        return replace(self, room=self.room - source.values)


WHOLE_MAPS = Bands()
"""Every map is computed in one step and stored."""


@dataclass(frozen=True, slots=True)
class Rows:
    """A map of `shape` [B, C, H, W]; `compute(start, stop)` gives rows [start, stop).

    The result of `compute` may be a view of something kept: never write to it.
    """

    shape: tuple[int, int, int, int]
    compute: Callable[[int, int], Tensor]
    widest: int
    """Values per row of the widest map that is computed on the way to this one; 0 if stored."""

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.shape[2]

    @property
    def values(self) -> int:
        """Number of values in the whole map."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Kernel:
    """Weight [C_out, C_in / groups, k, k] and bias [C_out] of a convolution that keeps the size."""

    weight: Tensor
    bias: Tensor | None
    groups: int = 1
    splits: bool = False
    """Whether a GPU may compute products of float32 from split factors, see `split`."""

    @property
    def halo(self) -> int:
        """Rows needed above and below a row."""
        return self.weight.shape[-1] // 2

    def without_bias(self) -> Kernel:
        """The same without the bias, for when the next step adds it: on a GPU it costs a pass."""
        return replace(self, bias=None)


def derived(
    shape: tuple[int, int, int, int],
    compute: Callable[[int, int], Tensor],
    *sources: Rows,
    step: int = 1,
) -> Rows:
    """A map computed from others; each of its rows needs `step` rows of theirs."""
    B, C, _, W = shape
    widest = [step * source.widest for source in sources]
    return Rows(shape, compute, max(B * C * W, *widest, 0))


def kernel_of(layer: Any) -> Kernel:  # noqa: ANN401 - a convolution of any namespace
    """The kernel of a convolution layer."""
    return Kernel(layer.weight, layer.bias, splits=getattr(layer, SPLITS, False))


def with_one_bias(first: Kernel, second: Kernel) -> tuple[Kernel, Kernel]:
    """Two kernels whose results are added: the first with both biases, the second with none."""
    assert first.bias is not None
    assert second.bias is not None
    return replace(first, bias=first.bias + second.bias), second.without_bias()


def with_bias_as_channel(kernel: Kernel, x: Tensor) -> tuple[Kernel, Tensor]:
    """A convolution that keeps the size and its map, whose bias weighs a further channel of ones.

    cuDNN adds a bias in a pass of its own over the result, which may be much larger than the map.
    The center of the kernel sees no padding, so this holds at borders too.
    """
    assert kernel.bias is not None
    taps = torch.zeros_like(kernel.weight[:, :1])
    taps[:, 0, kernel.halo, kernel.halo] = kernel.bias
    weight = torch.cat([kernel.weight, taps], dim=1)
    return replace(kernel, weight=weight, bias=None), F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)


def convolve(
    kernel: Kernel,
    x: Tensor,
    size: tuple[int, int],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    activation: Activation | None = None,
    plus: Tensor | None = None,
) -> Tensor:
    """`kernel` over a map in the map's dtype, then `activation`, or the sum with `plus`.

    `size`: rows and columns of the result. `padding`: rows of zeros above and columns on the left;
    below and on the right there are as many as needed. `plus`: only where `activation.is_available`.
    """
    weight = kernel.weight.to(x)
    bias = None if kernel.bias is None else kernel.bias.to(x)
    if kernel.splits and can_split(x.device) and can_be_split(x, weight, kernel.groups):
        found = conv2d_split(x, weight, bias, size, stride=stride, padding=padding, plus=plus)
        return found if activation is None else activation(found)
    x, padding = with_even_zeros(x, weight.shape[-1], size, stride, padding)
    where: Any = {"stride": stride, "padding": padding, "groups": kernel.groups}
    if plus is not None:
        return summed(F.conv2d(x, weight, **where), bias, plus)
    if activation is None:
        return F.conv2d(x, weight, bias, **where)
    if bias is not None and can_fuse(x.device):
        return activated(F.conv2d(x, weight, **where), bias, activation)
    return activation(F.conv2d(x, weight, bias, **where))


def with_even_zeros(
    x: Tensor, side: int, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> tuple[Tensor, tuple[int, int]]:
    """A map and its zero padding for a result of `size`; asymmetric padding is added here.

    `side`: of the kernel; `padding`: rows above and columns on the left.
    """
    down, right = (
        stride * (count - 1) + side - before - length
        for length, before, count in zip(x.shape[2:], padding, size, strict=True)
    )
    # Symmetric padding, which convolutions add themselves, gives the same outputs then.
    if 0 <= padding[0] - down < stride and 0 <= padding[1] - right < stride:
        return x, padding
    return F.pad(x, (padding[1], max(0, right), padding[0], max(0, down))), (0, 0)


def stored(x: Tensor) -> Rows:
    """Rows of a map that exists."""
    B, C, H, W = x.shape
    return Rows((B, C, H, W), lambda start, stop: x[:, :, start:stop], widest=0)


def top(source: Rows, height: int) -> Rows:
    """The first `height` rows of a map; those below are not computed."""
    B, C, _, W = source.shape
    return replace(source, shape=(B, C, height, W))


def whole(source: Rows) -> Tensor:
    """The map behind `stored` rows; other rows are computed in one band."""
    return source.compute(0, source.height)


def mapped(function: Callable[[Tensor], Tensor], source: Rows) -> Rows:
    """`function` of every row by itself."""
    return derived(source.shape, lambda start, stop: function(source.compute(start, stop)), source)


def joined(sources: Sequence[Rows]) -> Rows:
    """Maps of one size, concatenated along their channels."""
    B, _, H, W = sources[0].shape

    def compute(start: int, stop: int) -> Tensor:
        # As [B, h, W, C]: a single map in another layout would give the result that layout.
        parts = [source.compute(start, stop).permute(0, 2, 3, 1) for source in sources]
        return torch.cat(parts, dim=3).permute(0, 3, 1, 2)

    return derived((B, sum(source.shape[1] for source in sources), H, W), compute, *sources)


def added(first: Rows, second: Rows) -> Rows:
    """Sum of two maps; `first` must compute fresh values, which are overwritten."""

    def compute(start: int, stop: int) -> Tensor:
        return first.compute(start, stop).add_(second.compute(start, stop))

    return derived(first.shape, compute, first, second)


def remembered(source: Rows, reach: int = 0) -> Rows:
    """A map whose last band is cached for several readers; computed `reach` rows further.

    The widest range of a band, less `reach`, must be requested first.
    """
    kept: list[tuple[int, int, Tensor]] = []

    def compute(start: int, stop: int) -> Tensor:
        if not (kept and kept[0][0] <= start and stop <= kept[0][1]):
            kept.clear()
            first, last = max(0, start - reach), min(source.height, stop + reach)
            kept.append((first, last, source.compute(first, last)))
        first, _, rows = kept[0]
        return rows[:, :, start - first : stop - first]

    return derived(source.shape, compute, source)


def normed(
    norm: Any,  # noqa: ANN401 - a group norm of any namespace
    source: Rows,
    gathered: Moments,
    activation: NormActivation,
    bias: Tensor | None = None,
) -> Rows:
    """Group norm by the moments of the whole map, then an activation.

    `bias`: [C] that the preceding convolution left out; here it costs no pass over the map.
    """
    factor, offset = factor_and_offset(norm, gathered, bias)
    return mapped(lambda x: scaled(x, factor, offset, activation), source)


def with_halo(source: Rows, start: int, stop: int) -> Tensor:
    """Rows [start, stop); those outside the map are zero."""
    above, below = max(0, -start), max(0, stop - source.height)
    rows = source.compute(start + above, stop - below)
    return F.pad(rows, (0, 0, above, below)) if above or below else rows


def _padded(
    source: Rows, start: int, stop: int, before: int, after: int
) -> tuple[Tensor, tuple[int, int]]:
    """Rows [start, stop) with those around them, and the padding still to add above and left.

    `before`, `after`: how many rows are needed above and below.
    """
    if (start, stop) == (0, source.height):
        return source.compute(start, stop), (before, before)
    return with_halo(source, start - before, stop + after), (0, before)


def convolved(
    kernel: Kernel,
    source: Rows,
    activation: Activation | None = None,
    plus: Rows | None = None,
) -> Rows:
    """`kernel` over a map, zero beyond its border, then `activation`, or the sum with `plus`.

    `plus` has the shape of the result.
    """
    B, _, H, W = source.shape
    halo = kernel.halo

    def compute(start: int, stop: int) -> Tensor:
        rows, padding = _padded(source, start, stop, halo, halo)
        size = stop - start, W
        if plus is not None and can_fuse(rows.device):
            return convolve(kernel, rows, size, padding=padding, plus=plus.compute(start, stop))
        if halo == 0 and not rows.is_cuda:
            # On one thread oneDNN leaves 1x1 convolutions to a slow path.
            weight = kernel.weight.to(rows)[:, :, 0, 0]
            bias = None if kernel.bias is None else kernel.bias.to(rows)
            found = F.linear(rows.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
            found = found if activation is None else activation(found)
        else:
            found = convolve(kernel, rows, size, padding=padding, activation=activation)
        del rows  # before the other map is computed
        return found if plus is None else found.add_(plus.compute(start, stop))

    sources = [source] if plus is None else [source, plus]
    return derived((B, kernel.weight.shape[0], H, W), compute, *sources)


def strided(kernel: Kernel, source: Rows, stride: int, before: int) -> Rows:
    """`kernel` at every `stride`-th row and column of a map whose sides are multiples of it.

    `before`: zeros above and on the left; below and on the right there are as many as needed.
    """
    B, _, H, W = source.shape
    after = kernel.weight.shape[-1] - stride - before

    def compute(start: int, stop: int) -> Tensor:
        rows, padding = _padded(source, stride * start, stride * stop, before, after)
        size = stop - start, W // stride
        return convolve(kernel, rows, size, stride=stride, padding=padding)

    shape = (B, kernel.weight.shape[0], H // stride, W // stride)
    return derived(shape, compute, source, step=stride)


def upsampled(kernel: Kernel, source: Rows) -> Rows:
    """Nearest neighbor x2, then a 3x3 convolution, computed on the small map.

    Each of the four phases of the result sees only 2x2 different values, so its 3x3 kernel
    collapses to 2x2: 4/9 of the work.
    """
    B, _, H, W = source.shape
    channels = kernel.weight.shape[0]

    def compute(start: int, stop: int) -> Tensor:
        first, last = start // 2, (stop + 1) // 2
        rows, padding = _padded(source, first, last, 1, 1)
        if not rows.is_cuda:
            # With its own padding oneDNN takes another kernel for maps of some heights.
            rows, padding = F.pad(rows, (1, 1, padding[0], padding[0])), (0, 0)
        weight = torch.cat(phase_kernels(kernel.weight))
        size = last - first + 1, W + 1
        phases = convolve(Kernel(weight, None), rows, size, padding=padding).split(channels, dim=1)
        bias = 0 if kernel.bias is None else kernel.bias.to(rows)[:, None, None]
        out = rows.new_empty((B, 2 * (last - first), 2 * W, channels)).permute(0, 3, 1, 2)
        for (row, column), phase in zip(PHASES, phases, strict=True):
            seen = phase[:, :, row : row + last - first, column : column + W]
            torch.add(seen, bias, out=out[:, :, row::2, column::2])
        return out[:, :, start - 2 * first : stop - 2 * first]

    return derived((B, channels, 2 * H, 2 * W), compute, source)


def phase_kernels(weight: Tensor) -> list[Tensor]:
    """The 2x2 kernels of the four `PHASES` of a 3x3 convolution after nearest x2."""
    return [
        kernel
        for by_row in collapse_to_phases(weight, dim=2)
        for kernel in collapse_to_phases(by_row, dim=3)
    ]


def collapse_to_phases(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The kernels of an even and an odd output line after nearest x2: three taps become two."""
    first, center, last = weight.unbind(dim)
    even = torch.stack([first, center + last], dim)
    odd = torch.stack([first + center, last], dim)
    return even, odd


def walk(source: Rows, bands: Bands) -> Iterator[tuple[int, int, Tensor]]:
    """(start, stop, rows) of each band in turn."""
    for start, stop in bands.cut(source.height, source.widest):
        yield start, stop, source.compute(start, stop)


def keep(source: Rows, bands: Bands) -> Tensor:
    """The whole map, computed band by band."""
    return _keep(walk(source, bands), source)


def keep_and_gather(source: Rows, bands: Bands) -> tuple[Rows, Moments]:
    """The whole map, computed band by band, and its moments."""
    gathered: list[Gathering] = []
    kept = _keep(_gathering(source, bands, gathered), source)
    return stored(kept), gathered[0].moments()


def gather(source: Rows, bands: Bands) -> Moments:
    """The moments of a map; no band is kept."""
    gathered: list[Gathering] = []
    for _ in _gathering(source, bands, gathered):
        pass
    return gathered[0].moments()


def settle(source: Rows, bands: Bands) -> tuple[Rows, Moments]:
    """A map and its moments; stored if there is room, else computed again wherever it is read."""
    if bands.have_room(source):
        return keep_and_gather(source, bands)
    return source, gather(source, bands)


def settle_if_all_fits(source: Rows, bands: Bands, device: torch.device) -> tuple[Rows, Moments]:
    """`settle` for a large map that is cheap to compute: stored on a GPU with room for every map.

    There reading it takes less time than computing it. On a CPU the memory is worth more.
    """
    if bands.room is None and device.type == "cuda" and source.widest > 0:
        return keep_and_gather(source, bands)
    return source, gather(source, bands)


def _gathering(
    source: Rows, bands: Bands, gathered: list[Gathering]
) -> Iterator[tuple[int, int, Tensor]]:
    """`walk`, gathering the moments on the way."""
    for start, stop, rows in walk(source, bands):
        if not gathered:
            gathered.append(Gathering(rows, source.height))
        gathered[0].add(rows)
        yield start, stop, rows


def _keep(walked: Iterable[tuple[int, int, Tensor]], source: Rows) -> Tensor:
    kept: Tensor | None = None
    for start, stop, rows in walked:
        if (start, stop) == (0, source.height):
            return rows
        if kept is None:
            B, C, H, W = source.shape
            kept = rows.new_empty((B, H, W, C)).permute(0, 3, 1, 2)
        kept[:, :, start:stop] = rows
    assert kept is not None
    return kept
