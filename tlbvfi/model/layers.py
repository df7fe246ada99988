"""Blocks that encoder and decoder share: residual blocks, attention, resampling.

Maps are [B, C, H, W], kept in the channels_last memory format: the convolutions of oneDNN and
cuDNN run fastest on it and attention sees its tokens without a copy. Clips are [B, C, T, H, W]
and plainly contiguous.
Tensors are overwritten where they are not needed any more; what a caller keeps is never touched.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .norm import group_norm

WINDOW = 8
"""Side of an attention window, and of the grid of far-apart tokens, in cells."""

GROUPS = 4
NORM_EPS = 1e-6


class Operations(Protocol):
    """The layers a network is built of: `torch.nn`, or a namespace that casts or offloads weights."""

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
    """x * sigmoid(x), in place: always applied to a fresh result of a norm."""
    return F.silu(x, inplace=True)


def new_group_norm(ops: Operations, channels: int) -> nn.Module:
    """The layer of every group norm outside the UNet and the output head."""
    return ops.GroupNorm(GROUPS, channels, eps=NORM_EPS)


def per_frame(norm: nn.Module, clip: Tensor) -> Tensor:
    """`norm` with statistics of each frame of a clip [B, C, T, H, W] alone."""
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


def folded(conv: Any, norm: Any, like: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ANN401
    """Weight and bias of a convolution followed by a `FixedBatchNorm`, to compute with `like`."""
    factor, offset = norm.factor_and_offset()
    weight = conv.weight * factor[:, None, None, None]
    return weight.to(like), (conv.bias * factor + offset).to(like)


class ResBlock2d(nn.Module):
    """Residual block of one frame."""

    def __init__(self, ops: Operations, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = new_group_norm(ops, channels)
        self.conv1 = ops.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = new_group_norm(ops, out_channels)
        self.conv2 = ops.Conv2d(out_channels, out_channels, 3, padding=1)
        # Where the width stays the reference stores a shortcut convolution that it never runs.
        self.nin_shortcut = (
            ops.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        h = swish(group_norm(self.norm1, x))
        h = self.conv1(h)
        h = swish(group_norm(self.norm2, h))
        h = self.conv2(h)
        return h.add_(self.nin_shortcut(x))


class ResBlock3d(nn.Module):
    """Residual block of a clip; `fuse` makes one frame of three."""

    def __init__(self, ops: Operations, channels: int, *, fuse: bool = False) -> None:
        super().__init__()
        self.norm1 = new_group_norm(ops, channels)
        self.conv1 = ops.Conv3d(channels, channels, 3, padding=1)
        self.norm2 = new_group_norm(ops, channels)
        self.conv2 = ops.Conv3d(channels, channels, 3, padding=(0, 1, 1) if fuse else 1)
        self.nin_shortcut = ops.Conv3d(channels, channels, (3, 1, 1) if fuse else 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(swish(self.norm1(x)))
        h = self.conv2(swish(per_frame(self.norm2, h)))
        return h.add_(self.nin_shortcut(x))


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
        attended = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Half the size; one row and column of zeros below and on the right only."""

    def __init__(self, ops: Operations, channels: int) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest neighbor x2, then a 3x3 convolution, computed on the small map.

    Each of the four output phases sees only 2x2 different input cells, so its 3x3 kernel
    collapses to 2x2: 4/9 of the work.
    """

    def __init__(self, ops: Operations, channels: int) -> None:
        super().__init__()
        self.conv = ops.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        B, C, H, W = x.shape
        weight, bias = weight_and_bias(self.conv, x)
        padded = F.pad(x, (1, 1, 1, 1))
        out = torch.empty(
            (B, C, 2 * H, 2 * W),
            dtype=x.dtype,
            device=x.device,
            memory_format=torch.channels_last,
        )
        for row, by_row in enumerate(collapse_to_phases(weight, dim=2)):
            for column, kernel in enumerate(collapse_to_phases(by_row, dim=3)):
                seen = padded[:, :, row : row + H + 1, column : column + W + 1]
                out[:, :, row::2, column::2] = F.conv2d(seen, kernel, bias)
        return out


def collapse_to_phases(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The kernels of an even and an odd output line after nearest x2: three taps become two."""
    first, center, last = weight.unbind(dim)
    even = torch.stack([first, center + last], dim)
    odd = torch.stack([first + center, last], dim)
    return even, odd


def windows(x: Tensor) -> Tensor:
    """[B, H, W, C] cut into windows of neighbors: [B * N, 64, C]."""
    B, H, W, C = x.shape
    x = x.view(B, H // WINDOW, WINDOW, W // WINDOW, WINDOW, C)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, WINDOW * WINDOW, C)


def from_windows(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `windows`, as a view of shape [B, H / 8, 8, W / 8, 8, C]."""
    B, H, W, C = shape
    tokens = tokens.view(B, H // WINDOW, W // WINDOW, WINDOW, WINDOW, C)
    return tokens.permute(0, 1, 3, 2, 4, 5)


def grid(x: Tensor) -> Tensor:
    """[B, H, W, C] cut into groups of 8x8 tokens spread over the whole map: [B * N, 64, C]."""
    B, H, W, C = x.shape
    x = x.view(B, WINDOW, H // WINDOW, WINDOW, W // WINDOW, C)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, WINDOW * WINDOW, C)


def from_grid(tokens: Tensor, shape: torch.Size) -> Tensor:
    """Inverse of `grid`, as a view of shape [B, 8, H / 8, 8, W / 8, C]."""
    B, H, W, C = shape
    tokens = tokens.view(B, H // WINDOW, W // WINDOW, WINDOW, WINDOW, C)
    return tokens.permute(0, 3, 1, 4, 2, 5)


def position_bias(table: Tensor) -> Tensor:
    """[64, 64] bias of query i, key j from the table [225, 1] of relative positions.

    Row (yi - yj + 7) * 15 + (xi - xj + 7): with the keys counted backward that is a plain stride.
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
        """[N, 64, C] of both; the result belongs to the queries."""
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
    """A layer norm and the function that follows it; how they are joined is the caller's."""

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

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """[B, C, H, W] -> the same; overwrites `x`. H and W are multiples of 8."""
        tokens = x.permute(0, 2, 3, 1).contiguous()
        keys = None if context is None else context.permute(0, 2, 3, 1)
        attend(self.attn_block, tokens, keys, windows, from_windows)
        feed_forward(self.ff_block, tokens)
        attend(self.attn_grid, tokens, keys, grid, from_grid)
        feed_forward(self.ff_grid, tokens)
        return tokens.permute(0, 3, 1, 2)


def attend(
    block: Normed,
    x: Tensor,
    context: Tensor | None,
    cut: Callable[[Tensor], Tensor],
    join: Callable[[Tensor, torch.Size], Tensor],
) -> None:
    """x <- x + Att(LN(x), LN(context or x)), in place; x is [B, H, W, C] and contiguous."""
    queries = cut(block.norm(x))
    keys = queries if context is None else cut(block.norm(context))
    joined = join(block.fn(queries, keys), x.shape)
    x.view(joined.shape).add_(joined)


def feed_forward(block: Normed, x: Tensor) -> None:
    """x <- x + FF(LN(x)), in place; x is [B, H, W, C]."""
    x.add_(block.fn(block.norm(x)))
