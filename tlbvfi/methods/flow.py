"""`flow`: mid frames by dense optical flow, with nothing to download.

Where each pixel goes, from frame 0 to frame 1 and back, is found in three steps: a full search on
thumbnails finds large motion, DIS finds smooth motion, and the better of the two initializes DIS at
a finer scale (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016, in
OpenCV's implementation). Each of the two flows is carried to time t and says where a pixel of the
mid frame lies in both frames: two hypotheses, four warped pictures. A hypothesis is weighted by how
well its two pictures agree; what one frame hides or lacks is taken from the other.

Arrays here are [H, W, C], OpenCV's order. Flows are [H, W, 2], x then y, in pixels of their own
grid: what is at x in one frame is at x + flow[x] in the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import torch

from ..method import PairKey

if TYPE_CHECKING:
    from torch import Tensor

    Array = np.ndarray[Any, np.dtype[Any]]

VERSION = 2
"""Increased when the frames change, so that a session of an older release is not resumed."""

SMALLEST_SIDE = 64
"""Smaller pictures are padded: DIS takes patches of 8 pixels at a quarter of the size."""

FLOW_SIDE = 270
"""Flow is found at the smallest 1 / 2**n of the size whose short side has at least this many
pixels, and enlarged: at 540 lines, half the size takes two fifths of the time and loses 0.04 dB."""

SEARCH_SIDE, SEARCH_RADIUS = 48, 7
"""Short side of the thumbnails, and the search radius in their pixels: motion of up to a seventh of
the short side is found, at the same cost for any size."""

SEARCH_COST_PER_PIXEL = 2.0
"""Penalty for each thumbnail pixel of motion, in 8-bit codes of difference summed over channels."""

CHOICE_SIDE = 96
"""Short side of the pictures on which two flows are compared."""

CHOICE_MARGIN = 20.0
"""8-bit codes, summed over channels, by which another motion must fit better to be chosen."""

SPREAD_STEPS = (4, 2, 1)
"""Distances, in pixels of the choice picture, over which a motion spreads to fill its object."""

INVERSION_STEPS = 3

COARSER_SCALES = 2
"""How many scales above the finest DIS starts when it is given an initial flow."""

ASTRAY_FLOOR = 0.5
"""Pixels by which a round trip along both flows may miss its start: the accuracy of the flow."""

DISAGREEMENT_SIGMA = 1.5
"""Pixels. Without the blur, single pixels agree by chance too often."""

BAND_ROWS, BAND_MARGIN = 96, 8
"""Mid frames are made in bands of rows that fit the cache; the margin exceeds the reach of
`DISAGREEMENT_SIGMA`, so that bands leave no seams."""

DISAGREEMENT_FLOOR = 10 / 255
"""Summed over channels. Smaller differences are noise of the source."""

UNSEEN_DISAGREEMENT = 30 / 255
"""Assumed where one frame lacks a pixel, because it lies beyond the border. At the edges of a pan 1 to
3 dB better than a comparison with the border's stretched pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowFeatures:
    """What `flow` needs of one frame; the pictures for the search are 8-bit codes, padded."""

    image: Array
    """[H, W, 3 or 4] float32, as given."""
    luma: Array
    """[h, w] uint8."""
    thumbnail: Array
    """[h, w, 3] float32 in [0, 255], for the full search."""
    choice: Array
    """[h, w, 3] float32 in [0, 255], for the comparison of flows."""
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Motion:
    """Flow from one frame to the other, and how far the other frame hides what moves, in [0, 1]."""

    flow: Array
    hidden: Array
    """[h, w] float32, on the grid of `flow`."""


