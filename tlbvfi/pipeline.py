"""Source frames in, all output frames out: the one loop over pairs.

Everything that interpolates goes through here: a job from file to file, a batch of a ComfyUI graph,
frames handed in from memory. It holds two frames and their features, never the clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic, TypeVar

from torch import Tensor

from .method import Method, PairKey
from .timeline import Slot, Timeline

P = TypeVar("P")
"""What the caller calls a picture: passed through untouched (a decoded frame, a tensor, nothing)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFrame(Generic[P]):
    """A source frame on its way into the pipeline."""

    index: int
    time: Fraction
    """Seconds, on the clock of the output."""
    image: Tensor
    """[C, H, W] float32, RGB(A), nominally [0, 1]."""
    picture: P


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFrame(Generic[P]):
    """An output frame: a source frame's picture, or the image of a mid frame."""

    pair: int
    """Source index of the pair's first frame; the very last frame counts to the last pair."""
    slot: Slot
    source: SourceFrame[P] | None
    image: Tensor | None

    @property
    def is_source(self) -> bool:
        return self.source is not None


def interpolate(
    frames: Iterable[SourceFrame[P]],
    method: Method,
    timeline: Timeline,
    *,
    seed: int = 0,
    first: int = 0,
    ends_here: bool = True,
) -> Iterator[OutputFrame[P]]:
    """Output frames of consecutive source frames, in order of time.

    `first` is the source index the timeline counts its pairs from. With `ends_here=False` the last
    source frame is left out: it opens the next chunk.
    """
    previous: SourceFrame[P] | None = None
    features: Any = None  # the method's own type
    for frame in frames:
        prepared = method.prepare(frame.image)
        if previous is not None:
            slots = timeline.slots(previous.index - first, previous.time, frame.time)
            key = PairKey(seed, previous.index)
            yield from _pair(method, previous, frame, features, prepared, slots, key)
        previous, features = frame, prepared
    if previous is not None and ends_here:
        last_pair = max(first, previous.index - 1)
        for slot in timeline.last(previous.index - first, previous.time):
            yield OutputFrame(pair=last_pair, slot=slot, source=previous, image=None)


def _pair(
    method: Method,
    frame0: SourceFrame[P],
    frame1: SourceFrame[P],
    features0: Any,  # noqa: ANN401 - the method's own type
    features1: Any,  # noqa: ANN401
    slots: list[Slot],
    key: PairKey,
) -> Iterator[OutputFrame[P]]:
    """Output frames of one pair; the method is asked for each t once, however often it is shown."""
    times = sorted({slot.t for slot in slots if 0 < slot.t < 1})
    mids = iter(method.between(features0, features1, times, key) if times else ())
    t, image = Fraction(0), None
    for slot in slots:
        source = {Fraction(0): frame0, Fraction(1): frame1}.get(slot.t)
        if source is None and slot.t != t:
            t, image = slot.t, next(mids)
        yield OutputFrame(
            pair=frame0.index, slot=slot, source=source, image=None if source else image
        )
