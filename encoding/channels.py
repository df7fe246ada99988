"""The channels of sound, read past a flaw of PyAV (up to 18.1, at least)."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.audio.layout import AudioLayout
    from av.audio.stream import AudioStream


def channel_layout(stream: AudioStream) -> AudioLayout:
    """The channel layout of a stream, an object that is never freed.

    PyAV's layouts share the map of a custom order of channels with what they were read from, and
    free it as well: the process crashes. Frames have such a layout too, so custom orders, as of
    7.1 PCM in mov, cannot be decoded.
    """
    layout = stream.codec_context.layout
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(layout))
    return layout


def is_custom(layout: AudioLayout) -> bool:
    """Whether FFmpeg can describe the layout only by its channels: `3 channels (FL+FR+BC)`."""
    return layout.name.endswith(")") and " channels (" in layout.name
