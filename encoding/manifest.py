"""What a job is, as plain data: two runs with equal manifests make equal frames."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from .errors import SessionError
from .frame import ColorTags
from .profiles import Encoder
from .stored import is_of_type, read_json, reading_stored, require_types, stored_fraction
from .writer import MUXERS, StreamSpec

SCHEMA = 1
MOST_BYTES = 1 << 20
"""Of a manifest, which has a few thousand."""
LONGEST_STEP = 1 << 40
"""Ticks of a frame, of which millions still fit into 64 bits."""

Json = dict[str, Any]  # a JSON object: its values are of any JSON type


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """A job: its source, its settings and its output."""

    source: Json
    """Identity of the source, as reported by its reader."""
    settings: Json
    """All that determines the frames: method, weights hash, seed, times, window, and the like."""
    encoder: Encoder
    stream: StreamSpec
    """Size, color and clock of the output. Chunk pts are ticks after the first output frame."""
    is_vfr: bool = False
    """Whether the rate is variable; if not, frame n is at n * `stream.step` ticks."""
    start: Fraction = Fraction(0)
    """Seconds of the first output frame on the source file's own clock."""
    plan: Json = field(default_factory=dict)
    """Rule by which output frames are divided into chunks."""

    def __post_init__(self) -> None:
        if not self.is_vfr and self.stream.step * self.stream.rate * self.stream.time_base != 1:
            raise SessionError(
                f"A constant rate of {self.stream.rate} cannot be counted in ticks of "
                f"{self.stream.time_base} s: choose a time base that divides the frame duration."
            )


def library_versions() -> dict[str, str]:
    """Versions of the libraries that, besides the settings, determine a bitstream."""
    numbers = {name: ".".join(map(str, parts)) for name, parts in av.library_versions.items()}
    return {"av": av.__version__, **numbers}


def manifest_to_json(manifest: Manifest) -> Json:
    """The manifest as JSON types: fractions become strings like `1001/48000`."""
    document = asdict(manifest)
    document["start"] = str(manifest.start)
    for key in ("time_base", "rate", "sample_aspect_ratio"):
        value = document["stream"][key]
        document["stream"][key] = None if value is None else str(value)
    return json.loads(json.dumps(document))


def manifest_from_json(document: Json) -> Manifest:
    """The manifest that `manifest_to_json` made.

    Raises:
        KeyError, TypeError, ValueError, ZeroDivisionError: the document is not a manifest.
    """
    stream = dict(document["stream"])
    aspect = stream.pop("sample_aspect_ratio")
    times = {key: stored_fraction(stream.pop(key)) for key in ("time_base", "rate")}
    manifest = Manifest(
        source=document["source"],
        settings=document["settings"],
        encoder=Encoder(**document["encoder"]),
        stream=StreamSpec(
            **times,
            color=ColorTags(**stream.pop("color")),
            sample_aspect_ratio=None if aspect is None else stored_fraction(aspect),
            **stream,
        ),
        is_vfr=document["is_vfr"],
        start=stored_fraction(document["start"]),
        plan=document["plan"],
    )
    for part in (manifest, manifest.encoder, manifest.stream, manifest.stream.color):
        require_types(part)
    _require_plausible(manifest)
    return manifest


def _require_plausible(manifest: Manifest) -> None:
    """Raises: ValueError: a number that FFmpeg rejects, or a suffix that leads elsewhere."""
    encoder, stream = manifest.encoder, manifest.stream
    ratios = (stream.time_base, stream.sample_aspect_ratio or Fraction(1))
    terms = [term for ratio in ratios for term in ratio.as_integer_ratio()]
    if not all(0 < term < 1 << 31 for term in (*terms, stream.width, stream.height)):
        raise ValueError(f"{stream.width}x{stream.height}, ratios of {terms}")
    if not 0 < stream.rate < 1 << 31:
        raise ValueError(f"rate is {stream.rate}")
    if stream.step > LONGEST_STEP:
        raise ValueError(f"a frame lasts {stream.step} ticks")
    if not all(0 <= tag < 256 for tag in asdict(stream.color).values()):
        raise ValueError(f"{stream.color}")
    for suffix in (encoder.suffix, encoder.chunk_suffix):
        if suffix not in MUXERS:
            raise ValueError(f"a suffix is {suffix!r:.80}")


def read_manifest(path: Path) -> tuple[Manifest, dict[str, str]]:
    """The manifest in a file, and the library versions stored with it.

    Raises:
        FileNotFoundError: there is none.
        SessionError: the file cannot be read, or has another schema.
    """
    try:
        with reading_stored(path):
            document = read_json(path, most=MOST_BYTES)
        if document["schema"] != SCHEMA:
            raise SessionError(
                f"{path} has schema {document['schema']!r:.80} but this version reads {SCHEMA}: "
                "use the version that made it or choose another session."
            )
        manifest, versions = manifest_from_json(document), document["versions"]
        if not is_of_type(versions, dict[str, str]):
            raise TypeError(f"versions is {versions!r:.80}")
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise SessionError(
            f"{path} is not a usable manifest ({error!r}): remove the folder {path.parent}."
        ) from error
    return manifest, versions


def differences(ours: Manifest, theirs: Manifest) -> list[str]:
    """One phrase for each field that differs, with both values."""
    was, now = (dict(_flatten(manifest_to_json(each))) for each in (ours, theirs))
    return [
        f"{key} was {was.get(key)!r} and is now {now.get(key)!r}"
        for key in sorted(was.keys() | now.keys())
        if was.get(key) != now.get(key)
    ]


def _flatten(value: object, prefix: str = "") -> Iterator[tuple[str, object]]:
    """(dotted key, leaf) of nested JSON objects."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value
