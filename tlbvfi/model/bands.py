"""Maps whose rows are computed when they are asked for, so that they need never exist whole.

A `Rows` is a map [B, C, H, W] as a function from a range of rows to their values; convolutions,
norms and resampling make one of another and look up the rows around a range that they need (the
halo). Nothing is computed until `keep` walks over the rows in bands. A band small enough for the
cache is also faster on a CPU than the whole map, whose fresh memory costs more than arithmetic.

What is global, such as the moments of a group norm, is gathered in one walk and used in the next:
the result is that of the whole map, to float rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .norm import Moments, factor_and_offset, merge, moments

CACHED_VALUES = 1 << 20
"""Values of a band on a CPU: 4 MB of float32."""


PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""(row, column) in a block of 2x2 pixels."""


@dataclass(frozen=True, slots=True)
class Bands:
    """How maps are walked over."""

    values: int | None
    """Values of a band, about; None walks over every map in one step."""

    def cut(self, height: int, values_per_row: int) -> Iterator[tuple[int, int]]:
        """Row ranges [start, stop) that together are 0..height."""
        rows = height if self.values is None else max(1, self.values // values_per_row)
        for start in range(0, height, rows):
            yield start, min(start + rows, height)


def default_bands(device: torch.device) -> Bands:
    """Bands for the cache of a CPU; whole maps on anything else."""
    return Bands(CACHED_VALUES if device.type == "cpu" else None)


@dataclass(frozen=True, slots=True)
class Rows:
    """A map of `shape` [B, C, H, W]; `compute(start, stop)` gives rows [start, stop).

    What `compute` returns may be a view of something kept: it is never written to.
    """

    shape: tuple[int, int, int, int]
    compute: Callable[[int, int], Tensor]

    @property
    def height(self) -> int:
        """Rows there are."""
        return self.shape[2]


@dataclass(frozen=True, slots=True)
class Kernel:
    """Weight [C_out, C_in / groups, k, k] and bias [C_out] of a convolution that keeps the size."""

    weight: Tensor
    bias: Tensor | None
    groups: int = 1

    @property
    def halo(self) -> int:
        """Rows needed above and below a row."""
        return self.weight.shape[-1] // 2


def kernel_of(layer: Any) -> Kernel:  # noqa: ANN401 - a convolution of any namespace
    """The kernel of a convolution layer."""
    return Kernel(layer.weight, layer.bias)


def stored(x: Tensor) -> Rows:
    """Rows of a map that exists."""
    B, C, H, W = x.shape
    return Rows((B, C, H, W), lambda start, stop: x[:, :, start:stop])


def whole(source: Rows) -> Tensor:
    """The map behind `stored` rows; of others, one band of everything."""
    return source.compute(0, source.height)


def mapped(function: Callable[[Tensor], Tensor], source: Rows, channels: int | None = None) -> Rows:
    """`function` of every row by itself; `channels` where it changes their number."""
    B, C, H, W = source.shape
    shape = (B, channels or C, H, W)
    return Rows(shape, lambda start, stop: function(source.compute(start, stop)))


def joined(sources: Sequence[Rows]) -> Rows:
    """Maps of one size, their channels one after the other."""
    B, _, H, W = sources[0].shape

    def compute(start: int, stop: int) -> Tensor:
        return torch.cat([source.compute(start, stop) for source in sources], dim=1)

    return Rows((B, sum(source.shape[1] for source in sources), H, W), compute)


def added(first: Rows, second: Rows) -> Rows:
    """Sum of two maps; `first` computes fresh values, which are overwritten."""

    def compute(start: int, stop: int) -> Tensor:
        return first.compute(start, stop).add_(second.compute(start, stop))

    return Rows(first.shape, compute)


def normed(
    norm: Any,  # noqa: ANN401 - a group norm of any namespace
    source: Rows,
    gathered: Moments,
    activation: Callable[[Tensor], Tensor],
) -> Rows:
    """Group norm by the moments of the whole map, then an activation that may work in place."""
    factor, offset = (t[:, :, None, None] for t in factor_and_offset(norm, gathered))

    def apply(x: Tensor) -> Tensor:
        return activation(torch.addcmul(offset, x.float(), factor).to(x.dtype))

    return mapped(apply, source)


def with_halo(source: Rows, start: int, stop: int) -> Tensor:
    """Rows [start, stop), of which those outside of the map are zero."""
    above, below = max(0, -start), max(0, stop - source.height)
    rows = source.compute(start + above, stop - below)
    return F.pad(rows, (0, 0, above, below)) if above or below else rows


def convolved(kernel: Kernel, source: Rows) -> Rows:
    """`kernel` over a map, zero beyond its border."""
    B, _, H, W = source.shape
    halo = kernel.halo

    def compute(start: int, stop: int) -> Tensor:
        if (start, stop) == (0, H):
            rows, padding = source.compute(start, stop), (halo, halo)
        else:
            rows, padding = with_halo(source, start - halo, stop + halo), (0, halo)
        bias = None if kernel.bias is None else kernel.bias.to(rows)
        weight = kernel.weight.to(rows)
        if halo == 0:
            # On one thread oneDNN leaves 1x1 convolutions to a slow path.
            return F.linear(rows.permute(0, 2, 3, 1), weight[:, :, 0, 0], bias).permute(0, 3, 1, 2)
        return F.conv2d(rows, weight, bias, padding=padding, groups=kernel.groups)

    return Rows((B, kernel.weight.shape[0], H, W), compute)


def downsampled(kernel: Kernel, source: Rows) -> Rows:
    """3x3 with stride 2; one row and column of zeros below and on the right only."""
    B, _, H, W = source.shape

    def compute(start: int, stop: int) -> Tensor:
        rows = F.pad(with_halo(source, 2 * start, 2 * stop + 1), (0, 1))
        bias = None if kernel.bias is None else kernel.bias.to(rows)
        return F.conv2d(rows, kernel.weight.to(rows), bias, stride=2)

    return Rows((B, kernel.weight.shape[0], H // 2, W // 2), compute)


def upsampled(kernel: Kernel, source: Rows) -> Rows:
    """Nearest neighbor x2, then a 3x3 convolution, computed on the small map.

    Each of the four phases of the result sees only 2x2 different values, so its 3x3 kernel
    collapses to 2x2: 4/9 of the work.
    """
    B, _, H, W = source.shape
    channels = kernel.weight.shape[0]

    def compute(start: int, stop: int) -> Tensor:
        first, last = start // 2, (stop + 1) // 2
        padded = F.pad(with_halo(source, first - 1, last + 1), (1, 1))
        weight = torch.cat(phase_kernels(kernel.weight)).to(padded)
        bias = None if kernel.bias is None else kernel.bias.to(padded).repeat(4)
        phases = F.conv2d(padded, weight, bias).split(channels, dim=1)
        out = padded.new_empty((B, 2 * (last - first), 2 * W, channels)).permute(0, 3, 1, 2)
        for (row, column), phase in zip(PHASES, phases, strict=True):
            seen = phase[:, :, row : row + last - first, column : column + W]
            out[:, :, row::2, column::2] = seen
        return out[:, :, start - 2 * first : stop - 2 * first]

    return Rows((B, channels, 2 * H, 2 * W), compute)


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
    """(start, stop, rows) of one band after the other."""
    B, C, H, W = source.shape
    for start, stop in bands.cut(H, B * C * W):
        yield start, stop, source.compute(start, stop)


def keep(source: Rows, bands: Bands) -> Tensor:
    """The whole map, computed band by band."""
    return _keep(source, bands, gather=None)


def keep_and_gather(source: Rows, bands: Bands) -> tuple[Rows, Moments]:
    """The whole map, computed band by band, and its moments."""
    pieces: list[Moments] = []
    kept = _keep(source, bands, gather=pieces)
    return stored(kept), merge(pieces)


def gather(source: Rows, bands: Bands) -> Moments:
    """The moments of a map, of which no band is kept."""
    return merge(moments(rows) for _, _, rows in walk(source, bands))


def _keep(source: Rows, bands: Bands, gather: list[Moments] | None) -> Tensor:
    kept: Tensor | None = None
    for start, stop, rows in walk(source, bands):
        if gather is not None:
            gather.append(moments(rows))
        if (start, stop) == (0, source.height):
            return rows
        if kept is None:
            B, C, H, W = source.shape
            kept = rows.new_empty((B, H, W, C)).permute(0, 3, 1, 2)
        kept[:, :, start:stop] = rows
    assert kept is not None
    return kept
