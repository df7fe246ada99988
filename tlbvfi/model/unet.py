"""The denoiser: a small 3-D UNet over the latent clip, conditioned on timestep and context."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Operations, attend, conv3d, conv3d_by, swish, weight_and_bias

WIDTH = 32
EMBEDDING = 4 * WIDTH
LATENT = 3
"""Channels of the latent."""

Resampling = Literal["down", "up"]


def sinusoid(timesteps: Tensor) -> Tensor:
    """[S] timesteps -> [S, 32]: cosines, then sines, of 16 decreasing frequencies."""
    half = WIDTH // 2
    exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def unet_norm(ops: Operations, channels: int) -> nn.Module:
    """Group norm over frames and space; for 32 channels every channel is its own group."""
    return ops.GroupNorm(WIDTH, channels, eps=1e-5)


def resample(x: Tensor, how: Resampling | None) -> Tensor:
    """A clip at half or twice the height and width; the number of frames stays."""
    if how == "down":
        return F.avg_pool2d(x.flatten(1, 2), 2).unflatten(1, x.shape[1:3])
    if how == "up":
        return F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    return x


class TimedResBlock(nn.Module):
    """Residual block whose second norm is scaled and shifted by the timestep."""

    def __init__(
        self, ops: Operations, channels: int, resampling: Resampling | None = None
    ) -> None:
        super().__init__()
        self.resampling: Resampling | None = resampling
        self.in_layers = nn.ModuleDict(
            {"0": unet_norm(ops, channels), "2": ops.Conv3d(channels, WIDTH, 3, padding=1)}
        )
        self.emb_layers = nn.ModuleDict({"1": ops.Linear(EMBEDDING, 2 * WIDTH)})
        self.out_layers = nn.ModuleDict(
            {"0": unet_norm(ops, WIDTH), "3": ops.Conv3d(WIDTH, WIDTH, 3, padding=1)}
        )
        self.skip_connection = ops.Conv3d(channels, WIDTH, 1) if channels != WIDTH else None

    def modulation(self, emb: Tensor) -> Tensor:
        """Scale and shift [S, 64] from embedded timesteps [S, 128]."""
        return self.emb_layers["1"](F.silu(emb))

    def forward(self, x: Tensor, modulation: Tensor) -> Tensor:
        """`modulation`: [1, 64], that of the timestep."""
        h = resample(swish(self.in_layers["0"](x)), self.resampling)
        scale, shift = modulation[..., None, None, None].chunk(2, dim=1)
        h = self.out_layers["0"](conv3d_by(self.in_layers["2"], h)) * (1 + scale) + shift
        h = conv3d_by(self.out_layers["3"], swish(h))
        x = resample(x, self.resampling)
        return h + (x if self.skip_connection is None else self.skip_connection(x))


class LatentAttention(nn.Module):
    """Attention among all positions of all frames."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()
        self.norm = unet_norm(ops, WIDTH)
        self.qkv = ops.Conv1d(WIDTH, 3 * WIDTH, 1)
        self.proj_out = ops.Conv1d(WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)  # [B, C, L]
        q, k, v = by_token(self.qkv, self.norm(tokens).transpose(1, 2)).chunk(3, dim=-1)
        return (tokens + by_token(self.proj_out, attend(q, k, v)).transpose(1, 2)).view(x.shape)


def by_token(conv: Any, tokens: Tensor) -> Tensor:  # noqa: ANN401
    """A convolution of one token at a time, [B, L, C] -> [B, L, C_out], as a single product."""
    weight, bias = weight_and_bias(conv, tokens)
    return F.linear(tokens, weight[..., 0], bias)


def run(blocks: nn.Module, x: Tensor, modulations: Iterator[Tensor]) -> Tensor:
    """`x` run through blocks; each block that depends on the timestep takes the next modulation."""
    for block in blocks.children():
        x = block(x, next(modulations)) if isinstance(block, TimedResBlock) else block(x)
    return x


class UNet(nn.Module):
    """Predicts how far the state of the bridge is from the clean latent."""

    def __init__(self, ops: Operations) -> None:
        super().__init__()

        def res(channels: int, resampling: Resampling | None = None) -> TimedResBlock:
            return TimedResBlock(ops, channels, resampling)

        self.time_embed = nn.Sequential(
            ops.Linear(WIDTH, EMBEDDING), nn.SiLU(), ops.Linear(EMBEDDING, EMBEDDING)
        )
        first = ops.Conv3d(2 * LATENT, WIDTH, 3, padding=1)
        self.input_blocks = nn.ModuleList(
            nn.ModuleList(blocks)
            for blocks in (
                [first],
                [res(WIDTH)],
                [res(WIDTH, "down")],
                [res(WIDTH), LatentAttention(ops)],
                [res(WIDTH, "down")],
                [res(WIDTH), LatentAttention(ops)],
            )
        )
        self.middle_block = nn.ModuleList([res(WIDTH), LatentAttention(ops), res(WIDTH)])
        self.output_blocks = nn.ModuleList(
            nn.ModuleList(blocks)
            for blocks in (
                [res(2 * WIDTH), LatentAttention(ops)],
                [res(2 * WIDTH), LatentAttention(ops), res(WIDTH, "up")],
                [res(2 * WIDTH), LatentAttention(ops)],
                [res(2 * WIDTH), LatentAttention(ops), res(WIDTH, "up")],
                [res(2 * WIDTH)],
                [res(2 * WIDTH)],
            )
        )
        self.out = nn.ModuleDict(
            {"0": unet_norm(ops, WIDTH), "2": ops.Conv3d(WIDTH, LATENT, 3, padding=1)}
        )

    def embed(self, timesteps: Sequence[int], device: torch.device) -> Tensor:
        """[S, blocks, 64] modulations of all blocks, in order, for all steps of a schedule."""
        emb = self.time_embed(sinusoid(torch.tensor(timesteps, device=device)))
        blocks = [block for block in self.modules() if isinstance(block, TimedResBlock)]
        return torch.stack([block.modulation(emb) for block in blocks], dim=1)

    def embed_context(self, y: Tensor) -> Tensor:
        """What the context `y` [B, 3, T, h, w] adds to the first convolution in every step."""
        weight, bias = weight_and_bias(self.input_blocks.get_submodule("0.0"), y)
        return conv3d(y, weight[:, LATENT:], bias, padding=1)

    def forward(self, x: Tensor, context: Tensor, modulations: Tensor) -> Tensor:
        """State x [B, 3, T, h, w], results of `embed_context` and of `embed` -> offset, as x."""
        following = iter(modulations.split(1))
        weight, _ = weight_and_bias(self.input_blocks.get_submodule("0.0"), x)
        h = conv3d(x, weight[:, :LATENT], padding=1).add_(context)
        skips = [h]
        for blocks in self.input_blocks[1:]:
            h = run(blocks, h, following)
            skips.append(h)
        h = run(self.middle_block, h, following)
        for blocks in self.output_blocks:
            h = run(blocks, torch.cat([h, skips.pop()], dim=1), following)
        return conv3d_by(self.out["2"], swish(self.out["0"](h)))
