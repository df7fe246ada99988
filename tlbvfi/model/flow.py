"""Flow between two frames: a coarse-to-fine estimate (IFNet) and its refinement by features.

A flow is [B, 4, H, W]: channels 0, 1 point (x, y) into frame 0, channels 2, 3 into frame 1, in
pixels of its own resolution. Always computed in float32.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .bands import (
    Bands,
    Kernel,
    Rows,
    added,
    convolved,
    derived,
    joined,
    keep,
    kernel_of,
    mapped,
    remembered,
    stored,
    whole,
)
from .correlation_kernel import CHANNELS, is_available
from .correlation_kernel import correlation as fused_correlation
from .correlation_kernel import warped as fused_warp
from .layers import Operations, PReLU
from .lookup import look_up, taps_along, tokens_of
from .warp import warp

OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
"""Offsets of the neighbors that the correlation compares, in the order of its channels."""


def resize(x: Tensor, factor: float) -> Tensor:
    """Bilinear resize, without antialiasing, pixel centers at half positions."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def rescale_flow(flow: Tensor, factor: float) -> Tensor:
    """A flow at another resolution: its map is resized, its values scaled to the new pixels."""
    return resize(flow, factor).mul_(factor)


class FlowBlock(nn.Module):
    """One scale of IFNet; the result is at half the resolution of the input."""

    def __init__(self, ops: Operations, channels: int, width: int, scale: int) -> None:
        super().__init__()
        self.scale = scale
        self.conv0 = nn.Sequential(
            nn.Sequential(ops.Conv2d(channels, width // 2, 3, 2, 1), PReLU(width // 2)),
            nn.Sequential(ops.Conv2d(width // 2, width, 3, 2, 1), PReLU(width)),
        )
        self.convblock = nn.Sequential(
            *(nn.Sequential(ops.Conv2d(width, width, 3, padding=1), PReLU(width)) for _ in range(8))
        )
        self.conv1 = ops.ConvTranspose2d(width, 4, 4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.scale != 1:
            x = resize(x, 1 / self.scale)
        x = self.conv0(x.to(self.conv1.weight.dtype))
        flow = self.conv1(self.convblock(x).add_(x)).float()
        return flow if self.scale == 1 else resize(flow, self.scale)


class IFNet(nn.Module):
    """Flow at half resolution from the frames alone, in three scales."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.block0 = FlowBlock(ops, 6, 240, scale=4)
        self.block1 = FlowBlock(ops, 10, 150, scale=2)
        self.block2 = FlowBlock(ops, 10, 90, scale=1)

    def forward(self, frame0: Tensor, frame1: Tensor) -> Tensor:
        """[B, 3, H, W] each -> [B, 4, H/2, W/2]."""
        flow = self.block0(torch.cat([frame0, frame1], dim=1))
        for block in (self.block1, self.block2):
            up = rescale_flow(flow, 2)
            seen = [warp(frame0, up[:, :2]), warp(frame1, up[:, 2:]), up]
            flow = flow + block(torch.cat(seen, dim=1))
        return flow


def correlation(blend: Rows, features: Tensor, flow: Tensor) -> Rows:
    """[B, 9, H, W] float32: cosines of `blend` [B, C, H, W] and the neighbors in a warped map.

    `features`: [B, C, H, W]; `flow`: [B, 2, H, W].
    """
    B, _, H, W = blend.shape

    def compute(start: int, stop: int) -> Tensor:
        rows = blend.compute(start, stop)
        if has_kernels(features):
            return fused_correlation(rows, features, flow, start)
        reference = rows.float()
        reference = reference / length(reference)
        tokens = tokens_of(features)
        down, across = taps_along(flow, start, stop)
        lines = {dy: down.moved(dy, H) for dy in (-1, 0, 1)}
        columns = {dx: across.moved(dx, W) for dx in (-1, 0, 1)}
        cosines = []
        for dy, dx in OFFSETS:
            found = look_up(tokens, (H, W), lines[dy], columns[dx])
            norm = length(found)
            cosines.append(found.mul_(reference).sum(dim=1, keepdim=True) / norm)
        return torch.cat(cosines, dim=1)

    return derived((B, len(OFFSETS), H, W), compute, blend)


def warped(features: Tensor, flow: Tensor) -> Rows:
    """A map [B, C, H, W] warped by `flow` [B, 2, H, W]; computed in float32, in the map's dtype."""
    B, C, H, W = features.shape

    def compute(start: int, stop: int) -> Tensor:
        if has_kernels(features):
            return fused_warp(features, flow, start, stop)
        seen = look_up(tokens_of(features), (H, W), *taps_along(flow, start, stop))
        return seen.to(features.dtype)

    return derived((B, C, H, W), compute)


def has_kernels(features: Tensor) -> bool:
    """Whether there are fused kernels for such a map on its device."""
    return features.shape[1] in CHANNELS and is_available(features.device)


def as_type(source: Rows, dtype: torch.dtype) -> Rows:
    """The same map in another dtype."""
    return mapped(lambda rows: rows.to(dtype), source)


def length(x: Tensor) -> Tensor:
    """Length of the channel vector at every position, kept slightly above zero; [B, 1, H, W]."""
    return (x.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()


class RefineBlock(nn.Module):
    """One correction of the flow at one resolution, by features of both frames."""

    def __init__(self, ops: Operations, width: int) -> None:
        super().__init__()

        def stack(channels: int, kernels: Sequence[int], out: int | None = None) -> nn.Sequential:
            layers: list[nn.Module] = []
            for kernel in kernels:
                layers += [ops.Conv2d(channels, width, kernel, padding=kernel // 2), PReLU(width)]
                channels = width
            if out is not None:
                layers.append(ops.Conv2d(width, out, kernels[-1], padding=kernels[-1] // 2))
            return nn.Sequential(*layers)

        self.occl_convs = stack(2 * width, (1, 1), out=1)
        self.corr_convs = stack(len(OFFSETS), (1, 1))
        self.flow_convs = stack(2, (3, 3))
        self.motion_convs = stack(2 * width, (3,))
        self.gru = stack(3 * width + 2, (3, 3))
        self.flow_head = stack(width, (3,), out=2)

    def forward(self, features: tuple[Tensor, Tensor], flow: Tensor, bands: Bands) -> Tensor:
        """Features of both frames [B, C, H, W], flow [B, 4, H, W] -> corrected flow.

        The features are in the dtype of the computation. Only the flow is kept: each band goes
        through all layers before the next one starts.
        """
        flows = flow.split(2, dim=1)
        seen = [remembered(warped(x, f), reach=1) for x, f in zip(features, flows, strict=True)]
        blend = remembered(self.blend(*seen))
        shared = remembered(self.gru_of_blend(blend))
        corrected = [
            self.corrected(shared, own, correlation(blend, x, f), stored(f))
            for own, x, f in zip(seen, features, flows, strict=True)
        ]
        return keep(joined(corrected), bands)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its convolutions; flows are float32."""
        return kernel_of(self.gru[0]).weight.dtype

    def blend(self, seen0: Rows, seen1: Rows) -> Rows:
        """Mix of both warped features, weighted by which of them is not hidden."""

        def compute(start: int, stop: int) -> Tensor:
            first, second = seen0.compute(start, stop), seen1.compute(start, stop)
            both = stored(torch.cat([first, second], dim=1))
            return torch.lerp(second, first, whole(chain(self.occl_convs, both)).sigmoid_())

        return derived(seen0.shape, compute, seen0, seen1)

    def gru_of_blend(self, blend: Rows) -> Rows:
        """What the blend adds to the first layer of `gru`, the same for both directions."""
        kernel = kernel_of(self.gru[0])
        own = Kernel(kernel.weight[:, : blend.shape[1]], kernel.bias, splits=kernel.splits)
        return convolved(own, blend)

    def motion(self, cosines: Rows, flow: Rows) -> Rows:
        """Motion features of one direction, from its correlation and its flow."""
        parts = [chain(self.corr_convs, cosines), chain(self.flow_convs, flow)]
        return chain(self.motion_convs, joined(parts))

    def corrected(self, shared: Rows, seen: Rows, cosines: Rows, flow: Rows) -> Rows:
        """Corrected flow [B, 2, H, W] of one direction."""
        own = Kernel(kernel_of(self.gru[0]).weight[:, seen.shape[1] :], None)
        motion, known = as_type(cosines, self.dtype), as_type(flow, self.dtype)
        inputs = joined([seen, self.motion(motion, known), known])
        h = chain(list(self.gru)[1:], convolved(own, inputs, plus=shared))
        return added(as_type(chain(self.flow_head, h), torch.float32), flow)


def chain(layers: Iterable[nn.Module], source: Rows) -> Rows:
    """Size-preserving convolutions and their activations, in sequence."""
    layers = list(layers)
    while layers:
        layer = layers.pop(0)
        if isinstance(layer, PReLU):
            source = mapped(layer, source)
        else:
            follows = bool(layers) and isinstance(layers[0], PReLU)
            source = convolved(kernel_of(layer), source, layers.pop(0) if follows else None)
    return source


class RefineNet(nn.Module):
    """Flow at full resolution from IFNet's flow and features at four resolutions."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.rf_block1 = RefineBlock(ops, 64)
        self.rf_block2 = RefineBlock(ops, 64)
        self.rf_block3 = RefineBlock(ops, 128)
        self.rf_block4 = RefineBlock(ops, 128)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype in which it takes features; others are converted."""
        return self.rf_block1.dtype

    def forward(
        self,
        flow: Tensor,
        features0: Sequence[Tensor],
        features1: Sequence[Tensor],
        bands: Bands,
    ) -> Tensor:
        """Flow [B, 4, H/2, W/2], features of each frame at 1, 1/2, 1/4, 1/8 -> [B, 4, H, W]."""
        flow = rescale_flow(flow, 1 / 4)
        blocks = (self.rf_block1, self.rf_block2, self.rf_block3, self.rf_block4)
        for level in (3, 2, 1, 0):
            features = features0[level].to(self.dtype), features1[level].to(self.dtype)
            flow = blocks[level](features, flow, bands)
            flow = rescale_flow(flow, 2) if level else flow
        return flow
