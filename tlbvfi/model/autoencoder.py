"""Frames to latent and back: encoder, wavelet gate, quantizer, decoder.

Frames are RGB in [0, 1] throughout. Per-frame and per-clip computations are kept apart, because the
features of a frame serve both pairs it belongs to.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

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
    gather,
    joined,
    keep,
    keep_and_gather,
    kernel_of,
    mapped,
    normed,
    settle,
    settle_if_all_fits,
    stored,
    strided,
    upsampled,
    whole,
    with_bias_as_channel,
    with_halo,
    with_one_bias,
)
from .flow import IFNet, RefineNet, as_type, resize, warped
from .layers import (
    ClipAttention,
    FixedBatchNorm,
    MaxViTBlock,
    Operations,
    Resample,
    ResBlock2d,
    ResBlock3d,
    conv3d_by,
    folded,
    new_group_norm,
    per_frame,
    swish,
)
from .memory import MemoryPlan
from .nearest import nearest
from .norm import Moments
from .unet import LATENT
from .warp import sample_at, sampling_grid

LEVEL_WIDTHS = ((64, 64), (64, 128), (128, 128), (128, 128), (128, 256))
"""(input, output) channels of the encoder's levels; level i works at 1 / 2**i."""

DEEP = 256
"""Channels at 1/32."""

LUMA = (0.2989, 0.5870, 0.1140)

CODES = 8192


def luma(frames: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, 1, H, W], of values clamped to [0, 1]."""
    channels = (frames[:, i : i + 1].clamp(0, 1) for i in range(len(LUMA)))
    red, green, blue = (weight * channel for weight, channel in zip(LUMA, channels, strict=True))
    return red + green + blue


def merged(low: Tensor, high: Tensor, dim: int) -> Tensor:
    """Taps over a signal that equal taps over its Haar sums and differences along `dim`.

    Of neighbors, undecimated, each times 0.5 / sqrt(2).
    """
    a = 0.5 / 2**0.5
    shape = list(low.shape)
    shape[dim] += 1
    taps = low.new_zeros(shape)
    taps.narrow(dim, 0, low.shape[dim]).add_(low - high, alpha=a)
    taps.narrow(dim, 1, low.shape[dim]).add_(low + high, alpha=a)
    return taps


def before_level(bands: Tensor) -> Tensor:
    """Taps over a clip that equal taps over the bands LLL, LLH, ... HHH of one Haar level of it.

    The letters are for (frame, height, width). [C, 8, T, k, l] -> [C, T + 1, k + 1, l + 1].
    """
    taps = bands.unflatten(1, (2, 2, 2))
    for letter, dim in ((3, -1), (2, -2), (1, -3)):
        low, high = taps.unbind(letter)
        taps = merged(low, high, dim)
    return taps


def before_wavelets(weight: Tensor) -> Tensor:
    """Taps over a luma clip [C, 3, k + 2, l + 2] from taps over its wavelet details [C, 21, k, l].

    Those are of two levels, the second of the first one's LLL: bands of two frames, then of one.
    """
    fine, coarse = weight.split((14, 7), dim=1)
    low = before_level(F.pad(coarse[:, :, None], (0, 0, 0, 0, 0, 0, 1, 0)))
    fine = F.pad(fine.unflatten(1, (7, 2)), (0, 1, 0, 1))
    taps = before_level(torch.cat([low[:, None], fine], dim=1))
    return taps.contiguous(memory_format=torch.channels_last)


def of_wavelets(kernel: Kernel, clip: Tensor) -> Rows:
    """`kernel` 3x3 at every second row and column of the wavelet details of a luma clip.

    `clip`: [B, 3, H, W]; the details, of which there are seven times as many, are never computed.
    Above the clip and left of it, where zeros take the place of details, the taps composed for the
    clip see some: those are taken off again.
    """
    taps = kernel.weight.to(clip)
    outside = (
        F.pad(taps[:, :, :1], (0, 0, 0, 2)),
        F.pad(taps[..., :1], (0, 2)),
        F.pad(taps[:, :, :1, :1], (0, 2, 0, 2)),
    )
    inside, above, left, corner = before_wavelets(torch.cat([taps, *outside])).chunk(4)
    everywhere = strided(replace(kernel, weight=inside), stored(clip), 2, before=1)

    def compute(start: int, stop: int) -> Tensor:
        out = everywhere.compute(start, stop)
        beside = with_halo(stored(clip[..., :4]), 2 * start - 1, 2 * stop + 2)
        out[..., :1] -= F.conv2d(F.pad(beside, (1, 0)), left, stride=2)
        if start == 0:
            out[:, :, :1] -= F.conv2d(F.pad(clip[:, :, :4], (1, 2, 1, 0)), above, stride=2)
            out[:, :, :1, :1] += F.conv2d(F.pad(clip[:, :, :4, :4], (1, 0, 1, 0)), corner)
        return out

    return derived(everywhere.shape, compute, everywhere)


class FrequencyBlock(nn.Module):
    """Residual block of 5x5 convolutions that reduces the size to a quarter."""

    def __init__(self, ops: Operations, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = new_group_norm(ops, channels)
        self.conv1 = ops.Conv2d(channels, out_channels, 5, stride=2, padding=2)
        self.norm2 = new_group_norm(ops, out_channels)
        self.conv2 = ops.Conv2d(out_channels, out_channels, 5, stride=2, padding=2)
        self.shortcut = ops.Conv2d(channels, out_channels, 5, stride=4, padding=1)

    def forward(self, x: Rows, moments: Moments, bands: Bands) -> tuple[Rows, Moments]:
        """From a stored map and its moments to the next map and its moments."""
        first = kernel_of(self.conv1)
        second, shortcut = with_one_bias(kernel_of(self.conv2), kernel_of(self.shortcut))
        h = normed(self.norm1, x, moments, "relu")
        h, gathered = keep_and_gather(strided(first.without_bias(), h, 2, before=2), bands)
        h = normed(self.norm2, h, gathered, "relu", first.bias)
        h = strided(second, h, 2, before=2)
        return keep_and_gather(added(h, strided(shortcut, x, 4, before=1)), bands)


class FrequencyExtractor(nn.Module):
    """From wavelet details of a clip to features [B, 256, H/32, W/32]."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.conv_in = ops.Conv2d(21, 64, 3, stride=2, padding=1)
        self.Blocks = nn.ModuleList([FrequencyBlock(ops, 64, 64), FrequencyBlock(ops, 64, DEEP)])

    def forward(self, clip: Tensor, bands: Bands) -> Tensor:
        """`clip`: luma of three frames, [B, 3, H, W]."""
        h, moments = keep_and_gather(of_wavelets(kernel_of(self.conv_in), clip), bands)
        for block in self.Blocks:
            h, moments = block(h, moments, bands)
        return whole(h)


