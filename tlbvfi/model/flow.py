"""Flow between two frames: a coarse-to-fine estimate (IFNet) and its refinement by features.

A flow is [B, 4, H, W]: channels 0, 1 point (x, y) into frame 0, channels 2, 3 into frame 1, in
pixels of its own resolution. Always computed in float32.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Operations, PReLU, weight_and_bias
from .warp import sample_at, sampling_grid, warp

OFFSETS = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1))
"""Neighbors that the correlation compares, in the order of its channels."""


def resize(x: Tensor, factor: float) -> Tensor:
    """Bilinear, without antialiasing, pixel centers at half positions."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def rescale_flow(flow: Tensor, factor: float) -> Tensor:
    """A flow at another resolution: its map is resized and its pixels are counted anew."""
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
        x = self.conv0(x)
        flow = self.conv1(self.convblock(x).add_(x))
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


def normalized(x: Tensor) -> Tensor:
    """`x` at unit length over its channels."""
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()


def correlation(reference: Tensor, feature: Tensor, grid: Tensor) -> Tensor:
    """[B, 9, H, W]: `reference` [B, C, H, W] times the normalized neighbors of warped `feature`.

    Neighbor (dy, dx) is the feature shifted by it, zero from outside, then sampled at `grid`.
    The grid is clamped to the image before the shift, so that a clamped position still reaches
    the zero border.
    """
    height, width = feature.shape[-2:]
    padded = F.pad(feature, (1, 1, 1, 1))
    channels = []
    for dy, dx in OFFSETS:
        shifted = padded[:, :, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
        neighbor = sample_at(shifted, grid)
        length = (neighbor.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()
        channels.append((neighbor.mul_(reference)).sum(dim=1, keepdim=True) / length)
    return torch.cat(channels, dim=1)


class RefineBlock(nn.Module):
    """One correction of the flow at one resolution, by features of both frames."""

    def __init__(self, ops: Operations, width: int) -> None:
        super().__init__()

        def conv(channels: int, out: int, kernel: int) -> nn.Module:
            return ops.Conv2d(channels, out, kernel, padding=kernel // 2)

        def stack(channels: int, kernels: Sequence[int], out: int | None = None) -> nn.Sequential:
            layers: list[nn.Module] = []
            for index, kernel in enumerate(kernels):
                layers += [conv(width if index else channels, width, kernel), PReLU(width)]
            if out is not None:
                layers.append(conv(width, out, kernels[-1]))
            return nn.Sequential(*layers)

        self.occl_convs = stack(2 * width, (1, 1), out=1)
        self.corr_convs = stack(len(OFFSETS), (1, 1))
        self.flow_convs = stack(2, (3, 3))
        self.motion_convs = stack(2 * width, (3,))
        self.gru: nn.Sequential = stack(3 * width + 2, (3, 3))
        self.flow_head = stack(width, (3,), out=2)

    def forward(self, features: tuple[Tensor, Tensor], flow: Tensor) -> Tensor:
        """Features of both frames [B, C, H, W], flow [B, 4, H, W] -> corrected flow."""
        flows = flow.split(2, dim=1)
        grids = [sampling_grid(f) for f in flows]
        warped = [sample_at(f, g) for f, g in zip(features, grids, strict=True)]
        gate = torch.sigmoid(self.occl_convs(torch.cat(warped, dim=1)))
        blend = torch.lerp(warped[1], warped[0], gate)
        shared = self.gru_of_blend(blend)
        reference = normalized(blend)
        corrected = []
        for feature, seen, f, g in zip(features, warped, flows, grids, strict=True):
            motion = self.motion(correlation(reference, feature, g), f)
            corrected.append(f + self.correct(shared, seen, motion, f))
        return torch.cat(corrected, dim=1)

    def gru_of_blend(self, blend: Tensor) -> Tensor:
        """What the blend adds to the first layer of `gru`, the same for both directions."""
        weight, bias = weight_and_bias(self.gru[0], blend)
        return F.conv2d(blend, weight[:, : blend.shape[1]], bias, padding=1)

    def motion(self, correlated: Tensor, flow: Tensor) -> Tensor:
        """Motion features of one direction, from its correlation and its flow."""
        seen = [self.corr_convs(correlated), self.flow_convs(flow)]
        return self.motion_convs(torch.cat(seen, dim=1))

    def correct(self, shared: Tensor, warped: Tensor, motion: Tensor, flow: Tensor) -> Tensor:
        """Correction [B, 2, H, W] of one direction's flow."""
        weight, _ = weight_and_bias(self.gru[0], warped)
        seen = torch.cat([warped, motion, flow], dim=1)
        h = F.conv2d(seen, weight[:, warped.shape[1] :], padding=1).add_(shared)
        return self.flow_head(self.gru[1:](h))


class RefineNet(nn.Module):
    """Flow at full resolution from IFNet's and the features of four resolutions."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.rf_block1 = RefineBlock(ops, 64)
        self.rf_block2 = RefineBlock(ops, 64)
        self.rf_block3 = RefineBlock(ops, 128)
        self.rf_block4 = RefineBlock(ops, 128)

    def forward(
        self, flow: Tensor, features0: Sequence[Tensor], features1: Sequence[Tensor]
    ) -> Tensor:
        """Flow [B, 4, H/2, W/2], features of each frame at 1, 1/2, 1/4, 1/8 -> [B, 4, H, W]."""
        flow = rescale_flow(flow, 1 / 4)
        blocks = (self.rf_block1, self.rf_block2, self.rf_block3, self.rf_block4)
        for level in (3, 2, 1, 0):
            flow = blocks[level]((features0[level], features1[level]), flow)
            flow = rescale_flow(flow, 2) if level else flow
        return flow
