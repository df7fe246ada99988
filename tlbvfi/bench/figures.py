"""The measurements at one size: plain values that are passed between processes as JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from .sizes import Size

STAGES = ("encode", "latent", "sampler", "quantizer", "flow", "decode")
"""Stages of computing a mid frame, in order; features of a frame are encoded once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFigures:
    """The model alone, on a sequence: frames from and to the CPU's memory, no video."""

    ms: float
    """Median milliseconds per mid frame, including the features of the frame after it."""
    cpu_ms: float
    """Median CPU time, all threads, per mid frame."""
    pairs: int
    peak_bytes: int
    idle_bytes: int
    """Bytes taken before the first frame: weights, and on a CPU also interpreter and torch."""
    predicted_bytes: int
    """What the method expected to need for the pairs it computes at once, without the weights."""
    stages_ms: dict[str, float]
    """Mean per stage, with a wait for the device after each; `other` is the time between them."""
    stages_gflop: dict[str, float]
    gpu_busy: float | None
    """Share of the time in which a kernel runs; None on a CPU."""

    @property
    def frames_per_second(self) -> float:
        """Mid frames per second."""
        return 1e3 / self.ms

    @property
    def gflop(self) -> float:
        """GFLOP of a mid frame, with whole maps, as `torch.utils.flop_counter` counts it."""
        return sum(self.stages_gflop.values())

    @property
    def tflops(self) -> float:
        """Arithmetic rate, TFLOP/s."""
        return self.gflop / self.ms

    @property
    def shares(self) -> dict[str, float]:
        """Share of each stage in the total time."""
        total = sum(self.stages_ms.values())
        return {stage: ms / total for stage, ms in self.stages_ms.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFigures:
    """A whole job from file to file; milliseconds are per pair of source frames."""

    pairs: int
    mid_frames: int
    """Frames made by the model: none between two scenes."""
    frames: int
    """Output frames."""
    seconds: float
    """From opening the source to the verified file, with the model loaded and warm."""
    model_ms: float
    """The model alone per mid frame, in the same process just before."""
    decode_ms: float
    """Decoding and conversion to RGB alone."""
    encode_ms: float
    """Conversion from RGB, encoding and committing alone: a source and a mid frame per pair."""
    peak_bytes: int
    encoder: str

    @property
    def frames_per_second(self) -> float:
        """Output frames per second."""
        return self.frames / self.seconds

    @property
    def of_model_rate(self) -> float:
        """Rate of the whole job as a fraction of the model's own rate."""
        return self.model_ms * self.mid_frames / (1e3 * self.seconds)

    @property
    def limit(self) -> str:
        """The stage that takes longest alone: decode, model or encode."""
        alone = {"decode": self.decode_ms, "model": self.model_ms, "encode": self.encode_ms}
        return max(alone, key=lambda stage: alone[stage])


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineFigures:
    """The plain float32 implementation on the same frames, weights and noise."""

    ms: float
    cpu_ms: float
    peak_bytes: int
    largest_difference: float
    """Of the last frame from ours, in [0, 1]."""
    psnr: float | None
    """Of the last frame against ours, dB; None if they are equal."""
    ms_torch_defaults: float | None
    """With the TF32 convolutions PyTorch enables by default; None on a CPU, which has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """All measurements at one size; `problems` explains what is missing."""

    size: Size
    model: ModelFigures | None = None
    job: JobFigures | None = None
    baseline: BaselineFigures | None = None
    problems: dict[str, str] = field(default_factory=dict)
    """One sentence for each measurement that failed, by name."""

    @property
    def times_faster(self) -> float | None:
        """How many times faster than the baseline a mid frame is."""
        if self.model is None or self.baseline is None:
            return None
        return self.baseline.ms / self.model.ms


def psnr(mean_square: float) -> float | None:
    """Peak signal to noise ratio, dB, of values in [0, 1]; None if nothing differs."""
    return -10 * math.log10(mean_square) if mean_square > 0 else None
