"""One job on disk: a manifest written once, chunks, and a log with a line for each of them.

    session = Session.start(root, "holiday-1a2b", manifest)
    with session.locked():
        todo = plan - {record.index for record in session.done()}
        with session.new_chunk(0) as chunk:
            chunk.write(picture, pts)
            chunk.commit(pairs=(0, 24), first_frame=0)

A chunk is done when its line is in `progress.jsonl` and its file matches that line. The newline
commits the chunk: a torn last line means that the chunk was not made. Everything lives in
`<root>/tlbvfi_chunks/<id>/`, and nothing outside that folder is ever written or removed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from filelock import FileLock, Timeout

from .callbacks import OnProgress, no_progress
from .chunk import ChunkWriter
from .durable import (
    StepHook,
    disk_errors,
    file_sha256,
    free_bytes,
    fsync_folder,
    if_left_behind,
    make_folder,
    no_step,
    retry_while_open,
)
from .errors import SessionError, SessionMismatch, some_of
from .manifest import (
    SCHEMA,
    Json,
    Manifest,
    differences,
    library_versions,
    manifest_to_json,
    read_manifest,
)
from .names import check_id, is_id
from .profiles import expected_bits
from .progress import ChunkRecord, ProgressLog, make_own, read_progress
from .stored import (
    is_of_type,
    read_json,
    reading_stored,
    require_types,
    stored_fraction,
    write_json,
)

log = logging.getLogger("tlbvfi.session")

FOLDER = "tlbvfi_chunks"
OUR_FILES = (
    *("manifest.json", "progress.jsonl", "origin.json", "images.json", "result.json"),
    *("owner.json", "lock"),
)
MANIFEST, PROGRESS, ORIGIN, IMAGES, RESULT, OWNER, LOCK = OUR_FILES
MOMENT = 0.5
"""Seconds for which a process that is itself refused may hold a session, to look at it."""
SHOWN = 5
"""Sessions listed in an error message."""
ORIGIN_FIELDS = {
    **{"command": list[str], "folder": str, "paths": list[str]},
    **{"metadata": dict[str, str], "sound": str | None},
}
"""Fields that the origin of a job may have, with their types."""
IF_FULL = (
    "free some space or, on the command line, choose another --root; "
    "committed chunks are kept, and running the same job again resumes it"
)
IF_OUTPUT_FULL = (
    "free some space or name an output on another disk; "
    "the chunks are kept, and running the same job again resumes it"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Disk space a session still needs, estimated from its chunks so far."""

    needed_bytes: int
    """For the remaining chunks and the final file."""
    free_bytes: int

    @property
    def fits(self) -> bool:
        """Whether there is room for the rest."""
        return self.needed_bytes <= self.free_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalFile:
    """A file that was made from a session's chunks, or numbered images."""

    output: Path
    bytes: int
    shift: Fraction
    """See `JoinResult.shift`."""
    final: Json | None = None
    """What the chunks became, see `delivery.final_to_json`; None: joined as they are."""
    chunks: str | None = None
    """The session's `content` when it was made."""


