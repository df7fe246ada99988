"""Reads stored JSON back, and checks that it has the types that were written.

A folder may have been damaged, edited by hand, or made by a stranger: nothing in it is trusted
before its type has been checked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

MOST_DIGITS = 1000


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


def require_types(record: Any) -> None:  # noqa: ANN401 - any dataclass
    """Require that the fields of a dataclass match their annotations.

    Raises:
        TypeError: one does not.
    """
    hints = get_type_hints(type(record))
    for field in fields(record):
        value = getattr(record, field.name)
        if not is_of_type(value, hints[field.name]):
            raise TypeError(f"{field.name} is {value!r:.80}")


def is_of_type(value: object, hint: Any) -> bool:  # noqa: ANN401 - a type or a typing construct
    """Whether `value` fits an annotation made of plain types, unions, tuples, lists and mappings."""
    kind, inner = get_origin(hint) or hint, get_args(hint)
    if hint is Any:
        return True
    if kind in (Union, UnionType):
        return any(is_of_type(value, each) for each in inner)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 62
    if kind is tuple and isinstance(value, tuple):
        wanted = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(wanted) and all(map(is_of_type, value, wanted))
    if not isinstance(value, kind):
        return False
    if isinstance(value, list):
        return all(is_of_type(each, *inner) for each in value)
    if isinstance(value, Mapping) and inner:
        return all(is_of_type(k, inner[0]) and is_of_type(v, inner[1]) for k, v in value.items())
    return True
