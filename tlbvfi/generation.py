"""The frames of one ComfyUI prompt, in a folder that survives a crash.

The folder records the id under which the prompt was queued, so the same prompt is not generated
again: a running one is followed, a finished one is fetched, and fetched frames are used.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from ..encoding.durable import (
    atomic_file,
    disk_errors,
    fsync_file,
    fsync_folder,
    if_left_behind,
    retry_while_open,
)
from ..encoding.stored import read_json, reading_stored, require_types, write_json
from .client import OnServerEvent, ReceivedImage, generate, patiently
from .comfy_http import (
    FileRef,
    Json,
    Server,
    as_dict,
    check_outcome,
    download,
    history,
    node_title,
    output_files,
    plain,
)
from .errors import ClientError, WorkflowError

log = logging.getLogger("tlbvfi.generation")

FRAME_SAVERS = ("SaveImage", "SaveImageAdvanced", "SaveImageWebsocket")
PREVIEWS = ("PreviewImage",)
"""These keep frames until the server restarts: good enough if nothing else keeps them."""
BY_WEBSOCKET = "SaveImageWebsocket"
SOUND_SAVERS = ("SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced")

IMAGE_STARTS = {
    ".png": b"\x89PNG\r\n\x1a\n",
    ".jpg": b"\xff\xd8\xff",
    ".webp": b"RIFF",
    ".tif": (b"II*\0", b"MM\0*"),
    ".exr": b"\x76\x2f\x31\x01",
}
"""What files of these types begin with: the content decides, not the server's name for it."""
SOUND_SUFFIXES = (".flac", ".mp3", ".opus", ".ogg", ".wav", ".m4a")
RECORD = "generation.json"
ATTEMPTS = 2
"""SaveImageWebsocket keeps nothing: lost frames are sent again, from the server's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """Frames on our disk."""

    folder: Path
    """Holds the frames, `frame_000001.png` and so on, and nothing else."""
    frames: int
    sound: Path | None
    was_there: bool
    """Whether everything had already been fetched."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """The content of `generation.json`."""

    prompt_id: str
    client_id: str
    frames: int | None = None
    """None until all of them are fetched."""
    sound: str | None = None


def generation_folder(root: Path, server: Server, prompt: Json, node: str) -> Path:
    """The folder below `root` that belongs to a prompt, a server and the node that saves frames."""
    identity = json.dumps([server.url, prompt, node], sort_keys=True)
    return root / "tlbvfi_frames" / hashlib.sha256(identity.encode()).hexdigest()[:16]


def is_collected(folder: Path) -> bool:
    """Whether all frames of a generation have been fetched into its folder."""
    record = _read_record(folder)
    return record is not None and record.frames is not None and _has_all(folder, record.frames)


def keeps_frames(prompt: Json) -> bool:
    """Whether a node of the prompt, in API format, saves images."""
    return any(as_dict(content).get("class_type") in FRAME_SAVERS for content in prompt.values())


def frames_node(prompt: Json, wanted: str | None = None) -> str:
    """The node of a prompt, in API format, whose images are the frames.

    Raises:
        WorkflowError: `wanted` is not in the prompt, or none or several nodes keep frames.
    """
    if wanted is not None:
        if wanted not in prompt:
            raise WorkflowError(f"The prompt has no node {wanted}: it has {', '.join(prompt)}.")
        return wanted
    for kinds in (FRAME_SAVERS, PREVIEWS):
        found = [n for n, content in prompt.items() if as_dict(content).get("class_type") in kinds]
        if len(found) > 1:
            names = ", ".join(node_title(prompt, node) for node in found)
            raise WorkflowError(f"Several nodes keep frames ({names}): name one with --node.")
        if found:
            return found[0]
    raise WorkflowError(
        "No node of the prompt keeps frames: add a Save Image node, or name the node with --node."
    )


def collect(
    server: Server,
    prompt: Json,
    folder: Path,
    *,
    node: str,
    again: bool = False,
    output_folder: Path | None = None,
    on_event: OnServerEvent,
) -> Generation:
    """The frames of a prompt: generated, fetched, or found in `folder` from an earlier run.

    `node` is the one whose images are the frames. `again` ignores what earlier runs left.
    `output_folder`: ComfyUI's own output folder, if it is on this machine; frames are linked from
    there instead of downloaded.

    Raises:
        ClientError: the generation failed, or its frames cannot be fetched.
        ServerLostError: the server cannot be reached; the same call resumes later.
        OutputError: the disk of `folder` is full or cannot be written.
    """
    with disk_errors(folder), _locked(folder):
        record = None if again else _usable_record(server, folder)
        if record is not None and record.frames is not None:
            return _generation(folder, record, was_there=True)
        job = _Collection(
            server=server,
            prompt=prompt,
            folder=folder,
            node=node,
            output_folder=output_folder,
            on_event=on_event,
        )
        for _ in range(ATTEMPTS):
            done = job.run(record or _new_record(folder))
            if done is not None:
                fsync_folder(folder / "frames")
                write_json(folder / RECORD, asdict(done))
                return _generation(folder, done, was_there=False)
            record = None
    raise ClientError(
        f"Frames of {node_title(prompt, node)} were lost on the way twice: replace it with a Save "
        "Image node, which keeps them."
    )


def discard(folder: Path) -> None:
    """Remove the frames, the sound and the record of a generation, and nothing else.

    Raises:
        ClientError: a part of the folder leads elsewhere.
    """
    _refuse_links(folder)
    frames = folder / "frames"
    for path in (
        *frames.glob("frame_*"),
        *folder.glob("sound.*"),
        folder / RECORD,
        folder / ".lock",
    ):
        path.unlink(missing_ok=True)
    for empty in (frames, folder):
        if empty.is_dir() and not any(empty.iterdir()):
            empty.rmdir()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collection:
    """Collects the frames of one prompt into one folder."""

    server: Server
    prompt: Json
    folder: Path
    node: str
    output_folder: Path | None
    on_event: OnServerEvent

    def run(self, record: _Record) -> _Record | None:
        """Generate and fetch everything; None if frames sent over the websocket are missing."""
        counts: list[int] = []  # size of the batch, as reported with each of its images
        entry = generate(
            self.server,
            self.prompt,
            prompt_id=record.prompt_id,
            client_id=record.client_id,
            needed=self.node,
            on_event=self.on_event,
            on_image=lambda image: self._take(image, counts),
        )
        if as_dict(self.prompt[self.node]).get("class_type") == BY_WEBSOCKET:
            frames = max(counts, default=0)
            if frames == 0 or not _has_all(self.folder, frames):
                log.warning("Frames were lost on the way: the server sends them again.")
                return None
        else:
            frames = self._fetch_frames(entry)
        return replace(record, frames=frames, sound=self._fetch_sound(entry))

    def _take(self, image: ReceivedImage, counts: list[int]) -> None:
        """Store a frame that came over the websocket; ignore previews of other nodes.

        Images outside the announced batch are ignored too, as there could be any number of them.
        """
        is_wanted = image.node == self.node and 0 <= image.index < image.count
        if is_wanted and image.data.startswith(IMAGE_STARTS[".png"]):
            counts.append(image.count)
            with atomic_file(_frame_path(self.folder, image.index + 1, ".png")) as part:
                part.write_bytes(image.data)

    def _fetch_frames(self, entry: Json) -> int:
        refs = output_files(entry, self.node, "images")
        if not refs:
            raise ClientError(
                f"{node_title(self.prompt, self.node)} saved no images: name the node that does "
                "with --node."
            )
        there = set(_numbers(self.folder))
        for number, ref in enumerate(refs, 1):
            if number not in there:
                self._fetch(ref, number)
        return len(refs)

    def _fetch(self, ref: FileRef, number: int) -> None:
        arriving = self.folder / "arriving"
        self._copy(ref, arriving)
        suffix = _image_suffix(arriving)
        if suffix is None:
            arriving.unlink()
            raise ClientError(
                f"{plain(ref.filename)} of {node_title(self.prompt, self.node)} is not an image, "
                "perhaps a video: run tlbvfi comfy rewrite to make the workflow keep its frames."
            )
        retry_while_open(lambda: arriving.replace(_frame_path(self.folder, number, suffix)))

    def _fetch_sound(self, entry: Json) -> str | None:
        """The first sound that the prompt saved."""
        for node, content in self.prompt.items():
            if as_dict(content).get("class_type") in SOUND_SAVERS:
                for ref in output_files(entry, node, "audio"):
                    suffix = Path(ref.filename).suffix.lower()
                    if suffix in SOUND_SUFFIXES:
                        self._copy(ref, self.folder / f"sound{suffix}")
                        return f"sound{suffix}"
        return None

    def _copy(self, ref: FileRef, path: Path) -> None:
        local = None if self.output_folder is None else _local_file(self.output_folder, ref)
        if local is None:
            patiently(self.server, self.on_event, lambda: download(self.server, ref, path))
            return
        path.unlink(missing_ok=True)
        try:
            os.link(local, path)
        except OSError:  # another disk, or one without links
            shutil.copyfile(local, path)
        fsync_file(path)


def _local_file(output_folder: Path, ref: FileRef) -> Path | None:
    """The file a server names, if it really is in its output folder."""
    root = output_folder.resolve()
    try:
        path = (root / ref.subfolder / ref.filename).resolve()
        inside = ref.type == "output" and path.is_relative_to(root) and path.is_file()
    except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a NUL in the name
        return None
    return path if inside else None


def _image_suffix(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(16)
    return next((suffix for suffix, magic in IMAGE_STARTS.items() if start.startswith(magic)), None)


def _frame_path(folder: Path, number: int, suffix: str) -> Path:
    return folder / "frames" / f"frame_{number:06}{suffix}"


def _numbers(folder: Path) -> Iterator[int]:
    """Numbers, from 1, of the frames in the folder."""
    names = (re.fullmatch(r"frame_(\d{6,})", p.stem) for p in (folder / "frames").glob("frame_*"))
    return (int(name[1]) for name in names if name)


def _has_all(folder: Path, frames: int) -> bool:
    numbers = set(_numbers(folder))  # counted first: a server may announce any number of frames
    return len(numbers) == frames and numbers == set(range(1, frames + 1))


def _generation(folder: Path, record: _Record, *, was_there: bool) -> Generation:
    return Generation(
        folder=folder / "frames",
        frames=record.frames or 0,
        sound=folder / record.sound if record.sound else None,
        was_there=was_there,
    )


def _usable_record(server: Server, folder: Path) -> _Record | None:
    """What an earlier run left, unless it is incomplete here and failed on the server."""
    record = _read_record(folder)
    if record is None:
        return None
    if record.frames is not None:
        return record if _has_all(folder, record.frames) else None
    entry = history(server, record.prompt_id)
    try:
        return record if entry is None or check_outcome(entry, {}) else None
    except ClientError:
        return None


def _new_record(folder: Path) -> _Record:
    """A record with a fresh id for a prompt; frames of an older one are deleted."""
    (folder / "frames").mkdir(parents=True, exist_ok=True)
    for path in (folder / "frames").glob("frame_*"):
        path.unlink()
    record = _Record(prompt_id=str(uuid.uuid4()), client_id=uuid.uuid4().hex)
    write_json(folder / RECORD, asdict(record))
    return record


def _read_record(folder: Path) -> _Record | None:
    """The record in the folder; None if there is none or it is invalid.

    Raises:
        SessionError: it cannot be read; without it, what was fetched would be removed.
    """
    path = folder / RECORD
    if not path.is_file():
        return None
    try:
        with reading_stored(path):
            record = _Record(**read_json(path))
        require_types(record)
    except (ValueError, TypeError):
        return None
    is_ours = record.sound in (None, *(f"sound{suffix}" for suffix in SOUND_SUFFIXES))
    return record if is_ours else None  # otherwise it may name any file


def _refuse_links(folder: Path) -> None:
    """Refuse a folder that leads elsewhere: frames that are not ours would be removed there.

    Raises:
        ClientError: it, or the folder of its frames, is a link.
    """
    for path in (folder, folder / "frames"):
        if path.is_symlink() or path.resolve().parent != path.parent.resolve():  # a junction
            raise ClientError(f"{path} is a link: remove it and run the same command again.")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second run from fetching into the same folder."""
    _refuse_links(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ClientError(
            f"Another process is fetching these frames into {folder}: wait for it."
            f"{if_left_behind(lock)}"
        ) from error
    try:
        yield
    finally:
        lock.release()
