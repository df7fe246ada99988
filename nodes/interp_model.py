"""ComfyUI's own frame interpolation models (type INTERP_MODEL: FILM, RIFE) as a method.

They are driven through calls outside ComfyUI's public interface, so everything known about them
is in this file, and a model that lacks one of the calls is refused with the call's name. Frames
equal those of ComfyUI's own "Run Frame Interpolation Model" node.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from ..tlbvfi.errors import SettingsError
from ..tlbvfi.method import PairKey

REQUIRED_OF_PATCHER = ("model", "load_device", "model_dtype", "model_size")
MOST_AT_ONCE = 16
"""Mid frames of a pair: a pause of a minute has thousands, far more than memory holds."""
REQUIRED_OF_MODEL = ("extract_features", "memory_used_forward", "state_dict")


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """One frame in the model's form, and the features computed from it."""

    padded: Tensor
    """[1, 3, H', W'] on the model's device, sides padded to its alignment."""
    cached: Any
    """Opaque: the model's own features."""
    frame: Tensor
    """[C, H, W], the original frame, for the size and the alpha channel."""


class InterpModelMethod:
    """Adapter of the Method protocol over an INTERP_MODEL value."""

    any_time = True

    def __init__(self, patcher: Any) -> None:  # noqa: ANN401 - ComfyUI's untyped patcher
        """Raises: SettingsError: the model lacks a call this adapter needs."""
        require_calls(patcher)
        self.name = f"comfyui-{type(patcher.model).__name__.lower()}"
        self._patcher = patcher
        self._model = patcher.model
        self._dtype = patcher.model_dtype()
        self.device: torch.device = patcher.load_device
        self._loaded_for: torch.Size | None = None
        self._at_once = MOST_AT_ONCE  # fewer once memory has run out

    @property
    def settings(self) -> dict[str, str]:
        """What determines its frames, for manifests."""
        return {"weights": self.weights_hash(), "dtype": str(self._dtype)}

    def memory_needed(self, height: int, width: int) -> int:
        """Peak bytes for frames of this size, weights included."""
        return self._frame_memory(height, width) + self._patcher.model_size()

    def weights_hash(self) -> str:
        """SHA-256 over names, shapes and values of the weights, as recorded in a session."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._model.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.inference_mode()
    def prepare(self, frame: Tensor) -> Features:
        """Features of a frame, [C, H, W] float32 in [0, 1]."""
        self._load(frame)
        padded = self._padded(frame[None, :3])
        return Features(padded=padded, cached=self._model.extract_features(padded), frame=frame)

    @torch.inference_mode()
    def between(
        self, features0: Features, features1: Features, times: Sequence[Fraction], key: PairKey
    ) -> Iterator[Tensor]:
        """Frames at `times`, made on demand; alpha, which these models do not support, is mixed
        linearly.
        """
        _, height, width = features0.frame.shape
        alpha0, alpha1 = features0.frame[3:], features1.frame[3:]
        for t, mid in zip(times, self._run(features0, features1, times), strict=True):
            shown = mid[:, :height, :width].to(device="cpu", dtype=torch.float32).clamp_(0, 1)
            yield torch.cat([shown, torch.lerp(alpha0, alpha1, float(t))])

    def _load(self, frame: Tensor) -> None:
        """Have ComfyUI make room and load the weights, once per size."""
        if self._loaded_for == frame.shape:
            return
        import comfy.model_management as mm

        _, height, width = frame.shape
        mm.load_models_gpu([self._patcher], memory_required=self._frame_memory(height, width))
        self._loaded_for = frame.shape

    def _frame_memory(self, height: int, width: int) -> int:
        return int(self._model.memory_used_forward((1, height, width, 3), self._dtype))

    def _padded(self, frame: Tensor) -> Tensor:
        from comfy.ldm.common_dit import pad_to_patch_size

        # IMAGE batches are channels-last, and the rounding of convolutions depends on the layout:
        # with any other the frames differ from those of ComfyUI's own node in the last bits
        frame = frame.contiguous(memory_format=torch.channels_last)
        frame = frame.to(dtype=self._dtype, device=self._patcher.load_device)
        align = getattr(self._model, "pad_align", 1)
        if align == 1:
            return frame
        return pad_to_patch_size(frame, (align, align), padding_mode="reflect")

    def _run(
        self, features0: Features, features1: Features, times: Sequence[Fraction]
    ) -> Iterator[Tensor]:
        """[3, H', W'] each; fewer at once each time memory runs out, down to one."""
        import comfy.model_management as mm

        done = 0
        while done < len(times):
            part = [float(t) for t in times[done : done + self._at_once]]
            try:
                made = self._forward(features0, features1, part)
            except mm.OOM_EXCEPTION:
                if len(part) == 1:
                    raise
                self._at_once = len(part) // 2
                mm.soft_empty_cache()
                continue
            yield from made
            done += len(part)

    def _forward(self, features0: Features, features1: Features, times: list[float]) -> Tensor:
        cache = {"img0": features0.cached, "img1": features1.cached}
        image0, image1 = features0.padded, features1.padded
        if hasattr(self._model, "forward_multi_timestep"):
            return self._model.forward_multi_timestep(image0, image1, times, cache=cache)
        n, (height, width) = len(times), image0.shape[2:]
        steps = torch.tensor(times, device=image0.device, dtype=image0.dtype)
        return self._model(
            image0.expand(n, -1, -1, -1),
            image1.expand(n, -1, -1, -1),
            timestep=steps.reshape(n, 1, 1, 1).expand(n, 1, height, width),
            cache=cache,
        )


def require_calls(patcher: Any) -> None:  # noqa: ANN401 - anything a graph may pass
    """Refuse a value that this adapter cannot drive.

    Raises:
        SettingsError: it is not a model, or lacks a call.
    """
    missing = [name for name in REQUIRED_OF_PATCHER if not hasattr(patcher, name)]
    if not missing:
        missing = [name for name in REQUIRED_OF_MODEL if not hasattr(patcher.model, name)]
    if missing:
        raise SettingsError(
            f"interp_model {type(patcher).__name__} has no {', '.join(missing)}: connect the output "
            "of 'Load Frame Interpolation Model' of a ComfyUI this pack supports (0.23 or newer)."
        )
