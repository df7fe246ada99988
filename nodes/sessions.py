"""Sessions as nodes find them: by an id from a widget or a link, below ComfyUI's output folder."""

from __future__ import annotations

from pathlib import Path

from ..encoding.errors import SourceError
from ..encoding.reader import file_identity
from ..encoding.session import Session
from ..tlbvfi.errors import SettingsError
from .kept import session_sounds

NO_SESSION = (
    "session_id is empty: connect the session_id of TLBVFI Chunk Processor or of TLBVFI Chunk Video "
    "Saver, or type the name of a session."
)
CONTENT = ("size", "sha256_of_ends")
"""What identifies the content of a file, of what a session records of its source."""


def find_session(session_id: str, *roots: Path) -> Session:
    """The session of this id below the first root that has it.

    Raises:
        SettingsError: the id is empty.
        SessionError: there is none, or the id is not valid.
    """
    if not session_id:
        raise SettingsError(NO_SESSION)
    found = (Session.find(root, session_id) for root in roots)
    return next(filter(None, found), None) or Session.open(roots[0], session_id)


def require_complete(session: Session) -> None:
    """Refuse to join a session that lacks chunks.

    Raises:
        SettingsError: naming the first chunk that is not made.
    """
    if missing := session.missing():
        raise SettingsError(
            f"session {session.id} is not complete ({missing}): queue the graph that makes it again; if "
            "each run saves one chunk, give all of them one session_id and leave cleanup_chunks off "
            "until the last."
        )


def forget_sound_if_joined(session: Session) -> None:
    """Forget where the sound of a session came from once its chunks are removed."""
    if not session.has_chunks():
        session_sounds.forget(session.folder)


def require_same_sound(session: Session, sound: Path) -> None:
    """Refuse the sound of another clip than the one that a session's chunks show.

    Raises:
        SettingsError: its file was replaced since they were made.
    """
    source = session.manifest.source
    recorded = source["video"] if isinstance(source.get("video"), dict) else source
    was = {key: recorded[key] for key in CONTENT if key in recorded}
    try:
        now = file_identity(sound)
    except SourceError:
        return  # the join says what is wrong with it
    if not was.items() <= now.items():
        raise SettingsError(
            f"{sound.name} has been replaced since the chunks of session {session.id} were made, so its "
            "sound may be of another clip: restore it, or rename it to join them without sound."
        )
