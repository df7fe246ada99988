"""The joined video of a session: its name, its metadata, and what a node shows of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO

from comfy.cli_args import args
from comfy_api.latest import InputImpl, io

from ..encoding.delivery import Final, final_to_json
from ..encoding.manifest import Json
from ..encoding.profiles import find_profile
from ..encoding.session import PROGRESS, RESULT, Session
from ..tlbvfi.errors import SettingsError
from ..tlbvfi.job import is_joined, join_session
from ..tlbvfi.progress import Notice
from .host import NodeProgress

NO_GRAPH = {"workflow": "", "prompt": ""}


def graph_metadata(hidden: Any) -> dict[str, str]:  # noqa: ANN401 - ComfyUI's untyped holder
    """Tags that bring the graph back when the file is dropped on the page, as core's Save Video.

    Empty ones keep the graph of a source video, which did not make this file, out of it.
    """
    if args.disable_metadata:
        return NO_GRAPH
    graph = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        graph["prompt"] = hidden.prompt
    return NO_GRAPH | {key: json.dumps(value) for key, value in graph.items()}


def require_form(session: Session, wanted: Path, final: Final) -> None:
    """Refuse what a session whose chunks are gone can no longer become.

    Raises:
        SettingsError: it was joined into another kind of file, or encoded in another way.
    """
    former = _former(session)
    if former is None or session.has_chunks():
        return
    was, now = (session.result() or {}).get("final"), final_to_json(final)
    if (was, former.suffix) != (now, wanted.suffix):
        raise SettingsError(
            f"session {session.id} was joined before, into {former.name} ({_form(was)}), and its "
            f"chunks are removed, so it cannot become {wanted.name} ({_form(now)}): delete "
            f"{former.name} and queue the graph again, or give another session_id; with "
            "cleanup_chunks off the chunks stay."
        )


def join_to(
    session: Session,
    wanted: Path,
    progress: NodeProgress,
    *,
    final: Final = None,
    sound: Path | BinaryIO | None,
    metadata: Mapping[str, str],
    keep_chunks: bool,
) -> Path:
    """The session's verified final file: the one that is there, or a new one at `wanted`.

    `final`: the encoder of one more compression; None: chunks are joined as they are. A file there
    that was not made from this session is left alone: a number is added instead.

    Raises:
        SessionError: chunks are missing.
        VerificationError: a chunk or the joined file is damaged.
    """
    former = _former(session)
    is_ours = former is not None and _is_named(former, wanted)
    if former is not None and is_joined(session):
        if not session.has_chunks():
            if not is_ours:
                progress(
                    Notice(text=f"session {session.id} was joined before, into {former.name}.")
                )
            return former
        if is_ours and _is_as_wanted(session, final):
            if not keep_chunks:
                session.drop_chunks()
            return former
    output = former if former is not None and is_ours else free_path(wanted)
    join_session(
        session,
        output,
        final=final,
        sound=sound,
        metadata=metadata,
        overwrite=is_ours,
        keep_chunks=keep_chunks,
        on_event=progress,
    )
    return output


def free_path(wanted: Path) -> Path:
    """`wanted`, or with a number before its suffix where that is taken."""
    numbered = (wanted.with_name(f"{wanted.stem}_{n:05}{wanted.suffix}") for n in count(2))
    return next(path for path in chain([wanted], numbered) if not path.exists())


def shown(output: Path, root: Path, progress: NodeProgress, *values: object) -> io.NodeOutput:
    """A node's outputs, the last of them the video, with a preview and what the user should read.

    `root`: ComfyUI's output folder, which `output` is in.
    """
    preview = {
        "filename": output.name,
        "subfolder": output.parent.relative_to(root).as_posix().removeprefix("."),
        "type": io.FolderType.output.value,
    }
    text = "\n".join([str(output.relative_to(root)), *progress.notices])
    ui = {"images": [preview], "animated": (True,), "text": (text,)}
    return io.NodeOutput(*values, InputImpl.VideoFromFile(str(output)), ui=ui)


def _former(session: Session) -> Path | None:
    """The file this session was joined into, if it is still there, by its size.

    One outside the folder that the session is in was not made by a node.
    """
    result = session.result()
    if result is None:
        return None
    path = Path(result["output"]).resolve()
    is_ours = path.is_relative_to(session.folder.parent.parent.resolve()) and path.is_file()
    return path if is_ours and path.stat().st_size == result["bytes"] else None


def _is_named(former: Path, wanted: Path) -> bool:
    """Whether `former` has the wanted name, perhaps with a number."""
    pattern = rf"{re.escape(wanted.stem)}(_\d{{5}})?"
    same_kind = (former.parent, former.suffix) == (wanted.parent, wanted.suffix)
    return same_kind and re.fullmatch(pattern, former.stem) is not None


def _form(final: Json | None) -> str:
    """Words for how chunks became a file."""
    if final is None:
        return "chunks joined as they are"
    scale = find_profile(final["profile"]).quality
    crf = "" if scale is None else f" with crf {final['options'][scale.option]}"
    return f"encoded as {final['profile']}{crf}"


def _is_as_wanted(session: Session, final: Final) -> bool:
    """Whether the session was joined in this form, and no chunk was committed since.

    Times of files are some milliseconds coarse: of two equal ones the chunk may be the later.
    """
    if (session.result() or {}).get("final") != final_to_json(final):
        return False
    folder = session.folder
    return (folder / PROGRESS).stat().st_mtime_ns < (folder / RESULT).stat().st_mtime_ns
