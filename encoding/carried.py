"""What an output takes from its source besides the video: tracks, chapters, metadata.

with open_carried(Path("clip.mp4")) as carried, av.open("out.mp4", "w") as out:
    ...  # add the video stream
    tracks, notes = carried.add_to(out, ".mp4")
    for _, packet in carried.packets(tracks, notes): ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from .clock import STEADY, Clock
from .container import PYAV, VideoInput, exact, open_container, pictures, text_tags
from .scan import may_jump, read_clock
from .timecode import moved_timecode
from .track import Track, track_tags, unlabeled
from .tracks import add_tracks, track_packets
from .window import Window
from .writer import ISO_MEDIA

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.container.core import Chapter
    from av.packet import Packet
    from av.stream import Stream

TIMECODE = (*ISO_MEDIA, ".mkv")
"""Containers whose muxer keeps the timecode of a stream; in .mp4 and .mov it becomes a track."""
GIVES_RATES = (18, 1)
"""The first PyAV version that gives a copied stream its rate, without which mp4 keeps no timecode."""
MOVIE_TIMESCALE = 400_000
"""Least ticks per second of a movie: two for each sample of sound, at up to 192 kHz or a bit more.
Edit lists end a track at a tick; where ticks are coarser, readers miss a last packet of few samples."""
LONGEST_CHAPTER = 2**31 - 1
"""Ticks of the movie that its track of chapter titles counts from one to the next: FFmpeg leaves a
title out that begins later, and shows the others too early."""
# Written by muxers about the file they make: wrong for another file.
MUXER_METADATA = {"major_brand", "minor_version", "compatible_brands", "encoder", "timecode"}
NO_TIME = "1970-01-01T00:00:00"
"""What files say whose creation time is not known."""
TRACK_METADATA = {"language", "title", "stereo_mode"}
"""What describes the pictures themselves; other tags of a track tell how its file was made."""
# Keys that mp4 and mov have an atom for; other keys need the free form of QuickTime.
MP4_METADATA = {
    *("title", "artist", "album_artist", "composer", "album", "date", "comment", "genre"),
    *("copyright", "lyrics", "description", "synopsis", "show", "creation_time", "location"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """The source's share of an output, while its container is open."""

    origin: VideoInput | None
    source: InputContainer | None
    window: Window | None
    clock: Clock
    metadata: dict[str, str]

    def add_to(
        self, out: OutputContainer, suffix: str, rate: Fraction | None = None
    ) -> tuple[list[Track], list[str]]:
        """Add streams, chapters, timecode and metadata to `out`, whose header is not yet written.

        `rate`: frames per second of its video, None if variable. Returns the tracks, for `packets`,
        and a note on each thing that could not be carried over as it is.

        Raises:
            OutputError: the container can hold the sound neither copied nor converted.
        """
        tracks: list[Track] = []
        notes: list[str] = []
        if self.source is not None and self.origin is not None:
            tracks, notes = add_tracks(out, self.source, self.origin, suffix, self.window)
            self._name_pictures(out)
            notes += self._add_timecode(out, suffix, rate)
            out.set_chapters(_chapters(self.source, self.window))
        out.metadata.update(self.metadata)
        return tracks, notes

    def options(self, suffix: str, time_base: Fraction, *, has_name: bool = True) -> dict[str, str]:
        """The muxer's options for the output: see `container_options`."""
        chapters = _chapters(self.source, self.window) if self.source is not None else []
        return container_options(
            suffix,
            time_base,
            self.metadata,
            longest_chapter=_longest(chapters),
            has_name=has_name,
        )

    def _name_pictures(self, out: OutputContainer) -> None:
        """Give the video the language and the title of the source's."""
        assert self.source is not None
        picture = pictures(self.source)
        found = track_tags(picture, out) if picture else {}
        named = {key: text for key, text in found.items() if key.lower() in TRACK_METADATA}
        out.streams.video[0].metadata.update(named)

    def _add_timecode(self, out: OutputContainer, suffix: str, rate: Fraction | None) -> list[str]:
        """Label the first frame by the source's timecode, if any; a note if no label fits."""
        assert self.source is not None
        picture = pictures(self.source)
        label = _timecode(self.source)
        if label is None or picture is None:
            return []
        own = exact(picture.average_rate) or exact(picture.guessed_rate)  # MXF may tell none
        moved = None
        if suffix in TIMECODE and own and rate:
            start = (picture.start_time or 0) * (exact(picture.time_base) or 0)
            cut = self.window.start - start if self.window else Fraction(0)
            is_slow = self.window is not None and self.window.stretch != 1
            moved = None if is_slow else moved_timecode(label, own, rate, cut)
        if moved is None:
            return [f"The timecode {label} matches no frame of this output: it is left out."]
        video = out.streams.video[0]
        if suffix in ISO_MEDIA and PYAV < GIVES_RATES and not video.average_rate:
            return [f"The timecode {label} needs PyAV 18.1 in {suffix} files: it is left out."]
        video.metadata["timecode"] = moved
        return []

    def packets(self, tracks: list[Track], notes: list[str]) -> Iterator[tuple[float, Packet]]:
        """(decode time in seconds, packet) of the tracks, on the clock of the output.

        At the end, `notes` get a sentence for each track some packets of which were left out.
        """
        if self.source is None:
            return iter(())
        return track_packets(self.source, tracks, self.window, self.clock, notes)

    def unkept(self, made: InputContainer, suffix: str, sources: Sequence[Stream]) -> list[str]:
        """A note on each thing that `add_to` wrote and the finished file does not tell.

        `sources`: the streams of the source that its tracks come from.
        """
        told = text_tags(made.metadata)
        known = {key.lower() for key in told} | set(told.values())
        tags = sorted(
            key
            for key, text in text_tags(self.metadata).items()
            if not known & {key.lower(), text}  # AVI has other keys for some
        )
        lost = [f"the {'tag' if len(tags) == 1 else 'tags'} {', '.join(tags)}"] if tags else []
        if self.source is not None and _chapters(self.source, self.window) and not made.chapters():
            lost.append("the chapters")
        for kind in ("audio", "subtitle"):
            ours = (stream for stream in made.streams if stream.type == kind)
            theirs = (stream for stream in sources if stream.type == kind)
            for source, stream in zip(theirs, ours, strict=False):
                of = f"of {kind} stream {source.index}"
                lost += [f"{what} {of}" for what in unlabeled(source, stream)]
        return [f"{suffix} does not keep {what}." for what in lost]


