"""Where a new scene begins, and which frames only repeat the one before.

A decision looks only at signatures (small thumbnails) of a few frames around a pair: no running
averages, no state. A job therefore decides the same however it is cut into chunks and wherever it
resumes.

The ideas are known. A motion-compensated difference measured against the picture's own detail is
how x264 places keyframes (`scenecut`); comparing a difference with those of its neighbors is the
AdaptiveDetector of PySceneDetect; the largest change of a small area is how FFmpeg's `mpdecimate`
finds repeated frames.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from .errors import FrameError

if TYPE_CHECKING:
    from torch import Tensor

Picture = NDArray[np.float32]  # NDArray[Any] is what OpenCV's type hints make of it

F = TypeVar("F")
"""The caller's type of frame."""

FRAMES_BEFORE = 3
"""Frames that the decision on pair n looks at, up to and including n: n-2, n-1, n."""

FRAMES_AFTER = 3
"""Frames it looks at from n+1 on: n+1, n+2, n+3. A flash of up to two frames is not a cut."""

_CUT = 0.5
"""Share of two pictures' detail, unexplained by motion or light, from which they may be two scenes.
In benchmarks/scene_cuts.py cuts score 0.59 and more, other pairs 0.42 and less, unless the change
lasts."""
_SPIKE = 2.0
"""Ratio by which a cut exceeds a lasting change: a fade, a dissolve, a whip pan, a large object.
In the benchmark cuts exceed it 3.1 times, others 1.7 times."""
_SIDE = 48
"""Side of the thumbnail for cuts, in pixels: fine detail does not tell scenes apart."""
_BLOCK = 8
_REACH = 6
"""Search radius for motion, in thumbnail pixels: an eighth of the picture from frame to frame."""
_NOISE = 0.003
"""Difference, on a scale of 0 to 1, that grain and codec leave in a block of the thumbnail."""
_GAIN = 8.0
"""Contrast ratio beyond which one picture cannot be the other in a different light."""

