"""The denoiser: a small 3-D UNet over the latent clip, conditioned on timestep and context."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .kernels import has_triton
from .layers import Operations, attend, swish, weight_and_bias
from .norm_kernel import fits as has_kernel
from .norm_kernel import norm_and_silu

WIDTH = 32
EMBEDDING = 4 * WIDTH
LATENT = 3
"""Channels of the latent."""

Resampling = Literal["down", "up"]


def sinusoid(timesteps: Tensor) -> Tensor:
    """[S] timesteps -> [S, 32]: cosines, then sines, of 16 falling frequencies."""
    half = WIDTH // 2
    exponents = torch.arange(half, device=timesteps.device, dtype=torch.float32) / half
    angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def unet_norm(ops: Operations, channels: int) -> nn.Module:
    """Group norm over frames and space; for 32 channels every channel is its own group."""
    return ops.GroupNorm(WIDTH, channels, eps=1e-5)


def resample(x: Tensor, how: Resampling | None) -> Tensor:
    """Half or twice the height and width of a clip; its frames stay."""
    if how == "down":
        return F.avg_pool3d(x, (1, 2, 2))
    if how == "up":
        return F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest")
    return x


def norm_and_swish(norm: Any, x: Tensor, modulation: Tensor | None = None) -> Tensor:  # noqa: ANN401
    """Group norm, scaled and shifted by `modulation` [B or 1, 2 * C] if there is one, and SiLU."""
    if has_kernel(x, norm.num_groups) and has_triton(x.device):
        return norm_and_silu(norm, x, modulation)
    h = norm(x)
    if modulation is not None:
        scale, shift = modulation[..., None, None, None].chunk(2, dim=1)
        h = h * (1 + scale) + shift
    return swish(h)


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

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = resample(norm_and_swish(self.in_layers["0"], x), self.resampling)
        h = self.in_layers["2"](h)
        modulation = self.emb_layers["1"](F.silu(emb))
        h = self.out_layers["3"](norm_and_swish(self.out_layers["0"], h, modulation))
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
        attended = attend(*self.qkv(self.norm(tokens)).transpose(1, 2).chunk(3, dim=-1))
        return (tokens + self.proj_out(attended.transpose(1, 2))).view(x.shape)


def run(blocks: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    """`x` through blocks of which some see the timestep."""
    for block in blocks.children():
        x = block(x, emb) if isinstance(block, TimedResBlock) else block(x)
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
        """[S, 128] embeddings of all steps of a schedule at once."""
        return self.time_embed(sinusoid(torch.tensor(timesteps, device=device)))

    def embed_context(self, y: Tensor) -> Tensor:
        """What the context `y` [B, 3, T, h, w] adds to the first convolution, in every step alike."""
        weight, bias = weight_and_bias(self.input_blocks.get_submodule("0.0"), y)
        return F.conv3d(y, weight[:, LATENT:], bias, padding=1)

    def forward(self, x: Tensor, context: Tensor, emb: Tensor) -> Tensor:
        """State x [B, 3, T, h, w], `embed_context` of the context, emb [1, 128] -> as x."""
        weight, _ = weight_and_bias(self.input_blocks.get_submodule("0.0"), x)
        h = F.conv3d(x, weight[:, :LATENT], padding=1).add_(context)
        skips = [h]
        for blocks in self.input_blocks[1:]:
            h = run(blocks, h, emb)
            skips.append(h)
        h = run(self.middle_block, h, emb)
        for blocks in self.output_blocks:
            h = run(blocks, torch.cat([h, skips.pop()], dim=1), emb)
        return self.out["2"](norm_and_swish(self.out["0"], h))
