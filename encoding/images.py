"""Image folders as a source of frames."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import av
import numpy as np
from av.error import FFmpegError

from .closable import Closable
from .container import exact, packet_of
from .errors import SourceError
from .exr import is_cut_off
from .frame import ColorTags, Frame, is_mirrored
from .layout import channel_views, pixel_layout
from .png import has_opaque_palette, png_header, png_texts, without_deflated
from .probe import VideoInfo
from .timestamps import Timestamps
from .unchanged import Facts, file_facts, unchanged
from .webp import is_opaque

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext


DECODERS = {
    ".png": "png",
    ".jpg": "mjpeg",
    ".jpeg": "mjpeg",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".exr": "exr",
    ".webp": "webp",
}
"""Decoder of each suffix; other files in a folder of images are skipped."""

NUMBERED = re.compile(r"(?P<prefix>.*?)(?P<number>\d+)(?P<tail>_?)")
"""File stem with a number at its end, or before the underscore that ComfyUI's SaveImage adds."""

WORKERS = min(4, os.cpu_count() or 1)
"""Images that are decoded or encoded at the same time."""

T = TypeVar("T")


class ImageSource(Closable):
    """The images of a folder, ordered by number, or by name if they have no numbers.

    Files are opened one by one, a few ahead and in parallel, so that memory does not grow with
    their number. A ComfyUI workflow and prompt in the first PNG become `info.metadata`.

    Raises:
        SourceError: no image, a gap in the numbers, several sequences, several formats, or a PNG
            of another size or depth than the first.
    """

    def __init__(self, folder: Path, *, rate: Fraction) -> None:
        super().__init__()
        self._folder = folder
        self._names = list_images(folder)  # a Path takes four times the memory
        self._facts = [file_facts(folder / name) for name in self._names]
        _require_equal_headers(folder, self._names)
        self.timestamps = Timestamps(
            start=Fraction(0),
            rate=Fraction(rate),
            count=len(self._names),
            time_base=1 / Fraction(rate),
        )
        self.info = _describe(folder, folder / self._names[0], self.timestamps)
        paths = (folder / name for name in self._names)
        if self.info.has_alpha and all(
            is_opaque(path) or has_opaque_palette(path) for path in paths
        ):
            self.info = replace(self.info, has_alpha=False)

    @property
    def identity(self) -> dict[str, Any]:
        """A hash of the names, sizes and modification times of the images."""
        digest = hashlib.sha256()
        for name, facts in zip(self._names, self._facts, strict=True):
            digest.update(json.dumps([name, *(facts or ())]).encode())
        return {
            "kind": "images",
            "frame_count": len(self._names),
            "rate": str(self.timestamps.rate),
            "sha256_of_list": digest.hexdigest(),
        }

    def frames(self, start: int = 0, stop: int | None = None) -> Generator[Frame]:
        """Frames `start` to `stop` (exclusive; None: to the end).

        Raises:
            SourceError: an image cannot be read, has another size or pixel format than the first,
                has NaN or infinite pixels, or has changed since the folder was opened; all frames
                before it were delivered.
        """
        files = zip(self._names[start:stop], self._facts[start:stop], strict=True)
        reads = (partial(_read_unchanged, self._folder / name, facts) for name, facts in files)
        with closing(done_ahead(reads)) as pictures:
            for index, picture in enumerate(pictures, start):
                if self.is_closed:
                    return
                self._require_same(picture, self._names[index])
                self._require_finite(picture, index)
                yield Frame(picture=picture, index=index, time=self.timestamps.time(index))

    def shortfall(self) -> str | None:
        """None: an image that cannot be read is an error."""
        return None

    def _require_same(self, picture: av.VideoFrame, name: str) -> None:
        info = self.info
        found = (picture.width, picture.height, picture.format.name)
        if found != (info.width, info.height, info.pix_fmt):
            raise SourceError(
                f"{self._folder / name} is {found[0]}x{found[1]} {found[2]}, but {self._names[0]} is "
                f"{info.width}x{info.height} {info.pix_fmt}; all images must be alike."
            )

    def _require_finite(self, picture: av.VideoFrame, index: int) -> None:
        if pixel_layout(picture.format.name).is_float and not all(
            np.isfinite(samples).all() for samples in channel_views(picture)
        ):
            raise SourceError(
                f"{self._folder / self._names[index]} (frame {index}) holds NaN or infinite "
                "pixels: repair it or leave it out."
            )


def list_images(folder: Path) -> list[str]:
    """The names of the images of a folder in order.

    Raises:
        SourceError: there are none, or they do not form one sequence; the text names the first
            file that does not fit.
    """
    with os.scandir(folder) as entries:
        names = sorted(
            (
                entry.name
                for entry in entries
                if _kind(entry.name) and not entry.name.startswith(".") and entry.is_file()
            ),
            key=os.path.normcase,
        )
    if not names:
        raise SourceError(f"{folder} contains no images ({', '.join(DECODERS)}).")
    first = _kind(names[0])
    for name in names:
        if _kind(name) != first:
            raise SourceError(
                f"{folder / name} has another format than {names[0]}; keep one format per folder."
            )
    return _in_order(folder, names)


