"""FILM behind the Method protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import torch
from torch import Tensor

from ..device import choose_device
from ..errors import FrameError, SettingsError
from ..film import (
    FilmFeatures,
    FilmFlows,
    FilmNet,
    load_film,
    predict_peak_memory,
    warp,
    weights_hash,
)
from ..method import PairKey
from ..model.precision import matmul_precision
from ..model.sampling import check_values
from .config import MethodConfig

DTYPES = {"float32": torch.float32, "tf32": torch.float32, "float16": torch.float16}
"""The network's dtype for each precision."""


def open_film(path: Path, config: MethodConfig) -> FilmMethod:
    """The method with the weights at `path`, in the precision and on the device of `config`.

    Raises:
        ModelMissingError, CheckpointError: as `load_film`.
        SettingsError: FILM does not run in that precision, or there is no such device.
    """
    if config.precision not in DTYPES:
        raise SettingsError(
            f"FILM runs in {', '.join(DTYPES)}, not in {config.precision}, which is too coarse for "
            "its flows: choose one of those."
        )
    device = choose_device(config.device)
    film = load_film(path, dtype=DTYPES[config.precision], device=device)
    return FilmMethod(film, tf32=config.precision == "tf32")


@dataclass(frozen=True, slots=True, kw_only=True)
class FilmFrame:
    """A frame's FILM features, with what the network does not see."""

    features: FilmFeatures
    alpha: Tensor | None
    """[1, 1, H, W], for RGBA frames."""
    low: float
    high: float
    """Range of the frame, at least [0, 1]."""


class FilmMethod:
    """Frames between two frames by FILM, each t computed directly from the pair.

    The network's frames overshoot; they are clamped here, to [0, 1] or, if the pair itself goes
    beyond (EXR, HDR), to the range of the pair. Alpha is moved by the picture's flows.
    """

    name = "film"
    any_time = True

    def __init__(self, film: FilmNet, *, tf32: bool = False) -> None:
        self.film = film
        self.tf32 = tf32
        self.device = next(film.parameters()).device
        self.settings = {
            "dtype": str(film.dtype).removeprefix("torch."),
            "tf32": tf32,
            "weights": weights_hash(film),
        }

    def memory_needed(self, height: int, width: int) -> int:
        """Peak bytes for frames of this size, without the weights."""
        weights = sum(parameter.nbytes for parameter in self.film.parameters())
        return predict_peak_memory(height, width, dtype=self.film.dtype) - weights

    def prepare(self, frame: Tensor) -> FilmFrame:
        """Features of a frame [C, H, W], RGB or RGBA floats nominally in [0, 1].

        Raises:
            FrameError: another shape or type, or pixels that are NaN or infinite.
        """
        if frame.ndim != 3 or frame.shape[0] not in (3, 4):
            raise FrameError(
                f"FILM takes RGB or RGBA frames [C, H, W], got {list(frame.shape)}: convert them."
            )
        check_values(frame)
        low, high = (float(bound) for bound in frame[:3].aminmax())
        image = frame[None].to(self.device)
        with matmul_precision(tf32=self.tf32):
            features = self.film.features(image[:, :3])
        return FilmFrame(
            features=features,
            alpha=image[:, 3:] if frame.shape[0] == 4 else None,
            low=min(0.0, low),
            high=max(1.0, high),
        )

    def between(
        self, features0: FilmFrame, features1: FilmFrame, times: Sequence[Fraction], key: PairKey
    ) -> Iterator[Tensor]:
        """Frames at `times` in [0, 1] of the pair, [C, H, W] float32 on the CPU, made on demand.

        `key` is not needed: nothing here is random.

        Raises:
            FrameError: the frames differ in size, or only one of them has alpha.
        """
        if (features0.alpha is None) != (features1.alpha is None):
            raise FrameError("Only one frame of a pair has alpha: make them alike.")
        with matmul_precision(tf32=self.tf32):
            flows = self.film.flows(features0.features, features1.features)
        return (self._frame(features0, features1, flows, t) for t in times)

    def _frame(self, frame0: FilmFrame, frame1: FilmFrame, flows: FilmFlows, t: Fraction) -> Tensor:
        with matmul_precision(tf32=self.tf32):
            frame = self.film.frame(frame0.features, frame1.features, flows, t)
            frame = frame.float().clamp(min(frame0.low, frame1.low), max(frame0.high, frame1.high))
            if frame0.alpha is not None and frame1.alpha is not None:
                alpha = _moved_mix(frame0.alpha, frame1.alpha, flows, float(t))
                frame = torch.cat([frame, alpha], dim=1)
        return frame[0].cpu()


def _moved_mix(plane0: Tensor, plane1: Tensor, flows: FilmFlows, t: float) -> Tensor:
    """Mix at t of two planes [B, C, H, W], each warped by the flow the network uses for it."""
    height, width = plane0.shape[-2:]
    backward, forward = (
        flow[0][..., :height, :width].float() for flow in (flows.backward, flows.forward)
    )
    moved0, moved1 = warp(plane0, t * backward), warp(plane1, (1 - t) * forward)
    return torch.lerp(moved0, moved1, t)
