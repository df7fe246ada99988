"""Stores JSON documents, reads them back, and checks that they have the types that were written.

A folder may have been damaged, edited by hand, or made by a stranger: nothing in it is trusted
before its type has been checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .durable import atomic_file

MOST_DIGITS = 1000
MOST = (1 << 62) - 1
"""Integers up to it, and the sum of two, fit into the 64 bits of FFmpeg's times."""


def write_json(path: Path, document: object) -> None:
    """Write a document of JSON types to a file, completely or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", "utf-8")


def read_json(path: Path) -> Any:  # noqa: ANN401 - JSON
    """The document in a file.

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not hold JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deep") from error


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
    hints = _type_hints(type(record))
    for field in fields(record):
        value = getattr(record, field.name)
        if not is_of_type(value, hints[field.name], most=most):
            raise TypeError(f"{field.name} is {value!r:.80}, not {field.type}")


@cache
def _type_hints(kind: type) -> dict[str, Any]:
    """The annotations of a dataclass; Python takes longer to evaluate them than to read a record."""
    return get_type_hints(kind)


def is_of_type(
    value: object,
    hint: Any,  # noqa: ANN401 - a type or a typing construct
    *,
    most: float = MOST,
) -> bool:
    """Whether `value` fits an annotation made of plain types, unions, tuples, lists and mappings.

    Of a `Literal` only the type counts. `most`: the largest integer, of either sign.
    """
    kind, inner = get_origin(hint) or hint, get_args(hint)
    fits = partial(is_of_type, most=most)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(fits(value, each) for each in inner)
    if kind is Literal:
        return isinstance(value, tuple({type(each) for each in inner}))
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= most
    if kind is tuple and isinstance(value, tuple):
        wanted = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(wanted) and all(map(fits, value, wanted))
    if not isinstance(value, kind):
        return False
    if isinstance(value, list):
        return all(fits(each, *inner) for each in value)
    if isinstance(value, Mapping) and inner:
        return all(fits(k, inner[0]) and fits(v, inner[1]) for k, v in value.items())
    return True
