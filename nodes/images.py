"""IMAGE batches through the pipeline: [B, H, W, C] in [0, 1] as in ComfyUI, in and out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from ..tlbvfi.errors import FrameError
from ..tlbvfi.method import Method
from ..tlbvfi.pipeline import OutputFrame, Rules, interpolate
from ..tlbvfi.scenes import marked
from ..tlbvfi.spans import CutRule, SourceFrame
from ..tlbvfi.timeline import Bisection

OnFrame = Callable[[OutputFrame[int]], None]


def sequence_length(frames: int, times: int, *, sources: bool, ends_here: bool = True) -> int:
    """Number of output frames of `interpolate_images` for a batch of `frames`.

    `times` 0 means only the one mid frame of each pair.

    Raises:
        SettingsError: `times` is below 0, which is possible over a link, or too high.
    """
    whole = Bisection(times=times).total(frames, Fraction(frames))
    if times == 0:
        return frames - 1
    if not sources:
        return whole - frames
    return whole if ends_here else whole - 1


def interpolate_images(
    images: Tensor,
    method: Method,
    out: Tensor,
    *,
    times: int,
    seed: int = 0,
    sources: bool = True,
    ends_here: bool = True,
    cuts: CutRule = "ignore",
    on_frame: OnFrame,
) -> Tensor:
    """Fill `out`, [sequence_length, H, W, C], with the interpolated batch and return it.

    `images`: [B >= 2, H, W, C]. With `times` 0 or `sources=False` only mid frames are kept, and the
    source frames that `cuts` shows in their place; with `ends_here=False` the last source frame is
    left out. `on_frame` may raise to stop.
    """
    keep_sources = sources and times > 0
    timeline = Bisection(times=max(times, 1))
    outputs = interpolate(
        source_frames(images, find_cuts=cuts != "ignore"),
        method,
        timeline,
        Rules(seed=seed, cuts=cuts),
        ends_here=ends_here and keep_sources,
    )
    kept = (frame for frame in outputs if keep_sources or frame.is_held or not frame.is_source)
    for row, frame in zip(out, kept, strict=True):
        row.copy_(_picture(frame, images))
        on_frame(frame)
    return out


def source_frames(images: Tensor, *, find_cuts: bool = False) -> Iterator[SourceFrame[int]]:
    """The frames of a batch, a few converted at a time; the picture is the frame's index."""
    frames = ((index, as_frame(image, index)) for index, image in enumerate(images))
    looked_at = marked(frames, lambda item: item[1], look=find_cuts)
    for (index, frame), begins_scene, _ in looked_at:
        yield SourceFrame(
            index=index,
            time=Fraction(index),
            image=frame,
            picture=index,
            begins_scene=begins_scene,
        )


def as_frame(image: Tensor, index: int) -> Tensor:
    """[H, W, C] of any float type and device as the [C, H, W] float32 on the CPU that methods take.

    Raises:
        FrameError: the frame, number `index` of its batch, holds NaN or infinite pixels.
    """
    frame = image.movedim(-1, 0).to(device="cpu", dtype=torch.float32).contiguous()
    if not np.isfinite(frame.numpy()).all():
        raise FrameError(
            f"frame {index} of the batch holds NaN or infinite pixels: repair it or leave it out."
        )
    return frame


def require_images(images: Tensor) -> None:
    """Refuse a batch without color pictures.

    Raises:
        FrameError: no frame, no pixel, or neither 3 nor 4 channels.
    """
    count, _, _, channels = images.shape
    if not images.numel() or channels not in (3, 4):
        raise FrameError(
            f"a batch must hold frames of 3 or 4 channels (RGB or RGBA), this one has {count} of "
            f"{_size(images)}: connect another output, or convert it."
        )


def require_pairs(images: Tensor) -> None:
    """Refuse a batch without a pair.

    Raises:
        FrameError: fewer than two frames.
    """
    if len(images) < 2:
        raise FrameError(
            f"interpolation needs at least 2 frames, this batch has {len(images)}: connect the "
            "whole clip, not a single image."
        )


def pair_of(frame0: Tensor, frame1: Tensor) -> Tensor:
    """[2, H, W, C] of the first images of two batches.

    Raises:
        FrameError: one batch has no color picture, or the two differ in size or channels.
    """
    require_images(frame0)
    require_images(frame1)
    if frame0.shape[1:] != frame1.shape[1:]:
        raise FrameError(
            f"the two frames differ in size or channels: {_size(frame0)} and {_size(frame1)}; scale or "
            "convert one of them first."
        )
    return torch.stack([frame0[0], frame1[0].to(frame0)])


def _picture(frame: OutputFrame[int], images: Tensor) -> Tensor:
    """[H, W, C]; a source frame comes straight from the batch, in its original type."""
    if frame.source is not None:
        return images[frame.source.picture]
    assert frame.image is not None  # the pipeline sets one of the two
    return frame.image.movedim(0, -1)


def _size(image: Tensor) -> str:
    height, width, channels = image.shape[1:]
    return f"{width}x{height} with {channels} channels"