class EncoderLevel(nn.Module):
    """One resolution of the encoder: residual block, attention (last level), downsampling."""

    def __init__(self, ops: Operations, channels: int, out_channels: int, *, attn: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResBlock2d(ops, channels, out_channels)])
        self.attn = nn.ModuleList([MaxViTBlock(ops, out_channels)] if attn else [])
        self.downsample = Resample(ops, out_channels, stride=2)

    def forward(self, x: Rows, moments: Moments, bands: Bands) -> tuple[Rows, Moments]:
        """From map and moments at one resolution to those at half of it."""
        h = self.block[0](x, moments, bands)
        for attention in self.attn:
            h = in_place(attention, keep(h, bands), None, bands)
        down = strided(kernel_of(self.downsample.conv), h, 2, before=0)
        return keep_and_gather(down, bands)


def in_place(attention: nn.Module, x: Tensor, context: Tensor | None, bands: Bands) -> Rows:
    """`x` [B, C, H, W] after an attention block, which overwrites it."""
    tokens = x.permute(0, 2, 3, 1).contiguous()
    attention(tokens, None if context is None else context.permute(0, 2, 3, 1), bands)
    return stored(tokens.permute(0, 3, 1, 2))


class ClipMiddle(nn.Module):
    """Residual block, attention, residual block over the three frames."""

    def __init__(self, ops: Operations, *, fuse: bool) -> None:
        super().__init__()
        self.block_1 = ResBlock3d(ops, DEEP)
        self.attn_1 = ClipAttention(ops, DEEP)
        self.block_2 = ResBlock3d(ops, DEEP, fuse=fuse)

    def forward(self, clip: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(clip)))


