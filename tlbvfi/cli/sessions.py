"""`tlbvfi sessions`, `tlbvfi concat` and `tlbvfi verify`: list, join and check what is on disk."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...encoding.durable import size_in_words
from ...encoding.text import printable
from .arguments import Commands, add_encoder, add_root, encoder_settings, not_empty, session_place
from .show import ProgressBar, say

if TYPE_CHECKING:
    from ...encoding.session import Session


def add_parsers(subparsers: Commands, shared: argparse.ArgumentParser) -> None:
    concat = subparsers.add_parser(
        "concat",
        parents=[shared],
        help="join a session's chunks",
        description="Join the chunks of a session as they are; with --codec, encode them once more "
        "(meant for mezzanine chunks that were kept), into a video or into images.",
    )
    concat.add_argument("session", metavar="SESSION", help="session id, or its folder")
    concat.add_argument(
        "output",
        metavar="OUTPUT",
        help="video file, folder of images (frames/) or numbered images (frames/f_%%06d.png)",
    )
    add_encoder(concat, codec=None)
    concat.add_argument("--audio", metavar="FILE", help="take the sound from FILE, not the source")
    concat.add_argument("--no-audio", action="store_true", help="leave the sound out")
    concat.add_argument(
        "--remove-chunks", action="store_true", help="remove the chunks once OUTPUT is verified"
    )
    concat.add_argument("--overwrite", action="store_true", help="replace OUTPUT")
    add_root(concat)
    concat.set_defaults(run=run_concat)

    verify = subparsers.add_parser(
        "verify",
        parents=[shared],
        help="check a session, a video file or a folder of images; exit code 1 if damaged",
    )
    verify.add_argument("subject", metavar="SESSION|FILE|FOLDER", type=not_empty)
    verify.add_argument("--deep", action="store_true", help="decode every frame as well")
    add_root(verify)
    verify.set_defaults(run=run_verify)

    sessions = subparsers.add_parser("sessions", parents=[shared], help="list or remove sessions")
    sessions.add_argument("--remove", metavar="ID", nargs="+", help="remove these sessions")
    add_root(sessions)
    sessions.set_defaults(run=run_sessions)


def run_concat(arguments: argparse.Namespace) -> int:
    """Join a session's chunks, or encode them once more."""
    from ...encoding.delivery import final_of, output_path
    from ...encoding.durable import sole_writer
    from ...encoding.session import Session
    from ..join import join_session, sound_of

    session = Session.open(*session_place(arguments.session, arguments.root))
    wanted = encoder_settings(arguments)
    output = output_path(arguments.output, wanted.codec if wanted else "auto")
    sound = None if arguments.no_audio else arguments.audio or sound_of(session)
    with ProgressBar(quiet=arguments.json) as show, sole_writer(output):
        joined = join_session(
            session,
            output,
            final=final_of(session, output, wanted),
            sound=Path(sound) if sound else None,
            metadata=session.origin().get("metadata"),
            overwrite=arguments.overwrite,
            keep_chunks=not arguments.remove_chunks,
            on_event=show,
        )
    if arguments.json:
        print(json.dumps(asdict(joined), default=str))
    else:
        say(f"{joined.output}: {joined.frames} frames, verified.")
    return 0


def run_verify(arguments: argparse.Namespace) -> int:
    """Check a file or a folder of images, if there is one of this name, else a session.

    A session whose chunks were removed is checked by the output they were joined into.
    """
    from ...encoding.errors import SourceError
    from ...encoding.sequence import is_image, verify_images
    from ...encoding.session import Session
    from ...encoding.verify import verify_file, verify_session
    from ...encoding.writer import MUXERS
    from ..join import verify_joined
    from ..progress import Verifying

    path = Path(arguments.subject)
    show = ProgressBar(quiet=arguments.json)

    def tell(done: int, total: int) -> None:
        show(Verifying(done=done, total=total))

    if path.is_file():
        path.open("rb").close()  # an unreadable file must not be reported as damaged
        with show:
            report = verify_file(path, deep=arguments.deep, on_progress=tell)
    elif path.is_dir() and any(is_image(each.suffix) for each in path.iterdir()):
        report = verify_images(path, deep=arguments.deep)
    elif path.suffix.lower() in MUXERS and not path.exists():
        raise SourceError(f"{path} does not exist: check the path.")
    else:
        session = Session.open(*session_place(arguments.subject, arguments.root))
        is_only_joined = session.result() is not None and not session.has_chunks()
        verify = verify_joined if is_only_joined else verify_session
        with show:
            report = verify(session, deep=arguments.deep, on_progress=tell)
    print(json.dumps(asdict(report)) if arguments.json else printable(report.text))
    return 0 if report.ok else 1


def run_sessions(arguments: argparse.Namespace) -> int:
    """List the sessions below the root, or remove some of them."""
    from ...encoding.session import FOLDER, Session, list_sessions

    root = arguments.root or Path("output")
    for session_id in arguments.remove or ():
        Session.open(root, session_id).remove()
    rows = [row for row in map(_row_or_warning, list_sessions(root)) if row is not None]
    if arguments.json:
        print(json.dumps(rows))
    elif not rows:
        say(f"There are no sessions in {root / FOLDER}: choose another folder with --root.")
    else:
        for row in rows:
            state = printable(row["state"])
            print(f"{row['id']:48} {row['chunks']:5} chunks {row['size']:>9}  {state}")
    return 0


def _row_or_warning(session: Session) -> dict[str, Any] | None:
    """The session's row; None if it is gone by now, or, with a line on stderr, damaged."""
    from ...encoding.errors import SessionError

    try:
        return _row(session)
    except FileNotFoundError:  # a job has ended, or somebody has removed it
        return None
    except SessionError as error:
        say(str(error))
        return None


def _row(session: Session) -> dict[str, Any]:
    """What the list shows for a session."""
    records = session.records().values()
    size = sum(record.bytes for record in records) if session.has_chunks() else 0
    outputs = ", ".join(str(made.output) for made in session.results())
    missing = session.missing()
    return {
        "id": session.id,
        "chunks": len(records),
        "frames": sum(record.frames for record in records),
        "bytes": size,
        "size": size_in_words(size),
        "state": f"joined into {outputs}" if outputs else missing or "ready to be joined",
    }
