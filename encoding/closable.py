"""A context manager that its iterators can ask, from any thread, whether it was closed."""

from __future__ import annotations

import threading
from typing import TypeVar

Self = TypeVar("Self", bound="Closable")


class Closable:
    """Base of the sources: closing one ends its iterators at their next frame.

    The iterator, not the source, owns the open file, because a decoder must not be torn down while
    another thread is inside it.
    """

    def __init__(self) -> None:
        self._closed = threading.Event()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def close(self) -> None:
        """End all iterators at their next frame."""
        self._closed.set()

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
