"""Source frames in, all output frames out: the one loop over pairs.

Everything that interpolates goes through here: a job from file to file, a batch of a ComfyUI graph,
frames passed from memory. It holds two frames and their features, never the clip; a few more if
the method does several pairs at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Generic

from torch import Tensor

from .alpha import Alpha, as_seen, as_stored
from .method import Batching, Checking, Method, PairKey, Request
from .spans import CutRule, P, SourceFrame, Span, find_spans, require_cut_rule
from .timeline import MAX_TIMES, Slot, Timeline, is_node, nearest_node
from .transfer import Download, Downloads, one_ahead


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFrame(Generic[P]):
    """An output frame: a source frame's picture, or the image of a mid frame."""

    pair: int
    """Source index of the pair's first frame; the very last frame belongs to the last pair."""
    slot: Slot
    source: SourceFrame[P] | None
    image: Tensor | None
    is_held: bool = False
    """Whether a source frame stands in for a mid frame, because a cut lies in the pair."""
    is_retimed: bool = False
    """Whether the frame lies in a span of more than one pair."""

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
    """If they cannot reach t, methods that only bisect show the nearest of 2**depth - 1 frames."""
    alpha: Alpha = "straight"
    """How the colors of RGBA frames relate to alpha; see `alpha`."""

    def __post_init__(self) -> None:
        require_cut_rule(self.cuts)

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
    """Output frames of consecutive source frames, in order of time, with images on the CPU.

    `first` is the source index the timeline counts its pairs from. Only pairs [start, stop) are
    shown; the frames around them serve spans that reach beyond. With `ends_here=False` the last
    source frame is left out: it opens the next chunk.

    Mid frames are computed on demand; on a device other than the CPU, each is started before the
    one ahead of it is downloaded and yielded. A method that does several pairs at once gets that
    many, and their frames are read first.
    """
    rules = rules or Rules()
    last: list[SourceFrame[P]] = []
    spans = (
        span
        for span in find_spans(_noting_the_last(frames, last), retime=rules.retime)
        if span.frame1.index > start and (stop is None or span.frame0.index < stop)
    )
    shown = (
        frame
        for frame in _fill_all(spans, method, timeline, rules, first)
        if frame.pair >= start and (stop is None or frame.pair < stop)
    )
    yield from _brought_to_the_cpu(shown, method, rules)
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


def _brought_to_the_cpu(
    frames: Iterable[OutputFrame[P]], method: Method, rules: Rules
) -> Iterator[OutputFrame[P]]:
    """The same frames, their images on the CPU, checked, and with alpha as in the source."""
    check = method.check if isinstance(method, Checking) else None
    given, image = None, None  # one image may be shown several times
    for frame, download in one_ahead(_downloading(frames), _takes_time):
        if download is None:
            yield frame
            continue
        arrived = download.result()
        if arrived is not given:
            if check is not None:
                check(arrived)
            given, image = arrived, as_stored(arrived, rules.alpha)
        yield replace(frame, image=image)


def _downloading(
    frames: Iterable[OutputFrame[P]],
) -> Iterator[tuple[OutputFrame[P], Download | None]]:
    """Every frame with the started download of its image; a repeated image is downloaded once."""
    begin = Downloads()
    image, download = None, None
    for frame in frames:
        if frame.image is not image:
            image = frame.image
            download = None if image is None else begin(image)
        yield frame, download


def _takes_time(item: tuple[OutputFrame[Any], Download | None]) -> bool:
    return item[1] is not None and item[1].takes_time


@dataclass(frozen=True, slots=True, kw_only=True)
class _Showing(Generic[P]):
    """Everything that is shown of a span."""

    span: Span[P]
    is_held: bool
    placed: list[tuple[int, Slot, Fraction]]
    """(pair, slot, the t whose picture is shown there), in order."""

    @property
    def times(self) -> list[Fraction]:
        """The t of every mid frame that is shown, without repeats."""
        return sorted({t for _, _, t in self.placed if 0 < t < 1})

    def frames(self, mids: Iterator[Tensor]) -> Iterator[OutputFrame[P]]:
        """The output frames; `mids` begins with the mid frames at `times`."""
        current, image = Fraction(0), None
        for pair, slot, t in self.placed:
            source = {Fraction(0): self.span.frame0, Fraction(1): self.span.frame1}.get(t)
            if source is None and t != current:
                current, image = t, next(mids)
            yield OutputFrame(
                pair=pair,
                slot=slot,
                source=source,
                image=None if source else image,
                is_held=self.is_held and slot.t != 0,
                is_retimed=len(self.span.frames) > 2,
            )


def _showing(
    span: Span[P], method: Method, timeline: Timeline, rules: Rules, first: int
) -> _Showing[P]:
    is_held = span.frame1.begins_scene and rules.cuts != "ignore"
    slots = span.slots(timeline, first)
    # All exact or all rounded: an exact t among rounded ones would be shown out of order.
    if all(is_node(slot.t) for _, slot in slots):
        rules = replace(rules, depth=MAX_TIMES)
    placed = [(pair, slot, _shown_t(slot.t, is_held, method, rules)) for pair, slot in slots]
    return _Showing(span=span, is_held=is_held, placed=placed)


def _shown_t(t: Fraction, is_held: bool, method: Method, rules: Rules) -> Fraction:
    """The t whose picture is shown at `t`."""
    if is_held:
        return Fraction(round(t) if rules.cuts == "nearest" else 0)
    return t if method.any_time else nearest_node(t, rules.depth)


def _fill_all(
    spans: Iterable[Span[P]], method: Method, timeline: Timeline, rules: Rules, first: int
) -> Iterator[OutputFrame[P]]:
    """Output frames of all spans, with images still on the method's device."""
    features: Any = None  # the method's own type
    batch: list[tuple[_Showing[P], Request]] = []
    for span in spans:
        if features is None:
            features = method.prepare(as_seen(span.frame0.image, rules.alpha))
        following = method.prepare(as_seen(span.frame1.image, rules.alpha))
        showing = _showing(span, method, timeline, rules, first)
        # Only the batch may hold on to the features of a pair's first frame.
        batch.append((showing, _request(showing, features, following, rules.seed)))
        features = following
        if len(batch) >= _pairs_at_once(method, span):
            yield from _fill(batch, method)
            batch.clear()
    yield from _fill(batch, method)


def _request(
    showing: _Showing[Any],
    features0: Any,  # noqa: ANN401 - the method's own type
    features1: Any,  # noqa: ANN401
    seed: int,
) -> Request:
    key = PairKey(seed, showing.span.frame0.index)
    return Request(features0=features0, features1=features1, times=showing.times, key=key)


def _pairs_at_once(method: Method, span: Span[Any]) -> int:
    if not isinstance(method, Batching):
        return 1
    return method.pairs_at_once(*span.frame0.image.shape[-2:])


def _fill(batch: list[tuple[_Showing[P], Request]], method: Method) -> Iterator[OutputFrame[P]]:
    """Output frames of consecutive spans."""
    mids = _mid_frames([request for _, request in batch if request.times], method)
    for showing, _ in batch:
        yield from showing.frames(mids)


def _mid_frames(requests: list[Request], method: Method) -> Iterator[Tensor]:
    if isinstance(method, Batching):
        yield from method.between_many(requests) if requests else ()
        return
    for request in requests:
        yield from method.between(request.features0, request.features1, request.times, request.key)
