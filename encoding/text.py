"""Texts of others, such as names and tags, made fit for terminals and logs."""

from __future__ import annotations

import re

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, except tabs and line ends, and those that change text direction."""


def printable(text: str) -> str:
    """`text` with control characters escaped, which could hide or fake what a terminal shows."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
