"""What a file that we made holds, as far as its packets show it without decoding."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from av.error import FFmpegError

from .callbacks import OnProgress, no_progress
from .container import MISSING, ONLY_ITSELF, TAG_OPTIONS, file_url
from .errors import VerificationError

if TYPE_CHECKING:
    from av.container import InputContainer


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketScan:
    """Timestamps of the first video stream, in the order of the file."""

    time_base: Fraction
    pts: np.ndarray
    """int64 [packets], ticks."""
    dts: np.ndarray
    """int64 [packets], ticks; MISSING where the container stores none (Matroska)."""
    other: tuple[int, ...]
    """Number of packets of every other stream, in stream order."""


FRAMES_PER_CALL = 100
"""How often progress is told."""
CHUNK = {"ignore_editlist": "1"}
"""How to open our chunks: FFmpeg's edit list handling drops frames at the end of some files with a
variable rate (`mov_fix_index` takes distances in decode time for durations)."""
CHUNK_PACKETS = {**CHUNK, "probesize": "32"}
"""The same without decoding the first frames for details, half of the 2.7 ms that opening takes."""


@contextmanager
def open_made(path: Path, options: dict[str, str] | None = None) -> Iterator[InputContainer]:
    """A chunk or a final file opened for reading; `options` are the demuxer's.

    Raises:
        VerificationError: it cannot be opened, breaks off while being read, or has no video.
    """
    try:
        with av.open(
            file_url(path), options=options or {}, container_options=ONLY_ITSELF, **TAG_OPTIONS
        ) as container:
            if not container.streams.video:
                raise VerificationError(f"{path} has no video stream: it is not a finished video.")
            yield container
    except (FFmpegError, OSError) as error:
        raise VerificationError(f"{path} cannot be read ({error}): make it again.") from error


def scan_packets(
    path: Path,
    options: dict[str, str] | None = None,
    *,
    total: int = 0,
    on_progress: OnProgress = no_progress,
) -> PacketScan:
    """Timestamps of all packets of a file's video, and the packet counts of its other streams.

    `on_progress` is called now and then with the video packets so far and `total`, which is only
    passed on, and may raise to stop.

    Raises:
        VerificationError: the file cannot be read or has no video.
    """
    pts, dts = array("q"), array("q")
    with open_made(path, options) as container:
        video = container.streams.video[0]
        others = {stream.index: 0 for stream in container.streams if stream is not video}
        for packet in container.demux():
            if packet.size and packet.stream_index == video.index:
                pts.append(MISSING if packet.pts is None else packet.pts)
                dts.append(MISSING if packet.dts is None else packet.dts)
                if len(pts) % FRAMES_PER_CALL == 0:
                    on_progress(len(pts), total)
            elif packet.size:
                others[packet.stream_index] += 1
        on_progress(len(pts), total)
        return PacketScan(
            time_base=Fraction(video.time_base or 1),
            pts=np.array(pts, dtype=np.int64),
            dts=np.array(dts, dtype=np.int64),
            other=tuple(others.values()),
        )