class Encoder(nn.Module):
    """From frames to features, and from three frames' deepest features to the latent clip."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.conv_in = ops.Conv2d(3, LEVEL_WIDTHS[0][0], 3, padding=1)
        self.down = nn.ModuleList(
            EncoderLevel(ops, channels, out, attn=level == 4)
            for level, (channels, out) in enumerate(LEVEL_WIDTHS)
        )
        self.frequency_extractor = FrequencyExtractor(ops)
        self.mid = ClipMiddle(ops, fuse=False)
        self.norm_out = new_group_norm(ops, DEEP)
        self.conv_out = ops.Conv3d(DEEP, LATENT, 3, padding=1)

    def first(self, frame: Tensor) -> Rows:
        """The first features [B, 64, H, W] of a frame [B, 3, H, W], in its type: large, and cheap."""
        kernel = kernel_of(self.conv_in)
        if frame.is_cuda:
            kernel, frame = with_bias_as_channel(kernel, frame)
        return convolved(kernel, stored(frame))

    def levels(self, first: Rows, count: int, bands: Bands) -> list[Tensor]:
        """Outputs of the first `count` levels; that of level i is at 1 / 2**(i + 1)."""
        h, gathered = settle_if_all_fits(first, bands, self.conv_in.weight.device)
        made = []
        for level in self.down[:count]:
            h, gathered = level(h, gathered, bands)
            made.append(whole(h))
        return made

    def forward(self, deepest: Sequence[Tensor], lumas: Sequence[Tensor], bands: Bands) -> Tensor:
        """Latent clip [B, 3, T=3, h, w] of three frames, before `quant_conv`.

        `deepest`: the last level of each, [B, 256, h, w]; `lumas`: [B, 1, H, W] each.
        """
        frequencies = self.frequency_extractor(torch.cat(list(lumas), dim=1), bands)
        gate = 1 + torch.sigmoid(frequencies)
        clip = torch.stack([phi * gate for phi in deepest], dim=2).contiguous()
        clip = self.mid(clip)
        return conv3d_by(self.conv_out, swish(per_frame(self.norm_out, clip)))


class Quantizer(nn.Module):
    """Replaces every latent vector by the nearest code of the codebook."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.embedding = ops.Embedding(CODES, LATENT)

    def codes(self, clip: Tensor) -> Tensor:
        """Index of the nearest code at every position of [B, 3, T, h, w]: [B, T, h, w]."""
        codebook = self.embedding.weight.to(clip)
        positions = clip.movedim(1, -1)
        return nearest(positions.reshape(-1, LATENT), codebook).view(positions.shape[:-1])

    def forward(self, clip: Tensor) -> Tensor:
        """[B, 3, T, h, w] -> the same, every vector one of the codes."""
        return self.embedding.weight.to(clip)[self.codes(clip)].movedim(-1, 1)


