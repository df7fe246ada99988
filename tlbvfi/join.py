"""A session's chunks become the final file, and that file is checked against the session."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from ..encoding.callbacks import OnProgress, no_progress
from ..encoding.concat import JoinResult
from ..encoding.delivery import Final, clean_up, deliver, final_to_json
from ..encoding.errors import SessionError
from ..encoding.manifest import Manifest
from ..encoding.sequence import image_pattern, is_image, problem_with_images, total_bytes
from ..encoding.session import FinalFile, Session
from ..encoding.stored import stored_fraction
from ..encoding.unchanged import Facts, require_unchanged
from ..encoding.verify import Check, VerifyReport, expected_output, verify_file
from ..encoding.window import Window
from .progress import Encoding, Joining, Notice, OnEvent, Verifying, log_notices


def is_joined(session: Session, output: Path | None = None) -> bool:
    """Whether the file this session was joined into exists and has the right size and times.

    `output`: which file; None: the last one.
    """
    return session.result(output) is not None and verify_joined(session, output).ok


def verify_joined(
    session: Session,
    output: Path | None = None,
    *,
    deep: bool = False,
    on_progress: OnProgress = no_progress,
) -> VerifyReport:
    """Check the file this session was joined into against the session's records.

    `output`: which file; None: the last one. `deep` also decodes every frame of a video.
    `on_progress`: see `verify_file`.

    Raises:
        SessionError: the session was not joined into that file.
    """
    made = session.result(output)
    if made is None:
        raise SessionError(f"Session {session.id} was not joined into {output or 'anything'} yet.")
    path = made.output
    if is_image(path.suffix):
        pattern, frames = image_pattern(path), len(expected_output(session).times.pts)
        problem = problem_with_images(pattern, frames)
        checks = [Check(name="images", ok=not problem, what=problem or f"{frames} without a gap")]
        size = total_bytes(pattern)
    elif not path.is_file():
        checks, size = [Check(name="file", ok=False, what="is missing")], 0
    else:
        checks, size = (), path.stat().st_size
        if size == made.bytes:  # otherwise it is some other file, perhaps a long one
            expected = expected_output(session, shift=made.shift)
            checks = verify_file(path, expected, deep=deep, on_progress=on_progress).checks
    what = f"{size} bytes" if size == made.bytes else f"{size} bytes of {made.bytes}"
    is_whole = Check(name="size", ok=size == made.bytes, what=what)
    return VerifyReport(subject=str(path), checks=(is_whole, *checks))


def join_session(
    session: Session,
    output: Path,
    *,
    final: Final = None,
    sound: Path | BinaryIO | None = None,
    sound_facts: Facts | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
    keep_chunks: bool = False,
    on_event: OnEvent = log_notices,
) -> JoinResult:
    """Join the chunks and verify the result; then remove the chunks, unless `keep_chunks`.

    `final`: what the chunks become; None: they are joined as they are. `sound`: file whose sound,
    subtitles, chapters and metadata are carried over, within the job's window. `sound_facts`: what
    that file must be to the end; None: whatever it is. The caller must be the `sole_writer` of
    `output`.

    Raises:
        SessionError: chunks are missing, or another process works on the session.
        SourceError: `sound` has changed.
        VerificationError: a chunk or the joined file is damaged.
        OutputError: `output` exists or cannot be written.
    """
    require_unchanged(sound, sound_facts)
    window = used_window(session.manifest)

    def note(joined: JoinResult) -> None:
        require_unchanged(sound, sound_facts)
        session.note_result(
            FinalFile(
                output=output.absolute(),
                bytes=joined.bytes,
                shift=joined.shift,
                final=final_to_json(final),
                chunks=session.content(),
            )
        )

    with session.locked():
        joined = deliver(
            session,
            output,
            final,
            source=sound,
            window=window,
            metadata=metadata,
            overwrite=overwrite,
            on_encode=lambda done, total: on_event(Encoding(done=done, total=total)),
            on_join=lambda done, total: on_event(Joining(done=done, total=total)),
            on_verify=lambda done, total: on_event(Verifying(done=done, total=total)),
            on_made=note,
        )
        for text in joined.notes:
            on_event(Notice(text=text))
        clean_up(session, keep_chunks=keep_chunks)
    return joined


def sound_of(session: Session) -> str | None:
    """File whose sound goes with a session's frames, if any, as the job set it."""
    settings = session.manifest.settings
    is_dropped = settings.get("slowmo", "1") != "1" and settings.get("slowmo_sound") != "stretch"
    is_silent = settings.get("audio") is False or is_dropped
    return None if is_silent else session.origin().get("sound")


def used_window(manifest: Manifest) -> Window | None:
    """The part of the source's clock that a job covers; None if it is all of it, unstretched.

    An edit list would hide what is before 0 on that clock, so the window begins at the first frame.
    """
    settings = manifest.settings
    is_stretched = settings.get("slowmo_sound") == "stretch"
    stretch = _stored(settings.get("slowmo")) if is_stretched else Fraction(1)
    is_whole = settings.get("start") is None and settings.get("end") is None
    if is_whole and stretch == 1 and manifest.start >= 0:
        return None
    end = settings.get("end_time")
    return Window(start=manifest.start, end=None if end is None else _stored(end), stretch=stretch)


def _stored(text: object) -> Fraction:
    try:
        return stored_fraction(text)
    except ValueError as error:
        raise SessionError(
            f"The session's records are damaged ({error}): remove the session and start again."
        ) from error
