"""Checks before a graph runs: True, or a sentence, as ComfyUI's validation expects.

None stands for a value that comes over a link and is not known yet.
"""

from __future__ import annotations

from ..encoding.errors import VideoError
from ..encoding.profiles import parse_bitrate
from ..encoding.session import check_id
from ..tlbvfi.errors import InterpolationError
from .output_settings import exact_rate
from .paths import plain_file_name
from .values import as_type


def first_problem(*answers: bool | str) -> bool | str:
    """The first answer that is not True."""
    return next((answer for answer in answers if answer is not True), True)


def check_session_id(session_id: str | None) -> bool | str:
    """Whether it is empty or a safe folder name."""
    try:
        if session_id:
            check_id(session_id)
    except VideoError as error:
        return str(error)
    return True


def check_bitrate(bitrate: str | None) -> bool | str:
    """Whether it is empty or a number of bits per second."""
    try:
        if bitrate:
            parse_bitrate(bitrate)
    except VideoError as error:
        return str(error)
    return True


def check_rate(fps: object) -> bool | str:
    """Whether it is a number of frames per second that a file can have, or 0."""
    try:
        if fps is not None:
            exact_rate(as_type("FLOAT", "fps", fps))
    except InterpolationError as error:
        return str(error)
    return True


def check_file_name(name: str | None) -> bool | str:
    """Whether it is empty or a file name without a folder."""
    try:
        if name:
            plain_file_name(name)
    except InterpolationError as error:
        return str(error)
    return True
