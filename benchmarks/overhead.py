"""What the pipeline costs beyond its stages, and whether they overlap.

    python benchmarks/overhead.py CLIP [--size 1920x1080] [--frames 60] [--codec h264]

Decode, color conversion, blend and encode are measured one after the other on the same frames, then
the whole job in the same process. CPU time includes all threads.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import torch
from comfyui_tlbvfi.encoding.color import from_rgb, resolve, to_rgb
from comfyui_tlbvfi.encoding.profiles import EncoderSettings, resolve_encoder
from comfyui_tlbvfi.encoding.source import open_source
from comfyui_tlbvfi.encoding.writer import StreamSpec, VideoWriter
from comfyui_tlbvfi.tlbvfi.config import JobConfig
from comfyui_tlbvfi.tlbvfi.job import Destination, run_job
from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod


@dataclass
class Cost:
    """CPU and wall-clock seconds of one stage."""

    cpu: float = 0.0
    wall: float = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time(), time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.cpu += time.process_time() - self._began[0]
        self.wall += time.perf_counter() - self._began[1]


def scaled(clip: Path, target: Path, size: tuple[int, int], frames: int) -> None:
    """Write a part of the clip at another size, lightly compressed."""
    with av.open(str(clip)) as given, av.open(str(target), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        decoded = []
        for picture in given.decode(video=0):
            if len(decoded) == min(frames, 60):
                break
            decoded.append(picture.reformat(*size, "yuv420p"))
        for number in range(frames):  # back and forth, so that a short clip is enough
            at = number % (2 * len(decoded) - 2)
            picture = decoded[min(at, 2 * len(decoded) - 2 - at)]
            picture.pts, picture.time_base, picture.pict_type = number, Fraction(1, 25), 0
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))


def stages(source: Path, folder: Path, codec: str) -> dict[str, Cost]:
    """Every stage alone, frame by frame, in a single thread of ours."""
    costs = {name: Cost() for name in ("decode", "to RGB", "blend", "from RGB", "encode")}
    with open_source(source) as opened:
        info, tags = opened.info, resolve(opened.info)
        encoder = resolve_encoder(EncoderSettings(codec=codec), info, container=".mp4")
        spec = StreamSpec(
            width=info.width, height=info.height, time_base=Fraction(1, 50), rate=Fraction(50)
        )
        frames, previous, number = opened.frames(), None, 0
        writer = VideoWriter(folder / "alone.mp4", encoder, spec)
        while True:
            with costs["decode"]:
                frame = next(frames, None)
            if frame is None:
                break
            with costs["to RGB"]:
                image = torch.from_numpy(to_rgb(frame.picture, tags))
            if previous is not None:
                with costs["blend"]:
                    mid = torch.lerp(previous, image, 0.5)
                with costs["from RGB"]:
                    picture = from_rgb(mid.numpy(), encoder.pix_fmt, tags)
                with costs["encode"]:
                    writer.write(picture, number)
                number += 1
            with costs["encode"]:
                writer.write(frame.picture, number)
            number, previous = number + 1, image
        with costs["encode"]:
            writer.finish()
    return costs


def whole_job(source: Path, folder: Path, codec: str) -> Cost:
    """The job as a user runs it, from opening the source to the verified file."""
    cost = Cost()
    config = JobConfig(encoder=EncoderSettings(codec=codec))
    with cost, open_source(source) as opened:
        run_job(opened, BlendMethod(), config, Destination(output=folder / "job.mp4"))
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path)
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--codec", default="h264")
    arguments = parser.parse_args()
    size = tuple(map(int, arguments.size.split("x")))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scaled(arguments.clip, folder / "in.mp4", size, arguments.frames)
        whole_job(folder / "in.mp4", folder, arguments.codec)  # warm: libraries, thread pools
        (folder / "job.mp4").unlink()
        alone = stages(folder / "in.mp4", folder, arguments.codec)
        job = whole_job(folder / "in.mp4", folder, arguments.codec)
    pairs = arguments.frames - 1
    print(f"{arguments.size}, {arguments.frames} frames, {arguments.codec}, ms per pair")
    print(f"{'':12}{'cpu':>9}{'wall':>9}")
    total = Cost(sum(c.cpu for c in alone.values()), sum(c.wall for c in alone.values()))
    for label, cost in {**alone, "sum": total, "whole job": job}.items():
        print(f"{label:12}{1e3 * cost.cpu / pairs:9.2f}{1e3 * cost.wall / pairs:9.2f}")
    print(
        f"cpu: job / sum = {job.cpu / total.cpu:.3f}; wall: job / sum = {job.wall / total.wall:.3f}"
    )
    print(f"beyond the stages: {1e3 * (job.cpu - total.cpu) / pairs:.2f} ms cpu per pair")


if __name__ == "__main__":
    main()