class Session:
    """A session folder. Reading needs no lock; making chunks happens inside `locked()`."""

    def __init__(self, folder: Path, manifest: Manifest, versions: Mapping[str, str]) -> None:
        """Use `start`, `create` or `open` instead."""
        self.folder = folder
        self.manifest = manifest
        self.versions = dict(versions)
        """Library versions that the first run used."""
        self._records: dict[int, ChunkRecord] | None = None
        self._progress: ProgressLog | None = None
        self._lock = FileLock(folder / LOCK)

    @property
    def id(self) -> str:
        """Name of the session and of its folder."""
        return self.folder.name

    @classmethod
    def start(cls, root: Path, id: str, manifest: Manifest, *, overwrite: bool = False) -> Session:
        """The existing session of this job, or a new one.

        Raises:
            SessionMismatch: a session with this id belongs to another job; `overwrite` removes it.
            SessionError: the id or the folder is not usable, or the session is in use.
        """
        found = cls.find(root, id)
        if found is not None and overwrite:
            found.remove()
        elif found is not None:
            found.require_same(manifest)
            return found
        return cls.create(root, id, manifest)

    @classmethod
    def create(cls, root: Path, id: str, manifest: Manifest) -> Session:
        """A new session.

        Raises:
            SessionError: the id is not valid, or the session exists already, whole or in part, or
                another process makes it.
            OutputError: the folder cannot be written.
        """
        folder = _session_folder(root, id)
        session = cls(folder, manifest, library_versions())
        with disk_errors(folder, if_full=IF_FULL):
            make_folder(folder)
            document = {"schema": SCHEMA, "id": id, **manifest_to_json(manifest)}
            with session._exclusive():
                _refuse_to_replace(folder)
                write_json(folder / MANIFEST, {**document, "versions": session.versions})
        return session

    @classmethod
    def open(cls, root: Path, id: str) -> Session:
        """The session of this id.

        Raises:
            SessionError: there is none, or its manifest cannot be used.
        """
        found = cls.find(root, id)
        if found is None:
            names = [folder.name for folder in _session_folders(root)]
            known = some_of(list(filter(is_id, names)), SHOWN) or "none"
            raise SessionError(f"There is no session {id} in {root / FOLDER}: there are {known}.")
        return found

    @classmethod
    def find(cls, root: Path, id: str) -> Session | None:
        """The session of this id, or None.

        Raises:
            SessionError: the id is not valid or the manifest cannot be used.
        """
        folder = _session_folder(root, id)
        try:
            return cls(folder, *read_manifest(folder / MANIFEST))
        except FileNotFoundError:
            return None

    def require_same(self, manifest: Manifest) -> None:
        """Refuse to continue another job's chunks.

        Raises:
            SessionMismatch: naming the first fields that differ, with both values.
        """
        differing = differences(self.manifest, manifest)
        if differing:
            raise SessionMismatch(
                f"Session {self.id} belongs to another job ({some_of(differing, 3, '; ')}): "
                "choose another session id or none, or on the command line start over with --overwrite."
            )
        if self.versions != library_versions():
            log.warning(
                "Session %s was started with PyAV %s, this is %s: if joining fails, start it over.",
                self.id,
                self.versions.get("av"),
                av.__version__,
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the session exclusively, within this process and across processes; may be nested.

        Raises:
            SessionError: the session is in use, or is not there any more.
        """
        if self._progress is not None:
            yield
            return
        with self._exclusive():
            self._require_unreplaced()
            with disk_errors(self.folder, if_full=IF_FULL):
                self._remove_temporaries()
                self._records = read_progress(self.folder / PROGRESS)
                make_own(self.folder / PROGRESS, self._records)
                self._progress = ProgressLog(self.folder / PROGRESS)
                fsync_folder(self.folder)
            try:
                yield
            finally:
                self._progress.close()
                self._progress = None

    def records(self) -> dict[int, ChunkRecord]:
        """Every committed chunk by its index; if a chunk was made twice, the later one."""
        if self._records is None:
            self._records = read_progress(self.folder / PROGRESS)
        return self._records

    def in_order(self) -> list[ChunkRecord]:
        """Every committed chunk, in the order of the output."""
        return [record for _, record in sorted(self.records().items())]

    def content(self) -> str:
        """A hash of all committed chunks: the same only for the same chunks in the same order."""
        sums = "".join(record.sha256 for record in self.in_order())
        return hashlib.sha256(sums.encode()).hexdigest()

    def done(
        self, *, thorough: bool = False, on_chunk: OnProgress = no_progress
    ) -> list[ChunkRecord]:
        """Committed chunks whose files match their record, by index; others are logged and skipped.

        `thorough` compares checksums (about 1.7 s per GB), otherwise sizes. `on_chunk` is called
        with the chunks compared and their number, and may raise to stop.
        """
        intact, dropped = [], 0
        was_joined = self.result() is not None
        for number, record in enumerate(self.in_order(), 1):
            problem = self.problem(record, thorough=thorough)
            on_chunk(number, len(self.records()))
            if not problem:
                intact.append(record)
            elif was_joined and not self.chunk_path(record.index).exists():
                dropped += 1
            else:
                log.warning("Session %s: %s: it is made again.", self.id, problem)
        if dropped:
            log.info(
                "session %s was joined and its chunks removed: %d are made again.", self.id, dropped
            )
        return intact

    def problem(self, record: ChunkRecord, *, thorough: bool = False) -> str:
        """What is wrong with a chunk's file; empty if nothing is."""
        path = self.chunk_path(record.index)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            return f"{path.name} is missing"
        if size != record.bytes:
            return f"{path.name} has {size} bytes instead of {record.bytes}"
        if thorough and file_sha256(path) != record.sha256:
            return f"{path.name} does not have the recorded checksum"
        return ""

    def missing(self) -> str:
        """Why these chunks do not make a whole output; empty if they do.

        Chunks that were saved one by one, without frame numbers, may end anywhere.
        """
        records = self.records()
        frame = 0
        for index in range(len(records)):
            record = records.get(index)
            if record is None:
                return f"chunk {index} is not made yet"
            if record.first_frame is not None and record.first_frame != frame:
                return f"chunk {index} begins at frame {record.first_frame} instead of {frame}"
            frame += record.frames
        if not records:
            return "no chunk is made yet"
        last = records[len(records) - 1]
        if last.first_frame is not None and not last.is_last:
            return f"the chunks after number {last.index} are not made yet"
        return ""

    def chunk_path(self, index: int) -> Path:
        """File of a chunk."""
        return self.folder / f"chunk_{index:06d}{self.manifest.encoder.chunk_suffix}"

    def new_chunk(self, index: int, *, on_step: StepHook = no_step) -> ChunkWriter:
        """A chunk to fill and commit; it replaces one made before.

        Raises:
            SessionError: the session is not locked by this object.
            EncoderError: the encoder cannot be opened.
        """
        if self._progress is None:
            raise SessionError(f"Session {self.id} is not locked: make chunks inside locked().")
        return ChunkWriter(
            self.chunk_path(index),
            index,
            self.manifest,
            on_made=lambda record: self._append(record, on_step),
            if_full=IF_FULL,
            on_step=on_step,
        )

    def forecast(self, frames: int) -> Forecast:
        """Disk space for the rest of an output of `frames` frames: all chunks and the final file.

        Before the first chunk it is based on what the encoder typically needs.
        """
        records = self.records().values()
        made = sum(record.frames for record in records)
        written = sum(record.bytes for record in records)
        if made:
            whole = written * max(frames, made) // made
        else:
            stream = self.manifest.stream
            per_frame = expected_bits(
                self.manifest.encoder, stream.width * stream.height, stream.rate
            )
            whole = int(per_frame * frames / 8)
        return Forecast(needed_bytes=2 * whole - written, free_bytes=free_bytes(self.folder))

    def note_result(self, made: FinalFile) -> None:
        """Remember a final file made from these chunks; it replaces one at the same `output`."""
        others = [each for each in self.results() if each.output != made.output]
        self._note(RESULT, [_final_file_to_json(each) for each in (*others, made)])

    def results(self) -> list[FinalFile]:
        """Every final file that `note_result` remembered, latest last.

        Raises:
            SessionError: the stored results are damaged.
        """
        try:
            return [_final_file_from_json(each) for each in self._noted(RESULT) or []]
        except (KeyError, TypeError, ValueError) as error:
            raise self._damaged(RESULT) from error

    def result(self, output: Path | None = None) -> FinalFile | None:
        """The final file at `output`, or the latest; None if there is none."""
        wanted = None if output is None else output.absolute()
        found = [each for each in self.results() if wanted in (None, each.output)]
        return found[-1] if found else None

    def note_images(self, claim: Json) -> None:
        """Remember which images are written from these chunks; call it before writing the first."""
        self._note(IMAGES, claim)

    def images(self) -> Json | None:
        """What `note_images` remembered last, or None."""
        return self._noted(IMAGES)

    def note_origin(self, origin: Json) -> None:
        """Remember where the job came from: facts that affect no frame, such as its command.

        Raises:
            SessionError: the session is in use, or is not there any more.
        """
        with self._exclusive():
            self._require_unreplaced()
            self._note(ORIGIN, origin)

    def origin(self) -> Json:
        """What `note_origin` remembered last; empty if it was never called.

        Raises:
            SessionError: the stored origin is damaged.
        """
        found = self._noted(ORIGIN)
        if found is None:
            return {}
        if not is_of_type(found, Json) or not all(
            is_of_type(found[key], hint) for key, hint in ORIGIN_FIELDS.items() if key in found
        ):
            raise self._damaged(ORIGIN)
        return found

    def has_chunks(self) -> bool:
        """Whether any chunk file exists, complete or not."""
        return any(True for _ in self._chunk_files())

    def drop_chunks(self) -> None:
        """Remove the chunk files; keep the records, against which a final file can be verified.

        Windows removes no file that another program has open, a player, say: the log names those.
        """
        held = []
        with self._exclusive():
            for path in self._chunk_files():
                try:
                    retry_while_open(path.unlink)
                except PermissionError:
                    held.append(path.name)
        if held:
            log.warning(
                "%s in %s cannot be removed: close what has them open and run the job again.",
                ", ".join(sorted(held)),
                self.folder,
            )

    def remove(self) -> None:
        """Remove the session: its own files, and the folder if nothing else is in it.

        Raises:
            SessionError: the session is in use.
        """
        with self._exclusive():
            self._remove_temporaries()
            for path in self._chunk_files():
                retry_while_open(path.unlink)
            for name in (PROGRESS, ORIGIN, IMAGES, RESULT, MANIFEST, OWNER):
                (self.folder / name).unlink(missing_ok=True)
            if os.name != "nt":  # Windows removes it on release
                (self.folder / LOCK).unlink(missing_ok=True)  # while held: nobody else may hold it
        with suppress(FileNotFoundError):  # another process removes it as well
            try:
                self.folder.rmdir()
            except OSError:
                left = sorted(path.name for path in self.folder.iterdir())
                if not left:
                    raise
                log.warning("%s is kept: it holds other files: %s.", self.folder, ", ".join(left))

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        if not self.folder.is_dir():  # the lock would make it again
            raise self._gone()
        try:
            with disk_errors(self.folder, if_full=IF_FULL):
                self._lock.acquire(timeout=MOMENT)
        except Timeout as error:
            raise SessionError(
                f"Session {self.id} is in use{self._owner()}: "
                f"wait for it or choose another session id.{if_left_behind(self._lock)}"
            ) from error
        try:
            owner = {"pid": os.getpid(), "host": socket.gethostname()}
            with suppress(OSError):  # a full disk must not keep a session from being removed
                (self.folder / OWNER).write_text(json.dumps(owner), encoding="utf-8")
            yield
        finally:
            self._lock.release()

    def _require_unreplaced(self) -> None:
        """Refuse a session that another process has removed since it was found; call it when locked.

        Raises:
            SessionError: it is gone, or another one has its place.
        """
        found = Session.find(self.folder.parent.parent, self.id)
        if found is None or differences(found.manifest, self.manifest):
            raise self._gone()

    def _gone(self) -> SessionError:
        return SessionError(
            f"Session {self.id} has been removed or begun anew by something else meanwhile: run the "
            "same job again."
        )

    def _append(self, record: ChunkRecord, on_step: StepHook) -> None:
        assert self._progress is not None  # `new_chunk` checked
        with disk_errors(self.folder / PROGRESS, if_full=IF_FULL):
            self._progress.append(record, on_step)
        self.records()[record.index] = record

    def _note(self, name: str, document: Json | list[Json]) -> None:
        with disk_errors(self.folder, if_full=IF_FULL):
            write_json(self.folder / name, document)

    def _noted(self, name: str) -> Any:  # noqa: ANN401 - what `_note` wrote to this file
        path = self.folder / name
        try:
            with reading_stored(path):
                return read_json(path) if path.is_file() else None
        except ValueError as error:
            raise self._damaged(name) from error

    def _damaged(self, name: str) -> SessionError:
        return SessionError(f"{self.folder / name} is damaged: remove this file and try again.")

    def _owner(self) -> str:
        try:
            owner = read_json(self.folder / OWNER)
            return f" by process {owner['pid']} on {owner['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _chunk_files(self) -> Iterator[Path]:
        suffix = re.escape(self.manifest.encoder.chunk_suffix)
        for path in list(self.folder.iterdir()):
            if re.fullmatch(rf"chunk_\d{{6,}}{suffix}", path.name):
                yield path

    def _remove_temporaries(self) -> None:
        suffix = re.escape(self.manifest.encoder.chunk_suffix)
        for path in list(self.folder.iterdir()):
            if re.fullmatch(
                rf"\.chunk_\d{{6,}}\.part{suffix}|\.(result|origin|images)\.part\.json"
                r"|\.progress\.part\.jsonl",
                path.name,
            ):
                path.unlink()


def _refuse_to_replace(folder: Path) -> None:
    """Refuse to create a session where there is one, whole or in part.

    Raises:
        SessionError: there is.
    """
    if (folder / MANIFEST).exists():
        raise SessionError(
            f"Session {folder.name} exists in {folder.parent}: resume it or choose another session id."
        )
    if (folder / PROGRESS).exists():
        raise SessionError(
            f"{folder} has lost its {MANIFEST} and cannot be used without it: delete the "
            "folder or choose another session id."
        )


def list_sessions(root: Path) -> Iterator[Session]:
    """Sessions below `root`, by id; folders without a usable manifest are skipped.

    One at a time: those that were asked for their records hold them.
    """
    for folder in _session_folders(root):
        try:
            session = Session.find(root, folder.name)
        except SessionError as error:
            log.warning("%s", error)
        else:
            if session is not None:
                yield session


def _session_folders(root: Path) -> list[Path]:
    """Folders below `root` with a manifest, usable or not, by id.

    Raises:
        SessionError: the folder that holds them cannot be read.
    """
    place = root / FOLDER
    with reading_stored(place):
        if place.is_dir():
            next(place.iterdir(), None)  # fails where `glob` would find nothing
    return sorted(path.parent for path in place.glob(f"*/{MANIFEST}"))


def _final_file_to_json(made: FinalFile) -> Json:
    return {**asdict(made), "output": str(made.output), "shift": str(made.shift)}


def _final_file_from_json(noted: Json) -> FinalFile:
    """Raises: KeyError, TypeError, ValueError: it is not what `_final_file_to_json` gave."""
    made = FinalFile(
        output=Path(noted["output"]),
        bytes=noted["bytes"],
        shift=stored_fraction(noted["shift"]),
        final=noted.get("final"),
        chunks=noted.get("chunks"),
    )
    require_types(made)
    return made


def _session_folder(root: Path, id: str) -> Path:
    check_id(id)
    folder = root.absolute() / FOLDER / id
    for path in (folder, *(folder / name for name in OUR_FILES)):
        if path.is_symlink():
            raise SessionError(f"{path} is a link: remove it or choose another session id.")
        if path != folder and path.exists() and not path.is_file():  # opening a pipe would block
            raise SessionError(f"{path} is not a file: remove it or choose another session id.")
    if folder.resolve().parent != folder.parent.resolve():
        raise SessionError(f"{folder} points outside {folder.parent}: choose another session id.")
    if folder.exists() and not folder.is_dir():
        raise SessionError(f"{folder} is not a folder: remove it or choose another session id.")
    return folder
