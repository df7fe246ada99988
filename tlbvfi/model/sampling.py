"""Two frames in, the mid frame out: the border where input is checked and noise is drawn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import torch
from torch import Tensor

from ..errors import FrameError, SettingsError
from ..method import PairKey
from .bridge import MAX_STEPS
from .geometry import MINIMUM_SIDE, Geometry, Padding, plan_geometry
from .memory import plan_memory
from .precision import matmul_precision
from .tlbvfi import TLBVFI
from .unet import LATENT

log = logging.getLogger("tlbvfi.model")

HALFWAY = Fraction(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How a frame is computed; every field changes the result."""

    steps: int = 10
    """Steps along the bridge, 1 to 500. More take longer; the reference cannot go below 3."""
    flow_scale: float = 0.5
    """Scale in (0, 1] at which the flow is estimated; rounded to one the network can use."""
    padding: Padding = "reference"
    """`reference` pads to multiples of 512 like the paper's code, `tight` to multiples of 256."""
    tf32: bool = False
    """Let NVIDIA GPUs round the factors of float32 products to 10 bits. Not exact."""

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise SettingsError(f"steps must be between 1 and {MAX_STEPS}, got {self.steps}.")
        if not 0 < self.flow_scale <= 1:
            raise SettingsError(f"flow_scale must be above 0 and at most 1, got {self.flow_scale}.")
        if self.padding not in get_args(Padding):
            raise SettingsError(f"padding must be reference or tight, got {self.padding}.")

    def geometry(self, height: int, width: int) -> Geometry:
        """Sizes for frames of `height` x `width` pixels.

        Raises:
            FrameError: a side is shorter than 16 pixels.
        """
        if min(height, width) < MINIMUM_SIDE:
            raise FrameError(
                f"Frames are {width}x{height}: TLB-VFI needs at least {MINIMUM_SIDE} pixels per "
                "side."
            )
        return plan_geometry(height, width, flow_scale=self.flow_scale, padding=self.padding)

    def report(self, geometry: Geometry) -> None:
        """Log the flow scale if it is not the requested one."""
        used = float(geometry.flow_scale)
        if abs(used - self.flow_scale) > 1e-9:
            size = f"{geometry.width}x{geometry.height}"
            log.info("flow_scale %g is rounded to %g for frames of %s", self.flow_scale, used, size)


def draw_noise(seed: int, geometry: Geometry, steps: int) -> Tensor:
    """steps - 1 draws of N(0, 1), [steps - 1, 1, 3, 3, h, w] on the CPU, determined by `seed`.

    Drawn on the CPU because the generators of devices differ.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (1, LATENT, 3, *geometry.latent)
    # Not in the caller's default dtype, which would draw other numbers.
    kind = {"device": "cpu", "dtype": torch.float32}
    draws = [torch.randn(shape, generator=generator, **kind) for _ in range(steps - 1)]
    return torch.stack(draws) if draws else torch.empty((0, *shape), **kind)


def check_values(frame: Tensor) -> None:
    """Raises: FrameError: a value is NaN or infinite."""
    # One value that is not finite makes the sum so, which is computed in a tenth of the time that
    # looking at each takes. Sums of finite values may overflow: only then is each looked at.
    if not torch.isfinite(frame.sum()) and not torch.isfinite(frame).all():
        raise FrameError("A frame holds NaN or infinite pixels: repair it or leave it out.")


def check_frames(frame0: Tensor, frame1: Tensor, device: torch.device) -> None:
    """Raises: FrameError: not two float RGB batches of one size on `device`."""
    for frame in (frame0, frame1):
        if frame.ndim != 4 or frame.shape[1] != 3 or not len(frame):
            raise FrameError(f"Frames must be RGB [B, 3, H, W], got {list(frame.shape)}.")
        if not frame.is_floating_point():
            raise FrameError(f"Frames must be floats in [0, 1], got {frame.dtype}: divide by 255.")
        if frame.device != device:
            raise FrameError(f"The frames are on {frame.device}, the model on {device}: move one.")
        check_values(frame)
    if frame0.shape != frame1.shape:
        raise FrameError(
            f"The frames of a pair must have one shape, got {list(frame0.shape)} and "
            f"{list(frame1.shape)}."
        )


def check_noise(
    noise: Sequence[Tensor] | Tensor, batch: int, geometry: Geometry, steps: int
) -> None:
    """Raises: SettingsError: not one draw of the latent's shape per step but the last."""
    shape = (batch, LATENT, 3, *geometry.latent)
    if len(noise) != steps - 1 or any(tuple(draw.shape) != shape for draw in noise):
        shapes = [list(draw.shape) for draw in noise]
        raise SettingsError(
            f"noise for {steps} steps must be {steps - 1} draws of shape {list(shape)}, got {shapes}."
        )


@torch.no_grad()
def sample(
    model: TLBVFI,
    frame0: Tensor,
    frame1: Tensor,
    *,
    steps: int = 10,
    flow_scale: float = 0.5,
    seed: int = 0,
    noise: Sequence[Tensor] | Tensor | None = None,
    padding: Padding = "reference",
    tf32: bool = False,
) -> Tensor:
    """Frames halfway between two batches of frames, [B, 3, H, W] in [0, 1] like both inputs.

    Pairs of a batch do not influence each other and share the noise of `seed`, so a batch equals
    its pairs one by one. `noise`: steps - 1 draws [B, 3, 3, h, w] in step order, instead of `seed`;
    h and w are the padded sides / 32. `tf32`: see `SamplingOptions`.

    Raises:
        FrameError: frames that are not RGB floats of one size on the model's device, with sides
            of at least 16 pixels and finite values.
        SettingsError: an option is out of range, or `noise` has the wrong shape.
    """
    options = SamplingOptions(steps=steps, flow_scale=flow_scale, padding=padding, tf32=tf32)
    check_frames(frame0, frame1, model.device)
    geometry = options.geometry(*frame0.shape[-2:])
    options.report(geometry)
    if noise is None:
        noise = draw_noise(PairKey(seed, 0).node_seed(HALFWAY), geometry, steps).to(model.device)
    else:
        check_noise(noise, len(frame0), geometry, steps)
    plan = plan_memory(
        geometry, device=model.device.type, dtype=model.compute_dtype, batch=len(frame0)
    )
    with matmul_precision(tf32=tf32):
        features0, features1 = (model.encode(f.float(), geometry, plan) for f in (frame0, frame1))
        unknown = model.encode_unknown(geometry, plan)
        return model(features0, unknown, features1, steps, noise, plan)
