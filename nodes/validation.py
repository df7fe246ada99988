"""Checks before a graph runs: True, or a sentence, as ComfyUI's validation expects.

None stands for a value that comes over a link and is not known yet.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..encoding.errors import VideoError
from ..encoding.names import check_id
from ..encoding.profiles import parse_bitrate
from ..tlbvfi.errors import InterpolationError
from .output_settings import exact_rate
from .paths import plain_file_name
from .values import as_type


def first_problem(*answers: bool | str) -> bool | str:
    """The first answer that is not True."""
    return next((answer for answer in answers if answer is not True), True)


def check_session_id(session_id: str | None) -> bool | str:
    """Whether it is empty or a safe folder name."""
    return _answer(check_id, session_id or None)


def check_bitrate(bitrate: str | None) -> bool | str:
    """Whether it is empty or a number of bits per second."""
    return _answer(parse_bitrate, bitrate or None)


def check_rate(fps: object) -> bool | str:
    """Whether it is a number of frames per second that a file can have, or 0."""
    return _answer(lambda rate: exact_rate(as_type("FLOAT", "fps", rate)), fps)


def check_file_name(name: str | None) -> bool | str:
    """Whether it is empty or a file name without a folder."""
    return _answer(plain_file_name, name or None)


def _answer(check: Callable[[Any], object], value: object) -> bool | str:
    """True, or what `check` raises about the value; None is not checked."""
    try:
        if value is not None:
            check(value)
    except (VideoError, InterpolationError) as error:
        return str(error)
    return True
