"""Convolution and attention with float32 accuracy on tensor cores, in one Triton kernel each.

A float32 factor is split into two of float16, x = large + small / 2048, which keep 22 bits of its
mantissa. Of the four products of two split factors, three are summed; the fourth is below float32's
rounding. (Ootomo and Yokota 2022, "Recovering single precision accuracy from Tensor Cores".) TF32
would not need the factor 2048, but runs at half the rate. A value beyond 65504 becomes infinite, as
everywhere in float16.

Why not three cuDNN convolutions: splitting the map and adding the results would pass many more maps
through memory, and tensor cores truncate their sums: emulated, that alone put latents 2e-4 off
instead of 3e-5, with no code changed either way (benchmarks/model_precision.py). The kernel adds up
sums of 32 channels outside the tensor cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from ..device import nvidia_capability
from .kernels import are_right, example_values, kernel_named, rows_of, triton_version

PAYS_OFF = ((8, 0), (9, 0), (10, 0))
"""Compute capabilities (A100, H100, B200) whose float16 rate is well above 3x the float32 rate.

On GeForce cards it is at most twice that rate.
"""

HOPPER, COMPILES_FOR_HOPPER = (9, 0), (3, 2)
"""The H100's compute capability, and the first Triton that compiles the attention for it.

Earlier ones, of PyTorch 2.4 and 2.5, abort the whole process.
"""

SMALLER = 2048.0
"""Multiplier of a factor's small part: 2**11, which makes it about as large as the other part."""

BLOCK_PIXELS, BLOCK_IN, BLOCK_OUT = 128, 32, 64
BLOCK_QUERIES, BLOCK_KEYS, STAGES = 64, 32, 2
"""Of the attention; it fits the shared memory of an A100 with 256 channels."""
WARPS = 8
REGISTERS = {9: 128}
"""Most per thread, by major compute capability: with 128, two programs share a multiprocessor.

For others the compiler chooses. On 8.0 and 9.0 nothing is spilled either way.
"""


@cache
def is_available(device: torch.device) -> bool:
    """Whether the kernels are right on `device` and should be faster there than plain float32."""
    if nvidia_capability(device) not in PAYS_OFF:
        return False
    return are_right("split factors", examples, device)


def examples(device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(found in kernels, wanted) of a convolution and an attention.

    Raises:
        RuntimeError: Triton is too old to be asked on this device.
    """
    if nvidia_capability(device) == HOPPER and triton_version() < COMPILES_FOR_HOPPER:
        raise RuntimeError("Triton before 3.2 would abort this program")
    x, weight = example_values(device, 1, 64, 9, 20), example_values(device, 64, 64, 3, 3, seed=1)
    bias = example_values(device, 64, seed=2)
    found = conv2d(x, weight, bias, (9, 20), padding=(1, 1))
    yield found, F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    q, k, v = example_values(device, 3, 1, 80, 256, seed=3)
    wanted = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    yield attention(q, k, v), wanted


@cache
def registers(device: torch.device) -> int | None:
    """Most registers that a thread of the kernel may have."""
    capability = nvidia_capability(device)  # None in Triton's interpreter
    return None if capability is None else REGISTERS.get(capability[0])


def fits(x: Tensor, weight: Tensor, groups: int = 1) -> bool:
    """Whether there is a kernel for this convolution: float32, and channels in whole blocks."""
    channels_out, channels_in = weight.shape[:2]
    is_whole = channels_in % BLOCK_IN == 0 and channels_out % BLOCK_OUT == 0
    return is_whole and groups == 1 and x.dtype == weight.dtype == torch.float32


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """Two parts of `x`, float16: x is the first plus the second / `SMALLER`."""
    large = x.half()
    return large, ((x - large) * SMALLER).half()


def fits_attention(q: Tensor) -> bool:
    """Whether the kernel can attend with these queries [B, L, C]: float32, C = 16, 32, ... 256."""
    channels = q.shape[-1]
    return q.dtype == torch.float32 and 16 <= channels <= 256 and channels & (channels - 1) == 0


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`scaled_dot_product_attention`, [B, L, C] each, to float32 rounding.

    For queries that `fits_attention` accepts, on a device for which `is_available` is true.
    """
    B, L, C = q.shape
    tokens = torch.stack([q * C**-0.5, k, v], dim=1)
    out = q.new_empty((B, L, C))
    with torch.cuda.device_of(q):
        kernel_named("split_attention_kernel")[(-(-L // BLOCK_QUERIES), B)](
            torch.stack(halves(tokens), dim=2),
            out,
            L,
            1.0,
            SMALLER,
            DEPTH=C,
            BLOCK=BLOCK_QUERIES,
            BLOCK_KEYS=BLOCK_KEYS,
            num_warps=WARPS,
            num_stages=STAGES,
        )
    return out


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    *,
    stride: int = 1,
    padding: tuple[int, int] = (0, 0),
    plus: Tensor | None = None,
) -> Tensor:
    """`torch.nn.functional.conv2d` of a map and a weight that `fits`, up to rounding, + `plus`.

    `x`: [B, C_in, H, W], `weight`: [C_out, C_in, k, k]; both are best channels_last, the layout of
    the result [B, C_out, *size]. `padding`: rows of zeros above and columns on the left; below and
    on the right there are as many as needed. `plus`: as the result.
    """
    channels_out, channels_in, side, _ = weight.shape
    batch, _, height, width = x.shape
    out = x.new_empty((batch, *size, channels_out))
    count = out.numel() // channels_out
    more = out if plus is None else rows_of(plus)
    weights = halves(weight.contiguous(memory_format=torch.channels_last))
    grid = (-(-count // BLOCK_PIXELS), channels_out // BLOCK_OUT)
    with torch.cuda.device_of(x):
        kernel_named("convolution_kernel")[grid](
            x.contiguous(memory_format=torch.channels_last),
            *weights,
            weight if bias is None else bias,
            more,
            out,
            count,
            height,
            width,
            *size,
            *padding,
            more.stride(0),
            1.0,
            SMALLER,
            HAS_BIAS=bias is not None,
            HAS_MORE=plus is not None,
            C_IN=channels_in,
            C_OUT=channels_out,
            SIDE=side,
            STRIDE=stride,
            BLOCK_PIXELS=BLOCK_PIXELS,
            BLOCK_IN=BLOCK_IN,
            BLOCK_OUT=BLOCK_OUT,
            num_warps=WARPS,
            maxnreg=registers(x.device),
        )
    return out.permute(0, 3, 1, 2)
