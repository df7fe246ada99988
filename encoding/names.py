"""Names that are safe as file and folder names on every system."""

from __future__ import annotations

import re

from .errors import SessionError

WINDOWS_DEVICES = {"con", "prn", "aux", "nul", "conin$", "conout$"} | {
    f"{device}{digit}" for device in ("com", "lpt") for digit in "123456789\xb9\xb2\xb3"
}
"""Windows takes the small digits of Latin-1 for digits."""


def check_id(id: str) -> None:
    """Refuse ids that are not a safe folder name on every system.

    Raises:
        SessionError: not 1 to 64 of A-Z a-z 0-9 . _ -, a leading or final dot, or a device name.
    """
    if not is_id(id):
        raise SessionError(
            f"{id!r:.80} is not a session id: use 1 to 64 letters, digits, '.', '_' or '-', "
            "not beginning or ending with a dot, and not a Windows device name."
        )


def is_id(text: str) -> bool:
    """Whether `check_id` accepts it."""
    is_plain = re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", text) and not text.endswith(".")
    return bool(is_plain) and not is_device(text)


def is_device(name: str) -> bool:
    """Whether Windows takes a file name for a device: `con`, `nul.mp4`."""
    return name.split(".")[0].strip().lower() in WINDOWS_DEVICES


def is_for_windows(name: str) -> bool:
    """Whether Windows stores a file under this name.

    It takes a colon for a stream of the file before it, and drops dots and spaces at the end.
    """
    is_stored = re.search(r'[\x00-\x1f<>:"/\\|?*]', name) is None and name.rstrip(". ") == name
    return is_stored and not is_device(name)