def _kind(name: str) -> str | None:
    """The decoder of a file; None if it is no image."""
    return DECODERS.get(_split(name)[1].lower())


def _split(name: str) -> tuple[str, str]:
    """Stem and suffix of a file's name; a `Path` would take ten times as long."""
    stem, dot, ending = name.rpartition(".")
    return (stem, dot + ending) if stem else (name, "")


def _in_order(folder: Path, names: list[str]) -> list[str]:
    if not any(NUMBERED.fullmatch(_split(name)[0]) for name in names):
        return names
    sequences: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        stem, suffix = _split(name)
        match = NUMBERED.fullmatch(stem)
        key = f"{match['prefix']}#{match['tail']}{suffix}" if match else name
        sequences.setdefault(key, []).append((int(match["number"]) if match else 0, name))
    if len(sequences) > 1:
        listed = ", ".join(f"{key} ({len(found)})" for key, found in sorted(sequences.items()))
        raise SourceError(
            f"{folder} contains several sequences: {listed}; move each into a folder of its own."
        )
    (numbered,) = sequences.values()
    numbered.sort()
    for (before, previous), (number, name) in pairwise(numbered):
        if number != before + 1:
            fault = "has the same number as" if number == before else "does not follow"
            raise SourceError(
                f"{folder / name} {fault} {previous}; a sequence must be numbered without gaps."
            )
    return [name for _, name in numbered]


def _require_equal_headers(folder: Path, names: list[str]) -> None:
    """Refuse unequal PNG files before work begins; other formats are checked when decoded."""
    first = png_header(folder / names[0])
    for name in names if first else ():
        if (header := png_header(folder / name)) != first:
            raise SourceError(
                f"{folder / name} has another size or depth {header and header[:3]} than {names[0]} "
                f"{first and first[:3]}; all images must be alike."
            )


def read_image(path: Path) -> av.VideoFrame:
    """The picture in an image file.

    Raises:
        SourceError: the file cannot be read or does not have the format of its suffix.
    """
    return _decoded(path)[0]


def _decoded(path: Path) -> tuple[av.VideoFrame, VideoCodecContext]:
    decoder = cast("VideoCodecContext", av.CodecContext.create(DECODERS[path.suffix.lower()], "r"))
    decoder.thread_type = "NONE"  # type: ignore[assignment] - frame threads would delay it
    if decoder.name == "mjpeg":  # else it makes up what is missing
        decoder.options = {"err_detect": "explode"}
    try:
        data = without_deflated(path.read_bytes())
        if is_cut_off(data):
            raise SourceError(f"{path} is cut off: its end is missing. Render it again.")
        pictures = [*decoder.decode(packet_of(data)), *decoder.decode(None)]
    except OSError as error:
        raise SourceError(f"{path} cannot be read ({error.strerror}).") from error
    except FFmpegError as error:
        raise SourceError(
            f"{path} is damaged, or not a {path.suffix[1:].upper()} file ({error.strerror})."
        ) from error
    if not pictures:
        raise SourceError(f"{path} contains no picture; it is empty or damaged.")
    return pictures[0], decoder


def _read_unchanged(path: Path, facts: Facts | None) -> av.VideoFrame:
    with unchanged(path, facts):
        return read_image(path)


def done_ahead(calls: Iterable[Callable[[], T]]) -> Generator[T]:
    """Results of calls in order, from a few threads that are a few calls ahead."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(WORKERS, "tlbvfi-images") as pool:
        for call in calls:
            pending.append(pool.submit(call))
            if len(pending) > WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _describe(folder: Path, first: Path, times: Timestamps) -> VideoInfo:
    picture, decoder = _decoded(first)
    count = times.count or 0
    return VideoInfo(
        name=folder.name,
        container="images",
        codec=DECODERS[first.suffix.lower()],
        width=picture.width,
        height=picture.height,
        pix_fmt=picture.format.name,
        bit_depth=max(component.bits for component in picture.format.components),
        has_alpha=pixel_layout(picture.format.name).has_alpha,
        color=ColorTags.of(decoder),
        sample_aspect_ratio=exact(decoder.sample_aspect_ratio),
        rotation=picture.rotation,  # of EXIF: cameras write pictures as their sensor lies
        is_mirrored=is_mirrored(picture),
        time_base=times.time_base,
        rate=times.rate,
        is_vfr=False,
        start=Fraction(0),
        duration=count / times.rate,
        frame_count=count,
        is_interlaced=False,
        metadata={
            key: text for key, text in png_texts(first).items() if key in ("prompt", "workflow")
        },
    )
