"""Downloads a weights file when a person asks for it: resumable, and verified before use.

A file is received under a temporary name beside its target and renamed once its size and SHA-256
match those the server states. What has arrived survives a broken connection and a kill; the next
call resumes from there, unless the file on the server has changed.
"""

from __future__ import annotations

import http.client
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from email.message import Message
from pathlib import Path

from filelock import FileLock, Timeout

from ..encoding.callbacks import OnProgress, no_progress
from ..encoding.durable import (
    disk_errors,
    file_sha256,
    fsync_file,
    fsync_folder,
    if_left_behind,
    require_space,
    retry_while_open,
)
from .errors import DownloadError
from .models import HUGGING_FACE, model_source
from .remote_file import BrokenOffError, Promise, RemoteFile, Response, stated_size

BLOCK = 1 << 18
HTML = re.compile(rb"\s*<(!doctype )?html", re.IGNORECASE)
WAITS = (1.0, 5.0, 15.0)
"""Seconds to wait before a retry after an attempt that brought no new bytes."""

log = logging.getLogger("tlbvfi.download")


def download(
    model: str,
    folder: str | Path,
    *,
    on_progress: OnProgress = no_progress,
    base_url: str = HUGGING_FACE,
    timeout_seconds: float = 30.0,
    waits: Sequence[float] = WAITS,
) -> Path:
    """Path of the weights file of method `model` in `folder`, downloaded unless it is there.

    `on_progress` gets bytes; if it raises to stop, what has arrived is kept.
    `base_url`: huggingface.co or a mirror of it; https, or http to this machine itself.
    `timeout_seconds`: silence after which a connection counts as broken. `waits`: seconds between
    attempts that bring no new bytes; after the last of them the download fails.

    Raises:
        DownloadError: the server cannot be reached, refuses, or sends a file other than promised;
            another process is downloading; a different file has the name.
        OutputError: the folder cannot be written, or the disk is too small or became full.
        SettingsError: the method has no model file.
    """
    source = model_source(model)
    target = Path(folder) / source.file_name
    by_hand = (
        f"get {target.name} from {source.page(base_url)} with a browser and put it into {folder}"
    )
    remote = RemoteFile(source.url(base_url), otherwise=by_hand, timeout_seconds=timeout_seconds)
    with disk_errors(target, if_full="free some space and run the same command again to resume"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            promise = remote.ask()
            if target.exists():
                _require_same_file(target, promise)
                _note_of(target).unlink(missing_ok=True)  # a run was killed as its last step began
                return target
            part = _Part(target, promise)
            _receive(remote, part, on_progress, waits)
            part.publish(target)
    return target


class _Part:
    """A partial file: the bytes so far, and a note of the version of the file they belong to."""

    def __init__(self, target: Path, promise: Promise) -> None:
        self.path = target.with_name(f"{target.name}.part")
        self.promise = promise
        self.size_wanted = promise.size
        self._note = _note_of(target)
        self.etag = self._read_etag()
        """ETag from the server that sends the content, which differs from the promise's."""

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def request_headers(self) -> dict[str, str]:
        """Headers that request the missing part, if it can be checked that the file is the same."""
        if not self.size or not (self.etag or self.promise.sha256):
            return {}
        condition = {"If-Range": self.etag} if self.etag else {}
        return {"Range": f"bytes={self.size}-", **condition}

    def restart(self, etag: str | None) -> None:
        """Drop what has arrived and note which version comes next."""
        self.path.write_bytes(b"")
        self.etag = etag
        note = {"version": self.promise.version, "etag": etag}
        self._note.write_text(json.dumps(note), encoding="utf-8")

    def append(self, block: bytes) -> None:
        """Append the next bytes."""
        with self.path.open("ab") as file:
            file.write(block)

    def discard(self) -> None:
        """Delete the partial file and its note."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def publish(self, target: Path) -> None:
        """Verify the whole file and rename it to `target`.

        Raises:
            DownloadError: it is not the file the server promised.
        """
        fsync_file(self.path)
        if self.promise.sha256 is None:
            log.warning(
                "The server states no checksum for %s: only its size was checked.", target.name
            )
        elif (found := file_sha256(self.path)) != self.promise.sha256:
            self.discard()
            raise DownloadError(
                f"{target.name} arrived with SHA-256 {found} instead of {self.promise.sha256} and "
                "was deleted: run the same command again."
            )
        retry_while_open(lambda: self.path.replace(target))
        fsync_folder(target.parent)
        self._note.unlink(missing_ok=True)

    def _read_etag(self) -> str | None:
        """ETag of what has arrived; drops the file unless it is known to be of this version."""
        if not all(map(_is_plain, (self.path, self._note))):
            self.discard()
        try:
            note = json.loads(self._note.read_text(encoding="utf-8"))
            version, etag = note["version"], note["etag"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            version = etag = None
        is_too_long = self.promise.size is not None and self.size > self.promise.size
        if version is None or version != self.promise.version or is_too_long:
            self.discard()
            return None
        return etag


def _receive(
    remote: RemoteFile, part: _Part, on_progress: OnProgress, waits: Sequence[float]
) -> None:
    """Fill `part`, retrying after a break as long as new bytes arrive or `waits` remain."""
    furthest = part.size
    remaining = list(waits)
    while True:
        try:
            _receive_once(remote, part, on_progress)
            return
        except BrokenOffError as error:
            reason = error
        if part.size > furthest:
            furthest, remaining = part.size, list(waits)
        elif remaining:
            time.sleep(remaining.pop(0))
        else:
            raise DownloadError(
                f"{remote.url} broke off after {part.size / 1e6:.1f} of "
                f"{(part.size_wanted or 0) / 1e6:.1f} MB ({reason}): run the same command again to "
                "resume."
            ) from reason
        log.debug("%s broke off at byte %d: %s", remote.url, part.size, reason)


def _receive_once(remote: RemoteFile, part: _Part, on_progress: OnProgress) -> None:
    if part.size and part.size == part.size_wanted:
        return
    status, response = remote.get(part.request_headers())
    if status != 200 and not _continues(part, status, response.headers):
        response.close()
        part.discard()
        status, response = remote.get({})
    with closing(response):
        if status == 200:
            part.restart(_strong_etag(response.headers))
        elif not part.size:
            raise remote.refusal(status)
        part.size_wanted = _checked_size(remote, part, response.headers)
        require_space(part.path.parent, part.size_wanted - part.size)
        on_progress(part.size, part.size_wanted)
        for block in _blocks(response, part.size_wanted - part.size):
            if not part.size and HTML.match(block):
                part.discard()
                raise remote.web_page()
            part.append(block)
            on_progress(part.size, part.size_wanted)


def _blocks(response: Response, wanted: int) -> Iterator[bytes]:
    """`wanted` bytes of a response, as they arrive."""
    while wanted:
        try:
            block = response.read(min(BLOCK, wanted))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise BrokenOffError(str(error) or type(error).__name__) from error
        if not block:
            raise BrokenOffError("the connection was closed early")
        wanted -= len(block)
        yield block


def _continues(part: _Part, status: int, headers: Message) -> bool:
    """Whether the response continues where `part` ends, in the same version of the file."""
    etag = _strong_etag(headers)
    same = part.etag is None or etag is None or etag == part.etag
    return (
        status == 206
        and same
        and str(headers.get("Content-Range", "")).startswith(f"bytes {part.size}-")
    )


def _checked_size(remote: RemoteFile, part: _Part, headers: Message) -> int:
    """Size of the whole file as stated in the response, which must be the promised one."""
    sent = headers.get("Content-Range", "").rpartition("/")[2] or headers.get("Content-Length")
    size = stated_size(sent)
    if size is None:
        size = part.size_wanted
    if size is None:
        raise DownloadError(f"{remote.url} has no stated size and cannot be checked: use a mirror.")
    if part.size_wanted not in (None, size) or size < part.size:
        wanted = part.size_wanted or part.size
        part.discard()
        raise DownloadError(
            f"{remote.url} is {size} bytes long, but the server promised {wanted}: it is not the "
            "requested file, try again later."
        )
    return size


def _is_plain(path: Path) -> bool:
    """Whether it is a file, or nothing yet: a link would lead what arrives to another file."""
    return not path.is_symlink() and (path.is_file() or not path.exists())


def _note_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part.json")


def _require_same_file(target: Path, promise: Promise) -> None:
    """Require that `target` is the file the server offers."""
    same_size = promise.size in (None, target.stat().st_size)
    if not same_size or (promise.sha256 and file_sha256(target) != promise.sha256):
        raise DownloadError(
            f"{target} is already there but is not the file the server offers: move it away and "
            "run the same command again."
        )


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Keep out a second download of the same file.

    Raises:
        DownloadError: there is one.
    """
    lock = FileLock(target.with_name(f".{target.name}.lock"), timeout=0)
    try:
        with lock:
            yield
    except Timeout as error:
        raise DownloadError(
            f"{target.name} is already being downloaded to {target.parent}: wait until that ends."
            f"{if_left_behind(lock)}"
        ) from error


def _strong_etag(headers: Message) -> str | None:
    """ETag if it guarantees equal bytes; a weak one (W/) does not, RFC 9110 section 8.8.1."""
    etag = headers.get("ETag")
    return None if etag is None or etag.startswith("W/") else etag
