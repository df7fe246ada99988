"""The FILM network: features per frame, flows per pair, a frame per moment.

Level 0 of a pyramid is the finest; a level is half the size of the one before, rounded down. A flow
[B, 2, h, w] has channels x, y in pixels of its own level and is added to the position that is being
filled. Grids and sampling are float32 whatever the working dtype.
Module names are those of the weights file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FrameError, SettingsError
from .layers import (
    CHANNELS_LAST,
    Conv,
    EvenConv,
    down,
    empty_like,
    sample,
    sampling_grid,
    upscale_flow,
    upscale_nearest,
)

MINIMUM_SIDE = 64
"""Pixels; below this, the coarsest level would be empty, so `features` pads and `frame` crops."""

PARAMETERS = 34_436_667
LEVELS = 7
FUSED_LEVELS = 5
FILTERS = (64, 128, 256, 512)
"""Channels of the four feature blocks, and of the decoder's levels."""

FLOW_FILTERS = (32, 64, 128, 256)
"""Channels of the flow predictors of levels 0, 1, 2 and of the one shared by levels 3 to 6."""

MAP_CHANNELS = tuple(sum(FILTERS[: level + 1]) for level in range(LEVELS))
"""Channels of the feature map of each level: 64, 192, 448, then 960."""

FUSED_CHANNELS = tuple(2 * (3 + channels + 2) for channels in MAP_CHANNELS[:FUSED_LEVELS])
"""Channels of the fusion input: image, features and flow, twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmFeatures:
    """Features of one frame, independent of the other frame and of t.

    `images` and `maps`: seven levels each, [B, 3, h, w] and [B, MAP_CHANNELS, h, w].
    `height`, `width`: size of the frame itself, before sides below 64 were padded.
    """

    images: tuple[Tensor, ...]
    maps: tuple[Tensor, ...]
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmFlows:
    """Motion of a pair, independent of t: five levels of [B, 2, h, w] each way.

    `forward` is on frame 0's pixels and points into frame 1, `backward` the other way round.
    """

    forward: tuple[Tensor, ...]
    backward: tuple[Tensor, ...]


class SubTree(nn.Module):
    """Four blocks of two convolutions; the same weights serve every starting level."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Sequential(
                Conv(inputs, outputs, 3),
                Conv(outputs, outputs, 3),
            )
            for inputs, outputs in zip((3, *FILTERS), FILTERS, strict=False)
        )

    def forward(self, image: Tensor, depth: int) -> Iterator[Tensor]:
        """S[s][0], S[s][1], ... of up to `depth` blocks, each half the size of the one before."""
        x = image
        for index, block in enumerate(self.convs[:depth]):
            x = block(x if index == 0 else down(x))
            yield x


