"""The plan of a job, worked out before its first frame: arithmetic on facts and settings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from ..encoding.color import resolve
from ..encoding.container import VideoInput
from ..encoding.delivery import Final, plan_route, tell_of_mastering
from ..encoding.errors import SessionError, SourceError
from ..encoding.frame import ColorTags
from ..encoding.layout import pixel_layout
from ..encoding.manifest import Manifest
from ..encoding.probe import VideoInfo
from ..encoding.profiles import Encoder, require_rate, written_tags
from ..encoding.progress import ChunkRecord
from ..encoding.reader import file_identity
from ..encoding.source import Source
from ..encoding.timestamps import Timestamps
from ..encoding.timetable import MOST_B_FRAMES, MOST_TICKS, require_storable
from ..encoding.writer import ISO_MEDIA, StreamSpec
from .config import JobConfig
from .errors import SettingsError
from .method import Method
from .pipeline import Rules
from .timeline import Bisection, TargetRate, Timeline, storable_tick

log = logging.getLogger("tlbvfi.plan")

LONGEST_PAUSE = 3 * 3600
"""Seconds between two frames, at most, that a rate fills; each output frame there costs half a kB
before it is made."""
MOST_LOST = 100_000
"""Chunks without a record that are planned anew: two days of video in chunks of two seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything a job will do."""

    manifest: Manifest
    final: Final
    """What the chunks become; None if they are joined as they are."""
    timeline: Timeline
    rules: Rules
    first: int
    """Source index of the first frame."""
    stop: int | None
    """Source index after the last frame; None: the end of the source, which is not known yet."""
    stretch: Fraction
    """Output seconds per source second."""
    frames_total: int | None
    channels: int
    """4 if the source has alpha and the encoder keeps it, else 3."""
    tags: ColorTags
    """What the source's colors mean."""
    pairs_per_chunk: int | None
    """None if the size of a chunk decides."""
    bytes_per_chunk: int | None

    def output_time(self, source_time: Fraction) -> Fraction:
        """Seconds after the first output frame."""
        return (source_time - self.manifest.start) * self.stretch

    def ticks(self, output_time: Fraction) -> int:
        """`output_time` in ticks of the output's time base, which is chosen to make this exact."""
        ticks = output_time / self.manifest.stream.time_base
        assert ticks.denominator == 1
        return ticks.numerator

    def last_stop(self, stop: int) -> int:
        """`stop`, or the end of the job if that comes first."""
        return stop if self.stop is None else min(stop, self.stop)

    def ends_chunk(self, pairs: int, size: int) -> bool:
        """Whether a chunk of this many pairs and bytes is long enough."""
        if self.bytes_per_chunk is not None:
            return size >= self.bytes_per_chunk
        return self.pairs_per_chunk is not None and pairs >= self.pairs_per_chunk


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkRange:
    """Pairs [start, stop) to make into chunks from `index` on."""

    index: int
    start: int
    stop: int | None
    """None: to the end of the source."""
    is_last: bool
    ends: tuple[int, ...] = ()
    """The pairs before which its first chunks end; those after them are cut as the plan says."""


def make_plan(
    source: Source,
    method: Method,
    config: JobConfig,
    *,
    suffix: str,
    identify: bool = True,
    sound: VideoInput | None = None,
) -> Plan:
    """Plan a job; nothing is written and no frame is decoded.

    `identify`: whether the source must be recognized later; a source in memory is then read whole.
    `sound`: file whose sound goes with it; a file other than the source makes it a different job.

    Raises:
        SourceError: the source cannot be read.
        SettingsError: the window is empty, or the times cannot be stored.
        EncoderError: an encoder's settings or the rate do not fit, or it cannot run here.
        OutputError: files with this suffix cannot hold the times.
    """
    info, times = source.info, source.timestamps
    first, stop = _window(times, config)
    timeline = make_timeline(config, info.rate)
    if isinstance(timeline, TargetRate):
        _refuse_endless_pauses(times, first, stop)
    rules = make_rules(config, alpha_is_straight=info.alpha_is_straight)
    route = plan_route(
        suffix,
        config.encoder,
        info,
        mezzanine=config.mezzanine,
        software_twin=config.software_twin,
    )
    rate = timeline.rate(info.rate)
    stream = _stream(source, config, timeline, route.chunks)
    encoders = [each for each in (route.chunks, route.final) if isinstance(each, Encoder)]
    for encoder in encoders:
        require_rate(encoder, rate, stream.time_base)
    tell_of_mastering(route.final or route.chunks, info.mastering)
    if config.audio and not config.has_sound:
        _tell_of_slow_motion(info)
    keeps_alpha = info.has_alpha and pixel_layout(route.chunks.pix_fmt).has_alpha
    settings = _settings(config, times, method) | ({"alpha": rules.alpha} if keeps_alpha else {})
    identity = source.identity if identify else {}
    manifest = Manifest(
        source=identity,
        settings=settings | _other_sound(config, sound, identity),
        encoder=route.chunks,
        stream=stream,
        is_vfr=times.is_vfr and isinstance(timeline, Bisection),
        start=times.time(first),
        plan={key: str(value) for key, value in asdict(config.chunk).items() if value is not None},
    )
    least = timeline.step(_least_distance(times, first, stop))
    require_storable(suffix, least, is_vfr=manifest.is_vfr)
    if {suffix.lower(), *(each.chunk_suffix for each in encoders)} & set(ISO_MEDIA):
        _refuse_uncountable_pauses(times, first, stop, timeline, max(e.reorder for e in encoders))
    frames_per_pair = rate * config.slowmo / info.rate
    return Plan(
        manifest=manifest,
        final=route.final,
        timeline=timeline,
        rules=rules,
        first=first,
        stop=stop,
        stretch=config.slowmo,
        frames_total=_frames_total(times, config, timeline, first, stop),
        channels=4 if keeps_alpha else 3,
        tags=resolve(info),
        bytes_per_chunk=config.chunk.bytes,
        pairs_per_chunk=config.chunk.pairs(info.rate, frames_per_pair),
    )


