"""Peak memory and time of FILM on the CPU, and the memory that `predict_peak_memory` predicts.

    python benchmarks/film_memory.py [--threads 2] [--sizes 512x512 540x960 720x1280]

Every size runs in its own process, because a peak never goes down. The network has random weights:
neither time nor memory depends on them. Memory is the growth of the process over torch alone,
weights included; time is CPU seconds, which other work on the machine hardly affects.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

from comfyui_tlbvfi.tlbvfi.bench.process import peak_resident_bytes
from comfyui_tlbvfi.tlbvfi.film import FilmNet, predict_peak_memory


def main() -> None:
    """Measure all sizes, or one of them in a child process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sizes", nargs="+", default=["512x512", "540x960", "720x1280"])
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measure(*map(int, arguments.sizes[0].split("x")), arguments.threads)
        return
    print("size        measured MB  predicted MB  ratio   features s   flows s   frame s")
    for size in arguments.sizes:
        command = [sys.executable, __file__, "--child", "--threads", str(arguments.threads)]
        subprocess.run([*command, "--sizes", size], check=True)


def measure(height: int, width: int, threads: int) -> None:
    """Print one row of the table."""
    import torch

    torch.set_num_threads(threads)
    torch.nn.functional.conv2d(torch.zeros(1, 8, 64, 64), torch.zeros(8, 8, 3, 3))
    before = peak_resident_bytes()
    film = FilmNet().to(memory_format=torch.channels_last).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    frames = [torch.rand(1, 3, height, width, generator=generator) for _ in range(2)]
    start = time.process_time()
    features = [film.features(frame) for frame in frames]
    extracted = time.process_time()
    flows = film.flows(*features)
    moved = time.process_time()
    film.frame(*features, flows, 0.5)
    done = time.process_time()
    measured, predicted = peak_resident_bytes() - before, predict_peak_memory(height, width)
    print(
        f"{f'{height}x{width}':10}  {measured / 1e6:11.0f}  {predicted / 1e6:12.0f}  "
        f"{measured / predicted:5.2f}  {(extracted - start) / 2:11.2f} {moved - extracted:9.2f} "
        f"{done - moved:9.2f}"
    )


if __name__ == "__main__":
    main()
