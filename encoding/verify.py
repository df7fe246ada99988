"""Checks chunks and final files against their records: sizes, checksums, counts, times, pictures.

    report = verify_session(session, deep=True)
    if not report.ok:
        log.warning("%s", report.text)

A file that opens, or even decodes without an exception, may still be incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .callbacks import OnProgress, no_progress
from .container import MISSING, decode, make_safe
from .errors import SessionError, VerificationError, some_of
from .packets import CHUNK, PacketScan, open_made, scan_packets
from .progress import ChunkRecord
from .session import Session
from .timetable import MILLISECOND_CONTAINERS, Timetable, timetable

if TYPE_CHECKING:
    from av.container import InputContainer

SHOWN = 3
BLOCK = 1 << 14
"""Frames whose times are compared at once: Python's integers take 30 times the memory of int64."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and its finding, in words."""

    name: str
    ok: bool
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """All checks of one subject."""

    subject: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.ok for check in self.checks)

    @property
    def text(self) -> str:
        """Readable report, a line for each check."""
        lines = [
            f"{'ok  ' if each.ok else 'FAIL'} {each.name}: {each.what}" for each in self.checks
        ]
        return "\n".join([f"{self.subject}: {'good' if self.ok else 'damaged'}", *lines])

    def require(self, remedy: str) -> None:
        """Raise unless everything is as planned; `remedy` says what to do.

        Raises:
            VerificationError: naming the checks that failed.
        """
        failed = [f"{check.name}: {check.what}" for check in self.checks if not check.ok]
        if failed:
            raise VerificationError(
                f"{self.subject} is not as planned ({'; '.join(failed)}): {remedy}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What a final file must hold."""

    times: Timetable
    other: tuple[int | None, ...] = ()
    """Packets of each stream other than the video; None if they are not counted."""


def verify_session(
    session: Session, *, deep: bool = False, on_progress: OnProgress = no_progress
) -> VerifyReport:
    """Check every committed chunk of a session; `deep` also decodes every frame (44 s per GB at 480p).

    `on_progress` is called with frames done and total frames, and may raise to stop.
    """
    records = session.in_order()
    missing = session.missing()
    done, total = 0, sum(record.frames for record in records)
    problems, inside, decoded = [], [], []
    for record in records:  # each in turn, which reads it from the disk once
        problems.append(session.problem(record, thorough=True))
        if not problems[-1]:
            inside.append(_inside(session, record))
            path = session.chunk_path(record.index)
            decoded.append(_undecodable(path, record.frames, CHUNK) if deep else "")
        done += record.frames
        on_progress(done, total)
    checks = [
        _check("plan", [missing] if missing else [], f"{len(records)} chunks, {total} frames"),
        _check("size and checksum", problems, f"{sum(r.bytes for r in records)} bytes"),
        _check("packets and times", inside, "count, order and times as planned"),
    ]
    if deep:
        checks.append(_check("pictures", decoded, "every frame decodes"))
    return VerifyReport(subject=f"session {session.id}", checks=tuple(checks))


def require_whole(session: Session) -> None:
    """Refuse a session with missing chunks; damage shows when they are read: see `open_whole`.

    Raises:
        SessionError: chunks are missing, or were removed once they were joined.
        VerificationError: the file of a chunk is missing or has another size.
    """
    result = session.result()
    if result is not None and not session.has_chunks():
        raise SessionError(
            f"Session {session.id} was joined into {result.output} and its chunks removed: use "
            "that file, or run its job with another output name, which makes them again."
        )
    missing = session.missing()
    if missing:
        raise SessionError(
            f"Session {session.id} is not finished ({missing}): finish its job first, with tlbvfi "
            "resume or its workflow."
        )
    for record in session.in_order():
        _require_good(session, record)


@contextmanager
def open_whole(
    session: Session, record: ChunkRecord, options: dict[str, str]
) -> Iterator[InputContainer]:
    """A chunk that is as it was committed, open for the block; `options` are the demuxer's.

    Its checksum is compared just before: all of them at the beginning would be read twice from the
    disk, and the first time without any progress.

    Raises:
        VerificationError: it is not, or cannot be read.
    """
    _require_good(session, record, thorough=True)
    with open_made(session.chunk_path(record.index), options) as chunk:
        yield chunk


def _require_good(session: Session, record: ChunkRecord, *, thorough: bool = False) -> None:
    if problem := session.problem(record, thorough=thorough):
        raise VerificationError(
            f"session {session.id} is not as planned ({problem}): make that chunk again, with "
            "tlbvfi resume or the session's workflow."
        )


def expected_output(session: Session, *, shift: Fraction = Fraction(0)) -> Expected:
    """What the final file of a session must hold; `shift` as in `timetable`."""
    records = session.in_order()
    return Expected(times=timetable(session.manifest, records, shift=shift))


def verify_file(
    path: Path,
    expected: Expected | None = None,
    *,
    deep: bool = False,
    on_progress: OnProgress = no_progress,
) -> VerifyReport:
    """Check a video file, against a plan if there is one.

    Times must be exact; in Matroska and WebM to the millisecond, and up to a shift that all streams
    share. `deep` also decodes every frame. `on_progress` is called with the frames that were read
    and the number that is expected, 0 if it is not known; once more for the decoding; and may raise
    to stop.
    """
    total = 0 if expected is None else len(expected.times.pts)
    try:
        scan = scan_packets(path, total=total, on_progress=on_progress)
        checks = [*_scan_checks(path, scan, expected)]
        if deep:
            problem = _undecodable(path, len(scan.pts), on_progress=on_progress)
            checks.append(_check("pictures", [problem], "every frame decodes"))
    except VerificationError as error:
        checks = [Check(name="file", ok=False, what=str(error))]
    return VerifyReport(subject=str(path), checks=tuple(checks))


def _check(name: str, problems: Iterable[str], good: str) -> Check:
    found = [problem for problem in problems if problem]
    return Check(name=name, ok=not found, what=some_of(found, SHOWN) or good)


def _scan_checks(path: Path, scan: PacketScan, expected: Expected | None) -> Iterator[Check]:
    count = len(scan.pts)
    yield _check("frames", [] if count else ["there are none"], f"{count} frames")
    yield _check("order", [_disorder(scan)], "times are strictly monotonic")
    if expected is None:
        return
    planned = len(expected.times.pts)
    yield _check(
        "count", [f"{count} instead of {planned}"] if count != planned else [], "as planned"
    )
    if count == planned:
        yield _check("times", [_off_plan(path, scan, expected.times)], "as planned")
    # Muxers may add streams, such as chapter titles, at the end.
    counts = zip_longest(expected.other, scan.other[: len(expected.other)])
    differ = [
        f"{found} packets instead of {planned} in stream {number}"
        for number, (planned, found) in enumerate(counts, 1)
        if planned not in (None, found)
    ]
    yield _check("other streams", differ, f"{len(expected.other)} with {sum(scan.other)} packets")


def _disorder(scan: PacketScan) -> str:
    """Where pts repeat or dts go backwards; empty if nowhere."""
    if np.any(scan.pts == MISSING):
        return "some frames have no pts"
    shown = np.sort(scan.pts)
    if np.any(np.diff(shown) <= 0):
        return f"pts {shown[int(np.argmax(np.diff(shown) <= 0))]} occurs more than once"
    dts = scan.dts[scan.dts != MISSING]  # Matroska stores none where frames are reordered
    if np.any(np.diff(dts) <= 0):
        return f"dts goes backwards after packet {int(np.argmax(np.diff(dts) <= 0))}"
    return ""


def _off_plan(path: Path, scan: PacketScan, times: Timetable) -> str:
    found, planned = np.sort(scan.pts), times.pts
    is_rounded = path.suffix.lower() in MILLISECOND_CONTAINERS
    if is_rounded:
        found, planned = found - found[0], planned - planned[0]
    left, right = scan.time_base, times.time_base
    scale_found, scale_planned = (
        left.numerator * right.denominator,
        right.numerator * left.denominator,
    )
    unit = left.denominator * right.denominator
    slack = unit / 1000 if is_rounded else 0
    for begin in range(0, len(found), BLOCK):
        some = slice(begin, begin + BLOCK)
        # a/b == c/d exactly, in Python's integers: int64 overflows for an hour at 1/1440000 s.
        errors = (
            found[some].astype(object) * scale_found - planned[some].astype(object) * scale_planned
        )
        wrong = np.flatnonzero(np.abs(errors) > slack)
        if len(wrong):
            n = begin + int(wrong[0])
            return (
                f"frame {n} is shown at {float(found[n] * left):.6f} s instead of "
                f"{float(planned[n] * right):.6f} s"
            )
    return ""


def _inside(session: Session, record: ChunkRecord) -> str:
    """What is wrong with the packets of a chunk; empty if nothing is."""
    path = session.chunk_path(record.index)
    try:
        scan = scan_packets(path, CHUNK)
    except VerificationError as error:
        return str(error)
    if len(scan.pts) != record.frames:
        return f"{path.name} holds {len(scan.pts)} frames instead of {record.frames}"
    problem = _disorder(scan)
    if not problem:
        problem = _off_plan(path, _from_zero(scan), _alone(session, record))
    return f"{path.name}: {problem}" if problem else ""


def _from_zero(scan: PacketScan) -> PacketScan:
    return replace(scan, pts=scan.pts - scan.pts.min())


def _alone(session: Session, record: ChunkRecord) -> Timetable:
    """Times of a chunk, which plays from 0."""
    times = timetable(session.manifest, [record], shift=session.manifest.start)
    return replace(times, pts=times.pts - times.pts[0])


def _undecodable(
    path: Path,
    frames: int,
    options: dict[str, str] | None = None,
    on_progress: OnProgress = no_progress,
) -> str:
    """Why not all `frames` frames of a file can be decoded; empty if they can."""
    count = 0
    try:
        with open_made(path, options) as container:
            stream = container.streams.video[0]
            if not stream.codec_context:  # PyAV's types do not show it
                return f"{path.name} uses a video codec that no decoder here supports"
            make_safe(stream)
            for picture in decode(container, stream):
                # Corrupt are those whose missing part the decoder made up.
                if picture is None or picture.is_corrupt:
                    return f"{path.name} is damaged in frame {count}"
                count += 1
                on_progress(count, frames)
    except VerificationError as error:
        return f"{path.name} fails after frame {count} ({error})"
    return "" if count == frames else f"{path.name} decodes to {count} frames instead of {frames}"