def _stream(source: Source, config: JobConfig, timeline: Timeline, encoder: Encoder) -> StreamSpec:
    """What the output is, apart from its compression; times are multiples of its time base."""
    info = source.info
    tick = info.time_base if source.timestamps.is_vfr else 1 / info.rate
    return StreamSpec(
        width=info.width,
        height=info.height,
        time_base=storable_tick(timeline.step(tick * config.slowmo)),
        rate=timeline.rate(info.rate),
        color=written_tags(resolve(info), encoder),
        sample_aspect_ratio=info.sample_aspect_ratio,
        rotation=info.rotation,
        is_mirrored=info.is_mirrored,
        mastering=info.mastering,
    )


def _frames_total(
    times: Timestamps, config: JobConfig, timeline: Timeline, first: int, stop: int | None
) -> int | None:
    """Number of output frames; None if only decoding will tell it."""
    if stop is None:
        return None
    length = (times.time(stop - 1) - times.time(first)) * config.slowmo
    return timeline.total(stop - first, length)


def chunks_to_make(
    records: Iterable[ChunkRecord], intact: Iterable[ChunkRecord], plan: Plan
) -> Iterator[ChunkRange]:
    """What is left of a job, in order: holes of one or more chunks, and the open end.

    `records` are all chunks ever committed, `intact` those whose files are intact. A hole is made
    in one go: some sources are decoded from their beginning each time. A chunk whose record is
    lost too lies between its neighbors and is cut as the plan says.

    Raises:
        SessionError: the records name a chunk too far from all others to be of a session.
    """
    whole = {record.index for record in intact}
    known = {record.index: record for record in records}
    if max(known, default=0) - len(known) > MOST_LOST:
        raise SessionError(
            f"The session's records are damaged: they name a chunk {max(known)} and {len(known)} in "
            "all. Remove the session and start again."
        )
    chunks = _all_chunks(known, plan)
    for is_whole, neighbors in groupby(chunks, key=lambda chunk: chunk.index in whole):
        if not is_whole:
            yield _joined(list(neighbors))


def _all_chunks(known: Mapping[int, ChunkRecord], plan: Plan) -> Iterator[ChunkRange]:
    """Every chunk up to the last known one, and the open end after it, if there is one."""
    start, indices = plan.first, sorted(known)
    following = 0  # place of the first known index that is not passed
    for index in range(indices[-1] + 1 if indices else 0):
        record = known.get(index)
        if record is not None:
            stop, following = record.pairs[1], following + 1
        else:
            stop = start + _lost_pairs(index, start, known[indices[following]], plan)
        is_last = record is not None and record.is_last
        yield ChunkRange(index=index, start=start, stop=stop, is_last=is_last, ends=(stop,))
        start = stop
    if not indices or not known[indices[-1]].is_last:
        index = indices[-1] + 1 if indices else 0
        yield ChunkRange(index=index, start=start, stop=None, is_last=True)


def _lost_pairs(index: int, start: int, following: ChunkRecord, plan: Plan) -> int:
    """Length of a chunk without a record: as planned, or its share of the gap it lies in."""
    gap = following.pairs[0] - start
    return plan.pairs_per_chunk or gap // (following.index - index)


def _joined(chunks: Sequence[ChunkRange]) -> ChunkRange:
    """Chunks that follow each other as one range."""
    first, last = chunks[0], chunks[-1]
    ends = tuple(end for chunk in chunks for end in chunk.ends)
    return replace(first, stop=last.stop, is_last=last.is_last, ends=ends)


def _least_distance(times: Timestamps, first: int, stop: int | None) -> Fraction:
    """Seconds between the two source frames of the window that are closest to each other."""
    if times.ticks is None:
        return 1 / times.rate
    return min(b - a for a, b in pairwise(times.ticks[first:stop])) * times.time_base


