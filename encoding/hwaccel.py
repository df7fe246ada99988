"""Chooses the decoder of a video: a GPU if it is proven to give the same frames, else software."""

from __future__ import annotations

import logging
from itertools import islice
from typing import TYPE_CHECKING

import av
import numpy as np
from av.codec import Codec
from av.codec.hwaccel import hwdevices_available

from .container import PYAV, VideoInput, alpha_decoder, decode, open_video, source_name
from .errors import DecoderError
from .hardware import Hardware
from .layout import channel_views

if TYPE_CHECKING:
    from av.video.stream import VideoStream

log = logging.getLogger("tlbvfi.hwaccel")

AUTOMATIC = "cuda"
"""The device tried by `auto`: ComfyUI users mostly have NVIDIA GPUs."""

EXACT = ("h264", "hevc", "vp8", "vp9", "av1")
"""Codecs that all decoders decode to the same samples; MPEG-2, MPEG-4 and JPEG leave the rounding
of the inverse cosine transform to the decoder."""

KEEPS_TAGS = (18, 0)
"""The first PyAV version that copies more than a frame's pts when it downloads the frame."""

LEADING = 32
"""Frames within which the first frame that software decodes must appear."""


def hwaccel_names() -> tuple[str, ...]:
    """Accepted values of `hwaccel`: auto, none, and the devices this build of FFmpeg supports."""
    return ("auto", "none", *hwdevices_available())


def find_hardware(
    hwaccel: str,
    source: VideoInput,
    stream: VideoStream,
    first: av.VideoFrame,
    *,
    has_times: bool,
) -> Hardware | None:
    """The GPU decoder for this video, verified on its first frame; None for software.

    `stream` is its open stream, and `first` its first frame as decoded in software. `has_times`:
    whether pts identify the frames; otherwise a single software thread counts them. `auto` tries
    cuda and reports a failure only if there is a GPU; `none` tries nothing.

    Raises:
        DecoderError: the device that `hwaccel` names does not exist here or cannot decode the video.
    """
    if hwaccel == "none":
        return None
    if hwaccel not in hwaccel_names():
        raise DecoderError(
            f"There is no hwaccel {hwaccel!r} here: choose one of {', '.join(hwaccel_names())}."
        )
    device, level = AUTOMATIC if hwaccel == "auto" else hwaccel, logging.DEBUG
    name = source_name(source)
    try:
        if not has_times:
            raise DecoderError("the file has no usable timestamps")
        hardware = _opening(stream, device, first)
        level = logging.INFO  # there is a GPU: worth saying that it does not help
        _prove(source, hardware, first)
    except DecoderError as error:
        problem = f"{name} cannot be decoded by {device} here: {error}"
        if hwaccel != "auto":
            raise DecoderError(f"{problem}; choose hwaccel auto or none.") from error
        log.log(level, "%s; software decodes it.", problem)
        return None
    log.info("%s is decoded by %s.", name, device)
    return hardware


def _opening(stream: VideoStream, device: str, first: av.VideoFrame) -> Hardware:
    """The decoder for the device, after opening it once.

    Raises:
        DecoderError: there is no decoder for this codec or no such device, or PyAV is too old.
    """
    if PYAV < KEEPS_TAGS:
        raise DecoderError("PyAV before 18 loses color tags and side data of GPU frames")
    decoder, usual = _decoder_name(stream, device), stream.codec_context.codec.name
    hardware = Hardware(
        device=device, decoder=decoder, pix_fmt=first.format.name, is_default=decoder == usual
    )
    hardware.create()
    return hardware


def _decoder_name(stream: VideoStream, device: str) -> str:
    """The stream's decoder if it can use the device, or FFmpeg's own or special one that can."""
    codec = stream.codec_context.codec
    known = codec.canonical_name
    for name in (codec.name, known, f"{known}_{device}"):
        if device in _devices(name) and alpha_decoder(stream) is None:
            if known not in EXACT:
                raise DecoderError(f"decoders of {known} may give different samples")
            return name
    raise DecoderError(f"it has no decoder for {known}")


def _devices(decoder: str) -> set[str]:
    try:
        configs = Codec(decoder, "r").hardware_configs
        return {config.device_type.name for config in configs if config.is_supported}
    except ValueError:  # no such decoder, or a device unknown to PyAV
        return set()


def _prove(source: VideoInput, hardware: Hardware, first: av.VideoFrame) -> None:
    """Decode the first frame and compare it, sample by sample.

    That also finds what libavcodec does not do on GPUs, such as cropping rows at the top.

    Raises:
        DecoderError: it is a different frame, or there is none.
    """
    with open_video(source, hardware) as (container, stream):
        for picture in islice(decode(container, stream, hardware), LEADING):
            if picture is not None and picture.pts == first.pts:
                if not _is_same(picture, first):
                    raise DecoderError("its first frame differs from the one decoded in software")
                return
    raise DecoderError("it does not give the first frame")


def _is_same(picture: av.VideoFrame, other: av.VideoFrame) -> bool:
    return all(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(channel_views(picture), channel_views(other), strict=True)
    )
