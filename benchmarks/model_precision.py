"""What float16 and bfloat16 change: codes of the quantizer, flow, and the frame, on a few pairs.

    python benchmarks/model_precision.py

Stand-in weights, 256x256, 10 steps, on the CPU, where this is slow but rounds as a GPU does.
"""

# What is reached by name has no type here.
# ruff: noqa: ANN401

import copy
import json
import math
from typing import Any

import model_cpu
import torch
from torch import Tensor
from torch.nn import functional as F

SIZE = (256, 256)


def pictures(seed: int) -> list[Tensor]:
    """Two frames [1, 3, H, W]: a smooth picture that moves for even seeds, else unrelated ones."""
    if seed % 2 == 0:
        return [f[None] for f in model_cpu.moving_picture(seed + 2, *SIZE)[-2:]]
    coarse = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    return list(F.interpolate(coarse, size=SIZE, mode="bicubic").clamp(0, 1).split(1))


@torch.no_grad()
def compute(model: Any, frames: list[Tensor], geometry: Any, noise: list[Tensor]) -> list[Tensor]:
    """(codes, flow, frame between)."""
    features = [model.encode(frame, geometry) for frame in frames]
    y = model.encode_clip(features[0], model.encode_unknown(geometry), features[1])
    latent = model.sample_latent(y, len(noise) + 1, noise)
    codes = model.vqgan.quantize.codes(latent)
    flow = model.estimate_flow(*features)
    return [codes, flow, model.decode(model.vqgan.quantize(latent), *features, flow)]


def main() -> None:
    model_cpu.load_package()
    package = model_cpu.part("model")
    exact = model_cpu.stand_in_model(torch.channels_last)
    geometry = package.plan_geometry(*SIZE)
    for dtype in (torch.float16, torch.bfloat16):
        low = copy.deepcopy(exact).to_compute_dtype(dtype)
        for seed in range(4):
            draw = model_cpu.part("model.sampling").draw_noise
            noise = draw(seed, geometry, model_cpu.STEPS, torch.device("cpu"))
            frames = pictures(seed)
            wanted, found = (compute(m, frames, geometry, noise) for m in (exact, low))
            off = found[2] - wanted[2]
            report = {
                "dtype": str(dtype),
                "pair": seed,
                "codes_changed": (found[0] != wanted[0]).double().mean().item(),
                "flow_error_pixels": (found[1] - wanted[1]).abs().max().item(),
                "psnr": -10 * math.log10(off.square().mean().item()),
                "largest_error": off.abs().max().item(),
            }
            print(json.dumps(report))


if __name__ == "__main__":
    main()
