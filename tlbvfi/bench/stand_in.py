"""Stand-in weights for TLB-VFI: deterministic, bit-identical everywhere, no download.

Every tensor depends only on its own name: raw PCG64 output seeded with the CRC-32 of the name,
summed to a bell shape in integer arithmetic and scaled to keep activations at unit size, in float16
too. Speed and memory do not depend on the values of weights; pictures do, so these make no sense.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint import Bare
from ..model import TLBVFI

CODEBOOK_DEVIATION = 2.2
BELL_DEVIATION = 37837.22723720648  # of half the centered sum of four 16-bit integers

GAINS = (
    (r"decoder\.flownet\..*\.conv1\.weight$", 1.3),
    (r"decoder\.flownet\.", 1.35),
    (r"refinenet\..*\.flow_head\.2\.weight$", 0.7),
    (r"refinenet\..*\.occl_convs\.4\.weight$", 1.5),
    (r"refinenet\.", 1.35),
    (r"decoder\.moduleout\.6\.weight$", 0.4),
    (r"denoise_fn\.out\.2\.weight$", 0.8),
    (r"encoder\.conv_out\.weight$", 1.6),
    (r"^quant_conv\.weight$|post_quant_conv\.weight$", 1.2),
    (r"to_[qk]\.weight$", 1.6),
    (r"attn_1\.[qk]\.weight$", 1.6),
    (r"\.qkv\.weight$", 1.5),
    (r"", 1.0),
)
"""Factor for a weight's scale, by its name without `vqgan.`; the first match counts."""


def bell(name: str, shape: Sequence[int]) -> NDArray[np.float64]:
    """Bell-shaped float64 values with mean 0 and variance 1, a function of the name only."""
    count = int(np.prod(shape))
    raw = np.random.PCG64(zlib.crc32(name.encode())).random_raw(count)
    quarters = np.atleast_1d(np.asarray(raw, dtype="<u8")).view("<u2").reshape(count, 4)
    a, b, c, d = quarters.astype(np.int32).T
    centered = (a + b + c + d) * 2 - 4 * 65535
    return (centered * (0.5 / BELL_DEVIATION)).reshape(shape)


def fan_in(name: str, shape: Sequence[int]) -> int:
    """Number of inputs that each output of a layer sums."""
    if re.search(r"flownet\.block\d\.conv1\.weight$", name):  # transposed: (in, out, 4, 4)
        return shape[0] * shape[2] * shape[3] // 4
    return int(np.prod(shape[1:]))


def stand_in(name: str, shape: Sequence[int], *, has_bias: bool) -> Tensor:
    """One tensor of the network. `has_bias`: whether its layer also has a bias."""
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000, dtype=torch.int64)
    return torch.from_numpy(scaled(name, bell(name, shape), has_bias=has_bias).astype(np.float32))


def scaled(name: str, z: NDArray[np.float64], *, has_bias: bool) -> NDArray[np.float64]:
    """Unit noise scaled for the kind of tensor that the name stands for."""
    if name.endswith("running_mean"):
        return 0.1 * z
    if name.endswith("running_var"):
        return np.maximum(1.0 + 0.2 * z, 0.3)
    if name.endswith("quantize.embedding.weight"):
        return CODEBOOK_DEVIATION * z
    if name.endswith("rel_pos_bias.weight"):
        return 0.5 * z
    if name.endswith(".bias"):
        return 0.05 * z
    if z.ndim == 1:
        return 1.0 + 0.1 * z if has_bias else 0.25 + 0.05 * z
    short = name.removeprefix("vqgan.")
    gain = next(gain for pattern, gain in GAINS if re.search(pattern, short))
    return z * (gain / np.sqrt(float(fan_in(name, z.shape))))


def stand_in_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """A tensor for every name in `shapes`."""
    return {
        name: stand_in(name, shape, has_bias=f"{name.removesuffix('weight')}bias" in shapes)
        for name, shape in shapes.items()
    }


def write_stand_in(target: Path) -> None:
    """Write stand-in weights as a safetensors file that `load_checkpoint` accepts."""
    with torch.device("meta"):
        state = TLBVFI(Bare()).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    save_file(stand_in_weights(shapes), target, metadata={"format": "pt", "network": "tlbvfi"})
