"""The protocol of a method: two frames in, the frames between them out.

A method may keep features of a frame, because frame n+1 of pair n is frame n of pair n+1:
`prepare` runs once per frame, `between` once per pair. A method may also offer to do several pairs
at once, see `Batching`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairKey:
    """Identifies a pair of a job; its noise depends on nothing else.

    The same job gives the same frames whether it ran in one go, was resumed, was cut into other
    chunks or was spread over many workers.
    """

    seed: int
    pair: int

    def node_seed(self, t: Fraction) -> int:
        """Seed, 0 to 2**63 - 1, of the mid frame at fraction `t` of this pair.

        A hash rather than a sum, because neighboring seeds, pairs and nodes must not share noise.
        """
        text = f"{self.seed}/{self.pair}/{t.numerator}/{t.denominator}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The frames wanted between two frames; see `Method.between`."""

    features0: Any
    features1: Any
    times: Sequence[Fraction]
    key: PairKey


class Method(Protocol):
    """Turns two frames into the frames between them."""

    name: str
    """Name for messages and manifests, such as `flow`."""

    any_time: bool
    """Whether any t in (0, 1) can be requested; otherwise only j / 2**k (bisection)."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides its frames, in JSON types for manifests: options, hash of the weights."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def memory_needed(self, height: int, width: int) -> int:
        """Peak bytes for frames of this size, without the weights; 0 if negligible."""
        ...

    def prepare(self, frame: Tensor) -> Any:  # noqa: ANN401 - opaque to all but the method
        """Features of one frame, computed once and used for both its pairs.

        `frame`: [C, H, W] float32 on the CPU, RGB or RGBA (C = 3 or 4), nominally in [0, 1];
        values beyond (EXR, HDR) are legal.
        """
        ...

    def between(
        self,
        features0: Any,  # noqa: ANN401
        features1: Any,  # noqa: ANN401
        times: Sequence[Fraction],
        key: PairKey,
    ) -> Iterable[Tensor]:
        """Frames at `times`, ascending fractions in (0, 1) of the pair; shape as the inputs.

        [C, H, W] float32 each, in that order, on the CPU or on the method's own device, where they
        may still be computing: the pipeline downloads each while the next is started. A lazy
        iterator lets the caller stop between two frames. The caller keeps `features1` for the next
        pair.
        """
        ...


@runtime_checkable
class Batching(Protocol):
    """Optional for a method: doing several pairs of small pictures at once."""

    def pairs_at_once(self, height: int, width: int) -> int:
        """How many pairs of frames of this size are best requested together; at least 1.

        The caller then holds the features of one frame more than that.
        """
        ...

    def between_many(self, requests: Sequence[Request]) -> Iterable[Tensor]:
        """All frames of the first request as `between` gives them, then those of the second, ...

        Between 1 and `pairs_at_once` requests, each with at least one time. A frame must depend on
        its own request alone, to the last bit, because requests are grouped differently when a job
        is resumed or cut into other chunks. If the arithmetic depends on the batch size, every
        batch must therefore be filled to the same size, the last one by repeating a pair.
        """
        ...


@runtime_checkable
class Expecting(Protocol):
    """Optional for a method: preparing for a long job."""

    def expect(self, frames: int) -> None:
        """Called before the first frame of every run.

        `frames`: number of output frames of the whole job; 0 if that is unknown.
        """
        ...


def announce(method: Method, frames: int | None) -> None:
    """Tell a method that is `Expecting` what follows; `frames`: None if unknown."""
    if isinstance(method, Expecting):
        method.expect(frames or 0)


@runtime_checkable
class Checking(Protocol):
    """Optional for a method: checking a frame it made, once the frame is on the CPU."""

    def check(self, image: Tensor) -> None:
        """Called with every frame it made before the frame is used, without waiting for the device.

        Raises:
            FrameError: the frame is unusable.
        """
        ...
