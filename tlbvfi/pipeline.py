"""Source frames in, all output frames out: the one loop over pairs.

Everything that interpolates goes through here: a job from file to file, a batch of a ComfyUI graph,
frames handed in from memory. It holds two frames and their features, never the clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Generic

from torch import Tensor

from .method import Method, PairKey
from .spans import CutRule, P, SourceFrame, Span, find_spans
from .timeline import Slot, Timeline, nearest_node


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFrame(Generic[P]):
    """An output frame: a source frame's picture, or the image of a mid frame."""

    pair: int
    """Source index of the pair's first frame; the very last frame counts to the last pair."""
    slot: Slot
    source: SourceFrame[P] | None
    image: Tensor | None
    is_held: bool = False
    """Whether a source frame stands in for a mid frame, because a cut lies in the pair."""
    is_retimed: bool = False
    """Whether it lies in a span of more than one pair."""

    @property
    def is_source(self) -> bool:
        """Whether the picture is a source frame's, untouched."""
        return self.source is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How spans are filled."""

    seed: int = 0
    """Seed of the methods that draw noise."""
    cuts: CutRule = "ignore"
    retime: bool = False
    """Whether repeated frames are replaced by motion from the last change to the next."""
    depth: int = 3
    """Methods that only bisect show the nearest of 2**depth - 1 mid frames where t is no such."""

    @property
    def look(self) -> bool:
        """Whether frames must be looked at for cuts and repetitions."""
        return self.cuts != "ignore" or self.retime


def interpolate(
    frames: Iterable[SourceFrame[P]],
    method: Method,
    timeline: Timeline,
    rules: Rules | None = None,
    *,
    first: int = 0,
    start: int = 0,
    stop: int | None = None,
    ends_here: bool = True,
) -> Iterator[OutputFrame[P]]:
    """Output frames of consecutive source frames, in order of time.

    `first` is the source index the timeline counts its pairs from. Only pairs [start, stop) are
    shown; frames around them serve spans that reach out. With `ends_here=False` the last source
    frame is left out: it opens the next chunk.
    """
    rules = rules or Rules()
    last: list[SourceFrame[P]] = []
    features: Any = None  # the method's own type
    for span in find_spans(_noting_the_last(frames, last), retime=rules.retime):
        if span.frame1.index <= start or (stop is not None and span.frame0.index >= stop):
            continue
        if features is None:
            features = method.prepare(span.frame0.image)
        following = method.prepare(span.frame1.image)
        for frame in _fill(span, method, features, following, timeline, rules, first):
            if frame.pair >= start and (stop is None or frame.pair < stop):
                yield frame
        features = following
    if last and ends_here:
        pair = max(first, last[0].index - 1)
        for slot in timeline.last(last[0].index - first, last[0].time):
            yield OutputFrame(pair=pair, slot=slot, source=last[0], image=None)


def _noting_the_last(
    frames: Iterable[SourceFrame[P]], last: list[SourceFrame[P]]
) -> Iterator[SourceFrame[P]]:
    for frame in frames:
        last[:] = [frame]
        yield frame


def _fill(
    span: Span[P],
    method: Method,
    features0: Any,  # noqa: ANN401 - the method's own type
    features1: Any,  # noqa: ANN401
    timeline: Timeline,
    rules: Rules,
    first: int,
) -> Iterator[OutputFrame[P]]:
    """Output frames of a span; the method is asked for each t once, however often it is shown."""
    is_held = span.frame1.begins_scene and rules.cuts != "ignore"
    placed = [
        (pair, slot, _shown_t(slot.t, is_held, method, rules))
        for pair, slot in span.slots(timeline, first)
    ]
    times = sorted({t for _, _, t in placed if 0 < t < 1})
    key = PairKey(rules.seed, span.frame0.index)
    mids = iter(method.between(features0, features1, times, key) if times else ())
    current, image = Fraction(0), None
    for pair, slot, t in placed:
        source = {Fraction(0): span.frame0, Fraction(1): span.frame1}.get(t)
        if source is None and t != current:
            current, image = t, next(mids)
        yield OutputFrame(
            pair=pair,
            slot=slot,
            source=source,
            image=None if source else image,
            is_held=is_held and slot.t != 0,
            is_retimed=len(span.frames) > 2,
        )


def _shown_t(t: Fraction, is_held: bool, method: Method, rules: Rules) -> Fraction:
    """The t whose picture is shown at `t`."""
    if is_held:
        return Fraction(round(t) if rules.cuts == "nearest" else 0)
    return t if method.any_time else nearest_node(t, rules.depth)
