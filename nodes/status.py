"""The line of text a running node shows."""

from __future__ import annotations

from ..tlbvfi.progress import ChunkDone, FrameDone


def status_line(frame: FrameDone, chunk: ChunkDone | None) -> str:
    """`120/2000 frames · 14.2 frames/s · 2:12 left · 3 chunks safe · 96 MB of 1600 MB`.

    `chunk` is the last one committed, if any.
    """
    total = "" if frame.frames_total is None else f"/{frame.frames_total}"
    parts = [f"{frame.frames_done}{total} frames", f"{frame.frames_per_second:.1f} frames/s"]
    if frame.seconds_left is not None:
        parts.append(f"{clock(frame.seconds_left)} left")
    if chunk is not None:
        predicted = (
            "" if chunk.bytes_predicted is None else f" of {chunk.bytes_predicted / 1e6:.0f} MB"
        )
        parts.append(f"{chunk.chunks_done} chunk{'s' * (chunk.chunks_done != 1)} safe")
        parts.append(f"{chunk.bytes_written / 1e6:.0f} MB{predicted}")
    return " · ".join(parts)


def stopped_line(done: str, *, resumes: bool) -> str:
    """`stopped at 120/2000: queue it again to resume`. `done` is empty before the first frame."""
    where = f" at {done}" if done else ""
    return f"stopped{where}: queue it again to resume" if resumes else f"stopped{where}"


def clock(seconds: float) -> str:
    """`2:12` or `1:02:12`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
