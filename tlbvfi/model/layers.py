"""Blocks that encoder and decoder share: residual blocks, attention, resampling.

Maps are [B, C, H, W] in the channels_last memory format: the convolutions of oneDNN and cuDNN run
fastest on it, and attention reads its tokens without a copy. Clips are [B, C, T, H, W] and
contiguous.
Tensors are overwritten when they are no longer needed; what a caller keeps is never touched.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import is_complete
from .bands import (
    SPLITS,
    Bands,
    Kernel,
    Rows,
    convolve,
    convolved,
    kernel_of,
    normed,
    settle,
    with_one_bias,
)
from .norm import Moments
from .split import attention as split_attention
from .split import fits_attention
from .split import is_available as can_split

WINDOW = 8
"""Side of an attention window, and of the grid of far-apart tokens, in cells."""

ATTENTION_WEIGHTS = 1 << 26
"""Weights held at once, in 256 MB, where PyTorch has no attention that never holds them."""

GROUPS = 4
NORM_EPS = 1e-6


class Operations(Protocol):
    """The layers of a network: `torch.nn`, or a namespace that casts or offloads weights."""

    @property
    def Conv1d(self) -> Callable[..., Any]: ...  # noqa: N802 - the names of torch.nn
    @property
    def Conv2d(self) -> Callable[..., Any]: ...  # noqa: N802
    @property
    def Conv3d(self) -> Callable[..., Any]: ...  # noqa: N802
    @property
    def ConvTranspose2d(self) -> Callable[..., Any]: ...  # noqa: N802
    @property
    def Embedding(self) -> Callable[..., Any]: ...  # noqa: N802
    @property
    def GroupNorm(self) -> Callable[..., Any]: ...  # noqa: N802
    @property
    def LayerNorm(self) -> Callable[..., Any]: ...  # noqa: N802
    @property
    def Linear(self) -> Callable[..., Any]: ...  # noqa: N802


def swish(x: Tensor) -> Tensor:
    """x * sigmoid(x), in place: always applied to the fresh result of a norm."""
    return F.silu(x, inplace=True)


def new_group_norm(ops: Operations, channels: int) -> nn.Module:
    """The layer of every group norm outside the UNet and the output head."""
    return ops.GroupNorm(GROUPS, channels, eps=NORM_EPS)


def per_frame(norm: nn.Module, clip: Tensor) -> Tensor:
    """`norm` with separate statistics for each frame of a clip [B, C, T, H, W]."""
    B, C, T, H, W = clip.shape
    frames = clip.transpose(1, 2).reshape(B * T, C, H, W).contiguous()
    return norm(frames).reshape(B, T, C, H, W).transpose(1, 2).contiguous()


class PReLU(nn.Module):
    """max(x, 0) + weight * min(x, 0), one slope per channel. (Not among ComfyUI's operations.)"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.prelu(x, self.weight.to(x))


class FixedBatchNorm(nn.Module):
    """Batch norm with the statistics seen in training: one factor and one offset per channel."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels))
        self.bias = nn.Parameter(torch.empty(channels))
        self.register_buffer("running_mean", torch.empty(channels))
        self.register_buffer("running_var", torch.empty(channels))

    def factor_and_offset(self) -> tuple[Tensor, Tensor]:
        """(factor, offset), [C] each: the norm is x * factor + offset."""
        factor = self.weight / (self.running_var + 1e-5).sqrt()
        return factor, self.bias - self.running_mean * factor


def weight_and_bias(layer: Any, like: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """The parameters of a layer of any namespace, on the device and in the dtype of `like`."""
    return layer.weight.to(like), layer.bias.to(like)


def folded(conv: Any, norm: Any) -> Kernel:  # noqa: ANN401
    """The kernel of a convolution followed by a `FixedBatchNorm`."""
    factor, offset = norm.factor_and_offset()
    factor, offset = factor.to(conv.weight), offset.to(conv.weight)
    weight = conv.weight * factor[:, None, None, None]
    return Kernel(weight, conv.bias * factor + offset, groups=conv.groups)


class ResBlock2d(nn.Module):
    """Residual block of one frame."""

    def __init__(self, ops: Operations, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = new_group_norm(ops, channels)
        self.conv1 = ops.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = new_group_norm(ops, out_channels)
        self.conv2 = ops.Conv2d(out_channels, out_channels, 3, padding=1)
        # If the width stays the same, the reference stores a shortcut convolution it never runs.
        self.nin_shortcut = (
            ops.Conv2d(channels, out_channels, 1) if channels != out_channels else None
        )

    def forward(self, x: Rows, moments: Moments, bands: Bands) -> Rows:
        """`moments`: those of `x`. At least the second half is computed on demand."""
        first, second = kernel_of(self.conv1), kernel_of(self.conv2)
        h = convolved(first.without_bias(), normed(self.norm1, x, moments, "silu"))
        h, gathered = settle(h, bands)
        h = normed(self.norm2, h, gathered, "silu", first.bias)
        if self.nin_shortcut is not None:
            second, shortcut = with_one_bias(second, kernel_of(self.nin_shortcut))
            x = convolved(shortcut, x)
        return convolved(second, h, plus=x)


class ResBlock3d(nn.Module):
    """Residual block of a clip; `fuse` reduces three frames to one."""

    def __init__(self, ops: Operations, channels: int, *, fuse: bool = False) -> None:
        super().__init__()
        self.norm1 = new_group_norm(ops, channels)
        self.conv1 = ops.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = new_group_norm(ops, channels)
        self.conv2 = ops.Conv3d(channels, channels, 3, padding=(0, 1, 1) if fuse else 1)
        self.nin_shortcut = ops.Conv3d(channels, channels, (3, 1, 1) if fuse else 1)

    def forward(self, x: Tensor) -> Tensor:
        h = convolve_clip(self.conv1, swish(self.norm1(x)))
        h = convolve_clip(self.conv2, swish(per_frame(self.norm2, h)))
        return h.add_(convolve_clip(self.nin_shortcut, x))


def conv3d(
    clip: Tensor, weight: Tensor, bias: Tensor | None = None, padding: int | tuple[int, ...] = 0
) -> Tensor:
    """`torch.nn.functional.conv3d` of a clip [B, C, T, H, W]."""
    # PyTorch gives a single clip with C * T * H up to 20480 to a kernel that copies the clip for
    # each tap. oneDNN takes 0.1 to 0.7 of its time where kernels are wider than a pixel, else more.
    mkldnn = torch.backends.mkldnn
    is_usable = clip.device.type == "cpu" and mkldnn.is_available() and mkldnn.enabled
    if not (is_usable and clip.dtype == torch.float32 and weight.shape[-1] > 1):
        return F.conv3d(clip, weight, bias, padding=padding)
    padding = (padding,) * 3 if isinstance(padding, int) else padding
    return torch.mkldnn_convolution(clip, weight, bias, padding, (1,) * 3, (1,) * 3, 1)


def conv3d_by(conv: Any, clip: Tensor) -> Tensor:  # noqa: ANN401
    """A convolution layer of any namespace, applied to a clip [B, C, T, H, W]."""
    return conv3d(clip, *weight_and_bias(conv, clip), conv.padding)


def convolve_clip(conv: Any, clip: Tensor) -> Tensor:  # noqa: ANN401
    """`conv3d_by`, on a GPU in the form that its tensor cores can compute."""
    return convolve_by_frame(conv, clip) if clip.is_cuda else conv3d_by(conv, clip)


def convolve_by_frame(conv: Any, clip: Tensor) -> Tensor:  # noqa: ANN401
    """A convolution of a clip [B, C, T, H, W] as one of a map whose channels hold all frames.

    In this form tensor cores can compute it, see `split`. That is worth the products with zeros for
    frames of the clip that a frame of the result does not see.
    """
    B, _, frames, H, W = clip.shape
    before, zeros, _ = conv.padding
    taps = conv.weight.unbind(2)
    results = range(frames + 2 * before + 1 - len(taps))
    nothing = torch.zeros_like(taps[0])
    seen = [
        [
            taps[n] if 0 <= (n := frame - result + before) < len(taps) else nothing
            for frame in range(frames)
        ]
        for result in results
    ]
    weight = torch.cat([torch.cat(row, dim=1) for row in seen])
    kernel = replace(kernel_of(conv), weight=weight, bias=conv.bias.repeat(len(results)))
    together = clip.permute(0, 3, 4, 2, 1).reshape(B, H, W, -1).permute(0, 3, 1, 2)
    found = convolve(kernel, together, (H, W), padding=(zeros, zeros))
    return found.view(B, len(results), -1, H, W).transpose(1, 2).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor, *, splits: bool = False) -> Tensor:
    """Attention of one head, [B, L, C] each.

    `splits`: whether a GPU may compute products of float32 from split factors, see `split`.
    """
    if splits and can_split(q.device) and fits_attention(q):
        return split_attention(q, k, v)
    # Contiguous on a CPU, because only then does PyTorch choose kernels that never hold all L x L
    # weights; GPU kernels need the channels of a token next to each other.
    q, k, v = (x if x.is_cuda and x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    q, k, v = (x[:, None] for x in (q, k, v))
    if is_complete(q.device) and torch.version.hip is None:
        return F.scaled_dot_product_attention(q, k, v)[:, 0]
    # GPUs of others than NVIDIA may hold the weights of all queries: nearly 4 GB at 2160 lines.
    some = q.split(max(1, ATTENTION_WEIGHTS // (len(q) * k.shape[2])), dim=2)
    return torch.cat([F.scaled_dot_product_attention(part, k, v) for part in some], dim=2)[:, 0]


class ClipAttention(nn.Module):
    """Attention of every position of every frame to every other."""

    def __init__(self, ops: Operations, channels: int) -> None:
        super().__init__()
        self.norm = new_group_norm(ops, channels)
        self.q = ops.Conv3d(channels, channels, 1)
        self.k = ops.Conv3d(channels, channels, 1)
        self.v = ops.Conv3d(channels, channels, 1)
        self.proj_out = ops.Conv3d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        q, k, v = (part(n).flatten(2).transpose(1, 2) for part in (self.q, self.k, self.v))
        attended = attend(q, k, v, splits=getattr(self.q, SPLITS, False))
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class Resample(nn.Module):
    """The convolution of a step to half or twice the size."""

    def __init__(self, ops: Operations, channels: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=stride)


def windows(x: Tensor) -> Tensor:
    """[B, H, W, C] as groups of 8x8 neighbors: [B, H / 8, W / 8, 8, 8, C], a view."""
    B, H, W, C = x.shape
    x = x.view(B, H // WINDOW, WINDOW, W // WINDOW, WINDOW, C)
    return x.permute(0, 1, 3, 2, 4, 5)


def grid(x: Tensor) -> Tensor:
    """[B, H, W, C] as groups of 8x8 tokens spread over the map: [B, H / 8, W / 8, 8, 8, C]."""
    B, H, W, C = x.shape
    x = x.view(B, WINDOW, H // WINDOW, WINDOW, W // WINDOW, C)
    return x.permute(0, 2, 4, 1, 3, 5)


def position_bias(table: Tensor) -> Tensor:
    """[64, 64] bias of query i, key j from the table [225, 1] of relative positions.

    Row (yi - yj + 7) * 15 + (xi - xj + 7): a plain stride if the keys are counted backward.
    """
    side = 2 * WINDOW - 1
    strides = (side, 1, side, 1)
    by_reversed_key = table.flatten().as_strided((WINDOW,) * 4, strides)
    return by_reversed_key.flip(2, 3).reshape(WINDOW**2, WINDOW**2)


class GroupAttention(nn.Module):
    """Attention within groups of 64 tokens, one head, relative position bias."""

    def __init__(self, ops: Operations, channels: int) -> None:
        super().__init__()
        self.to_q = ops.Linear(channels, channels, bias=False)
        self.to_k = ops.Linear(channels, channels, bias=False)
        self.to_v = ops.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([ops.Linear(channels, channels, bias=False)])
        self.rel_pos_bias = ops.Embedding((2 * WINDOW - 1) ** 2, 1)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[N, 64, C] both, and the result for the queries."""
        bias = position_bias(self.rel_pos_bias.weight).to(queries)
        q, k, v = self.to_q(queries), self.to_k(keys), self.to_v(keys)
        attended = F.scaled_dot_product_attention(
            q[:, None], k[:, None], v[:, None], attn_mask=bias
        )
        return self.to_out[0](attended[:, 0])


class FeedForward(nn.Module):
    """Two linear layers with GELU between them, token by token."""

    def __init__(self, ops: Operations, channels: int) -> None:
        super().__init__()
        self.net = nn.ModuleDict(
            {"0": ops.Linear(channels, 4 * channels), "3": ops.Linear(4 * channels, channels)}
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net["3"](F.gelu(self.net["0"](x)))


class Normed(nn.Module):
    """A layer norm and the function that follows it; the caller combines them."""

    def __init__(self, ops: Operations, channels: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm = ops.LayerNorm(channels)
        self.fn = fn


class MaxViTBlock(nn.Module):
    """Window attention, then grid attention, each followed by a feed-forward layer.

    With a context, queries come from x and keys and values from the context, normed by the
    same layer norm.
    """

    def __init__(self, ops: Operations, channels: int) -> None:
        super().__init__()
        self.attn_block = Normed(ops, channels, GroupAttention(ops, channels))
        self.ff_block = Normed(ops, channels, FeedForward(ops, channels))
        self.attn_grid = Normed(ops, channels, GroupAttention(ops, channels))
        self.ff_grid = Normed(ops, channels, FeedForward(ops, channels))

    def forward(self, x: Tensor, context: Tensor | None, bands: Bands) -> None:
        """x <- x attending to the context, or to itself, in place.

        [B, H, W, C], contiguous; H and W are multiples of 8.
        """
        for attention, feed, cut in (
            (self.attn_block, self.ff_block, windows),
            (self.attn_grid, self.ff_grid, grid),
        ):
            groups = cut(x)
            others = groups if context is None else cut(context)
            transform_groups(attention, feed, groups, others, bands)


def transform_groups(
    attention: Normed, feed: Normed, x: Tensor, context: Tensor, bands: Bands
) -> None:
    """Attention within groups of 64 tokens, then the feed-forward layer, in place.

    `x`, `context`: views [B, H / 8, W / 8, 8, 8, C] of maps, the same object for self-attention.
    """
    B, lines, W, _, _, C = x.shape
    expanded = 4 * C * WINDOW**2 * W * B  # values per line of groups in the feed-forward layer
    for start, stop in bands.cut(lines, expanded):
        group = x[:, start:stop]
        tokens = group.reshape(-1, WINDOW**2, C)
        queries = attention.norm(tokens)
        keys = queries
        if context is not x:
            keys = attention.norm(context[:, start:stop].reshape(-1, WINDOW**2, C))
        tokens = tokens + attention.fn(queries, keys)
        tokens += feed.fn(feed.norm(tokens))
        group.copy_(tokens.view(group.shape))
