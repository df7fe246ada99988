"""Processes of which one runs at a time, so that a CPU whose speed changes treats them alike."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing, suppress
from typing import Any

TURN_OVER = b"turn over\n"


def run_in_turns(*commands: Sequence[str]) -> list[dict[str, Any]]:
    """The JSON object that each command prints last, or a `problem`; their logs go to stderr.

    A process waits while it is not its turn, which `let_others_run` ends. It may build on those named
    before it: if one has a problem, those after it are stopped and have no result.
    """
    results: dict[int, dict[str, Any]] = {}
    with ExitStack() as stack:
        running = {n: stack.enter_context(closing(_turns(c))) for n, c in enumerate(commands)}
        while running:
            for n in sorted(running):
                result = next(running[n])
                if result is None:
                    continue
                results[n] = result
                del running[n]
                if "problem" in result:
                    running = {k: turns for k, turns in running.items() if k < n}
                    break
    return [results[n] for n in sorted(results)]


def let_others_run() -> None:
    """Within a process: wait for the next turn. Ends it if nobody waits for its result."""
    sys.stdout.buffer.write(TURN_OVER)
    sys.stdout.buffer.flush()
    if not sys.stdin.buffer.readline():
        raise SystemExit(1)


def _turns(command: Sequence[str]) -> Generator[dict[str, Any] | None]:
    """Start the process; None whenever its turn is over, and at last its result."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            line = b""
            for line in process.stdout:
                if line == TURN_OVER:
                    yield None
                    with suppress(OSError):  # it was killed meanwhile, and ends the loop
                        os.write(process.stdin.fileno(), b"\n")
            yield _result(process.wait(), line)
        finally:
            process.kill()


def _result(code: int, line: bytes) -> dict[str, Any]:
    if code == -9:
        return {"problem": "out of memory: the system killed the process"}
    if code != 0 or not line:
        return {"problem": f"the process failed with exit code {code}, see above"}
    return json.loads(line)
