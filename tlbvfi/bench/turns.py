"""Tasks in processes of their own, of which one runs at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from .tasks import Task, task_to_json

ROOT = Path(__file__).parents[2]

START = """
import sys
from importlib.util import module_from_spec, spec_from_file_location
root = sys.argv[1]
spec = spec_from_file_location(
    "comfyui_tlbvfi", root + "/__init__.py", submodule_search_locations=[root])
sys.modules["comfyui_tlbvfi"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
from comfyui_tlbvfi.tlbvfi.bench.child import main
main(sys.argv[2])
"""
"""Runs this very package, installed or not, under the name by which the baseline imports it."""

TURN_OVER = b"turn over\n"


def run_tasks(*tasks: Task) -> list[dict[str, Any]]:
    """The result of each task, or a `problem`; their logs go to stderr.

    A task waits while it is not its turn, which `let_others_run` ends. It may build on tasks named
    before it: if one has a problem, those after it are stopped and have no result.
    """
    results: dict[int, dict[str, Any]] = {}
    with ExitStack() as stack:
        running = {n: stack.enter_context(closing(_turns(task))) for n, task in enumerate(tasks)}
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
    """Within a task: wait for the next turn. Ends the process if nobody waits for the result."""
    sys.stdout.buffer.write(TURN_OVER)
    sys.stdout.buffer.flush()
    if not sys.stdin.buffer.readline():
        raise SystemExit(1)


def _turns(task: Task) -> Generator[dict[str, Any] | None]:
    """Start the task; None whenever its turn is over, and at last its result."""
    command = [sys.executable, "-c", START, str(ROOT), task_to_json(task)]
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
