"""The walk along the bridge in Triton kernels, for NVIDIA GPUs: 47 kernels per step.

The latent is so small that a GPU finishes a layer before the next is launched, so what counts is
the number of kernels. PyTorch's convolutions, norms, additions and attention take some 150 per
step. Here a norm with its SiLU, the resampling, the concatenation, the bias and the residual are
all part of the convolution that follows or precedes them, and each kernel also computes the
moments of its result.

Factors are float16 halves as in `split`, with float32 accuracy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..device import nvidia_capability
from .bridge import TIMESTEPS, BridgeStep, bridge_steps
from .kernels import are_right, example_values, kernel_named
from .layers import weight_and_bias
from .split import SMALLER, halves
from .unet import LATENT, WIDTH, LatentAttention, Resampling, TimedResBlock, UNet

SCALES: dict[Resampling | None, int] = {"down": -1, None: 0, "up": 1}

FEW_PIXELS = 6400
"""Below this, programs take squares of 4x4 pixels instead of 8x8, so that they fill a whole GPU."""
HALO_BLOCKS = {4: 64, 8: 128}
"""By side of a square: its pixels and those around it, rounded up to a power of two."""
STAGES = 3
"""A convolution loads two lines of taps ahead, in at most 72 KiB of shared memory."""
OLDEST = (8, 0)
"""Lowest compute capability (A100) on which Triton multiplies on tensor cores."""
EXAMPLE = 48, 64
"""Sides of a latent, that of 1080p, whose maps have squares of both sizes."""
BLOCK_KEYS = 64
BLOCK_VALUES = 1024


@cache
def is_available(device: torch.device) -> bool:
    """Whether the kernels run on `device`, are fast there, and right."""
    capability = nvidia_capability(device)
    if capability is None or capability < OLDEST:
        return False
    return are_right("the sampler", examples, device)


def examples(
    device: torch.device, latent: tuple[int, int] = EXAMPLE
) -> Iterator[tuple[Tensor, Tensor]]:
    """(found in kernels, wanted) offset of one step, predicted by the `example_network`."""
    unet = example_network(device)
    x, y = example_values(device, 2, 1, LATENT, 3, *latent)
    (modulations,) = unet.embed([TIMESTEPS // 2], device)
    with torch.cuda.device_of(x):
        network = FusedUNet(unet, pack(unet, device))
        found = network.denoise(x, network.context(y), modulations)
    unet.double()
    yield found, unet(x.double(), unet.embed_context(y.double()), modulations.double())


def example_network(device: torch.device) -> UNet:
    """A network whose weights are scaled so that no layer dominates another."""
    with torch.device("meta"):  # takes nothing from PyTorch's random numbers
        unet = UNet(nn).requires_grad_(False)
    unet.to_empty(device=device)
    for seed, weight in enumerate(unet.parameters()):
        fan_in = weight[0].numel() if weight.ndim > 1 else 4
        weight.copy_(example_values(device, *weight.shape, seed=seed) * fan_in**-0.5)
    return unet


@dataclass(frozen=True, slots=True)
class Clip:
    """A map [B, 3, h, w, 32] with the moments of its squares, [B, squares, 2, 32]."""

    values: Tensor
    moments: Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """A weight in the form the kernels take, [rows, columns] halves."""

    large: Tensor
    small: Tensor


def convolutions(unet: UNet) -> dict[str, Tensor]:
    """The weights of all convolutions by name, [C_out, C_in, ...].

    The first is split in two: the state's part under its own name, the context's under `context`.
    """
    parameters = {name: getattr(layer, "weight", None) for name, layer in unet.named_modules()}
    weights = {name: w for name, w in parameters.items() if isinstance(w, Tensor) and w.ndim > 2}
    first = weights["input_blocks.0.0"]
    return weights | {"input_blocks.0.0": first[:, :LATENT], "context": first[:, LATENT:]}


def pack(unet: UNet, device: torch.device) -> Tensor:
    """All `convolutions` on `device`, [2, values] float16 `halves`: [taps * C_in, C_out] of each.

    Channels are padded with zeros to whole blocks.
    """
    flat = []
    for weight in convolutions(unet).values():
        channels_out, channels_in = weight.shape[:2]
        missing = (0, 0, 0, -channels_in % WIDTH, 0, -channels_out % WIDTH)
        flat.append(F.pad(weight.to(device).flatten(2), missing).permute(2, 1, 0).flatten())
    return torch.stack(halves(torch.cat(flat).float()))


def unpack(unet: UNet, packed: Tensor) -> dict[str, Factors]:
    """The parts of the result of `pack` by name, as views."""
    shapes = {name: _packed_shape(weight) for name, weight in convolutions(unet).items()}
    sizes = [rows * columns for rows, columns in shapes.values()]
    halved = (half.split(sizes) for half in packed)
    return {
        name: Factors(large.view(shape), small.view(shape))
        for (name, shape), large, small in zip(shapes.items(), *halved, strict=True)
    }


def _packed_shape(weight: Tensor) -> tuple[int, int]:
    channels_out, channels_in = (-(-channels // WIDTH) * WIDTH for channels in weight.shape[:2])
    return weight[0, 0].numel() * channels_in, channels_out


def walk_bridge(
    unet: UNet,
    y: Tensor,
    noise: Sequence[Tensor] | Tensor,
    modulations: Tensor,
    packed: Tensor,
    few_pixels: int = FEW_PIXELS,
) -> Tensor:
    """`bridge.sample_bridge` with the denoiser `unet`, on a device where it `is_available`.

    `y`: [B, 3, 3, h, w] float32, h and w multiples of 4; `noise`: a draw for every step but the
    last; `modulations`: [steps, blocks, 64] from `UNet.embed`; `packed`: from `pack`.
    """
    network = FusedUNet(unet, packed, few_pixels)
    y = y.contiguous()
    with torch.cuda.device_of(y):
        context = network.context(y)
        x = y
        for index, weights in enumerate(bridge_steps(len(modulations))):
            offset = network.denoise(x, context, modulations[index])
            draw = noise[index].expand_as(y).contiguous() if index < len(noise) else None
            x = step_along(weights, x, offset, y, draw)
    return x


def step_along(
    weights: BridgeStep, x: Tensor, offset: Tensor, end: Tensor, noise: Tensor | None
) -> Tensor:
    """The state after a step from `x` with the predicted `offset`; all of one shape, contiguous."""
    out = torch.empty_like(x)
    kernel_named("bridge_kernel", "sampler_kernels")[(-(-x.numel() // BLOCK_VALUES),)](
        x,
        offset,
        end,
        x if noise is None else noise,
        out,
        x.numel(),
        weights.clean,
        weights.end,
        weights.state,
        weights.noise,
        HAS_NOISE=noise is not None,
        BLOCK=BLOCK_VALUES,
    )
    return out


class FusedUNet:
    """The forward pass of a `UNet` with packed weights."""

    def __init__(self, unet: UNet, packed: Tensor, few_pixels: int = FEW_PIXELS) -> None:
        self.unet = unet
        self._few_pixels = few_pixels
        self._factors = unpack(unet, packed)
        self._names = {layer: name for name, layer in unet.named_modules()}
        self._first = unet.input_blocks.get_submodule("0.0")

    def context(self, y: Tensor) -> Tensor:
        """What the context adds to the first convolution, [B, 3, h, w, 32]; see `walk_bridge`."""
        return self._convolve(y, self._first, self._factors["context"]).values

    def denoise(self, x: Tensor, context: Tensor, modulations: Tensor) -> Tensor:
        """`UNet.forward`, [B, 3, 3, h, w] contiguous like `x`; `context`: from `self.context`."""
        following = iter(modulations)
        h = self._convolve(x, self._first, more=[context], has_bias=False)
        skips = [h]
        for blocks in self.unet.input_blocks[1:]:
            h = self._run(blocks, [h], following)
            skips.append(h)
        h = self._run(self.unet.middle_block, [h], following)
        for blocks in self.unet.output_blocks:
            h = self._run(blocks, [h, skips.pop()], following)
        return self._convolve([h], self.unet.out["2"], norm=self.unet.out["0"]).values

    def _run(self, blocks: nn.Module, parts: Sequence[Clip], modulations: Iterator[Tensor]) -> Clip:
        for block in blocks.children():
            if isinstance(block, TimedResBlock):
                parts = [self._residual(block, parts, next(modulations))]
            elif isinstance(block, LatentAttention):
                parts = [self._attend(block, *parts)]
        return parts[0]

    def _residual(self, block: TimedResBlock, parts: Sequence[Clip], modulation: Tensor) -> Clip:
        """`TimedResBlock.forward` on the concatenated channels of all parts."""
        h = self._convolve(
            parts, block.in_layers["2"], norm=block.in_layers["0"], resampling=block.resampling
        )
        return self._convolve(
            [h],
            block.out_layers["3"],
            norm=block.out_layers["0"],
            modulation=modulation,
            more=[part.values for part in parts],
            more_resampling=block.resampling,
            projection=block.skip_connection,
        )

    def _convolve(
        self,
        x: Sequence[Clip] | Tensor,
        conv: Any,  # noqa: ANN401 - a layer of any namespace
        factors: Factors | None = None,
        *,
        norm: Any = None,  # noqa: ANN401
        modulation: Tensor | None = None,
        resampling: Resampling | None = None,
        more: Sequence[Tensor] = (),
        more_resampling: Resampling | None = None,
        projection: Any = None,  # noqa: ANN401
        has_bias: bool = True,
    ) -> Clip:
        """A 3x3x3 convolution of the concatenated channels of clips, or of a latent.

        Before it come `norm` with SiLU, `modulation` [64] and `resampling`, if given; after it the
        bias and `more`, resampled and sent through `projection`. A latent result has no moments.
        """
        clips = [Clip(x, x)] if isinstance(x, Tensor) else x
        first, last = clips[0], clips[-1]
        is_latent = isinstance(x, Tensor)
        B = len(first.values)
        height, width = first.values.shape[3:] if is_latent else first.values.shape[2:4]
        side_in = self._side(height, width)
        height, width = _resampled(height, resampling), _resampled(width, resampling)
        side, squares = self._side(height, width), self._squares(height, width)
        channels_out = conv.weight.shape[0]
        like = first.values
        if channels_out == WIDTH:
            out = like.new_empty((B, 3, height, width, WIDTH))
            moments = like.new_empty((B, squares, 2, WIDTH))
        else:
            out = moments = like.new_empty((B, channels_out, 3, height, width))
        staged = like.new_empty(
            (B, squares, 2, 3 * (side + 2) ** 2, len(clips) * WIDTH), dtype=torch.float16
        )
        factors = factors or self._factors[self._names[conv]]
        bias = conv.bias.to(like)
        norm_weight, norm_bias = (bias, bias) if norm is None else weight_and_bias(norm, like)
        skip, skip_bias = factors, bias
        if projection is not None:
            skip, skip_bias = self._factors[self._names[projection]], projection.bias.to(like)
        kernel_named("clip_convolution_kernel", "sampler_kernels")[(squares, B)](
            first.values,
            first.moments,
            last.values,
            last.moments,
            norm_weight,
            norm_bias,
            bias if modulation is None else modulation,
            factors.large,
            factors.small,
            bias,
            more[0] if more else out,
            more[-1] if more else out,
            skip.large,
            skip.small,
            skip_bias,
            staged,
            out,
            moments,
            height,
            width,
            side_in,
            1.0 if norm is None else norm.eps,
            1.0,
            SMALLER,
            PARTS=len(clips),
            CHANNELS=LATENT if is_latent else WIDTH,
            CHANNELS_OUT=channels_out,
            SCALE=SCALES[resampling],
            IS_NORMED=norm is not None,
            IS_MODULATED=modulation is not None,
            HAS_BIAS=has_bias,
            MORE_PARTS=len(more),
            MORE_SCALE=SCALES[more_resampling],
            IS_PROJECTED=projection is not None,
            HAS_MOMENTS=channels_out == WIDTH,
            SIDE=side,
            HALO_BLOCK=HALO_BLOCKS[side],
            num_stages=STAGES,
        )
        return Clip(out, moments)

    def _attend(self, block: LatentAttention, x: Clip) -> Clip:
        """`LatentAttention.forward`."""
        B, _, height, width, _ = x.values.shape
        side, squares = self._side(height, width), self._squares(height, width)
        tokens = x.values.new_empty((B, 3, 2, 3 * height * width, WIDTH), dtype=torch.float16)
        qkv, out = (self._factors[self._names[conv]] for conv in (block.qkv, block.proj_out))
        kernel_named("tokens_kernel", "sampler_kernels")[(-(-tokens.shape[3] // side**2), B)](
            x.values,
            x.moments,
            *weight_and_bias(block.norm, x.values),
            qkv.large,
            qkv.small,
            block.qkv.bias.to(x.values),
            tokens,
            height,
            width,
            block.norm.eps,
            WIDTH**-0.5,
            1.0,
            SMALLER,
            SIDE=side,
        )
        found = Clip(torch.empty_like(x.values), x.values.new_empty((B, squares, 2, WIDTH)))
        kernel_named("attention_kernel", "sampler_kernels")[(squares, B)](
            x.values,
            tokens,
            out.large,
            out.small,
            block.proj_out.bias.to(x.values),
            found.values,
            found.moments,
            height,
            width,
            1.0,
            SMALLER,
            SIDE=side,
            BLOCK_KEYS=BLOCK_KEYS,
        )
        return found

    def _side(self, height: int, width: int) -> int:
        """Side, in pixels, of the squares in which a map is computed."""
        return 8 if 3 * height * width >= self._few_pixels else 4

    def _squares(self, height: int, width: int) -> int:
        """Number of squares in a clip, which has three frames."""
        side = self._side(height, width)
        return 3 * -(-height // side) * -(-width // side)


def _resampled(side: int, resampling: Resampling | None) -> int:
    return {"down": side // 2, None: side, "up": 2 * side}[resampling]
