"""Which files and folders a prompt may name. Prompts come over HTTP: no text in them is trusted.

Writing happens below ComfyUI's output folder only. Reading happens below its input, output and temp
folders, and below those the operator of the server lists in the environment variable
`TLBVFI_READ_FOLDERS` (separated as in PATH).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from ..encoding.names import is_device
from ..tlbvfi.errors import SettingsError

LONGEST_NAME = 230
"""Bytes of a name; file systems allow 255, and temporary and numbered files have longer names."""
MOST_FOLDERS = 10
"""Depth of nested folders; Linux allows paths of 4096 bytes."""
READ_FOLDERS_VARIABLE = "TLBVFI_READ_FOLDERS"

_ANNOTATED = re.compile(r"^(?P<name>.*) \[(?P<folder>input|output|temp)\]$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Folders:
    """ComfyUI's folders, with links resolved, and the extra ones that may be read."""

    input: Path
    output: Path
    temp: Path
    readable: tuple[Path, ...] = ()

    def named(self, folder: str) -> Path:
        return {"input": self.input, "output": self.output, "temp": self.temp}[folder]

    def roots(self) -> tuple[Path, ...]:
        """All folders that may be read."""
        return (self.input, self.output, self.temp, *self.readable)


def extra_read_folders() -> tuple[Path, ...]:
    """Folders of `TLBVFI_READ_FOLDERS`; only whoever starts the server can set it."""
    listed = os.environ.get(READ_FOLDERS_VARIABLE, "").split(os.pathsep)
    return tuple(Path(folder) for folder in listed if folder)


def readable_file(text: str, folders: Folders) -> Path:
    """The existing file that `text` names: absolute, relative to input, or `name [output]`.

    Raises:
        SettingsError: no such file, or one outside the folders that may be read.
    """
    path = readable_path(text, folders)
    if not is_file(path):
        raise SettingsError(
            f"there is no file {_begin(text)} in ComfyUI's {_named(text)[1]} folder: check the name, or "
            "write 'name [output]' for a file of the output folder."
        )
    return path


def readable_path(text: str, folders: Folders) -> Path:
    """The path that `text` names, whether there is a file or not: nobody learns what is elsewhere.

    Raises:
        SettingsError: it is outside the folders that may be read.
    """
    name, folder = _named(text)
    path = _resolve(folders.named(folder), name, folders)
    if path is None or not any(_is_inside(path, root) for root in folders.roots()):
        raise SettingsError(
            f"{_begin(text)} is outside ComfyUI's input, output and temp folders: move the file there, "
            f"or list its folder in the environment variable {READ_FOLDERS_VARIABLE} of the server."
        )
    return path


def _named(text: str) -> tuple[str, str]:
    """(name, folder) of `name [output]`; the folder is `input` unless it is named."""
    annotated = _ANNOTATED.match(text)
    return (annotated["name"], annotated["folder"]) if annotated else (text, "input")


def folder_in_output(text: str, folders: Folders) -> Path:
    """The folder below ComfyUI's output folder that `text` names; the output folder if empty.

    Raises:
        SettingsError: `text` points outside the output folder, or is too long for file systems.
    """
    path = _resolve(folders.output, text, folders)
    if path is None or not _is_inside(path, folders.output):
        raise SettingsError(
            f"output_dir {_begin(text)} is outside ComfyUI's output folder: name a folder "
            "below it, or none."
        )
    names = path.relative_to(folders.output).parts
    if any(len(os.fsencode(name)) > LONGEST_NAME for name in names) or len(names) > MOST_FOLDERS:
        raise SettingsError(
            f"output_dir {_begin(text)} is too long: give at most {MOST_FOLDERS} folders, with names "
            f"of at most {LONGEST_NAME} bytes."
        )
    return path


def plain_file_name(text: str) -> str:
    """`text`, if it is a file name without a folder.

    Raises:
        SettingsError: it contains a path or characters that no file system allows, or is too long.
    """
    # a lone surrogate is half a character, which no file system stores
    is_plain = re.fullmatch(r"[^\x00-\x1f/\\:*?\"<>|\ud800-\udfff]+", text)
    if not is_plain or text.strip(". ") != text or is_device(text):
        raise SettingsError(
            f"output_filename {_begin(text)} is not a plain file name: leave out folders, device "
            'names of Windows and the characters / \\ : * ? " < > |; folders go into output_dir.'
        )
    if len(text.encode()) > LONGEST_NAME:
        raise SettingsError(
            f"output_filename {_begin(text)} has {len(text.encode())} bytes and a name may have "
            f"{LONGEST_NAME}: shorten it."
        )
    return text


def _resolve(base: Path, text: str, folders: Folders) -> Path | None:
    """`text` below `base` (or absolute), with `..` and links followed; None on a foreign computer."""
    try:
        path = base / text
        return None if is_foreign(path, folders.roots()) else path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # too long, a loop of links, a null byte
        raise SettingsError(f"{_begin(text)} is not a path.") from error


def is_foreign(path: PurePath, roots: Iterable[PurePath]) -> bool:
    r"""Whether it lies on another computer (`\\server\share`) or is a device, unlike all `roots`.

    Windows logs in to that computer as soon as anything looks at the path, which tells a server of
    the prompt's choice what it takes to guess the password.
    """
    here = {root.drive.casefold() for root in roots}
    return path.drive.startswith("\\\\") and path.drive.casefold() not in here


def is_file(path: Path) -> bool:
    """Whether there is such a file; no, if the name is one that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a null byte or half a character
        return False


def _begin(text: str) -> str:
    """The beginning of a text, short enough for a sentence, quoted."""
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}..."


def _is_inside(path: Path, root: Path) -> bool:
    return path.is_relative_to(root.resolve())
