"""How a job is shown in a terminal: a progress bar with notices above it."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from ...encoding.durable import size_in_words
from ...encoding.text import printable
from ..progress import (
    ChunkDone,
    Encoding,
    Event,
    FrameDone,
    Joining,
    Notice,
    Reading,
    Started,
    Verifying,
)

tqdm.set_lock(threading.RLock())  # its own is made in the first call, which a signal may break off


def say(text: str, *, quiet: bool = False) -> None:
    """Print a line on stderr, above a progress bar if one is shown; stdout is for results."""
    if not quiet:
        tqdm.write(f"tlbvfi: {printable(text)}", file=sys.stderr)


def command_line(words: Sequence[str]) -> str:
    """A command quoted for this system's shell."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


class LogLines(logging.Handler):
    """Writes log lines to stderr, above the progress bar if one is shown."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(printable(self.format(record)), file=sys.stderr)
        except Exception:  # noqa: BLE001 - the logging module reports a handler's errors
            self.handleError(record)


class ProgressBar:
    """Shows the events of a job on stderr; a context manager, called with each event."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: tqdm | None = None
        self._stage = ""
        self.session_id: str | None = None

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Notice):
            say(event.text, quiet=self._quiet)
        elif isinstance(event, Encoding):
            self._follow("encoding", event.done, event.total)
        elif isinstance(event, Joining):
            self._follow("joining", event.done, event.total)
        elif isinstance(event, Verifying):
            self._follow("verifying", event.done, event.total)
        elif isinstance(event, Reading):
            self._follow("reading", event.done, event.total, unit=event.what)
        elif self._bar is None:
            return
        elif isinstance(event, FrameDone):
            self._bar.update(event.frames_done - self._bar.n)
        elif isinstance(event, ChunkDone):
            free = shutil.disk_usage(self._folder).free
            used = size_in_words(event.bytes_written)
            expected = f"/{size_in_words(event.bytes_predicted)}" if event.bytes_predicted else ""
            self._bar.set_postfix_str(
                f"chunk {event.chunks_done}, disk {used}{expected} ({size_in_words(free)} free)"
            )

    def _start(self, event: Started) -> None:
        self.session_id = event.session_id
        self._folder: Path = event.session_folder
        resumed = f", {event.frames_done} frames done before" if event.frames_done else ""
        say(f"session {event.session_id}, encoder {event.encoder}{resumed}", quiet=self._quiet)
        self._begin("", event.frames_total, event.frames_done)

    def _follow(self, stage: str, done: int, total: int, unit: str = "frame") -> None:
        """Move the bar of a stage other than the interpolation; its first event creates the bar."""
        bar = self._bar
        if bar is None or self._stage != stage or done < bar.n:
            bar = self._begin(stage, total, 0, unit)
        bar.update(done - bar.n)

    def _begin(self, stage: str, total: int | None, done: int, unit: str = "frame") -> tqdm:
        """A bar in place of the one before."""
        if self._bar is not None:
            self._bar.close()
        self._stage = stage
        self._bar = tqdm(
            desc=stage or None,
            total=total,
            initial=done,
            unit=unit,
            file=sys.stderr,
            disable=self._quiet,
            dynamic_ncols=True,
            smoothing=0.1,
        )
        return self._bar
