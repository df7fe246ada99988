"""What a caller passes in to follow long work."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int, int], None]
"""Called with how much is done and how much there is in all, in frames, say; may raise to stop."""


def no_progress(done: int, total: int) -> None:
    """Ignore progress."""
