"""Frames to measure on: a moving smooth picture, or a clip played back and forth."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...encoding.color import convert, resolve, stream_tags, to_rgb
from ...encoding.profiles import EncoderSettings, resolve_encoder
from ...encoding.source import open_source
from ...encoding.writer import StreamSpec, VideoWriter
from ..errors import SettingsError
from .sizes import Size

Picture = NDArray[np.uint8]
"""RGB, [H, W, 3]."""

PERIOD = 12
"""Number of different pictures in a generated clip, and the most taken from a given one."""

STEP = 3
"""Pixels the generated picture moves from frame to frame."""

RATE = Fraction(25)


def pictures(size: Size, clip: Path | None = None, count: int = PERIOD) -> list[Picture]:
    """The first `count` pictures of `clip`, scaled to `size`, or of a generated motion.

    Raises:
        SourceError: the clip cannot be read.
        SettingsError: it has fewer than two frames.
    """
    found = moving_picture(size, count) if clip is None else _scaled(clip, size, count)
    if len(found) < 2:
        raise SettingsError(f"{clip} has only one frame: choose a clip with two or more.")
    return found


def moving_picture(size: Size, count: int) -> list[Picture]:
    """A smooth random picture that moves sideways."""
    coarse = np.random.default_rng(1).random((12, 16, 3), np.float32)
    wide = (size.width + STEP * PERIOD, size.height)
    picture = (cv2.resize(coarse, wide, interpolation=cv2.INTER_CUBIC).clip(0, 1) * 255).round()
    whole = picture.astype(np.uint8)
    return [whole[:, STEP * n : STEP * n + size.width].copy() for n in range(count)]


def _scaled(clip: Path, size: Size, count: int) -> list[Picture]:
    with open_source(clip) as source, closing(source.frames(0, count)) as frames:
        tags = resolve(source.info)
        return [
            _resized(to_rgb(frame.picture, tags)[:3].transpose(1, 2, 0), size) for frame in frames
        ]


def _resized(picture: NDArray[np.float32], size: Size) -> Picture:
    small = cv2.resize(picture, (size.width, size.height), interpolation=cv2.INTER_AREA)
    return (small.clip(0, 1) * 255).round().astype(np.uint8)


def as_frames(found: Sequence[Picture]) -> list[Tensor]:
    """Pictures as input for methods: [3, H, W] float32 in [0, 1]."""
    return [torch.from_numpy(picture).permute(2, 0, 1) / 255.0 for picture in found]


def there_and_back(number: int, count: int) -> int:
    """Index among `count` frames of the `number`th one shown; no two in a row are the same."""
    at = number % (2 * count - 2)
    return min(at, 2 * count - 2 - at)


def write_clip(target: Path, found: Sequence[Picture], frames: int) -> None:
    """Write a lightly compressed H.264 clip of `frames` frames: the pictures back and forth."""
    shown = (found[there_and_back(n, len(found))] for n in range(frames))
    with open_source(shown, input_rate=RATE) as source:
        settings = EncoderSettings(codec="h264", crf=18, preset="veryfast", pix_fmt="yuv420p")
        encoder = resolve_encoder(settings, source.info, container=target.suffix)
        tags = resolve(source.info)
        spec = StreamSpec(
            width=source.info.width,
            height=source.info.height,
            time_base=1 / RATE,
            rate=RATE,
            color=stream_tags(tags, encoder.pix_fmt),
        )
        with VideoWriter(target, encoder, spec) as writer:
            for frame in source.frames():
                writer.write(convert(frame.picture, encoder.pix_fmt, tags), frame.index)
