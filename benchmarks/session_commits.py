"""What a session's bookkeeping costs, from the first chunk to the 36,000th.

    python benchmarks/session_commits.py [--chunks 36000] [--folder DIR]

Commits real chunks (one frame of 32x32 in FFV1) and times each commit and each progress line; then
opens the session as a resume does, before any checksum.
"""

import argparse
import resource
import statistics
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
from comfyui_tlbvfi.encoding.manifest import Manifest
from comfyui_tlbvfi.encoding.profiles import EncoderSettings, resolve_encoder
from comfyui_tlbvfi.encoding.session import Session
from comfyui_tlbvfi.encoding.writer import StreamSpec

SIZE = 32


class Sample:
    """The picture that the encoder is checked for."""

    width = height = SIZE
    pix_fmt, has_alpha = "yuv420p", False


class Stopwatch:
    """Records when the steps of a commit are reached."""

    def __init__(self) -> None:
        self.at: dict[str, float] = {}

    def __call__(self, step: str) -> None:
        self.at[step] = time.perf_counter()

    def between(self, one: str, other: str) -> float:
        """Seconds from one step to a later one."""
        return self.at[other] - self.at[one]


def milliseconds(values: list[float]) -> str:
    """Mean and median as text."""
    return f"mean {1e3 * statistics.mean(values):.2f} ms, median {1e3 * statistics.median(values):.2f} ms"


def measure(root: Path, chunks: int) -> None:
    """Commit, time, reopen, print."""
    stream = StreamSpec(width=SIZE, height=SIZE, rate=Fraction(25), time_base=Fraction(1, 25))
    encoder = resolve_encoder(EncoderSettings(codec="ffv1"), Sample())
    manifest = Manifest(source={}, settings={}, encoder=encoder, stream=stream)
    session = Session.create(root, "bench", manifest)
    picture = av.VideoFrame(SIZE, SIZE, "yuv420p")
    commits, lines = [], []
    with session.locked():
        for index in range(chunks):
            watch = Stopwatch()
            with session.new_chunk(index, on_step=watch) as chunk:
                chunk.write(picture, index)
                chunk.commit(pairs=(index, index + 1), first_frame=index)
            commits.append(watch.between("before close", "after line"))
            lines.append(watch.between("before line", "after line"))
    part = min(1000, chunks // 2)
    print(f"{chunks} chunks; per commit, from closing the file to the line:")
    print(f"  first {part}: {milliseconds(commits[:part])}")
    print(f"  last {part}:  {milliseconds(commits[-part:])}")
    for name, mean in (("mean", statistics.mean), ("median", statistics.median)):
        print(f"  quotient of the {name}s: {mean(commits[-part:]) / mean(commits[:part]):.2f}")
    print(f"progress line alone, first {part}: {milliseconds(lines[:part])}")
    print(f"progress line alone, last {part}:  {milliseconds(lines[-part:])}")
    begin = time.perf_counter()
    again = Session.open(root, "bench")
    done = len(again.done())
    print(f"opening to resume, {done} chunks with their sizes: {time.perf_counter() - begin:.2f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MB")


def main() -> int:
    """Measure in a temporary folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=36_000)
    parser.add_argument("--folder", type=Path, help="where to work; default: the system's")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        measure(Path(folder), options.chunks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
