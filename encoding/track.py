"""A stream of the source on its way into the final file, and what it is called there."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from av.packet import Packet
from av.stream import Disposition

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.stream import Stream

MOV_LANGUAGES = {
    **{"cym": "wel", "cze": "ces", "deu": "ger", "ell": "gre", "eus": "baq"},
    **{"fas": "per", "fre": "fra", "gle": "iri", "hye": "arm", "isl": "ice", "kat": "geo"},
    **{"mkd": "mac", "msa": "may", "mya": "bur", "nld": "dut", "nno": "nor", "nob": "nor"},
    **{"rum": "ron", "slo": "slk", "sqi": "alb", "swe": "sve", "zho": "chi"},
}
"""Languages by the names that FFmpeg's muxer of .mov knows, which drops all others."""

Convert = Callable[[Packet | None], Iterable[Packet]]
"""Packets to write for one that was read; None means the end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """A stream of the source on its way into the final file."""

    source: Stream
    target: Stream
    convert: Convert
    is_slowed: bool = False
    """Whether `convert` takes packets as they were read, and cuts and moves them itself."""


def label(target: Stream, source: Stream, out: OutputContainer) -> None:
    """Give a track of `out` the tags and the disposition of its source."""
    target.metadata.update(track_tags(source, out))
    target.disposition = source.disposition


def track_tags(source: Stream, out: OutputContainer) -> dict[str, str]:
    """The tags of a track in the words of the muxer of `out`."""
    tags = dict(source.metadata)
    if "name" in tags:  # so says the demuxer of mp4, whose muxer says title
        tags.setdefault("title", tags.pop("name"))
    if out.format.name == "mov" and "language" in tags:
        tags["language"] = MOV_LANGUAGES.get(tags["language"], tags["language"])
    return tags


def unlabeled(source: Stream, made: Stream) -> list[str]:
    """What a finished track does not tell of the language, the title and the marks of its source."""
    tags = source.metadata
    language, title = tags.get("language", "und"), tags.get("title", "")
    found = made.metadata.get("language", "und")
    is_same = MOV_LANGUAGES.get(language, language) == MOV_LANGUAGES.get(found, found)
    lost = [] if is_same or language == "und" else [f"the language {language}"]
    lost += [f"the title {title!r}"] if title and title not in made.metadata.values() else []
    marks = source.disposition & ~made.disposition & ~Disposition.default
    return lost + [f"the mark {mark.name}" for mark in Disposition if mark & marks]


def codec_name(stream: Stream) -> str:
    """What FFmpeg calls the codec of a stream."""
    return stream.codec_context.name if stream.codec_context else "no codec"
