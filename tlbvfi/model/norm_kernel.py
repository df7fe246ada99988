"""Group norm, modulation and SiLU of a clip in one Triton kernel, for the UNet on NVIDIA GPUs.

The UNet's maps are so small that what counts is the number of kernels: PyTorch takes three for the
norm, three to scale and shift, one for SiLU, some forty times per step of the sampler.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_GROUP = 1 << 15
"""Values a program holds at once: 32 for each of 1024 threads, above which registers run out."""
VALUES_PER_WARP = 512


def fits(x: Tensor, groups: int) -> bool:
    """Whether a group of `x` [B, C, ...] can be held at once: float32, up to `LARGEST_GROUP`."""
    return x.dtype == torch.float32 and x[0].numel() // groups <= LARGEST_GROUP


def norm_and_silu(norm: nn.GroupNorm, x: Tensor, modulation: Tensor | None = None) -> Tensor:
    """SiLU(norm(x) * (1 + scale) + shift) of a map that `fits`; same shape, contiguous.

    `x`: [B, C, ...] on a device where `correlation_kernel.is_available`; `modulation`: scale and
    shift, [B or 1, 2 * C], where there are any. Float32, like weight and bias of `norm`.
    """
    # Triton is not everywhere; its functions have no type.
    kernel: Any = import_module(".triton_kernels", __package__).norm_kernel
    x = x.contiguous()
    B, C = x.shape[:2]
    per_channel = x[0, 0].numel()
    values = per_channel * C // norm.num_groups
    block = 1 << (values - 1).bit_length()
    out = torch.empty_like(x)
    scale = shift = norm.weight  # not looked at
    if modulation is not None:
        scale, shift = (part.contiguous() for part in modulation.expand(B, -1).chunk(2, dim=1))
    with torch.cuda.device_of(x):
        kernel[(B * norm.num_groups,)](
            x,
            norm.weight,
            norm.bias,
            scale,
            shift,
            out,
            values,
            per_channel,
            norm.eps,
            GROUPS=norm.num_groups,
            CHANNELS=C,
            IS_MODULATED=modulation is not None,
            BLOCK=block,
            num_warps=min(32, max(4, block // VALUES_PER_WARP)),
        )
    return out
