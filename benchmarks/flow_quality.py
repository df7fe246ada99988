"""How well and how fast `flow`, `blend` and ffmpeg's minterpolate rebuild dropped frames.

    python benchmarks/flow_quality.py clip.mp4 [--frames 61] [--threads 2] [--no-minterpolate]

Every second frame is dropped and rebuilt. PSNR is over RGB 8-bit, per frame, then the mean. Times
are per rebuilt frame, without decoding: our methods are timed alone (prepare once per source frame,
between once per pair), minterpolate as the whole ffmpeg command minus the same command without the
filter. Without an ffmpeg binary its line is missing.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from comfyui_tlbvfi.tlbvfi.method import PairKey
from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod
from comfyui_tlbvfi.tlbvfi.methods.flow import FlowMethod

ACCURATE = int(
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)
MINTERPOLATE = "minterpolate=fps=2:mi_mode=mci:mc_mode=aobmc:me_mode=bidir:vsbmc=1"

Frames = list[np.ndarray[Any, np.dtype[np.uint8]]]


class Cost(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--frames", type=int, default=61, help="odd: first and last are sources")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-minterpolate", action="store_true")
    arguments = parser.parse_args()
    clip = decoded(arguments.clip, arguments.frames)
    print(f"{arguments.clip.name}: {len(clip)} frames, {arguments.threads} threads")
    print("method           PSNR dB   wall ms   CPU ms")
    for method in (FlowMethod(), BlendMethod()):
        row(method.name, clip, *rebuilt_by(method, clip, arguments.threads))
    if shutil.which("ffmpeg") and not arguments.no_minterpolate:
        row("minterpolate", clip, *rebuilt_by_minterpolate(arguments.clip, clip, arguments.threads))


def decoded(path: Path, count: int) -> Frames:
    """The first frames, [H, W, 3] RGB 8-bit; untagged video is BT.709 from 720 lines up."""
    with av.open(str(path)) as container:
        pictures = zip(range(count), container.decode(video=0), strict=False)
        frames = [rgb(picture) for _, picture in pictures]
    return frames[: len(frames) - 1 | 1]


def rgb(picture: av.VideoFrame) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture converted with accurate rounding."""
    guess = Colorspace.ITU709 if picture.height >= 720 else Colorspace.ITU601
    return picture.to_ndarray(
        format="rgb24",
        src_colorspace=Colorspace(picture.colorspace) if picture.colorspace != 2 else guess,
        src_color_range=ColorRange.JPEG if picture.color_range == 2 else ColorRange.MPEG,
        interpolation=ACCURATE,
    )


def rebuilt_by(method: Any, clip: Frames, threads: int) -> tuple[Frames, Cost]:  # noqa: ANN401 - a Method
    """The rebuilt frames, and what they cost."""
    torch.set_num_threads(threads)
    cv2.setNumThreads(threads)
    sources = [torch.from_numpy(frame).permute(2, 0, 1) / 255 for frame in clip[::2]]
    started = clock(resource.RUSAGE_SELF)
    frames, previous = [], method.prepare(sources[0])
    for pair, source in enumerate(sources[1:]):
        features = method.prepare(source)
        frames += method.between(previous, features, [Fraction(1, 2)], PairKey(0, pair))
        previous = features
    cost = since(started, resource.RUSAGE_SELF)
    codes = [(frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy() for frame in frames]
    return codes, cost


def rebuilt_by_minterpolate(path: Path, clip: Frames, threads: int) -> tuple[Frames, Cost]:
    """The same from ffmpeg. Its filter uses one thread; the rest may use as many as our methods."""
    sources = f"trim=end_frame={len(clip)},select='not(mod(n,2))',setpts=N/TB,fps=1"

    def ffmpeg(filters: str, *output: str) -> None:
        command = ["ffmpeg", "-v", "error", "-threads", str(threads), "-i", str(path), "-an"]
        command += ["-filter_threads", str(threads), "-vf", filters, *output]
        subprocess.run(command, check=True)

    base = timed(lambda: ffmpeg(sources, "-f", "null", "-"))
    whole = timed(lambda: ffmpeg(f"{sources},{MINTERPOLATE}", "-f", "null", "-"))
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "rebuilt.mkv"
        ffmpeg(f"{sources},{MINTERPOLATE}", "-c:v", "ffv1", str(output))
        frames = decoded(output, len(clip))[1::2]
    return frames, Cost(whole.wall - base.wall, whole.cpu - base.cpu)


def timed(work: Callable[[], None]) -> Cost:
    """What a child process costs."""
    started = clock(resource.RUSAGE_CHILDREN)
    work()
    return since(started, resource.RUSAGE_CHILDREN)


def clock(who: int) -> Cost:
    """Wall-clock and CPU time."""
    usage = resource.getrusage(who)
    return Cost(time.perf_counter(), usage.ru_utime + usage.ru_stime)


def since(started: Cost, who: int) -> Cost:
    """What has passed on both clocks."""
    now = clock(who)
    return Cost(now.wall - started.wall, now.cpu - started.cpu)


def row(name: str, clip: Frames, rebuilt: Frames, cost: Cost) -> None:
    """Print a line; ffmpeg ends one frame early, and its mean is over the frames it returns."""
    quality = np.mean([psnr(*pair) for pair in zip(rebuilt, clip[1::2], strict=False)])
    milliseconds = [1000 * seconds / len(rebuilt) for seconds in cost]
    print(f"{name:14} {quality:9.2f} {milliseconds[0]:9.0f} {milliseconds[1]:8.0f}")


def psnr(frame: np.ndarray[Any, Any], truth: np.ndarray[Any, Any]) -> float:
    """Decibels, over all channels of an 8-bit picture."""
    return float(10 * np.log10(255**2 / np.mean((frame.astype(np.float64) - truth) ** 2)))


if __name__ == "__main__":
    main()
