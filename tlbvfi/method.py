"""The protocol of a method: two frames in, the frames between them out.

A method may keep features of a frame, because frame n+1 of pair n is frame n of pair n+1:
`prepare` runs once per frame, `between` once per pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class PairKey:
    """Names a pair of a job, so that its noise depends on nothing else.

    The same job gives the same frames whether it ran in one go, was resumed, was cut into other
    chunks or was spread over many workers.
    """

    seed: int
    pair: int

    def node_seed(self, t: Fraction) -> int:
        """Seed, 0 to 2**63 - 1, of the mid frame at fraction `t` of this pair.

        A hash rather than a sum: neighboring seeds, pairs and nodes must not share noise.
        """
        text = f"{self.seed}/{self.pair}/{t.numerator}/{t.denominator}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class Method(Protocol):
    """Turns two frames into the frames between."""

    name: str
    """Word for messages and manifests, such as `flow`."""

    any_time: bool
    """Whether every t in (0, 1) can be asked for; otherwise only j / 2**k (bisection)."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """What decides its frames, in JSON types: options, hash of the weights, for manifests."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def memory_needed(self, height: int, width: int) -> int:
        """Bytes at the peak for frames of this size, weights included; 0 if not worth a word."""
        ...

    def prepare(self, frame: Tensor) -> Any:  # noqa: ANN401 - opaque to everybody but the method
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

        [C, H, W] float32 on the CPU each, in that order. An iterator that computes as it goes lets
        the caller stop between two of them. The caller keeps `features1` for the next pair.
        """
        ...
