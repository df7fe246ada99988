"""Group norm in two passes: moments of a map gathered piece by piece, then applied.

Moments are merged in float64, so cutting a map into pieces does not change them beyond rounding.
PyTorch's own group norm is not used on channels_last maps: on a CPU it computes their variance as
E[x^2] - E[x]^2 in one float32 pass, which was measured 2e-3 off on a 512x512 map.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import is_complete
from .norm_kernel import NormActivation, fits_map, is_available
from .norm_kernel import factor_and_offset as fused_factor_and_offset
from .norm_kernel import merged as fused_moments
from .norm_kernel import row_moments as fused_row_moments
from .norm_kernel import scaled as fused_scaled

CACHE_VALUES = 1 << 18
"""Values per piece on a CPU: 1 MB of float32 stays in the cache between mean and deviations."""

ACTIVATIONS = {"silu": partial(F.silu, inplace=True), "relu": F.relu_}


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean and summed squared deviations of each channel: int, [B, C] and [B, C] float64."""

    count: int
    mean: Tensor
    squares: Tensor


class Gathering:
    """Gathers the moments of a map from its rows, in order.

    Moments are computed for each row alone and merged in one go at the end (Chan, Golub and LeVeque
    1979), so the result does not depend on how many rows are added at a time.
    """

    def __init__(self, x: Tensor, height: int) -> None:
        """`x`: the first rows [B, C, rows, W] of a map of `height`."""
        B, C, _, self._width = x.shape
        # Preallocated rather than gathered in a list: small tensors that live on between freed
        # large ones keep the allocator from reusing the space.
        self._means = torch.empty((B, height, C), device=x.device, dtype=torch.float32)
        self._squares = torch.empty_like(self._means)
        self._rows = 0
        self._has_kernels = has_kernels(x)

    def add(self, x: Tensor) -> None:
        """Add the next rows."""
        B, C, H, W = x.shape
        if self._has_kernels:
            fused_row_moments(x, self._means, self._squares, self._rows)
            self._rows += H
            return
        rows = H if x.is_cuda else max(1, CACHE_VALUES // (B * C * W))
        for piece in x.permute(0, 2, 3, 1).split(rows, dim=1):
            following = slice(self._rows, self._rows + piece.shape[1])
            self._means[:, following], self._squares[:, following] = _of_rows(piece.float())
            self._rows = following.stop

    def moments(self) -> Moments:
        """The moments of all rows."""
        if self._has_kernels:
            mean, squares = fused_moments(self._means, self._squares, self._width)
            return Moments(self._width * self._rows, mean, squares)
        exact = torch.float64 if is_complete(self._means.device) else torch.float32
        means, squares = self._means.to(exact), self._squares.to(exact)
        mean = means.mean(dim=1, keepdim=True)
        apart = (means - mean).square().sum(dim=1) * self._width
        return Moments(self._width * self._rows, mean[:, 0], squares.sum(dim=1) + apart)


def _of_rows(values: Tensor) -> tuple[Tensor, Tensor]:
    """Means and summed squared deviations of every row of [B, rows, W, C]: [B, rows, C] each."""
    if values.is_cuda:  # one pass and no map of deviations, but eight times slower on a CPU
        variances, means = torch.var_mean(values, dim=2, correction=0)
        return means, variances * values.shape[2]
    means = values.mean(dim=2, keepdim=True)
    return means[:, :, 0], (values - means).square_().sum(dim=2)


def has_kernels(x: Tensor) -> bool:
    """Whether our own kernels compute moments and norm of a map [B, C, H, W]."""
    return fits_map(x) and is_available(x.device)


def factor_and_offset(
    norm: Any,  # noqa: ANN401 - a group norm of any namespace
    gathered: Moments,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(factor, offset), [B, C] float32: the group norm `norm` of x + bias is x * factor + offset.

    `norm`: a layer with num_groups, eps, weight and bias. `gathered`: moments of x. `bias`: [C].
    """
    if is_available(gathered.mean.device):
        return fused_factor_and_offset(norm, gathered.mean, gathered.squares, gathered.count, bias)
    B, C = gathered.mean.shape
    added = 0 if bias is None else bias.to(gathered.mean)
    means = (gathered.mean + added).view(B, norm.num_groups, -1)
    variances = gathered.squares.view(B, norm.num_groups, -1) / gathered.count
    mean = means.mean(dim=2, keepdim=True)
    variance = (variances + (means - mean).square()).mean(dim=2, keepdim=True)
    deviation = (variance + norm.eps).sqrt()
    factor = norm.weight.to(mean).view(norm.num_groups, -1) / deviation
    offset = norm.bias.to(mean).view(norm.num_groups, -1) - mean * factor
    factor, offset = factor.view(B, C), offset.view(B, C)
    return factor.float(), (offset + added * factor).float()


def scaled(x: Tensor, factor: Tensor, offset: Tensor, activation: NormActivation) -> Tensor:
    """activation(x * factor + offset) of a map [B, C, H, W]; computed in float32, in x's dtype.

    `factor`, `offset`: [B, C] float32.
    """
    if has_kernels(x):
        return fused_scaled(x, factor, offset, activation)
    factor, offset = factor[:, :, None, None], offset[:, :, None, None]
    return ACTIVATIONS[activation](torch.addcmul(offset, x.float(), factor).to(x.dtype))
