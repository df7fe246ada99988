"""Error and time of color conversion, compared with swscale with its most accurate flags.

    OMP_NUM_THREADS=1 python benchmarks/color.py [CLIP]

Errors are in 8-bit codes. Patches: 200 flat colors against the closed form of ITU-T H.273. There
and back: frames of the clip to RGB and back to YUV. RGB as 4:2:0: the same frames at half size,
where they have full chroma, through 4:2:0 and back: what subsampling costs with these filters.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from comfyui_tlbvfi.encoding.color import from_rgb, to_rgb
from comfyui_tlbvfi.encoding.frame import ColorTags

ROOT = Path(__file__).resolve().parent.parent
CLIP = ROOT / "examples" / "big_buck_bunny.mp4"
ACCURATE = int(
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)


class Ours:
    """The project's own conversion of limited-range BT.709."""

    name = "comfyui_tlbvfi"

    def __init__(self) -> None:
        self.tags = ColorTags(matrix=1, range=1)
        self._to, self._from = to_rgb, from_rgb

    def to_rgb(self, picture: av.VideoFrame) -> np.ndarray:
        """[3, H, W] float32."""
        return self._to(picture, self.tags)

    def from_rgb(self, rgb: np.ndarray) -> av.VideoFrame:
        """yuv420p."""
        return self._from(rgb, "yuv420p", self.tags)


class Swscale:
    """swscale by way of gbrpf32le, given matrix, range and accurate flags."""

    name = "swscale"

    def __init__(self) -> None:
        self._there, self._back = VideoReformatter(), VideoReformatter()

    def to_rgb(self, picture: av.VideoFrame) -> np.ndarray:
        """[3, H, W] float32."""
        planar = self._there.reformat(
            picture,
            format="gbrpf32le",
            src_colorspace=1,
            src_color_range=1,
            dst_color_range=2,
            interpolation=ACCURATE,
            threads=1,
        )
        return np.ascontiguousarray(np.moveaxis(planar.to_ndarray(), -1, 0))

    def from_rgb(self, rgb: np.ndarray) -> av.VideoFrame:
        """yuv420p."""
        planar = av.VideoFrame.from_ndarray(np.moveaxis(rgb, 0, -1), format="gbrpf32le")
        return self._back.reformat(
            planar,
            format="yuv420p",
            src_color_range=2,
            dst_colorspace=1,
            dst_color_range=1,
            interpolation=ACCURATE,
            threads=1,
        )


def patches(converter: Ours | Swscale) -> tuple[float, float]:
    """Mean and largest error of flat colors inside the RGB cube."""
    rng, errors = np.random.default_rng(0), []
    for red, green, blue in rng.random((200, 3)) * 0.9 + 0.05:
        luma = 0.2126 * red + 0.7152 * green + 0.0722 * blue
        cb, cr = (blue - luma) / 1.8556, (red - luma) / 1.5748
        codes = [round(16 + 219 * luma), round(128 + 224 * cb), round(128 + 224 * cr)]
        picture = av.VideoFrame(64, 32, "yuv420p")
        for plane, code in zip(picture.planes, codes, strict=True):
            plane.update(bytes([code]) * plane.buffer_size)
        luma, cb, cr = (codes[0] - 16) / 219, (codes[1] - 128) / 224, (codes[2] - 128) / 224
        red, blue = luma + 1.5748 * cr, luma + 1.8556 * cb
        exact = [red, (luma - 0.2126 * red - 0.0722 * blue) / 0.7152, blue]
        errors.append(np.abs(converter.to_rgb(picture)[:, 16, 32] - np.clip(exact, 0, 1)))
    return 255 * float(np.mean(errors)), 255 * float(np.max(errors))


def loss(converter: Ours | Swscale, given: list[np.ndarray]) -> str:
    """Mean error and mean shift of each channel from passing through yuv420p."""
    judge = Ours()
    differences = [
        255 * (np.clip(judge.to_rgb(converter.from_rgb(rgb)), 0, 1) - np.clip(rgb, 0, 1))
        for rgb in given
    ]
    shift = np.abs(np.mean(differences, axis=(0, 2, 3))).max()
    return f"mean {np.abs(differences).mean():.3f}, largest shift of a channel {shift:.3f}"


def milliseconds(work: Callable[[], object], repeats: int = 20) -> float:
    """CPU time of one call."""
    work()
    begun = time.process_time()
    for _ in range(repeats):
        work()
    return 1e3 * (time.process_time() - begun) / repeats


def frames(clip: Path, count: int = 8) -> list[av.VideoFrame]:
    """Some frames of the clip as yuv420p."""
    with av.open(str(clip)) as container:
        decoded = list(container.decode(video=0))
    return decoded[:: max(1, len(decoded) // count)][:count]


def report(converter: Ours | Swscale, pictures: list[av.VideoFrame]) -> None:
    """Print one converter's figures."""
    judge = Ours()
    mean, most = patches(converter)
    print(f"{converter.name}: patches mean {mean:.4f}, max {most:.4f}")
    print(f"  there and back: {loss(converter, [judge.to_rgb(p) for p in pictures])}")
    halves = [p.reformat(p.width // 4 * 2, p.height // 4 * 2, "rgb24") for p in pictures]
    print(f"  RGB as 4:2:0:   {loss(converter, [judge.to_rgb(p) for p in halves])}")
    full = pictures[0].reformat(1920, 1080)
    rgb = converter.to_rgb(full)
    there = milliseconds(lambda: converter.to_rgb(full))
    back = milliseconds(lambda: converter.from_rgb(rgb))
    print(f"  1920x1080, CPU: to RGB {there:.1f} ms, from RGB {back:.1f} ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("clip", nargs="?", type=Path, default=CLIP)
    pictures = frames(parser.parse_args().clip)
    for converter in (Ours(), Swscale()):
        report(converter, pictures)


if __name__ == "__main__":
    main()