class FlowMethod:
    """Optical flow in both directions, and a blend of the warped frames. Bit-for-bit repeatable."""

    name = "flow"
    any_time = True
    device = torch.device("cpu")

    @property
    def settings(self) -> dict[str, Any]:
        """What decides its frames."""
        return {"version": VERSION}

    def memory_needed(self, height: int, width: int) -> int:
        """0: negligible."""
        return 0

    def prepare(self, frame: Tensor) -> FlowFeatures:
        """The picture to warp and those to find the flow on. `frame`: [C, H, W], C = 3 or 4."""
        image = np.ascontiguousarray(frame.permute(1, 2, 0).numpy())
        codes = _padded_codes(image)
        return FlowFeatures(
            image=image,
            luma=cv2.cvtColor(codes, cv2.COLOR_RGB2GRAY),
            thumbnail=_reduced(codes, SEARCH_SIDE),
            choice=_reduced(codes, CHOICE_SIDE),
            # fmin and fmax ignore NaN, which an EXR may hold.
            lowest=float(np.fmin.reduce(image, axis=None)),
            highest=float(np.fmax.reduce(image, axis=None)),
        )

    def between(
        self,
        features0: FlowFeatures,
        features1: FlowFeatures,
        times: Sequence[Fraction],
        key: PairKey,
    ) -> Iterator[Tensor]:
        """Frames at `times`, each [C, H, W] float32, made on demand; `key` is unused: no noise."""
        flow0, flow1 = _flow(features0, features1), _flow(features1, features0)
        motion0 = Motion(flow=flow0, hidden=_hidden(flow0, flow1))
        motion1 = Motion(flow=flow1, hidden=_hidden(flow1, flow0))
        frames = (_mid_frame(features0, features1, motion0, motion1, float(t)) for t in times)
        return (torch.from_numpy(frame).permute(2, 0, 1).contiguous() for frame in frames)


def _padded_codes(image: Array) -> Array:
    height, width = image.shape[:2]
    # Values beyond white say little about motion: clipped here, kept in the picture. NaN is black.
    unit = np.fmin(np.fmax(image[..., :3], 0), 1)
    codes = np.rint(unit * 255).astype(np.uint8)
    bottom, right = max(0, SMALLEST_SIDE - height), max(0, SMALLEST_SIDE - width)
    return cv2.copyMakeBorder(codes, 0, bottom, 0, right, cv2.BORDER_REPLICATE)


def _reduced(codes: Array, side: int) -> Array:
    height, width = codes.shape[:2]
    scale = side / min(height, width)
    size = (round(width * scale), round(height * scale))
    return cv2.resize(codes, size, interpolation=cv2.INTER_AREA).astype(np.float32)


