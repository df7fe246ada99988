"""Stores JSON documents, reads them back, and checks that they have the types that were written.

A folder may have been damaged, edited by hand, or made by a stranger: nothing in it is trusted
before its type has been checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, fields
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .durable import atomic_file
from .errors import SessionError

MOST_BYTES = 1 << 28
"""Of a document or a list, all of which is read at once: none that we write comes near it."""
MOST_DEPTH = 50
"""Of objects within objects: Python fails to compare or write what is nested ten times as deep."""
MOST_DIGITS = 1000
MOST = (1 << 62) - 1
"""Integers up to it, and the sum of two, fit into the 64 bits of FFmpeg's times."""

Fits = Callable[[Any], bool]
"""Whether a value fits an annotation."""


def write_json(path: Path, document: object) -> None:
    """Write a document of JSON types to a file, completely or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", "utf-8")


def read_json(path: Path, *, most: int = MOST_BYTES) -> Any:  # noqa: ANN401 - JSON
    """The document in a file of at most `most` bytes.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold JSON, or larger or deeper than we write it.
    """
    require_size(path, most)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    _require_shallow(document)
    return document


def require_size(path: Path, most: int = MOST_BYTES) -> None:
    """Require that a file can be read at once: a file with a hole may be larger than its disk.

    Raises:
        OSError: there is none.
        ValueError: it is larger than `most` bytes.
    """
    if path.stat().st_size > most:
        raise ValueError(f"larger than {most} bytes")


def _require_shallow(document: object) -> None:
    """Raises: ValueError: something is nested deeper than `MOST_DEPTH`."""
    level = [document]
    for _ in range(MOST_DEPTH):
        level = [
            item
            for each in level
            if isinstance(each, dict | list)
            for item in (each.values() if isinstance(each, dict) else each)
        ]
    if level:
        raise ValueError("nested too deep")


@contextmanager
def reading_stored(path: Path) -> Iterator[None]:
    """Tell what cannot be read at the moment from what is damaged, and may as well be removed.

    Raises:
        SessionError: the system does not read it: a network that fails, or missing permissions.
        FileNotFoundError: it is gone, or what should be a folder above it is a file.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(*error.args) from error
    except OSError as error:
        raise SessionError(
            f"{path} cannot be read ({error.strerror}): check its permissions and the disk or network "
            "that it is on."
        ) from error


def stored_fraction(text: object) -> Fraction:
    """The number that `str` wrote as `1001/48000`; other notations could expand to gigabytes.

    Raises:
        ValueError: it is not such a text.
    """
    number = rf"-?\d{{1,{MOST_DIGITS}}}(/[1-9]\d{{0,{MOST_DIGITS - 1}}})?"
    if not isinstance(text, str) or not re.fullmatch(number, text, re.ASCII):
        raise ValueError(f"{text!r:.80} is not a fraction")
    return Fraction(text)


def require_types(record: Any, *, most: float = MOST) -> None:  # noqa: ANN401 - any dataclass
    """Require that the fields of a dataclass match their annotations.

    `most`: the largest integer, of either sign.

    Raises:
        TypeError: one does not; the text gives its value and its annotation.
    """
    for field, fits in _checks(type(record), most):
        value = getattr(record, field.name)
        if not fits(value):
            raise TypeError(f"{field.name} is {value!r:.80}, not {field.type}")


@cache
def _checks(kind: type, most: float) -> list[tuple[Field[Any], Fits]]:
    """The fields of a dataclass; Python takes longer to evaluate their types than to read a record."""
    hints = get_type_hints(kind)
    return [(field, _fits(hints[field.name], most)) for field in fields(kind)]


def is_of_type(
    value: object,
    hint: Any,  # noqa: ANN401 - a type or a typing construct
    *,
    most: float = MOST,
) -> bool:
    """Whether `value` fits an annotation made of plain types, unions, tuples, lists and mappings.

    Of a `Literal` only the type counts. `most`: the largest integer, of either sign.
    """
    return _fits(hint, most)(value)


@cache
def _fits(hint: Any, most: float) -> Fits:  # noqa: ANN401 - a type or a typing construct
    """Whether a value fits; a session has many records and takes each annotation apart once."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return lambda _: True
    if kind is Literal:
        kinds = tuple({type(each) for each in inner})
        return lambda value: isinstance(value, kinds)
    if kind is float:
        return lambda value: isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return lambda value: (
            isinstance(value, int) and not isinstance(value, bool) and abs(value) <= most
        )
    if kind in (Union, UnionType):
        options = [_fits(each, most) for each in inner]
        return lambda value: any(fits(value) for fits in options)
    if kind is tuple and inner:
        return _tuple_fits(inner, most)
    if inner and issubclass(kind, Iterable):
        return _items_fit(kind, [_fits(each, most) for each in inner])
    return lambda value: isinstance(value, kind)


def _tuple_fits(inner: tuple[Any, ...], most: float) -> Fits:
    parts = [_fits(each, most) for each in inner if each is not ...]
    if inner[-1] is ...:
        return lambda value: isinstance(value, tuple) and all(map(parts[0], value))
    return lambda value: (
        isinstance(value, tuple)
        and len(value) == len(parts)
        and all(fits(each) for fits, each in zip(parts, value, strict=True))
    )


def _items_fit(kind: type, parts: Sequence[Fits]) -> Fits:
    """Of lists and mappings; other items could be used up by looking at them."""

    def fits(value: Any) -> bool:  # noqa: ANN401
        if not isinstance(value, kind):
            return False
        if isinstance(value, list):
            return all(map(parts[0], value))
        if isinstance(value, Mapping):
            key, held = parts
            return all(key(k) and held(v) for k, v in value.items())
        return True

    return fits