class FeatureExtractor(nn.Module):
    """Feature pyramid of an image pyramid: one set of weights for all levels and both frames."""

    def __init__(self) -> None:
        super().__init__()
        self.extract_sublevels = SubTree()

    def forward(self, images: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """F[l] = cat(S[l][0], S[l-1][1], S[l-2][2], S[l-3][3]), without those that do not exist."""
        terms: list[list[Tensor]] = [[] for _ in images]
        maps = []
        for start, image in enumerate(images):
            for index, x in enumerate(self.extract_sublevels(image, LEVELS - start)):
                terms[start + index].insert(0, x)
            # Level 0 has one term: a copy would double the largest tensor.
            maps.append(terms[start][0] if start == 0 else torch.cat(terms[start], dim=1))
            terms[start].clear()
        return tuple(maps)


class FlowPredictor(nn.Module):
    """Residual flow [B, 2, h, w] from the feature maps of one level, [B, 2C, h, w]."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self._convs = nn.Sequential(
            Conv(2 * channels, filters, 3),
            Conv(filters, filters, 3),
            Conv(filters, filters, 3),
            Conv(filters, filters // 2, 1),
            Conv(filters // 2, 2, 1, linear=True),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return self._convs(maps)


class FlowEstimator(nn.Module):
    """Flow from coarse to fine: levels 0, 1, 2 have their own predictor, 3 to 6 share one."""

    def __init__(self) -> None:
        super().__init__()
        *own, self._predictor = (
            FlowPredictor(channels, filters)
            for channels, filters in zip(MAP_CHANNELS, FLOW_FILTERS, strict=False)
        )
        self._predictors = nn.ModuleList(reversed(own))  # stored coarse to fine

    def forward(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Flow on a's pixels into b at all seven levels, from both feature pyramids."""
        flow = self._predictor(torch.cat([a[-1], b[-1]], dim=1))
        flows = [flow]
        for level in reversed(range(LEVELS - 1)):
            coarse = upscale_flow(flow, _size(a[level]))
            flow = coarse + self._at(level)(_side_by_side(a[level], b[level], coarse))
            flows.append(flow)
        return tuple(reversed(flows))

    def _at(self, level: int) -> nn.Module:
        own = len(self._predictors)
        return self._predictors[own - 1 - level] if level < own else self._predictor


def _side_by_side(a: Tensor, b: Tensor, flow: Tensor) -> Tensor:
    """`a`, and `b` warped by `flow`, [B, 2C, h, w]."""
    channels = a.shape[1]
    maps = empty_like(a, 2 * channels)
    maps[:, :channels] = a
    sample(b, sampling_grid(flow), out=maps[:, channels:])
    return maps


class Fusion(nn.Module):
    """Decoder from the coarsest fused level up to the frame."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (*FILTERS[1:], FUSED_CHANNELS[-1])
        self.convs = nn.ModuleList(
            _fusion_level(level, inputs[level]) for level in reversed(range(FUSED_LEVELS - 1))
        )
        self.output_conv = nn.Conv2d(FILTERS[0], 3, 1)

    def forward(self, pair: AlignedPair) -> Tensor:
        """Frame [B, 3, H, W] from the pair's frames and features at time t."""
        coarsest = FUSED_LEVELS - 1
        net = pair.fill(pair.stack(coarsest), coarsest)
        for level, layers in zip(reversed(range(coarsest)), self.convs, strict=True):
            widen, mix, refine = layers.children()
            net = widen(upscale_nearest(net, pair.size(level)))
            # Each tensor is freed before the next is allocated: this is where memory peaks.
            stack = pair.stack(level, extra=net.shape[1])
            stack[:, -net.shape[1] :] = net
            del net
            net = mix(pair.fill(stack, level))
            del stack
            net = refine(net)
        return self.output_conv(net)


def _fusion_level(level: int, inputs: int) -> nn.ModuleList:
    """A convolution on the finer grid, then two more, the first of them with the skip."""
    outputs = FILTERS[level]
    return nn.ModuleList(
        [
            EvenConv(inputs, outputs),
            Conv(FUSED_CHANNELS[level] + outputs, outputs, 3),
            Conv(outputs, outputs, 3),
        ]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedPair:
    """Both frames with their features, moved to time t, level by level on demand."""

    features0: FilmFeatures
    features1: FilmFeatures
    flows: FilmFlows
    t: Tensor
    """Scalar in the working dtype, so that 1 - t is rounded to it as well."""

    def size(self, level: int) -> tuple[int, int]:
        """Height and width of a level."""
        return _size(self.features0.images[level])

    def stack(self, level: int, *, extra: int = 0) -> Tensor:
        """Buffer for the fusion input of a level, [B, C + extra, h, w], uninitialized."""
        return empty_like(self.features0.images[level], FUSED_CHANNELS[level] + extra)

    def fill(self, stack: Tensor, level: int) -> Tensor:
        """`stack`, with its first channels overwritten by [image0 map0 image1 map1 b f] at t.

        Frame 0 is read with the backward flow, frame 1 with the forward flow, each scaled to t.
        """
        backward = self.t * self.flows.backward[level]
        forward = (1 - self.t) * self.flows.forward[level]
        half = 3 + MAP_CHANNELS[level]
        _sample_features(self.features0, level, backward, out=stack[:, :half])
        _sample_features(self.features1, level, forward, out=stack[:, half : 2 * half])
        stack[:, 2 * half : 2 * half + 2] = backward
        stack[:, 2 * half + 2 : 2 * half + 4] = forward
        return stack


def _sample_features(features: FilmFeatures, level: int, flow: Tensor, *, out: Tensor) -> None:
    grid = sampling_grid(flow)
    sample(features.images[level], grid, out=out[:, :3])
    sample(features.maps[level], grid, out=out[:, 3:])


class FilmNet(nn.Module):
    """FILM; create it with `load_film`.

    Features of a frame serve both its pairs, flows of a pair serve every t:

        features0, features1 = film.features(frame0), film.features(frame1)
        flows = film.flows(features0, features1)
        frame = film.frame(features0, features1, flows, Fraction(1, 2))

    Calling the module does the same for a single pair. Nothing is random and pairs of a batch are
    independent, so the features may be kept, on any device, for as long as they are useful.
    """

    def __init__(self, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.dtype = dtype
        self.extract = FeatureExtractor()
        self.predict_flow = FlowEstimator()
        self.fuse = Fusion()

    @torch.no_grad()
    def forward(
        self, frame0: Tensor, frame1: Tensor, times: Sequence[Fraction | float]
    ) -> list[Tensor]:
        """Frames at `times` in [0, 1], [B, 3, H, W] each in the working dtype, not clamped.

        `frame0`, `frame1`: [B, 3, H, W] in [0, 1], RGB as stored (gamma-encoded), any size.
        t = 0 and t = 1 are legal but do not return the frames themselves.

        Raises:
            FrameError: the frames do not have that shape, or their shapes differ.
            SettingsError: a time is outside [0, 1].
        """
        features0, features1 = self.features(frame0), self.features(frame1)
        flows = self.flows(features0, features1)
        return [self.frame(features0, features1, flows, t) for t in times]

    @torch.no_grad()
    def features(self, frame: Tensor) -> FilmFeatures:
        """Image and feature pyramid of a frame [B, 3, H, W] in [0, 1].

        Sides below 64 pixels are padded at the right and the bottom by replication; larger
        frames are taken as they are, whatever their size.

        Raises:
            FrameError: not a floating-point tensor of that shape.
        """
        if frame.ndim != 4 or frame.shape[1] != 3 or not frame.is_floating_point():
            raise FrameError(
                f"FILM takes float frames of shape [B, 3, H, W], got {list(frame.shape)} of "
                f"{frame.dtype}: convert to RGB floats in [0, 1]."
            )
        height, width = _size(frame)
        frame = frame.to(dtype=self.dtype, memory_format=CHANNELS_LAST)
        images = _image_pyramid(_padded(frame))
        return FilmFeatures(images=images, maps=self.extract(images), height=height, width=width)

    @torch.no_grad()
    def flows(self, features0: FilmFeatures, features1: FilmFeatures) -> FilmFlows:
        """Motion between two frames, shared by every t of the pair.

        Raises:
            FrameError: the frames differ in size or number.
        """
        shapes = [(*f.images[0].shape[:2], f.height, f.width) for f in (features0, features1)]
        if shapes[0] != shapes[1]:
            raise FrameError(
                f"Both frames of a pair must have the same size, got {list(shapes[0])} and "
                f"{list(shapes[1])}: scale one of them first."
            )
        forward = self.predict_flow(features0.maps, features1.maps)[:FUSED_LEVELS]
        backward = self.predict_flow(features1.maps, features0.maps)[:FUSED_LEVELS]
        return FilmFlows(forward=forward, backward=backward)

    @torch.no_grad()
    def frame(
        self,
        features0: FilmFeatures,
        features1: FilmFeatures,
        flows: FilmFlows,
        t: Fraction | float,
    ) -> Tensor:
        """Frame [B, 3, H, W] at `t` in [0, 1], not clamped.

        Raises:
            SettingsError: `t` is outside [0, 1].
        """
        if not 0 <= t <= 1:
            raise SettingsError(f"A time must be between 0 (first frame) and 1 (second), got {t}.")
        time = torch.tensor(float(t), dtype=self.dtype, device="cpu")
        pair = AlignedPair(features0=features0, features1=features1, flows=flows, t=time)
        return self.fuse(pair)[..., : features0.height, : features0.width]


def _image_pyramid(frame: Tensor) -> tuple[Tensor, ...]:
    images = [frame]
    while len(images) < LEVELS:
        images.append(down(images[-1]))
    return tuple(images)


def _size(x: Tensor) -> tuple[int, int]:
    return x.shape[-2], x.shape[-1]


def _padded(frame: Tensor) -> Tensor:
    bottom, right = (max(0, MINIMUM_SIDE - side) for side in _size(frame))
    return F.pad(frame, (0, right, 0, bottom), mode="replicate") if bottom or right else frame
