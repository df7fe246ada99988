"""Between which source frames there is motion: none across a scene cut, all past repeated frames.

A span is two source frames with motion between them and the pairs of source frames it covers: one
pair as a rule, several if frames that repeat the one before (animation on twos) are retimed. Every
decision looks at a bounded number of frames, so it does not depend on where a job was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from typing import Generic, Literal, TypeVar, get_args

from torch import Tensor

from .errors import SettingsError
from .timeline import Slot, Timeline

P = TypeVar("P")
"""The caller's type of picture: passed through untouched (a decoded frame, a tensor, nothing)."""

CutRule = Literal["hold", "nearest", "ignore"]
"""What is shown between the two frames of a cut: the first, the nearer, or mid frames as usual."""

LONGEST_RUN = 4
"""Most equal frames in a row that count as animation on twos to fours; more are a still picture."""


def require_cut_rule(rule: str) -> None:
    """Refuse a rule that does not exist.

    Raises:
        SettingsError: naming those that do.
    """
    if rule not in get_args(CutRule):
        raise SettingsError(f"cuts must be hold, nearest or ignore, got {rule!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFrame(Generic[P]):
    """A source frame on its way into the pipeline."""

    index: int
    time: Fraction
    """Seconds, on the clock of the output."""
    image: Tensor
    """[C, H, W] float32, RGB(A), nominally [0, 1]."""
    picture: P
    begins_scene: bool = False
    """Whether a cut lies between the frame before and this one."""
    repeats: bool = False
    """Whether it shows the same as the frame before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span(Generic[P]):
    """Two frames to interpolate between, and the source frames from one to the other."""

    frames: tuple[SourceFrame[P], ...]
    """At least two; those between the ends repeat the first."""

    @property
    def frame0(self) -> SourceFrame[P]:
        """Where the motion begins."""
        return self.frames[0]

    @property
    def frame1(self) -> SourceFrame[P]:
        """Where it ends."""
        return self.frames[-1]

    def slots(self, timeline: Timeline, first: int) -> list[tuple[int, Slot]]:
        """(pair, slot) of every output frame of the span, with t relative to the whole span.

        `first` is the source index the timeline counts its pairs from.
        """
        start, length = self.frame0.time, self.frame1.time - self.frame0.time
        return [
            (a.index, replace(slot, t=(a.time - start + slot.t * (b.time - a.time)) / length))
            for a, b in pairwise(self.frames)
            for slot in timeline.slots(a.index - first, a.time, b.time)
        ]


def find_spans(frames: Iterable[SourceFrame[P]], *, retime: bool) -> Iterator[Span[P]]:
    """Spans of consecutive frames, in order; together they cover every pair once.

    With `retime`, up to `LONGEST_RUN` equal frames and the one after them are one span, unless that
    one begins a scene: there is no motion towards it. If the first frame repeats one that was not
    read, its run counts as too long: begin `LONGEST_RUN` frames early to get the spans of a run
    from the very beginning.
    """
    run: list[SourceFrame[P]] = []
    is_still = False
    for frame in frames:
        if not run:
            run, is_still = [frame], frame.repeats
        elif not (retime and frame.repeats):
            if frame.begins_scene:
                yield from _pairs([*run, frame])
            else:
                yield Span(frames=(*run, frame))
            run, is_still = [frame], False
        elif is_still:
            yield Span(frames=(run[0], frame))
            run = [frame]
        else:
            run.append(frame)
            if len(run) > LONGEST_RUN:
                yield from _pairs(run)
                run, is_still = run[-1:], True
    yield from _pairs(run)


def _pairs(frames: list[SourceFrame[P]]) -> Iterator[Span[P]]:
    return (Span(frames=pair) for pair in pairwise(frames))
