"""A node's input clip, a batch of images or a video, as a source of frames."""

from __future__ import annotations

import hashlib
import os
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from comfy_api.latest import Input, InputImpl
from numpy.typing import NDArray
from torch import Tensor

from ..encoding.durable import atomic_file, disk_errors, file_sha256, make_folder
from ..encoding.memory import MemorySource
from ..encoding.probe import first_picture
from ..encoding.source import Source, open_source
from ..tlbvfi.errors import SettingsError
from .images import require_images, require_pairs
from .output_settings import meant_rate

CHANNELS = (*range(1, 9), 10, 12, 14, 16, 24)
"""Numbers of channels that FFmpeg knows loudspeakers for."""
HIGHEST_RATE = 768_000
"""Samples per second."""

ImagesOrVideo = Any  # an IMAGE tensor [N, H, W, C] or ComfyUI's untyped VideoInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """A source of frames and related facts."""

    source: Source
    sound: Path | None = None
    """File whose sound goes with the frames; a path, so that a later join finds it, too."""
    is_copy: bool = False
    """Whether that file was made here, of what exists only in memory."""
    start: Fraction | None = None
    """Seconds after the first frame where a trimmed video begins."""
    end: Fraction | None = None
    is_video: bool = True
    """Whether the clip has its own frame rate."""


class BatchFrames(Sequence[NDArray[np.float32]]):
    """The images of a batch, [H, W, C] float32 each, converted one at a time."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> NDArray[np.float32]: ...
    @overload
    def __getitem__(self, index: slice) -> BatchFrames: ...
    def __getitem__(self, index: int | slice) -> NDArray[np.float32] | BatchFrames:
        if isinstance(index, slice):
            return BatchFrames(self._images[index])
        return self._images[index].to(device="cpu", dtype=torch.float32).numpy()


class Components(MemorySource):
    """Frames of a video in memory; the same frames with other sound are another source."""

    def __init__(self, frames: BatchFrames, *, rate: Fraction, sound: Path | None) -> None:
        super().__init__(frames, rate=rate)
        self._sound = sound

    @property
    def identity(self) -> dict[str, Any]:
        sound = {} if self._sound is None else {"sound": self._sound.stem}
        return super().identity | sound


def as_images(clip: ImagesOrVideo) -> Tensor:
    """[N, H, W, C] of a batch, or of all frames of a video.

    Raises:
        SourceError: the file is not a video, or nothing in it can be decoded.
    """
    if isinstance(clip, InputImpl.VideoFromFile):
        first_picture(clip.get_stream_source())  # ComfyUI passes on what FFmpeg says, a bare number
    return clip.get_components().images if isinstance(clip, Input.Video) else clip


def open_clip(clip: ImagesOrVideo, *, batch_rate: Fraction | None, temp: Path) -> Clip:
    """The clip behind an input of type IMAGE or VIDEO; close its source after use.

    A video file is read from disk, frame by frame. `batch_rate`: frames per second of an IMAGE
    batch, which has none of its own. `temp`: folder for data that exists only in memory.

    Raises:
        FrameError: a batch of fewer than two images, or of something else than color pictures.
        SettingsError: a batch without a rate, or sound that no encoder knows.
        SourceError: the video cannot be read.
        OutputError: a copy of what exists only in memory cannot be written.
    """
    if isinstance(clip, InputImpl.VideoFromComponents):
        parts = clip.get_components()
        require_images(parts.images)
        rate, sound = meant_rate(Fraction(parts.frame_rate)), sound_file(parts.audio, temp)
        return Clip(
            source=Components(BatchFrames(parts.images), rate=rate, sound=sound),
            sound=sound,
            is_copy=sound is not None,
        )
    if isinstance(clip, Input.Video):
        return _open_file(clip, temp)
    require_pairs(clip)
    require_images(clip)
    if batch_rate is None:
        raise SettingsError(
            "fps 0 means the rate of the video, and a batch of images has none: set fps to the "
            "frame rate the result should have."
        )
    return Clip(source=open_source(BatchFrames(clip), input_rate=batch_rate), is_video=False)


def _open_file(video: Input.Video, temp: Path) -> Clip:
    origin, is_copy = _file_of(video, temp)
    source = open_source(origin)
    start, duration = _trim_window(video)
    # ComfyUI counts from 0 on the file's clock, a job from its first frame.
    first = source.info.start
    return Clip(
        source=source,
        sound=origin if isinstance(origin, Path) else stored(origin, temp),
        is_copy=is_copy,
        start=start - first if start > first else None,
        end=start + duration - first if duration else None,
    )


def _file_of(video: Input.Video, temp: Path) -> tuple[Path | BytesIO, bool]:
    """(the file a video streams from, whether it exists only in memory).

    A video with pending frame edits is written out first.
    """
    if getattr(video, "has_pending_frame_edits", bool)():  # since ComfyUI 0.34
        return _written_out(video, temp), True
    origin = video.get_stream_source()
    return (Path(origin), False) if isinstance(origin, str) else (origin, True)


def _written_out(video: Input.Video, temp: Path) -> Path:
    """A file of an edited video, named and dated by its content, so that a session finds it again.

    Raises:
        OutputError: it cannot be written, or its disk is full.
    """
    written = temp / f"tlbvfi_{id(video)}.mp4"
    with disk_errors(written):
        make_folder(temp)
        try:
            video.save_to(str(written))
            path = written.with_stem(f"tlbvfi_{file_sha256(written)[:16]}")
            os.utime(written, (0, 0))
            return written.replace(path)
        finally:
            written.unlink(missing_ok=True)


def _trim_window(video: Input.Video) -> tuple[Fraction, Fraction]:
    """(start, duration) in seconds, duration 0 to the end; the whole video before ComfyUI 0.23."""
    window = getattr(video, "get_active_trim_window", lambda: (0, 0))()
    return Fraction(str(window[0])), Fraction(str(window[1]))


def sound_file(audio: dict[str, Any] | None, temp: Path) -> Path | None:
    """A WAV file (16 bit) of an AUDIO value; None if it contains no sound.

    Raises:
        SettingsError: encoders know no such number of channels, or rate.
    """
    if audio is None or not audio["waveform"].numel():
        return None
    samples = audio["waveform"][0].to(device="cpu", dtype=torch.float32)  # [channels, samples]
    rate = int(audio["sample_rate"])
    if len(samples) not in CHANNELS or not 0 < rate <= HIGHEST_RATE:
        raise SettingsError(
            f"the sound has {len(samples)} channels at {rate} Hz, which encoders do not know: convert "
            "it to stereo at 48000 Hz first."
        )
    pcm = samples.clamp(-1, 1).mul(32767).round().to(torch.int16).T.contiguous().numpy()
    content = BytesIO()
    with wave.open(content, "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(pcm.tobytes())
    return stored(content, temp, suffix=".wav")


def stored(content: BytesIO, temp: Path, *, suffix: str = "") -> Path:
    """A file with this content, named by it, so that a session finds it again.

    Raises:
        OutputError: it cannot be written, or its disk is full.
    """
    path = temp / f"tlbvfi_{hashlib.sha256(content.getbuffer()).hexdigest()[:16]}{suffix}"
    with disk_errors(path):
        make_folder(temp)
        with atomic_file(path) as temporary:
            temporary.write_bytes(content.getbuffer())
    return path
