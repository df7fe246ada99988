"""The standard streams of a command, which may be closed, full, or read by nobody any more.

Results that do not arrive are a failure; messages that do not arrive must not stop hours of work.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO, cast

STREAMS = {"stdin": "r", "stdout": "w", "stderr": "w"}
"""By the number of their file descriptor, with their modes."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """Make the streams of this process safe to use for the block."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # file names may not fit the console's code page
            stream.reconfigure(errors="backslashreplace")
    messages = cast("TextIO", Messages(sys.stderr))  # which has all of it, by `__getattr__`
    with redirect_stderr(messages):
        yield


class Messages:
    """A text stream that falls silent, instead of raising, once it cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            silence(self._stream)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            silence(self._stream)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever a text stream has
        return getattr(self._stream, name)


def silence(stream: TextIO) -> None:
    """Lead a stream to the null device, what it still holds included.

    Python would try again to write it when it exits. Closing the stream would give its number to
    the next file that is opened, and libraries in C write their messages to number 2.
    """
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def _open_what_is_closed() -> None:
    """Give closed streams (`2>&-`) the null device, for the reason that `silence` gives."""
    closed = [name for name in STREAMS if getattr(sys, name) is None]
    if not closed:
        return
    while (free := os.open(os.devnull, os.O_RDWR)) < len(STREAMS):
        pass  # the system gives the lowest number that is free
    os.close(free)
    for name in closed:
        stream = Path(os.devnull).open(STREAMS[name])  # noqa: SIM115 - it lasts as long as we do
        setattr(sys, name, stream)