def _refuse_endless_pauses(times: Timestamps, first: int, stop: int | None) -> None:
    """Refuse a gap so long, as from one damaged timestamp, that filling it would use up memory.

    Raises:
        SourceError: a frame is shown for more than `LONGEST_PAUSE`.
    """
    longest = LONGEST_PAUSE / times.time_base
    constant = (0, 1 / (times.rate * times.time_base))
    ticks = constant if times.ticks is None else times.ticks[first:stop]
    for index, (tick, following) in enumerate(pairwise(ticks), first):
        if following - tick > longest:
            hours = float((following - tick) * times.time_base / 3600)
            raise SourceError(
                f"frame {index} of the source is shown for {hours:.1f} hours, which is too long to "
                "fill: cut it out with start and end, or give times instead of fps."
            )


def _refuse_uncountable_pauses(
    times: Timestamps, first: int, stop: int | None, timeline: Timeline, reorder: int
) -> None:
    """Refuse a gap of more ticks than mp4 and mov count from decoding a frame to showing it.

    Each frame made in a pause has as many ticks as the whole pause has in the source: `times`
    makes them finer. An encoder that delays frames by `reorder` may show one that many and a
    group of B-frames later than it is decoded.

    Raises:
        SourceError: there is such a gap.
    """
    if times.ticks is None or not isinstance(timeline, Bisection):
        return
    gaps = np.diff(np.array(times.ticks[first:stop], dtype=np.int64))
    ahead = reorder + MOST_B_FRAMES if reorder else 1
    if gaps.max() * ahead <= MOST_TICKS:
        return
    shown = np.cumsum(np.repeat(gaps, min(2**timeline.times, ahead)))
    sums = np.concatenate([shown[:ahead], shown[ahead:] - shown[:-ahead]])
    if sums.max() > MOST_TICKS:
        longest = int(gaps.argmax())
        raise SourceError(
            f"frame {first + longest} of the source is shown for "
            f"{float(gaps[longest] * times.time_base):.1f} s, too long for mp4 and mov chunks or files "
            f"to count in ticks of {times.time_base} s: cut it out with start and end, give fps "
            "instead of times, or choose .mkv with the codec ffv1."
        )


def _tell_of_slow_motion(info: VideoInfo) -> None:
    """Warn of what slow motion at the default settings leaves out."""
    streams = (("sound", info.audio), ("subtitles", info.subtitles))
    if left := [what for what, found in streams if found]:
        log.warning(
            "Slow motion leaves out the source's %s, which --slowmo-sound stretch keeps, slowed as well.",
            " and ".join(left),
        )


def _window(times: Timestamps, config: JobConfig) -> tuple[int, int | None]:
    """Half-open range of source frames; the end is None if only decoding will tell it."""
    if times.count == 1:
        raise SourceError(
            "the source has only one frame and interpolation needs two: choose a longer source, or for "
            "images the folder that holds them."
        )
    first = times.index_at(config.start) if config.start is not None else 0
    stop = times.index_at(config.end) if config.end is not None else times.count
    if times.count is not None and first >= times.count:
        raise SettingsError(
            f"the source ends {_seconds(times.time(times.count - 1) - times.start)} after its first "
            f"frame, before start ({_seconds(config.start)}): choose an earlier start."
        )
    if stop is not None and stop - first < 2:
        raise SettingsError(
            f"the window from start ({_seconds(config.start)}) to end "
            f"({'that of the source' if config.end is None else _seconds(config.end)}) has "
            f"{max(stop - first, 0)} of the source's frames and interpolation needs two: widen it."
        )
    return first, stop


def make_rules(config: JobConfig, *, alpha_is_straight: bool) -> Rules:
    """How a job fills the time between source frames, whose alpha is straight unless it says so."""
    return Rules(
        seed=config.seed,
        cuts=config.cuts,
        retime=config.retime,
        depth=config.depth,
        alpha=config.alpha or ("straight" if alpha_is_straight else "premultiplied"),
    )


def make_timeline(config: JobConfig, source_rate: Fraction) -> Timeline:
    """Where the output frames of a job lie, for source frames at `source_rate` per second."""
    if config.fps is None and config.slowmo == 1:
        return Bisection(times=1 if config.times is None else config.times)
    return TargetRate(fps=config.fps or source_rate)


def _settings(config: JobConfig, times: Timestamps, method: Method) -> dict[str, Any]:
    """What decides the frames, in JSON types; the manifest keeps encoder and chunks separately."""
    names = (
        *("times", "fps", "slowmo", "slowmo_sound", "cuts", "retime", "depth", "seed"),
        *("start", "end", "audio"),
    )
    values = {name: getattr(config, name) for name in names}
    values["end_time"] = None if config.end is None else times.start + config.end
    plain = {name: str(v) if isinstance(v, Fraction) else v for name, v in values.items()}
    return {**plain, "method": {"name": method.name, **method.settings}}


def _other_sound(
    config: JobConfig, sound: VideoInput | None, identity: Mapping[str, Any]
) -> dict[str, Any]:
    """The identity of the sound's file, if that is not the source."""
    if sound is None or not identity or not config.has_sound:
        return {}
    own = file_identity(sound)
    return {} if own.items() <= identity.items() else {"sound": own}


def _seconds(value: Fraction | None) -> str:
    return f"{float(value or 0):.3f} s"