class SqueezeExcite(nn.Module):
    """One factor per channel, from the channel means of the whole map."""

    def __init__(self, ops: Operations, channels: int) -> None:
        super().__init__()
        self.gate = nn.ModuleDict(
            {
                "1": ops.Linear(channels, channels // 4, bias=False),
                "3": ops.Linear(channels // 4, channels, bias=False),
            }
        )

    def forward(self, means: Tensor) -> Tensor:
        """[B, C] -> [B, C] in (0, 1)."""
        means = means.to(self.gate.get_parameter("1.weight").dtype)
        return torch.sigmoid(self.gate["3"](F.silu(self.gate["1"](means))))


class ContextProjection(nn.Module):
    """From a level's context to keys: 1x1, depthwise 3x3, squeeze-excite, 1x1."""

    def __init__(self, ops: Operations, channels: int, out_channels: int) -> None:
        super().__init__()
        hidden = 4 * out_channels
        layers = {
            "0": ops.Conv2d(channels, hidden, 1),
            "1": FixedBatchNorm(hidden),
            "3": ops.Conv2d(hidden, hidden, 3, padding=1, groups=hidden),
            "4": FixedBatchNorm(hidden),
            "6": SqueezeExcite(ops, hidden),
            "7": ops.Conv2d(hidden, out_channels, 1),
            "8": FixedBatchNorm(out_channels),
        }
        for name, layer in layers.items():
            self.add_module(name, layer)

    def kernel(self, conv: str, norm: str) -> Kernel:
        """A convolution and the norm after it."""
        return folded(self.get_submodule(conv), self.get_submodule(norm))

    def forward(self, context: Rows, bands: Bands) -> Tensor:
        """Features of both frames, channels concatenated, [B, C_in, H, W] -> [B, C, H, W]."""
        h = convolved(self.kernel("0", "1"), context, F.gelu)
        h = convolved(self.kernel("3", "4"), h, F.gelu)
        h, gathered = settle(h, bands)
        gate = self.get_submodule("6")(gathered.mean)[:, :, None, None]
        kernel = self.kernel("7", "8")
        if len(gate) == 1:  # Then the gate of the map is one of the weight, which costs no pass.
            kernel = replace(kernel, weight=kernel.weight * gate.to(kernel.weight)[0])
        else:
            h = mapped(lambda rows: rows * gate.to(rows), h)
        return keep(convolved(kernel, h), bands)


class CrossAttention(MaxViTBlock):
    """Attention from the decoder's map to the features of both frames at its size."""

    def __init__(self, ops: Operations, context_channels: int, channels: int) -> None:
        super().__init__(ops, channels)
        self.proj_in = ContextProjection(ops, context_channels, channels)


class DecoderLevel(nn.Module):
    """One resolution of the decoder: residual block, attention, upsampling."""

    def __init__(
        self, ops: Operations, channels: int, out_channels: int, context: int, *, attn: bool
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResBlock2d(ops, channels, out_channels)])
        self.attn = nn.ModuleList([MaxViTBlock(ops, out_channels)] if attn else [])
        self.cross_attn = CrossAttention(ops, context, out_channels)
        self.upsample = Resample(ops, out_channels)

    def features(self, x: Rows, moments: Moments, bands: Bands) -> Tensor:
        """Map [B, C, H, W] of this resolution, from the output of the level below."""
        h = keep(self.block[0](x, moments, bands), bands)
        for attention in self.attn:
            h = whole(in_place(attention, h, None, bands))
        return h

    def forward(self, x: Tensor, context: Rows, bands: Bands) -> Rows:
        """From `features` to the map at twice this resolution, computed on demand."""
        keys = self.cross_attn.proj_in(context, bands)
        h = in_place(self.cross_attn, x, keys, bands)
        return upsampled(kernel_of(self.upsample.conv), h)


DECODER_WIDTHS = (
    (128, 64, 256),
    (128, 128, 512),
    (128, 128, 512),
    (256, 128, 256),
    (256, 256, 512),
)
"""(input, output, context) channels of the decoder's levels; level i works at 1 / 2**(i + 1)."""

WARPED_LEVELS = (0, 1, 2)
"""Levels whose context also holds the features warped by the flow."""


class Decoder(nn.Module):
    """From quantized latent, features of both frames and flow to the mid frame."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.conv_in = ops.Conv3d(LATENT, DEEP, 3, padding=1)
        self.mid = ClipMiddle(ops, fuse=True)
        self.up = nn.ModuleList(
            DecoderLevel(ops, channels, out, context, attn=level == 4)
            for level, (channels, out, context) in enumerate(DECODER_WIDTHS)
        )
        width = DECODER_WIDTHS[0][1]
        self.norm_out = new_group_norm(ops, width)
        self.conv_out = ops.Conv2d(width, width, 3, padding=1)
        self.moduleout = nn.Sequential(
            ops.Conv2d(width, width, 3, padding=1),
            ops.GroupNorm(16, width, eps=1e-6),
            nn.ReLU(inplace=True),
            ops.Conv2d(width, width // 2, 3, padding=1),
            ops.GroupNorm(8, width // 2, eps=1e-6),
            nn.ReLU(inplace=True),
            ops.Conv2d(width // 2, 4, 3, padding=1),
        )
        self.flownet = IFNet(ops)
        self.refinenet = RefineNet(ops)

    def forward(
        self,
        clip: Tensor,
        levels0: Sequence[Tensor],
        levels1: Sequence[Tensor],
        flow: Tensor,
        plan: MemoryPlan,
    ) -> Rows:
        """Logits [B, 4, H, W] of residual (3) and mask (1).

        `clip`: [B, 3, T=3, h, w] after `post_quant_conv`; the encoder's levels of each frame;
        `flow` [B, 4, H, W].
        """
        bands = plan.decode
        deep = self.mid(conv3d_by(self.conv_in, clip.to(self.conv_in.weight.dtype)))[:, :, 0]
        h = stored(deep.contiguous(memory_format=torch.channels_last))
        gathered = gather(h, bands)
        flows = flow_pyramid(flow, len(WARPED_LEVELS))
        for level in (4, 3, 2, 1, 0):
            pair = (levels0[level], levels1[level])
            context = [stored(features) for features in pair]
            if level in WARPED_LEVELS:
                pairs = zip(pair, flows[level].split(2, dim=1), strict=True)
                context += [warped(features, f) for features, f in pairs]
            context = [as_type(source, deep.dtype) for source in context]
            stage: Any = self.up[level]  # a ModuleList does not know the type of its items
            x = stage.features(h, gathered, bands.beside(h))
            del h  # it may hold a stored map
            plan.give_back(x.device)
            h = stage(x, joined(context), bands)
            if level:
                h, gathered = settle(h, bands)
        # The largest map is also the cheapest.
        h, gathered = settle_if_all_fits(h, bands, deep.device)
        h = normed(self.norm_out, h, gathered, "silu")
        h = convolved(kernel_of(self.conv_out), h)
        for conv, norm in ((0, 1), (3, 4)):
            kernel = kernel_of(self.moduleout[conv])
            h, gathered = settle(convolved(kernel.without_bias(), h), bands)
            bands = bands.beside(h)
            h = normed(self.moduleout[norm], h, gathered, "relu", kernel.bias)
        return convolved(kernel_of(self.moduleout[6]), h)


def flow_pyramid(flow: Tensor, levels: int) -> list[Tensor]:
    """The flow at 1/2, 1/4, ... of its resolution, in pixels of each."""
    pyramid = []
    for _ in range(levels):
        flow = resize(flow, 0.5).mul_(0.5)
        pyramid.append(flow)
    return pyramid


def compose(frame0: Tensor, frame1: Tensor, flow: Tensor, logits: Rows) -> Rows:
    """The mid frame: both frames warped, mixed by the mask, plus the residual.

    `frame0`, `frame1`: [B, C, H, W], RGB and further channels, which get no residual. Every channel is
    clamped to [0, 1] or, if its pair goes beyond, to the range of the pair.
    """
    flows = flow.split(2, dim=1)
    frames = frame0, frame1
    lowest = torch.minimum(*(frame.amin((2, 3), keepdim=True) for frame in frames)).clamp_(max=0)
    highest = torch.maximum(*(frame.amax((2, 3), keepdim=True) for frame in frames)).clamp_(min=1)

    def compute(start: int, stop: int) -> Tensor:
        seen0, seen1 = (
            sample_at(frame, sampling_grid(f, start, stop))
            for frame, f in zip(frames, flows, strict=True)
        )
        residual, mask = logits.compute(start, stop).float().sigmoid().split((3, 1), dim=1)
        mixed = torch.lerp(seen1, seen0, mask)
        mixed[:, :3] += 2 * residual - 1
        return mixed.clamp_(lowest, highest)

    B, _, H, W = logits.shape
    return derived((B, frame0.shape[1], H, W), compute, logits)


class Autoencoder(nn.Module):
    """The part of the checkpoint under `vqgan`."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.encoder = Encoder(ops)
        self.decoder = Decoder(ops)
        self.quantize = Quantizer(ops)
        self.quant_conv = ops.Conv2d(LATENT, LATENT, 1)
        self.post_quant_conv = ops.Conv2d(LATENT, LATENT, 1)
