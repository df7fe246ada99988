"""Files that are either complete or absent: temporary name, fsync, rename, fsync of the folder.

A rename may reach the disk before the data it names; only this order of steps survives a power cut.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from .errors import OutputError

StepHook = Callable[[str], None]
"""Called with the name of each step of a commit as it is reached, so that a test can stop there."""

FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
    errno.ELOOP,  # a lock that is a link
    errno.EFBIG,  # over 4 GB with FAT32
    *(errno.EIO, errno.ENXIO, errno.ENODEV, errno.ESTALE, errno.ENOTCONN),  # failing, or gone
    *(errno.ENOLCK, errno.EOPNOTSUPP),  # network drives without locks
)

PAUSES = (0.1, 0.2, 0.4, 0.8) if os.name == "nt" else ()
"""Seconds between attempts to rename or remove a file.

Windows refuses while another program has it open, and virus scanners open new files for a moment.
"""


def no_step(step: str) -> None:
    """Ignore the steps of a commit."""


def temporary_path(path: Path) -> Path:
    """Hidden sibling of `path`: same folder keeps the rename atomic, same suffix picks the muxer."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def fsync(descriptor: int) -> None:
    """Wait until what was written to an open file is on the disk."""
    if sys.platform == "darwin":  # its fsync leaves the data in the drive's own cache
        from fcntl import F_FULLFSYNC, fcntl

        with suppress(OSError):  # network drives do not know it
            fcntl(descriptor, F_FULLFSYNC)
            return
    os.fsync(descriptor)


def fsync_file(path: Path) -> None:
    """Wait until the content of `path` is on the disk."""
    with path.open("rb+" if os.name == "nt" else "rb") as file:  # Windows flushes what it may write
        fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Wait until the names in `folder` are on the disk."""
    if os.name == "nt":  # Windows cannot open a folder; NTFS journals its names
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # folders that a virtual machine shares have no fsync
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, and wait until their names are on the disk."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        fsync_folder(each.parent)


def retry_while_open(act: Callable[[], object]) -> None:
    """Rename or remove a file; on Windows, try again for a while if a program has it open.

    Raises:
        PermissionError: refused every time.
    """
    for pause in PAUSES:
        try:
            act()
        except PermissionError:
            time.sleep(pause)
        else:
            return
    act()


class AtomicFile:
    """A file under construction: write to `temporary`, then `commit` or `discard`."""

    def __init__(self, path: Path, *, on_step: StepHook = no_step) -> None:
        self.path = path
        self.temporary = temporary_path(path)
        self.discard()  # a leftover could be a link that leads elsewhere
        self._on_step = on_step

    def commit(self, check: Callable[[Path], None] | None = None) -> None:
        """Make the temporary file durable, let `check` raise if it is wrong, and rename it."""
        fsync_file(self.temporary)
        self._on_step("after fsync")
        if check is not None:
            check(self.temporary)
        retry_while_open(lambda: self.temporary.replace(self.path))
        self._on_step("after rename")
        fsync_folder(self.path.parent)

    def discard(self) -> None:
        """Remove the temporary file, if it is there."""
        retry_while_open(lambda: self.temporary.unlink(missing_ok=True))


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling of `path` that becomes `path` only if the block succeeds."""
    file = AtomicFile(path)
    try:
        yield file.temporary
        file.commit()
    finally:
        file.discard()


@contextmanager
def disk_errors(path: Path, *, if_full: str = "free some space") -> Iterator[None]:
    """Turn a full or unwritable disk into an OutputError; `if_full` says what to do.

    Raises:
        OutputError: the disk of `path` is full, or `path` cannot be written there.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise OutputError(_full_disk(path, if_full)) from error
        if error.errno in REFUSED:
            close = "close what has it open, or " if os.name == "nt" else ""
            raise OutputError(
                f"{path} cannot be written ({os.strerror(error.errno)}): {close}choose another "
                "folder or name."
            ) from error
        raise


def refuse_existing(output: Path, *, overwrite: bool) -> None:
    """Refuse to replace a file, unless it may be overwritten.

    Raises:
        OutputError: it exists.
    """
    if output.exists() and not overwrite:
        raise OutputError(
            f"{output} exists: choose another name or, on the command line, add --overwrite."
        )


def require_writable(folder: Path) -> None:
    """Make the folder if needed, and test whether files can be created in it.

    Raises:
        OutputError: they cannot.
    """
    with disk_errors(folder):
        make_folder(folder)
        TemporaryFile(dir=folder).close()


@contextmanager
def sole_writer(output: Path) -> Iterator[None]:
    """Be the only writer of `output`, within this process and across processes; makes its folder.

    Raises:
        OutputError: another job makes it, or files cannot be created there.
    """
    require_writable(output.parent)  # an unwritable folder looks like a taken lock
    lock = FileLock(_lock_of(output))
    try:
        with disk_errors(output):
            lock.acquire(timeout=0)
    except Timeout as error:
        raise OutputError(
            f"{output} is being made by another job: wait for it or choose another name."
            f"{if_left_behind(lock)}"
        ) from error
    try:
        yield
    finally:
        if os.name != "nt":  # Windows removes it on release
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def if_left_behind(lock: BaseFileLock) -> str:
    """What to do about a lock that outlives its process, on drives where locks are only files.

    One of a process that has ended on this machine is taken over, one of another machine is not.
    """
    is_file = isinstance(lock, SoftFileLock)  # which a `FileLock` becomes on such a drive
    return f" If that process is gone, remove {lock.lock_file}." if is_file else ""


@contextmanager
def new_file(output: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary sibling of a file that nobody else makes meanwhile; makes its folder.

    Raises:
        OutputError: it exists and may not be overwritten, another job makes it, its disk is full, or
            it cannot be written.
    """
    with sole_writer(output), disk_errors(output):
        refuse_existing(output, overwrite=overwrite)
        with atomic_file(output) as temporary:
            yield temporary


def remove_stale_lock(output: Path) -> None:
    """Remove what a job that was killed as its last step began has left beside `output`."""
    if _lock_of(output).exists():
        with suppress(OutputError), sole_writer(output):
            pass


def _lock_of(output: Path) -> Path:
    return output.with_name(f".{output.name}.lock")


def free_bytes(folder: Path) -> int:
    """Bytes that can still be written below `folder`, which need not exist yet."""
    return shutil.disk_usage(_existing(folder)).free


def require_space(folder: Path, size: int) -> None:
    """Refuse an output that cannot fit, before its first byte is written.

    Raises:
        OutputError: fewer than `size` bytes are free.
    """
    free = free_bytes(folder)
    if size > free:
        raise OutputError(
            f"{folder} has {size_in_words(free)} free and {size_in_words(size)} are needed: free "
            "some space or choose another folder."
        )


def size_in_words(count: float) -> str:
    """`1.5 GB`, `23.4 MB`, `812 kB`, `95 bytes`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB" if count >= 1e3 else f"{count:.0f} bytes"


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _full_disk(path: Path, advice: str) -> str:
    folder = _existing(path.parent)
    left = f"{size_in_words(free_bytes(folder))} free"
    if not _has_room_for_files(folder):
        left += ", but it holds as many files as it can: remove some"
    return f"The disk is full while writing {path} ({left}): {advice}."


def _has_room_for_files(folder: Path) -> bool:
    """Whether the file system has inodes left; some have no limit, and say that they have none."""
    if sys.platform == "win32":
        return True
    facts = os.statvfs(folder)
    return facts.f_files == 0 or facts.f_favail > 0


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())
