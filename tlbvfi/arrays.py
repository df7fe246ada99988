"""Frames as the caller's arrays or tensors: read as they are, with mid frames of the same kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import FrameError

A = TypeVar("A", NDArray[Any], Tensor)
"""A frame: [H, W, C] with C = 1, 3 or 4 (gray, RGB, RGBA) of uint8, uint16 or float."""

INTEGERS = (np.uint8, np.uint16)
LARGEST = float(np.finfo(np.float32).max)
"""Beyond it, a float64 pixel would become infinite on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameFormat(Generic[A]):
    """What the frames of a clip have in common."""

    shape: tuple[int, ...]
    dtype: np.dtype | torch.dtype
    device: torch.device | None
    """None for numpy arrays."""

    @classmethod
    def of(cls, frame: A, index: int = 0) -> FrameFormat[A]:
        """The format of one frame.

        Raises:
            FrameError: it is not a frame; the text gives its number and says what frames are.
        """
        if not isinstance(frame, np.ndarray | Tensor):
            raise FrameError(
                f"frame {index} is of type {type(frame).__name__}: pass numpy arrays or tensors."
            )
        found = cls(
            shape=tuple(frame.shape),
            dtype=frame.dtype,
            device=frame.device if isinstance(frame, Tensor) else None,
        )
        is_picture = len(found.shape) == 3 and found.shape[2] in (1, 3, 4) and all(found.shape)
        if not is_picture or not found._is_known:
            raise FrameError(
                f"frame {index} is {found}: frames are [height, width, 1, 3 or 4 channels] of "
                "uint8, uint16 or float."
            )
        return found

    def require(self, frame: A, index: int) -> None:
        """Refuse a frame of another format, or with NaN or infinite pixels.

        Raises:
            FrameError: naming the frame, and both formats if they differ.
        """
        found = FrameFormat.of(frame, index)
        if found != self:
            raise FrameError(f"frame {index} is {found}, but frame 0 is {self}: make them alike.")
        if not found._is_integer and not _is_finite(frame):
            raise FrameError(
                f"frame {index} holds NaN or infinite pixels: repair it or leave it out."
            )

    def image(self, frame: A) -> Tensor:
        """[3 or 4, H, W] float32 on the CPU, nominally in [0, 1]; floats keep values beyond it."""
        planes = np.moveaxis(_on_cpu(frame), -1, 0)
        if planes.dtype.kind == "u":
            image = np.divide(planes, np.float32(np.iinfo(planes.dtype).max), dtype=np.float32)
        else:
            image = planes.astype(np.float32)
        gray_as_rgb = np.repeat(image, 3, axis=0) if len(image) == 1 else image
        return torch.from_numpy(np.ascontiguousarray(gray_as_rgb))

    def frame(self, image: Tensor) -> A:
        """An image like the result of `self.image` as a frame; integers are rounded and clipped."""
        if self.shape[2] == 1:
            image = image.mean(dim=0, keepdim=True)
        values = np.ascontiguousarray(np.moveaxis(image.numpy(), 0, -1))
        numbers = _integer_type(self.dtype)
        if numbers is not None:
            top = np.iinfo(numbers).max
            values = np.clip(values * np.float32(top) + np.float32(0.5), 0, top).astype(numbers)
        if isinstance(self.dtype, torch.dtype):
            made = torch.from_numpy(values).to(device=self.device, dtype=self.dtype)
        else:
            made = values.astype(self.dtype, copy=False)
        return cast("A", made)  # `of` read the dtype from a frame of type A

    def __str__(self) -> str:
        place = f" on {self.device}" if self.device else ""
        return f"{self.dtype} {list(self.shape)}{place}"

    @property
    def _is_known(self) -> bool:
        if isinstance(self.dtype, torch.dtype):
            return self.dtype.is_floating_point or self._is_integer
        return self.dtype.kind == "f" or self._is_integer

    @property
    def _is_integer(self) -> bool:
        return _integer_type(self.dtype) is not None


def _integer_type(dtype: np.dtype | torch.dtype) -> type[np.uint8 | np.uint16] | None:
    """The integer type of a frame; None for floats and for unsupported types."""
    name = str(dtype).removeprefix("torch.")
    return next((kind for kind in INTEGERS if kind.__name__ == name), None)


def _is_finite(frame: NDArray[Any] | Tensor) -> bool:
    """Whether all pixels of a frame of floats are finite as float32; NaN lies in no range."""
    with np.errstate(invalid="ignore"):
        return float(frame.min()) >= -LARGEST and float(frame.max()) <= LARGEST


def _on_cpu(frame: NDArray[Any] | Tensor) -> NDArray[Any]:
    if not isinstance(frame, Tensor):
        return frame
    near = frame.detach().to(torch.float32 if frame.dtype.is_floating_point else frame.dtype)
    return cast("NDArray[Any]", near.cpu().numpy())