_SAMPLES = 540
"""Rows and columns are skipped while at least this many remain: a whole 4K frame takes 70 ms."""
_DETAIL_SIDE = 96
"""Side of the thumbnail for duplicates, in pixels: a moving mouth must stay visible in it."""
_SPOT = 0.015
_SPOT_CONTRAST = 0.1
"""A repeated frame's largest change is `_SPOT + _SPOT_CONTRAST * contrast`: x264 at crf 23 stays
below, a mouth of 2 % of the width opening by a line is above, in dark scenes too."""
_GRAIN = 0.0045
"""Mean change that grain may leave in a repeated frame."""
_DRIFT = 0.0006
"""RMS change up to which a shift or a fade of the whole picture still counts as a repetition, so
that slow motion does not."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Signature:
    """What is kept of a frame: 64 kB, whatever its size."""

    colors: Picture
    """[48, 48, 3] luma and two color differences."""
    luma: Picture
    """[96, 96], in [0, 1]."""


def marked(
    frames: Iterable[F], image_of: Callable[[F], Tensor], *, look: bool = True
) -> Iterator[tuple[F, bool, bool]]:
    """(frame, begins a scene, repeats the one before) of every frame; both are False of the first.

    Each frame is given once `FRAMES_AFTER` frames from it on are read. To resume in the middle of a
    video, begin `FRAMES_BEFORE` frames earlier: the others are then marked as in the first run.
    Without `look` no frame is looked at, none is read ahead, and both are False.
    """
    if not look:
        yield from ((frame, False, False) for frame in frames)
        return
    before: deque[Signature] = deque(maxlen=FRAMES_BEFORE)
    ahead: deque[tuple[F, Signature]] = deque()

    def next_marked() -> tuple[F, bool, bool]:
        after = [known for _, known in ahead]
        frame, known = ahead.popleft()
        begins_scene = bool(before) and is_cut(before, after)
        repeats = bool(before) and is_duplicate(before[-1], known)
        before.append(known)
        return frame, begins_scene, repeats

    for frame in frames:
        ahead.append((frame, signature(image_of(frame))))
        if len(ahead) == FRAMES_AFTER:
            yield next_marked()
    while ahead:
        yield next_marked()


def sampling_step(height: int, width: int) -> int:
    """Step between the rows and columns that are looked at in a frame of this size."""
    return max(1, min(height, width) // _SAMPLES)


def signature(image: Tensor) -> Signature:
    """Signature of a frame, [3 or 4, H, W] float32 on the CPU, RGB(A), nominally in [0, 1].

    Averages outside [0, 1] are clipped, alpha is ignored.

    Raises:
        FrameError: another shape.
    """
    if image.ndim != 3 or image.shape[0] not in (3, 4):
        raise FrameError(
            f"scene detection takes frames [3 or 4, height, width], not {list(image.shape)}."
        )
    step = sampling_step(*image.shape[1:])
    planes = [np.ascontiguousarray(plane.numpy()) for plane in image[:3, ::step, ::step]]
    red, green, blue = (np.clip(_shrink(plane, _DETAIL_SIDE), 0, 1) for plane in planes)
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    colors = np.stack([luma, (red - luma) / 2, (blue - luma) / 2], axis=-1, dtype=np.float32)
    # The blur makes half a pixel of motion cost little in the whole-pixel search.
    return Signature(
        colors=_shrink(cv2.GaussianBlur(colors, (0, 0), 1.0), _SIDE), luma=colors[..., 0]
    )


def is_cut(before: Sequence[Signature], after: Sequence[Signature]) -> bool:
    """Whether the pair (before[-1], after[0]) has two scenes.

    `before` holds the last `FRAMES_BEFORE` frames up to the pair's first, `after` the
    `FRAMES_AFTER` frames from its second on; fewer only where the job begins or ends. These are not
    cuts: motion of any speed, objects passing, fades, dissolves of more than two frames, and
    flashes or foreign frames after which the picture comes back within `FRAMES_AFTER`.
    """
    if _is_same_scene(before[-1], after[0]):
        return False
    changes = [_motion_residual(a.colors, b.colors).mean() for a, b in pairwise((*before, *after))]
    pair = len(before) - 1
    lasting = max(_lasting(changes[:pair]), _lasting(changes[pair + 1 :]))
    if changes[pair] < _SPIKE * lasting:
        return False
    return not any(_is_same_scene(a, b) for a, b in product(before, after))


def is_duplicate(frame0: Signature, frame1: Signature) -> bool:
    """Whether the second frame repeats the first, apart from grain and codec artifacts."""
    change = frame1.luma - frame0.luma
    spot = np.abs(change).max()
    if spot > _SPOT + _SPOT_CONTRAST * frame0.luma.std() or np.abs(change).mean() > _GRAIN:
        return False
    return _coherent_change(frame0.luma, change) < _DRIFT


def _shrink(picture: NDArray[Any], side: int) -> Picture:
    return np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA), np.float32)


def _lasting(changes: Sequence[float]) -> float:
    """The change that two neighboring pairs share; one pair alone may be another cut."""
    return min(changes) if len(changes) == 2 else 0.0


def _is_same_scene(frame0: Signature, frame1: Signature) -> bool:
    """Whether most of the picture stays the same, up to motion or a change of light."""
    a, b = frame0.colors, frame1.colors
    still = _block_means(cv2.absdiff(a, b))
    if _share(_unexplained(_detail(a), still), _unexplained(_detail(b), still)) < _CUT:
        return True  # the usual case, without a search
    return _novelty(a, b) < _CUT or _is_relit(a, b)


def _novelty(a: Picture, b: Picture) -> float:
    """Share, 0 to 1, of the detail of two pictures that is not in the other, moved or not."""
    there = _unexplained(_detail(a), _motion_residual(a, b))
    back = _unexplained(_detail(b), _motion_residual(b, a))
    return _share(there, back)


def _unexplained(detail: Picture, residual: Picture) -> tuple[float, float]:
    """The part of the detail that is not found, and all of it."""
    return np.maximum(residual - _NOISE, 0).sum(), (np.maximum(detail, residual) + _NOISE).sum()


def _share(*parts: tuple[float, float]) -> float:
    lost, all_detail = np.sum(parts, axis=0)
    return float(lost / all_detail)


def _is_relit(a: Picture, b: Picture) -> bool:
    """Whether `b` has the detail of `a` at another brightness and contrast.

    Only detail counts as evidence: two flat pictures of different colors are not the same.
    """
    contrast_a, contrast_b = float(a.std()), float(b.std())
    if not contrast_a / _GAIN <= contrast_b <= contrast_a * _GAIN or contrast_b == 0:
        return False
    relit = (b - b.mean((0, 1))) * (contrast_a / contrast_b) + a.mean((0, 1))
    detail = np.maximum(_detail(a), _detail(relit))
    found = np.maximum(detail - _motion_residual(a, relit) - _NOISE, 0)
    return float(found.sum() / (detail + _NOISE).sum()) > 1 - _CUT


def _motion_residual(a: Picture, b: Picture) -> Picture:
    """Mean difference of every block of `a` from the best place for it in `b`. [6, 6]"""
    padded = cv2.copyMakeBorder(b, _REACH, _REACH, _REACH, _REACH, cv2.BORDER_REPLICATE)
    shifts = range(2 * _REACH + 1)
    column = np.concatenate(
        [a] * len(shifts)
    )  # all shifts of a column at once: fewer, larger calls
    best = np.full((_SIDE // _BLOCK, _SIDE // _BLOCK), np.inf, np.float32)
    for x in shifts:
        moved = np.concatenate([padded[y : y + _SIDE, x : x + _SIDE] for y in shifts])
        means = _block_means(cv2.absdiff(column, moved)).reshape(len(shifts), *best.shape)
        best = np.minimum(best, means.min(0))
    return best


def _detail(picture: Picture) -> Picture:
    """Mean difference of every block from its own mean color. [6, 6]"""
    side = _SIDE // _BLOCK
    means = cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA)
    return _block_means(cv2.absdiff(picture, means.repeat(_BLOCK, 0).repeat(_BLOCK, 1)))


def _block_means(difference: NDArray[Any]) -> Picture:
    """Mean over every block of the sum over channels: [k * 48, 48, 3] -> [k * 6, 6]."""
    size = (_SIDE // _BLOCK, len(difference) // _BLOCK)
    return cv2.resize(difference, size, interpolation=cv2.INTER_AREA).sum(-1)


def _coherent_change(luma: Picture, change: Picture) -> float:
    """RMS of the part of a change that one shift and one offset of the whole picture explain."""
    slope_y, slope_x = np.gradient(luma)
    causes = np.stack([slope_y.ravel(), slope_x.ravel(), np.ones(luma.size, np.float32)], axis=1)
    amounts, *_ = np.linalg.lstsq(causes.T @ causes, causes.T @ change.ravel(), rcond=None)
    return float(np.sqrt(np.mean((causes @ amounts) ** 2)))
