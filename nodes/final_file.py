"""The joined video of a session: its name, its metadata, and how a node shows it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from comfy.cli_args import args
from comfy_api.latest import InputImpl, io

from ..encoding.delivery import Final, clean_up, final_to_json
from ..encoding.durable import atomic_file, disk_errors, sole_writer
from ..encoding.manifest import Json
from ..encoding.profiles import find_profile
from ..encoding.session import FinalFile, Session
from ..encoding.unchanged import file_facts
from ..tlbvfi.errors import SettingsError
from ..tlbvfi.join import is_joined, join_session
from ..tlbvfi.progress import Notice
from .host import NodeProgress
from .paths import is_file, is_foreign
from .sessions import require_same_sound

NO_GRAPH = {"workflow": "", "prompt": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A final file of a session."""

    path: Path
    """With links resolved, like ComfyUI's folders that it is compared with."""
    noted: FinalFile
    """As recorded in the session."""

    def is_named(self, wanted: Path) -> bool:
        """Whether it has the wanted name, possibly with a number."""
        pattern = rf"{re.escape(wanted.stem)}(_\d{{5}})?"
        same_kind = (self.path.parent, self.path.suffix) == (wanted.parent, wanted.suffix)
        return same_kind and re.fullmatch(pattern, self.path.stem) is not None

    def is_of(self, session: Session, final: Final) -> bool:
        """Whether it was made in this way from the chunks that the session has now."""
        return (self.noted.final, self.noted.chunks) == (final_to_json(final), session.content())

    def has_form(self, wanted: Path, final: Final) -> bool:
        """Whether it has the wanted container and encoding."""
        return (self.noted.final, self.path.suffix) == (final_to_json(final), wanted.suffix)


def graph_metadata(hidden: Any) -> dict[str, str]:  # noqa: ANN401 - ComfyUI's untyped holder
    """Tags that restore the graph when the file is dropped on the page, as in core's Save Video.

    Empty ones keep out the graph of a source video, which did not make this file.
    """
    if args.disable_metadata:
        return NO_GRAPH
    graph = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        graph["prompt"] = hidden.prompt
    return NO_GRAPH | {key: json.dumps(value) for key, value in graph.items()}


def require_form(session: Session, wanted: Path, final: Final) -> None:
    """Refuse a form that a session without its chunks can no longer take.

    Raises:
        SettingsError: it was joined into another kind of file, or encoded in another way.
    """
    made = _made(session)
    if not made or session.has_chunks() or any(each.has_form(wanted, final) for each in made):
        return
    last, now = made[-1], final_to_json(final)
    raise SettingsError(
        f"session {session.id} was joined into {last.path.name} ({_form(last.noted.final)}) and its "
        f"chunks were removed, so it cannot become {wanted.name} ({_form(now)}): delete "
        f"{last.path.name} and queue the graph again, or use another session_id; with "
        "cleanup_chunks off the chunks are kept."
    )


def join_to(
    session: Session,
    wanted: Path,
    progress: NodeProgress,
    *,
    final: Final = None,
    sound: Callable[[], Path | None],
    metadata: Mapping[str, str],
    keep_chunks: bool,
    is_named: bool = False,
) -> Path:
    """The session's verified final file: the existing one, or a new one at `wanted`.

    `final`: the encoder for a final encode; None: chunks are joined as they are. `sound`: where its
    sound comes from, asked only if a new one is made. `is_named`: whether the user chose `wanted`, so
    that a file under another name will not do. An existing file that was not made from this session
    is left alone: a number is added to the name instead.

    Raises:
        SessionError: chunks are missing.
        SettingsError, SourceError: the file of the sound was replaced since the chunks were made.
        VerificationError: a chunk or the joined file is damaged.
        OutputError: another job is making the same file, or it cannot be written.
    """
    made = _made(session)
    own = next((each for each in reversed(made) if each.is_named(wanted)), None)
    if made and not session.has_chunks():
        alike = [each for each in made if each.has_form(wanted, final)] or made
        former = own if own in alike else alike[-1]
        if is_joined(session, former.noted.output):
            if former is not own and is_named:
                return _named_as_well(session, former, wanted)
            if former is not own:
                progress(
                    Notice(text=f"session {session.id} was already joined into {former.path.name}.")
                )
            return former.path
    elif own is not None and is_joined(session, own.noted.output) and own.is_of(session, final):
        clean_up(session, keep_chunks=keep_chunks)
        return own.path
    output = free_path(wanted) if own is None else own.path
    heard = sound()
    heard_facts = file_facts(heard)
    if heard is not None:
        require_same_sound(session, heard)
    with sole_writer(output):
        join_session(
            session,
            output,
            final=final,
            sound=heard,
            sound_facts=heard_facts,
            metadata=metadata,
            overwrite=own is not None,
            keep_chunks=keep_chunks,
            on_event=progress,
        )
    return output


def _named_as_well(session: Session, former: Made, wanted: Path) -> Path:
    """A second name for a final file: a link, or a copy where the disk knows no links."""
    output = free_path(wanted)
    with session.locked(), sole_writer(output), disk_errors(output), atomic_file(output) as file:
        try:
            os.link(former.path, file)
        except OSError:
            shutil.copyfile(former.path, file)
        # before it appears, as in a join: after a crash it is known or absent
        session.note_result(replace(former.noted, output=output))
    return output


def free_path(wanted: Path) -> Path:
    """`wanted`, or with a number before its suffix if that name is taken."""
    numbered = (wanted.with_name(f"{wanted.stem}_{n:05}{wanted.suffix}") for n in count(2))
    return next(path for path in chain([wanted], numbered) if not path.exists())


def shown(output: Path, root: Path, progress: NodeProgress, *values: object) -> io.NodeOutput:
    """A node's outputs, the last of them the video, with a preview and notices for the user.

    `root`: ComfyUI's output folder, which contains `output`.
    """
    preview = {
        "filename": output.name,
        "subfolder": output.parent.relative_to(root).as_posix().removeprefix("."),
        "type": io.FolderType.output.value,
    }
    name = str(output.relative_to(root))
    ui = {"images": [preview], "animated": (True,), "text": (progress.show(name),)}
    return io.NodeOutput(*values, InputImpl.VideoFromFile(str(output)), ui=ui)


def was_joined(session: Session) -> bool:
    """Whether the file that a node joined the session into last is still there, as it was."""
    last = session.result()
    return any(made.noted == last for made in _made(session)) and is_joined(session)


def _made(session: Session) -> list[Made]:
    """Files this session was joined into that still exist with the same size; the latest last.

    A file outside the folder that contains the session was not made by a node.
    """
    root, made = session.folder.parent.parent.resolve(), []
    for noted in session.results():
        if is_foreign(noted.output, [root]) or not is_file(noted.output):
            continue
        path = noted.output.resolve()
        if path.is_relative_to(root) and path.stat().st_size == noted.bytes:
            made.append(Made(path=path, noted=noted))
    return made


def _form(final: Json | None) -> str:
    """How a file was made from chunks, in words."""
    if final is None:
        return "chunks joined as they are"
    scale = find_profile(final["profile"]).quality
    crf = "" if scale is None else f" with crf {final['options'][scale.option]}"
    return f"encoded as {final['profile']}{crf}"
