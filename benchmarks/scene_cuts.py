"""Precision and recall of cut and duplicate detection on clips with known ground truth.

    python benchmarks/scene_cuts.py [--height 144] [--length 12]

The clips are made here from seeded textures and from examples/big_buck_bunny.mp4: joined scenes of
every kind, and everything that is easily mistaken for a cut. If the package `scenedetect` is
installed, its detectors are measured on the same frames.
"""

import argparse
import importlib.util
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import av
import cv2
import numpy as np
import torch
from comfyui_tlbvfi.tlbvfi.scenes import marked
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # [H, W, 3] RGB in [0, 1]

REAL_CLIP = Path(__file__).resolve().parent.parent / "examples" / "big_buck_bunny.mp4"


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """Frames and the pairs that are cuts (pair n is frames n and n+1)."""

    name: str
    frames: list[Picture]
    cuts: frozenset[int] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Size of the pictures and length of a scene."""

    height: int
    length: int

    @property
    def width(self) -> int:
        return self.height * 16 // 9

    def texture(
        self,
        seed: int,
        *,
        grain: float = 0.13,
        octaves: int = 4,
        contrast: float = 0.22,
        color: float = 1.0,
        margin: int = 0,
    ) -> Picture:
        """A picture of blobs; `grain` is the size of the largest, as a fraction of the height."""
        rng = np.random.default_rng(seed)
        h, w = self.height + 2 * margin, self.width + 2 * margin
        picture = np.zeros((h, w, 3), np.float32)
        for octave in range(octaves):
            cell = max(2, int(grain * self.height) >> octave)
            noise = rng.standard_normal((h // cell + 3, w // cell + 3, 3)).astype(np.float32)
            gray = noise.mean(-1, keepdims=True) * 3**0.5
            blobs = gray * (1 - color / 2) + noise * color / 2
            picture += cv2.resize(blobs, (w, h), interpolation=cv2.INTER_CUBIC) * 0.6**octave
        return np.clip(0.5 + contrast * picture / picture.std(), 0, 1)

    def window(self, picture: Picture, y: float, x: float) -> Picture:
        return picture[round(y) : round(y) + self.height, round(x) : round(x) + self.width]

    def pan(self, seed: int, speed: float = 0.01, length: int = 0, **look: float) -> list[Picture]:
        """A texture passing by; `speed` in heights per frame."""
        length = length or self.length
        margin = int(speed * self.height * length) + 8
        picture = self.texture(seed, margin=margin, **look)  # pyright: ignore[reportArgumentType]
        return [self.window(picture, 8, speed * self.height * i) for i in range(length)]

    def scaled(self, picture: Picture) -> Picture:
        return cv2.resize(picture, (self.width, self.height), interpolation=cv2.INTER_AREA)


def joined(name: str, scenes: Sequence[list[Picture]]) -> Clip:
    """Scenes one after the other; every seam is a cut."""
    ends = np.cumsum([len(scene) for scene in scenes])[:-1] - 1
    frames = [frame for scene in scenes for frame in scene]
    return Clip(name=name, frames=frames, cuts=frozenset(int(end) for end in ends))


def changed(name: str, clip: Clip, change: Callable[[Picture], Picture]) -> Clip:
    return Clip(name=name, frames=[change(frame) for frame in clip.frames], cuts=clip.cuts)


def noisy(frame: Picture, rng: np.random.Generator, deviation: float) -> Picture:
    grain = rng.standard_normal(frame.shape, dtype=np.float32)
    return np.clip(frame + deviation * grain, 0, 1)


def corpus(stage: Stage) -> Iterator[Clip]:
    """All clips with known cuts, one at a time."""
    yield from textured_scenes(stage)
    yield from real_scenes(stage)
    yield from short_and_flat_scenes(stage)
    yield from motion(stage)
    yield from flashes(stage)
    yield from slow_transitions(stage)


def textured_scenes(stage: Stage) -> Iterator[Clip]:
    rng = np.random.default_rng(0)
    scenes = [stage.pan(seed) for seed in range(6)]
    plain = joined("joined scenes", scenes)
    yield plain
    yield joined("similar palettes", [stage.pan(s, contrast=0.12, color=0.1) for s in range(6, 12)])
    yield joined("low contrast", [stage.pan(s, contrast=0.05) for s in range(12, 18)])
    yield joined("large shapes", [stage.pan(s, grain=0.7, octaves=2) for s in range(18, 24)])
    yield joined("fine texture", [stage.pan(s, grain=0.03, octaves=2) for s in range(24, 30)])
    yield joined("fast scenes", [stage.pan(s, speed=0.09) for s in range(30, 36)])
    yield changed("dark scenes", plain, lambda frame: frame * 0.12)
    yield changed("very dark scenes", plain, lambda frame: frame * 0.06)
    for deviation in (0.02, 0.06, 0.12):
        grain = partial(noisy, rng=rng, deviation=deviation)
        yield changed(f"grain {deviation}", plain, grain)
    yield changed("dark with grain", plain, lambda frame: noisy(frame * 0.12, rng, 0.02))


def real_scenes(stage: Stage) -> Iterator[Clip]:
    """Shots cut out of one real scene, all with the same palette, light and texture."""
    film = decode(REAL_CLIP)
    yield Clip(name="real clip", frames=[stage.scaled(frame) for frame in film])
    boxes = [  # left, top, width; the first is the whole picture
        (0, 0, 640),
        (0, 120, 320),
        (320, 0, 320),
        (320, 180, 320),
        (100, 100, 200),
        (60, 40, 160),
        (400, 60, 200),
        (240, 0, 200),
    ]
    shots = [
        [
            stage.scaled(frame[top : top + width * 9 // 16, left : left + width])
            for frame in film[4 * i : 4 * i + stage.length]
        ]
        for i, (left, top, width) in enumerate(boxes)
    ]
    real = joined("shots of a real scene", shots)
    yield real
    yield changed("mirrored and not", joined("", [shots[0], [f[:, ::-1] for f in shots[0]]]), _copy)
    yield changed("letterboxed", real, _letterboxed)
    yield Clip(name="real, encoded at crf 28", frames=encoded(real.frames, crf=28), cuts=real.cuts)
    yield joined("real scenes of two frames", [shot[:2] for shot in shots])
    one = [*shots[0][:4], shots[3][0], *shots[2][:4]]
    yield Clip(name="real scene of one frame", frames=one, cuts=frozenset({3, 4}))


def _copy(frame: Picture) -> Picture:
    return np.ascontiguousarray(frame)


def _letterboxed(frame: Picture) -> Picture:
    bar = len(frame) // 8
    return np.pad(frame[bar:-bar], ((bar, bar), (0, 0), (0, 0)))


def short_and_flat_scenes(stage: Stage) -> Iterator[Clip]:
    yield joined("drawings on one background", [drawing(stage, seed) for seed in range(6)])
    colors = ((0.2, 0.3, 0.8), (0.8, 0.2, 0.2), (0.1, 0.1, 0.1), (0.2, 0.25, 0.3), (0.9, 0.9, 0.9))
    yield joined("flat cards", [[_flat(stage, color)] * stage.length for color in colors])
    black, white = ([_flat(stage, (v, v, v))] * stage.length for v in (0.0, 1.0))
    yield joined("to black and to white", [stage.pan(1), black, stage.pan(2), white, stage.pan(3)])


def _flat(stage: Stage, color: tuple[float, float, float]) -> Picture:
    return np.full((stage.height, stage.width, 3), color, np.float32)


def drawing(stage: Stage, seed: int) -> list[Picture]:
    """Flat discs moving on twos over the same light background, as in animation."""
    rng = np.random.default_rng(seed)
    h, w = stage.height, stage.width
    discs = [
        (
            *rng.uniform((0.1 * w, 0.1 * h, 0.1 * h), (0.9 * w, 0.9 * h, 0.3 * h)),
            rng.uniform(0, 1, 3),
        )
        for _ in range(5)
    ]
    frames = []
    for i in range(stage.length):
        frame = _flat(stage, (0.9, 0.9, 0.85))
        for k, (x, y, radius, color) in enumerate(discs):
            center = (int(x + (k - 2) * 0.01 * h * (i // 2)), int(y))
            cv2.circle(frame, center, int(radius), color.tolist(), -1)
        frames.append(cv2.GaussianBlur(frame, (3, 3), 0))
    return frames


def motion(stage: Stage) -> Iterator[Clip]:
    rng = np.random.default_rng(1)
    length = max(stage.length, 8)
    for speed in (0.05, 0.11, 0.22, 0.45):
        yield Clip(name=f"pan {speed}", frames=stage.pan(1, speed, length))
    wide = stage.texture(2, margin=stage.height)
    way = [0] * 5 + [0.3, 0.6, 0.9, 1.2, 1.5] + [1.5] * 5
    yield Clip(name="whip pan", frames=[stage.window(wide, 0, x * stage.height) for x in way])
    shake = rng.uniform(-0.07, 0.07, (length, 2)) * stage.height + stage.height
    yield Clip(name="camera shake", frames=[stage.window(wide, y, x) for y, x in shake])
    for size, speed in ((0.5, 0.16), (1.0, 0.22), (1.0, 0.44), (1.3, 0.66)):
        yield Clip(name=f"object {size}, {speed}", frames=passing(stage, size, speed))
    for rate in (1.03, 1.08):
        yield Clip(name=f"zoom {rate}", frames=[turned(stage, wide, 0, rate**i) for i in range(8)])
    yield Clip(name="rotation", frames=[turned(stage, wide, 6 * i, 1) for i in range(length)])
    static = [rng.uniform(0, 1, (stage.height, stage.width, 3)) for _ in range(length)]
    yield Clip(name="nothing but noise", frames=[frame.astype(np.float32) for frame in static])


def passing(stage: Stage, size: float, speed: float) -> list[Picture]:
    """An object as tall as the picture passes by; size and speed in heights."""
    ground, thing = stage.texture(3), stage.texture(4, grain=0.09)
    width = int(size * stage.height)
    frames = []
    for i in range(int((stage.width + width) / (speed * stage.height)) + 2):
        right = int(speed * stage.height * i)
        left = max(0, right - width)
        frame = ground.copy()
        frame[:, left:right] = thing[:, left - right + width :][:, : frame[:, left:right].shape[1]]
        frames.append(frame)
    return frames


def turned(stage: Stage, wide: Picture, degrees: float, zoom: float) -> Picture:
    h, w = wide.shape[:2]
    matrix = cv2.getRotationMatrix2D((w / 2, h / 2), degrees, zoom)
    return stage.window(cv2.warpAffine(wide, matrix, (w, h)), stage.height, stage.height)


def flashes(stage: Stage) -> Iterator[Clip]:
    length = max(stage.length, 14)
    calm = stage.pan(5, length=length)

    def lit(light: dict[int, float]) -> list[Picture]:
        return [np.clip(frame + light.get(i, 0), 0, 1) for i, frame in enumerate(calm)]

    yield Clip(name="flash", frames=lit({6: 0.7}))
    yield Clip(name="flash of two frames", frames=lit({6: 0.7, 7: 0.5}))
    yield Clip(name="white frame", frames=lit({6: 1.0}))
    yield Clip(name="black frame", frames=lit({6: -1.0}))
    yield Clip(name="strobe", frames=lit(dict.fromkeys(range(0, length, 2), 0.6)))
    yield Clip(name="explosion", frames=lit({5 + i: 0.8 * 0.8**i for i in range(length - 5)}))
    switched = [frame * (0.35 if i < length // 2 else 1) for i, frame in enumerate(calm)]
    yield Clip(name="light switched on", frames=switched)


def slow_transitions(stage: Stage) -> Iterator[Clip]:
    for length in (6, 12, 24):
        total = length + 12
        a, b = stage.pan(6, length=total), stage.pan(7, length=total)
        share = [float(np.clip((i - 6) / length, 0, 1)) for i in range(total)]
        yield Clip(
            name=f"dissolve of {length}",
            frames=[x * (1 - s) + y * s for x, y, s in zip(a, b, share, strict=True)],
        )
        out = [x * (1 - s) for x, s in zip(a, share, strict=True)]
        yield Clip(name=f"fade out of {length}", frames=out)
        yield Clip(name=f"fade in of {length}", frames=out[::-1])


def decode(path: Path | io.BytesIO) -> list[Picture]:
    """All frames of a short clip."""
    with av.open(path) as container:
        return [
            frame.to_ndarray(format="rgb24").astype(np.float32) / 255
            for frame in container.decode(video=0)
        ]


def encoded(frames: Sequence[Picture], crf: int) -> list[Picture]:
    """Frames after encoding with x264."""
    file = io.BytesIO()
    height, width = frames[0].shape[:2]
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=24, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for frame in frames:
            picture = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    return decode(file)


def tensor(frame: Picture) -> torch.Tensor:
    return torch.from_numpy(frame).permute(2, 0, 1)


def found_cuts(frames: Sequence[Picture]) -> set[int]:
    """Pairs that our detector classifies as cuts."""
    return {n for n, (_, is_cut, _) in enumerate(marked(frames, tensor), -1) if is_cut}


def found_duplicates(frames: Sequence[Picture]) -> set[int]:
    """Pairs whose second frame our detector classifies as a repetition."""
    return {n for n, (_, _, repeats) in enumerate(marked(frames, tensor), -1) if repeats}


def repetitions(stage: Stage) -> Iterator[tuple[str, list[Picture], set[int]]]:
    """Name, frames and repeating pairs: animation on twos by several encoders, and slow motion."""
    real = [stage.scaled(frame) for frame in decode(REAL_CLIP)[: 2 * stage.length : 2]]
    drawn = drawing(Stage(height=stage.height, length=2 * stage.length), 3)[::2]
    rng = np.random.default_rng(2)
    for name, ones in (("real", real), ("drawn", drawn)):
        frames = [frame for one in ones for frame in (one, one)]
        pairs = set(range(0, len(frames), 2))
        yield f"{name} on twos", frames, pairs
        for crf in (16, 23, 28):
            yield f"{name} on twos, crf {crf}", encoded(frames, crf), pairs
        yield f"{name} on twos, grain", [noisy(frame, rng, 0.015) for frame in frames], pairs
        dark = [frame * 0.15 for frame in frames]
        yield f"{name} on twos, dark, crf 23", encoded(dark, 23), pairs
    still = stage.texture(9, margin=8)
    h, w = still.shape[:2]
    for step in (0.0015, 0.005):
        drift = [
            cv2.warpAffine(still, np.array([[1, 0, step * h * i], [0, 1, 0]]), (w, h))[8:-8, 8:-8]
            for i in range(stage.length)
        ]
        yield f"drift of {step}", drift, set()
    yield "slow fade", [stage.texture(9) * (1 - i / 200) for i in range(stage.length)], set()


def score(truth: set[int] | frozenset[int], found: set[int]) -> NDArray[np.int64]:
    """Hits, false alarms, misses."""
    return np.array([len(truth & found), len(found - truth), len(truth - found)])


def other_detectors() -> dict[str, Callable[[Sequence[Picture]], set[int]]]:
    """PySceneDetect's detectors, if it is installed, set to allow scenes of one frame."""
    if importlib.util.find_spec("scenedetect") is None:
        return {}
    from scenedetect import AdaptiveDetector, ContentDetector, FrameTimecode, HashDetector

    def run(detector: type, frames: Sequence[Picture]) -> set[int]:
        machine, cuts = detector(min_scene_len=1), []
        for i, frame in enumerate(frames):
            picture = np.rint(np.clip(frame, 0, 1) * 255).astype(np.uint8)[..., ::-1]
            cuts += machine.process_frame(FrameTimecode(i, fps=24.0), np.ascontiguousarray(picture))
        cuts += machine.post_process(FrameTimecode(len(frames) - 1, fps=24.0))
        return {cut.frame_num - 1 for cut in cuts}

    classes = (ContentDetector, AdaptiveDetector, HashDetector)
    return {detector.__name__: partial(run, detector) for detector in classes}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure cut and duplicate detection.")
    parser.add_argument("--height", type=int, default=144)
    parser.add_argument("--length", type=int, default=12, help="frames of a scene")
    arguments = parser.parse_args()
    stage = Stage(height=arguments.height, length=arguments.length)
    detectors = {"ours": found_cuts, **other_detectors()}
    totals = {name: np.zeros(3, int) for name in detectors}
    seconds = dict.fromkeys(detectors, 0.0)
    frames = 0
    print("| clip | cuts |", " | ".join(detectors), "|")
    print("|---|---|" + "---|" * len(detectors))
    for clip in corpus(stage):
        row = []
        frames += len(clip.frames)
        for name, detect in detectors.items():
            begun = time.perf_counter()
            hits, alarms, misses = result = score(clip.cuts, detect(clip.frames))
            seconds[name] += time.perf_counter() - begun
            totals[name] += result
            row.append(f"{hits} found, {alarms} false" if alarms or misses else "right")
        print(f"| {clip.name} | {len(clip.cuts)} |", " | ".join(row), "|", flush=True)
    for name, (hits, alarms, misses) in totals.items():
        precision, recall = hits / max(hits + alarms, 1), hits / max(hits + misses, 1)
        rate = 1e3 * seconds[name] / frames
        print(f"{name}: precision {precision:.3f}, recall {recall:.3f}, {rate:.1f} ms per frame")
    print("\n| repeated frames | pairs | found | false |\n|---|---|---|---|")
    for name, pictures, pairs in repetitions(stage):
        hits, alarms, _ = score(pairs, found_duplicates(pictures))
        print(f"| {name} | {len(pairs)} | {hits} | {alarms} |")


if __name__ == "__main__":
    main()