def _flow(source: FlowFeatures, target: FlowFeatures) -> Array:
    """Flow from `source` to `target`, [h, w, 2], 1 / 2**n the size of the image."""
    scale = max(0, (min(source.luma.shape) // FLOW_SIDE).bit_length() - 1)
    smooth = _resized(_dis(source.luma, target.luma, scale + 1), source.choice.shape)
    # Nearest: a mean of two motions is not a motion.
    far = _search(source.thumbnail, target.thumbnail)
    far = _resized(far, source.choice.shape, cv2.INTER_NEAREST)
    start = _resized(_better(source.choice, target.choice, smooth, far), source.luma.shape)
    flow = _dis(source.luma, target.luma, scale, start)
    height, width = source.image.shape[:2]
    return _resized(flow[:height, :width], (-(-height >> scale), -(-width >> scale)))


def _dis(luma0: Array, luma1: Array, scale: int, start: Array | None = None) -> Array:
    # A new estimator each time: it alters its own settings when it meets a small picture, and the
    # result for a pair must not depend on earlier pairs.
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(scale)
    # The preset's 3 and 5 take 1.7 times as long, for 0.01 dB.
    dis.setPatchStride(5)
    dis.setVariationalRefinementIterations(3)
    # Before OpenCV 4.13 it starts at the coarsest scale again, which takes longer, for 0.01 dB less.
    if start is not None and hasattr(dis, "setCoarsestScale"):
        dis.setCoarsestScale(scale + COARSER_SCALES)
    return dis.calc(luma0, luma1, start)  # pyright: ignore[reportCallIssue, reportArgumentType] - its types forbid None


def _search(source: Array, target: Array) -> Array:
    """The best whole-pixel motion within `SEARCH_RADIUS` of every pixel."""
    height, width = source.shape[:2]
    radius = SEARCH_RADIUS
    around = cv2.copyMakeBorder(target, radius, radius, radius, radius, cv2.BORDER_REPLICATE)
    side = range(-radius, radius + 1)
    offsets = np.array([(x, y) for y in side for x in side])
    costs = [
        _difference(source, around[radius + y :, radius + x :][:height, :width])
        + SEARCH_COST_PER_PIXEL * np.hypot(x, y, dtype=np.float32)
        for x, y in offsets
    ]
    return offsets.astype(np.float32)[np.argmin(costs, axis=0)]


def _better(source: Array, target: Array, smooth: Array, far: Array) -> Array:
    """For every pixel the flow that fits best: smooth, far, or the one chosen nearby."""
    misfit = partial(_misfit, source, target)
    best, lowest = _taken(smooth, misfit(smooth), far, misfit(far))
    for step in SPREAD_STEPS:
        for x, y in ((step, 0), (-step, 0), (0, step), (0, -step)):
            offer = _shifted(best, x, y)
            best, lowest = _taken(best, lowest, offer, misfit(offer))
    return best


def _misfit(source: Array, target: Array, flow: Array) -> Array:
    grid = _pixel_grid(*flow.shape[:2])
    return _difference(source, _sample(target, grid + flow, cv2.INTER_LINEAR))


def _taken(flow: Array, misfit: Array, offer: Array, offered: Array) -> tuple[Array, Array]:
    """The flow, or the offer where that fits clearly better; and the misfit of the choice."""
    fits = offered + CHOICE_MARGIN < misfit
    return np.where(fits[..., None], offer, flow), np.where(fits, offered, misfit)


def _shifted(flow: Array, x: int, y: int) -> Array:
    """The flow of the neighbor at (-x, -y)."""
    height, width = flow.shape[:2]
    reach = max(abs(x), abs(y))
    around = cv2.copyMakeBorder(flow, reach, reach, reach, reach, cv2.BORDER_REPLICATE)
    return around[reach - y :, reach - x :][:height, :width]


def _hidden(flow: Array, back: Array) -> Array:
    """How surely the other frame hides a pixel: the way back leads elsewhere, and is itself sure.

    Where both ways are unsure, the flow is wrong rather than the pixel hidden, and an even mix does
    the least harm.
    """
    grid = _pixel_grid(*flow.shape[:2])
    astray = _astray(flow, back, grid)
    astray_there = _sample(_astray(back, flow, grid), grid + flow, cv2.INTER_LINEAR)
    sharpness = FLOW_SIDE / min(flow.shape[:2])
    lost = 1 - np.exp(-sharpness * np.maximum(astray - ASTRAY_FLOOR, 0))
    return lost * np.exp(-sharpness * astray_there)


def _astray(flow: Array, back: Array, grid: Array) -> Array:
    """Distance in pixels between the start and the end of the way there and back, [H, W]."""
    missed = flow + _sample(back, grid + flow, cv2.INTER_LINEAR)
    return np.hypot(missed[..., 0], missed[..., 1])


def _mid_frame(
    frame0: FlowFeatures, frame1: FlowFeatures, motion0: Motion, motion1: Motion, t: float
) -> Array:
    height, width = frame0.image.shape[:2]
    onward = _arrived(motion0, t, height, width)
    back = _arrived(motion1, 1 - t, height, width)
    mixed = np.empty_like(frame0.image)
    for top in range(0, height, BAND_ROWS):
        rows = slice(max(0, top - BAND_MARGIN), min(height, top + BAND_ROWS + BAND_MARGIN))
        band = _mid_band(frame0.image, frame1.image, onward, back, rows, t)
        mixed[top : top + BAND_ROWS] = band[top - rows.start :][:BAND_ROWS]
    # Cubic interpolation overshoots at edges; a mid frame must not leave the range of its pair.
    low, high = min(frame0.lowest, frame1.lowest), max(frame0.highest, frame1.highest)
    return mixed.clip(low, high, out=mixed)


def _mid_band(
    image0: Array, image1: Array, onward: Motion, back: Motion, rows: slice, t: float
) -> Array:
    """Some rows of the mid frame; `onward` is motion from 0 to 1, `back` from 1 to 0."""
    flow0, flow1 = onward.flow[rows], back.flow[rows]
    grid = _pixel_grid(*flow0.shape[:2], top=rows.start)
    picture0, disagreement0 = _hypothesis(
        (image0, grid - t * flow0), (image1, grid + (1 - t) * flow0), t * (1 - onward.hidden[rows])
    )
    picture1, disagreement1 = _hypothesis(
        (image1, grid - (1 - t) * flow1),
        (image0, grid + t * flow1),
        (1 - t) * (1 - back.hidden[rows]),
    )
    return _mixed(picture1, picture0, disagreement1 / (disagreement0 + disagreement1))


def _hypothesis(
    own: tuple[Array, Array], other: tuple[Array, Array], weight: Array
) -> tuple[Array, Array]:
    """Both frames warped and mixed, the other by `weight`, and how much they disagree.

    `own` is the frame whose motion it is: an image and where to sample it, like the `other`. What
    one has not, because it lies beyond its border, is taken from the other.
    """
    warped0, warped1 = (_sample(*each, cv2.INTER_CUBIC) for each in (own, other))
    beyond0, beyond1 = (_beyond(where, image.shape) for image, where in (own, other))
    disagreement = _disagreement(warped0, warped1)
    disagreement += np.maximum(beyond0, beyond1) * (UNSEEN_DISAGREEMENT - disagreement)
    weight = (weight + beyond0 * (1 - weight)) * (1 - beyond1)
    return _mixed(warped0, warped1, weight), disagreement


def _beyond(where: Array, shape: tuple[int, ...]) -> Array:
    """How far positions are beyond the border, up to a pixel."""
    x, y = cv2.split(where)
    centers = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    across, down = (np.abs(at - half) - half for at, half in zip((x, y), centers, strict=True))
    return np.maximum(across, down).clip(0, 1)


def _arrived(motion: Motion, t: float, height: int, width: int) -> Motion:
    """Motion of what has arrived at each pixel of a frame after the fraction `t` of its way.

    The flow is given where it starts; u(x) = flow(x - t * u(x)) is solved by iteration.
    """
    grid = _pixel_grid(*motion.flow.shape[:2])
    flow = motion.flow
    for _ in range(INVERSION_STEPS):
        flow = _sample(motion.flow, grid - t * flow, cv2.INTER_LINEAR)
    hidden = _sample(motion.hidden, grid - t * flow, cv2.INTER_LINEAR)
    return Motion(
        flow=_resized(flow, (height, width)),
        hidden=cv2.resize(hidden, (width, height), interpolation=cv2.INTER_LINEAR),
    )


def _disagreement(warped0: Array, warped1: Array) -> Array:
    difference = _channel_sum(cv2.absdiff(warped0, warped1))
    return cv2.GaussianBlur(difference, (0, 0), DISAGREEMENT_SIGMA) + DISAGREEMENT_FLOOR


def _mixed(picture0: Array, picture1: Array, weight1: Array) -> Array:
    """`picture0` with `picture1` mixed in by `weight1` [H, W]; exact where the two are equal."""
    mixed = picture1 - picture0
    # A merged weight: numpy broadcasts along a last axis of 3 six times slower.
    mixed *= cv2.merge([weight1] * mixed.shape[2])
    mixed += picture0
    return mixed


def _difference(picture0: Array, picture1: Array) -> Array:
    """Sum over channels of the absolute difference, mean of 5 x 5 pixels, [H, W]."""
    return cv2.blur(_channel_sum(cv2.absdiff(picture0, picture1)), (5, 5))


def _channel_sum(picture: Array) -> Array:
    # 25 times faster than numpy's sum along a last axis of 3.
    return cv2.transform(picture, np.ones((1, picture.shape[2]), np.float32))


def _resized(flow: Array, shape: tuple[int, ...], interpolation: int | None = None) -> Array:
    """Flow on a grid of another size, its vectors in pixels of that grid."""
    height, width = flow.shape[:2]
    if interpolation is None:
        interpolation = cv2.INTER_AREA if shape[0] < height else cv2.INTER_LINEAR
    resized = cv2.resize(flow, (shape[1], shape[0]), interpolation=interpolation)
    return cv2.transform(resized, np.diag([shape[1] / width, shape[0] / height]))


def _pixel_grid(height: int, width: int, top: int = 0) -> Array:
    grid = np.empty((height, width, 2), np.float32)
    grid[..., 0] = np.arange(width)
    grid[..., 1] = np.arange(top, top + height)[:, None]
    return grid


def _sample(image: Array, where: Array, interpolation: int) -> Array:
    """`image` at positions `where`, [H, W, 2] in pixels, x then y; edge pixels beyond the border."""
    return cv2.remap(image, where, None, interpolation, borderMode=cv2.BORDER_REPLICATE)  # pyright: ignore[reportCallIssue, reportArgumentType] - its types forbid None
