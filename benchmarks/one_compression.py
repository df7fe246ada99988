"""What a second compression costs: saving, interpolating and saving again, or encoding once.

    python benchmarks/one_compression.py clip.mp4 [--frames 61] [--width 640] [--crf 18]
        [--method flow] [--preset medium]

The first frames of the clip, scaled down by averaging, are the uncompressed ground truth; every
second one stands for a generator's output. `twice` saves these as H.264, interpolates the file and
saves the result as H.264; `once` interpolates the frames themselves and encodes the result; both
with the same encoder and settings. `lossless` is `once` with a lossless codec: only the error of
the interpolation is left. PSNR is over RGB 8-bit, SSIM (Gaussian window, sigma 1.5) over luma; per
frame, then the mean.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from comfyui_tlbvfi import create_method, interpolate_video
from comfyui_tlbvfi.encoding.color import from_rgb, resolve, stream_tags, to_rgb
from comfyui_tlbvfi.encoding.profiles import EncoderSettings, resolve_encoder
from comfyui_tlbvfi.encoding.source import open_source
from comfyui_tlbvfi.encoding.writer import StreamSpec, VideoWriter
from comfyui_tlbvfi.tlbvfi.methods import MethodConfig

Image = np.ndarray[Any, np.dtype[np.uint8]]


class Quality(NamedTuple):
    """The quality of one frame."""

    psnr: float
    ssim: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, default=61, help="odd: first and last are sources")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--crf", type=int, default=18)
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--method", default="flow")
    arguments = parser.parse_args()
    rate, truth = scaled(arguments.clip, arguments.frames, arguments.width)
    wish = {"method": create_method(MethodConfig(name=arguments.method))}
    h264 = {"codec": "h264", "crf": arguments.crf, "preset": arguments.preset}
    height, width = truth[0].shape[:2]
    print(
        f"{arguments.clip.name}: {len(truth)} frames {width}x{height} at {rate}, every second one "
        f"interpolated by {arguments.method}; H.264 crf {arguments.crf}, preset {arguments.preset}"
    )
    print("              bytes   all: PSNR    SSIM   source: PSNR    SSIM   mid: PSNR    SSIM")
    with tempfile.TemporaryDirectory() as folder:
        first, twice, once, lossless = (
            Path(folder) / name for name in ("first.mp4", "twice.mp4", "once.mp4", "lossless.mkv")
        )
        save(truth[::2], rate / 2, first, EncoderSettings(**h264))
        interpolate_video(first, twice, **wish, **h264)
        interpolate_video(truth[::2], once, input_fps=rate / 2, **wish, **h264)
        interpolate_video(truth[::2], lossless, input_fps=rate / 2, **wish, codec="ffv1")
        for path in (twice, once, lossless):
            row(path, truth)


def scaled(path: Path, count: int, width: int) -> tuple[Fraction, list[Image]]:
    """Rate, and the first frames as [H, W, 3] RGB 8-bit, of even size."""
    with open_source(path) as source:
        rate, height = source.info.rate, source.info.height * width // source.info.width // 2 * 2
        frames = islice(decoded(path), count)
        small = [cv2.resize(f, (width, height), interpolation=cv2.INTER_AREA) for f in frames]
    return rate, small[: len(small) - 1 | 1]


def decoded(path: Path) -> Iterator[Image]:
    """The frames of a video, [H, W, 3] RGB 8-bit."""
    with open_source(path) as source:
        tags = resolve(source.info)
        for frame in source.frames():
            rgb = to_rgb(frame.picture, tags)
            yield np.moveaxis((rgb.clip(0, 1) * 255 + 0.5).astype(np.uint8), 0, -1).copy()


def save(frames: list[Image], rate: Fraction, path: Path, settings: EncoderSettings) -> None:
    """Encode frames as a generator would, with our conversion and encoder."""
    with open_source(frames, input_rate=rate) as source:
        info, tags = source.info, resolve(source.info)
        encoder = resolve_encoder(settings, info, container=path.suffix)
        stream = StreamSpec(
            width=info.width,
            height=info.height,
            time_base=1 / rate,
            rate=rate,
            color=stream_tags(tags, encoder.pix_fmt),
        )
        with VideoWriter(path, encoder, stream) as writer:
            for frame in source.frames():
                rgb = to_rgb(frame.picture, tags)
                writer.write(from_rgb(rgb, encoder.pix_fmt, tags), frame.index)


def row(path: Path, truth: list[Image]) -> None:
    """Print a line of the table."""
    found = [quality(*pair) for pair in zip(decoded(path), truth, strict=True)]
    cells = [np.mean(part, axis=0) for part in (found, found[::2], found[1::2])]
    (a, b), (c, d), (e, f) = cells
    print(
        f"{path.stem:9} {path.stat().st_size:9} {a:11.2f} {b:7.4f} {c:14.2f} {d:7.4f} {e:11.2f} {f:7.4f}"
    )


def quality(frame: Image, truth: Image) -> Quality:
    """PSNR and SSIM of a frame; PSNR of equal frames is infinite."""
    error = np.mean((frame.astype(np.float64) - truth) ** 2)
    psnr = 10 * np.log10(255**2 / error) if error else np.inf
    return Quality(float(psnr), ssim(luma(frame), luma(truth)))


def luma(frame: Image) -> np.ndarray[Any, np.dtype[np.float64]]:
    """BT.709 luma of an RGB picture, in [0, 255]."""
    return frame @ np.array([0.2126, 0.7152, 0.0722])


def ssim(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """Structural similarity (Wang et al. 2004), mean over the picture."""

    def blurred(image: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return cv2.GaussianBlur(image, (11, 11), 1.5)

    mean0, mean1 = blurred(one), blurred(other)
    variance0, variance1 = blurred(one**2) - mean0**2, blurred(other**2) - mean1**2
    covariance = blurred(one * other) - mean0 * mean1
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean0 * mean1 + c1) * (2 * covariance + c2)
    return float(np.mean(likeness / ((mean0**2 + mean1**2 + c1) * (variance0 + variance1 + c2))))


if __name__ == "__main__":
    main()