def _timecode(source: InputContainer) -> str | None:
    """The label of the first frame, stored in the file, its video stream or a track of its own."""
    tags = (tag for each in (*source.streams, source) for tag in each.metadata.items())
    return next((label for key, label in tags if key.lower() == "timecode"), None)


@contextmanager
def open_carried(
    origin: VideoInput | None,
    *,
    window: Window | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Iterator[Carried]:
    """What `origin`, if any, contributes, with `metadata` added to its own; open for the block.

    `window`: the part of the source that is used; the output's clock begins with it. An entry of
    `metadata` replaces the source's own, however that is capitalized; an empty one removes it.

    Raises:
        SourceError: `origin` cannot be read.
    """
    with ExitStack() as stack:
        source = stack.enter_context(open_container(origin)) if origin is not None else None
        ours = dict(metadata or {})
        replaced = {key.lower() for key in ours}
        theirs = source.metadata.items() if source is not None else ()
        yield Carried(
            origin=origin,
            source=source,
            window=window,
            clock=read_clock(origin) if origin and source and may_jump(source) else STEADY,
            metadata=kept_metadata(
                {key: text for key, text in theirs if key.lower() not in replaced} | ours
            ),
        )


def container_options(
    suffix: str,
    time_base: Fraction,
    metadata: Mapping[str, str],
    *,
    longest_chapter: Fraction = Fraction(0),
    has_name: bool = True,
) -> dict[str, str]:
    """The muxer's options for a file that keeps times and metadata and can play while it loads.

    `longest_chapter`: seconds from one chapter to the next, at most.
    `has_name` False: a file object, which FFmpeg cannot open a second time to move the index from
    the end to the front.
    """
    if suffix not in ISO_MEDIA:
        return {}
    timescale = time_base.denominator
    while timescale < MOVIE_TIMESCALE:
        timescale *= 2
    while timescale * longest_chapter > LONGEST_CHAPTER:
        timescale //= 2
    flags = "+faststart" if has_name else ""
    if metadata.keys() - MP4_METADATA:
        flags += "+use_metadata_tags"
    # A late start is stored in units of the movie's time scale, by default milliseconds.
    return {"movie_timescale": str(timescale), **({"movflags": flags} if flags else {})}


def kept_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """The non-empty entries that still hold for a file made from another."""
    return {
        key: text
        for key, text in metadata.items()
        if text and key.lower() not in MUXER_METADATA and not text.startswith(NO_TIME)
    }


def _chapters(source: InputContainer, window: Window | None) -> list[Chapter]:
    """The source's chapters, cut to the window if there is one, on the output's clock."""
    chapters = source.chapters()
    if window is None:
        return chapters
    kept = []
    for chapter in chapters:
        base = Fraction(chapter["time_base"] or 1)
        low = round(window.start / base)
        high = chapter["end"] if window.end is None else round(window.end / base)
        start, end = max(chapter["start"], low), min(chapter["end"], high)
        if start < end:
            start, end = (round((time - low) * window.stretch) for time in (start, end))
            kept.append({**chapter, "start": start, "end": end})
    return kept


def _longest(chapters: Sequence[Chapter]) -> Fraction:
    """Seconds from the begin of a chapter to that of the next, or to its end, at most."""
    spans = sorted(map(_span, chapters))
    lengths = (end - begin for begin, end in spans)
    distances = (after - before for (before, _), (after, _) in pairwise(spans))
    return max((*lengths, *distances), default=Fraction(0))


def _span(chapter: Chapter) -> tuple[Fraction, Fraction]:
    """(begin, end) in seconds."""
    base = exact(chapter["time_base"]) or Fraction(1)
    return chapter["start"] * base, chapter["end"] * base
