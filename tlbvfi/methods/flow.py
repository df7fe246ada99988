"""`flow`: frames between along dense optical flow, with nothing to download.

DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016; OpenCV's
implementation) gives the motion of every pixel from frame 0 to frame 1 and back. Each of the two
fields is carried to time t and says where a pixel of the mid frame lies in both frames: two
hypotheses, four warped pictures. Where a hypothesis is right, the two pixels it names look alike;
at an occlusion only one of the two holds, so each counts as much as it agrees.

Arrays here are [H, W, C], OpenCV's order; flows are [H, W, 2] in pixels, x then y.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from ..method import PairKey

if TYPE_CHECKING:
    from torch import Tensor

    Array = np.ndarray[Any, np.dtype[Any]]

VERSION = 1
"""Raised when the frames change, so that a session of an older release is not gone on with."""
SMALLEST_SIDE = 16  # DIS refuses pictures of less than 12 pixels
INVERSION_STEPS = 3
DISAGREEMENT_SIGMA = 1.5  # pixels: one pixel alone agrees by chance too often
DISAGREEMENT_FLOOR = 10 / 255  # sum over channels: below this, differences are noise


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFeatures:
    """What `flow` needs of one frame."""

    image: Array
    """[H, W, C] float32."""
    luma: Array
    """[h, w] uint8, the frame padded to `SMALLEST_SIDE`."""
    lowest: float
    highest: float


class FlowMethod:
    """Optical flow in both directions, and a blend of what it warps."""

    name = "flow"
    any_time = True
    device = torch.device("cpu")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its frames."""
        return {"version": VERSION}

    def memory_needed(self, height: int, width: int) -> int:
        """Nothing worth a word."""
        return 0

    def prepare(self, frame: Tensor) -> FlowFeatures:
        """Luma for the flow and the picture to warp. `frame`: [C, H, W] float32, C = 3 or 4."""
        image = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        return FlowFeatures(
            image=image,
            luma=_luma(image),
            # fmin and fmax pass over NaN, which an EXR may hold.
            lowest=float(np.fmin.reduce(image, axis=None)),
            highest=float(np.fmax.reduce(image, axis=None)),
        )

    def between(
        self,
        features0: FlowFeatures,
        features1: FlowFeatures,
        times: Sequence[Fraction],
        key: PairKey,
    ) -> list[Tensor]:
        """Frames at `times`, each [C, H, W] float32; `key` has no say, there is no noise."""
        flow01 = _flow(features0, features1)
        flow10 = _flow(features1, features0)
        frames = [_mid_frame(features0, features1, flow01, flow10, float(t)) for t in times]
        return [torch.from_numpy(frame).permute(2, 0, 1).contiguous() for frame in frames]


def _luma(image: Array) -> Array:
    height, width = image.shape[:2]
    # Brightness beyond white says little about motion: clipped here, kept in the picture.
    gray = cv2.cvtColor(image[..., :3], cv2.COLOR_RGB2GRAY)
    codes = np.rint(np.nan_to_num(gray, nan=0.0).clip(0, 1) * 255).astype(np.uint8)
    bottom, right = max(0, SMALLEST_SIDE - height), max(0, SMALLEST_SIDE - width)
    return cv2.copyMakeBorder(codes, 0, bottom, 0, right, cv2.BORDER_REPLICATE)


def _flow(source: FlowFeatures, target: FlowFeatures) -> Array:
    """Where each pixel of `source` goes: the pixel x of source is x + flow[x] of target."""
    # A new estimator each time: it alters its own scales when it meets a small picture, and what
    # a pair gives must not hang on the pairs before.
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = dis.calc(source.luma, target.luma, None)  # pyright: ignore[reportCallIssue, reportArgumentType] - stubs forbid the None
    height, width = source.image.shape[:2]
    return flow[:height, :width]


def _mid_frame(
    frame0: FlowFeatures, frame1: FlowFeatures, flow01: Array, flow10: Array, t: float
) -> Array:
    grid = _pixel_grid(*frame0.image.shape[:2])
    onward = _flow_at(flow01, t, grid)  # motion from 0 to 1 of the pixels of the mid frame
    back = _flow_at(flow10, 1 - t, grid)  # motion from 1 to 0
    mix0, disagreement0 = _hypothesis(
        frame0.image, frame1.image, grid - t * onward, grid + (1 - t) * onward, t
    )
    mix1, disagreement1 = _hypothesis(
        frame0.image, frame1.image, grid + t * back, grid - (1 - t) * back, t
    )
    weight0 = disagreement1**2 / (disagreement0**2 + disagreement1**2)
    mixed = mix1 + weight0[..., None] * (mix0 - mix1)
    # Cubic interpolation overshoots at edges; no mid frame is darker or brighter than its pair.
    low, high = min(frame0.lowest, frame1.lowest), max(frame0.highest, frame1.highest)
    return mixed.clip(low, high, out=mixed)


def _pixel_grid(height: int, width: int) -> Array:
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
    return np.dstack([x, y])


def _flow_at(flow: Array, t: float, grid: Array) -> Array:
    """The flow of what has arrived at each pixel after the fraction `t` of its way.

    The flow is known where motion starts; u(x) = flow(x - t * u(x)) is solved by iteration.
    """
    arrived = flow
    for _ in range(INVERSION_STEPS):
        arrived = _sample(flow, grid - t * arrived, cv2.INTER_LINEAR)
    return arrived


def _hypothesis(
    image0: Array, image1: Array, where0: Array, where1: Array, t: float
) -> tuple[Array, Array]:
    """The pixels found at two places mixed, and how much they disagree, [H, W], above 0."""
    # Linear interpolation loses 0.26 dB of texture against cubic.
    warped0 = _sample(image0, where0, cv2.INTER_CUBIC)
    warped1 = _sample(image1, where1, cv2.INTER_CUBIC)
    difference = cv2.absdiff(warped0, warped1).sum(axis=2)
    disagreement = cv2.GaussianBlur(difference, (0, 0), DISAGREEMENT_SIGMA) + DISAGREEMENT_FLOOR
    return cv2.addWeighted(warped0, 1 - t, warped1, t, 0), disagreement


def _sample(image: Array, where: Array, interpolation: int) -> Array:
    """`image` at the places `where`, [H, W, 2] in pixels, x then y; beyond the border its edge."""
    return cv2.remap(image, where, None, interpolation, borderMode=cv2.BORDER_REPLICATE)  # pyright: ignore[reportCallIssue, reportArgumentType] - stubs forbid the None
