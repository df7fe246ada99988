"""How long joining takes, compared with `ffmpeg -f concat -c copy` on the same chunks.

    python benchmarks/concat.py [--chunks 1100] [--frames 8] [--size 320x180] [--runs 3]

Makes a session of x264 chunks in a temporary folder, then alternately joins it and has ffmpeg
concatenate the same files; prints the median of each and their quotient. Both write faststart mp4.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from comfyui_tlbvfi.encoding.concat import join
from comfyui_tlbvfi.encoding.manifest import Manifest
from comfyui_tlbvfi.encoding.profiles import EncoderSettings, PictureFacts, resolve_encoder
from comfyui_tlbvfi.encoding.session import Session
from comfyui_tlbvfi.encoding.writer import StreamSpec


def make_session(root: Path, chunks: int, frames: int, width: int, height: int) -> object:
    """A finished session of moving noise."""
    picture = av.VideoFrame(width, height, "yuv420p")
    rate = Fraction(48000, 1001)
    stream = StreamSpec(width=width, height=height, rate=rate, time_base=1 / rate)
    encoder = resolve_encoder(
        EncoderSettings(codec="h264", preset="ultrafast", pix_fmt="yuv420p"),
        PictureFacts(width=width, height=height, pix_fmt="yuv420p"),
        container=".mp4",
    )
    session = Session.create(
        root, "bench", Manifest(source={}, settings={}, encoder=encoder, stream=stream)
    )
    noise = np.random.default_rng(1).integers(60, 180, 4 * width * height, dtype=np.uint8)
    with session.locked():
        for index in range(chunks):
            first = index * frames
            with session.new_chunk(index) as chunk:
                for number in range(first, first + frames):
                    for plane in picture.planes:
                        start = number * 7 % (width * height)
                        plane.update(noise[start : start + plane.buffer_size].tobytes())
                    chunk.write(picture, number)
                chunk.commit(
                    pairs=(first, first + frames), first_frame=first, is_last=index == chunks - 1
                )
    return session


def seconds(action: Callable[[], object]) -> float:
    """Wall time of one call."""
    begin = time.perf_counter()
    action()
    return time.perf_counter() - begin


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=1100)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--size", default="320x180")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        session = make_session(root, options.chunks, options.frames, width, height)
        listing = root / "list.txt"
        names = [session.chunk_path(index) for index in range(options.chunks)]
        listing.write_text("".join(f"file '{name}'\n" for name in names))
        command = ["ffmpeg", "-v", "error", "-y", "-f", "concat", "-safe", "0", "-i", str(listing)]
        command += ["-c", "copy", "-movflags", "+faststart", str(root / "theirs.mp4")]
        ours, theirs = [], []
        for _ in range(options.runs):
            ours.append(seconds(lambda: join(session, root / "ours.mp4", overwrite=True)))
            theirs.append(seconds(lambda: subprocess.run(command, check=True)))
        total = sum(name.stat().st_size for name in names)
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(
        f"{options.chunks} chunks of {options.frames} frames {options.size}, {total / 1e6:.0f} MB"
    )
    print(f"join, verified before and after: {mine:.2f} s {[round(each, 2) for each in ours]}")
    print(f"ffmpeg -f concat -c copy:        {other:.2f} s {[round(each, 2) for each in theirs]}")
    print(f"quotient: {mine / other:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
