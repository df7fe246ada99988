"""Where the weights files of the methods are searched for, and where they come from."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from .errors import ModelMissingError, SettingsError

HUGGING_FACE = "https://huggingface.co"
FOLDER_VARIABLE = "TLBVFI_MODELS"
"""Environment variable that names a folder with weights files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """The weights files of one method."""

    method: str
    names: tuple[str, ...]
    """File names to search for, best first."""
    repository: str
    """The project on huggingface.co that publishes the file."""
    published: str
    """Path of the file in that repository."""

    @property
    def file_name(self) -> str:
        """Name under which the published file is saved."""
        return self.published.rpartition("/")[2]

    @property
    def command(self) -> str:
        """Command that fetches it."""
        return f"tlbvfi download {self.method}"

    def page(self, base_url: str = HUGGING_FACE) -> str:
        """Address of the repository, for a browser."""
        return f"{base_url.rstrip('/')}/{self.repository}"

    def url(self, base_url: str = HUGGING_FACE) -> str:
        """Address of the file itself."""
        return f"{self.page(base_url)}/resolve/main/{self.published}"


SOURCES = {
    "tlbvfi": ModelSource(
        method="tlbvfi",
        names=("vimeo_unet.safetensors", "vimeo_unet.pth"),
        repository="ucfzl/TLBVFI",
        published="vimeo_unet.pth",
    ),
    "film": ModelSource(
        method="film",
        names=("film_net_fp32.safetensors", "film_net_fp16.safetensors"),
        repository="Comfy-Org/frame_interpolation",
        published="frame_interpolation/film_net_fp16.safetensors",
    ),
}
"""Methods that need a file, by name."""


def model_source(method: str) -> ModelSource:
    """The weights files of a method.

    Raises:
        SettingsError: the method needs none, or there is no such method.
    """
    if method not in SOURCES:
        raise SettingsError(f"{method} has no model file: choose {' or '.join(SOURCES)}.")
    return SOURCES[method]


def find_model(
    method: str,
    *,
    path: str | Path | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Path:
    """The weights file of `method`: the first that exists of

    1. `path`, as given on the command line: the file, or a folder that holds it. Nothing else is
       searched then, so that a typo never runs another model;
    2. the folder named by the environment variable TLBVFI_MODELS;
    3. the cache folder, where `tlbvfi download` puts it (`cache_folder`).

    A folder may hold the file under any of the method's `names`; the first name wins.

    Raises:
        ModelMissingError: there is none; the text says where to put it and what runs without it.
        SettingsError: the method needs no file, or there is no such method.
    """
    source = model_source(method)
    if path is not None:
        return _named_model(source, Path(path), environment)
    places = _places(environment)
    for place in places:
        if found := _model_in(place, source):
            return found
    where = (
        f"which is not in {' or '.join(map(str, places))}"
        if places
        else "and this user has no home folder to keep it in"
    )
    raise ModelMissingError(
        f"The {method} method needs {source.file_name}, {where}: {_advice(source, environment)}."
    )


def download_folder(
    folder: str | Path | None = None, *, environment: Mapping[str, str] = os.environ
) -> Path:
    """Where a download goes: `folder` if given, else TLBVFI_MODELS, else the cache folder.

    `find_model` searches the last two by itself.

    Raises:
        SettingsError: none is named, and this user has no cache folder.
    """
    places = [Path(folder)] if folder else _places(environment)
    if not places:
        raise SettingsError(
            "This user has no home folder to keep weights files in: name a folder for them, with "
            f"--folder or in the environment variable {FOLDER_VARIABLE}."
        )
    return places[0]


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path | None:
    """The user's cache folder for this program: `tlbvfi` in the platform's cache folder.

    $XDG_CACHE_HOME if set, else %LOCALAPPDATA% on Windows, ~/Library/Caches on macOS and ~/.cache
    elsewhere. None: this user has no home folder, as in containers that run under a bare number.
    """
    local = environment.get("LOCALAPPDATA") if sys.platform == "win32" else None
    named = environment.get("XDG_CACHE_HOME") or local
    if named:
        return Path(named) / "tlbvfi"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    return home / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "tlbvfi"


def _places(environment: Mapping[str, str]) -> list[Path]:
    """Folders that are searched by themselves; downloads go into the first."""
    named, cache = environment.get(FOLDER_VARIABLE), cache_folder(environment)
    return [*([Path(named)] if named else []), *([cache] if cache else [])]


def _model_in(folder: Path, source: ModelSource) -> Path | None:
    return next((folder / name for name in source.names if (folder / name).is_file()), None)


def _named_model(source: ModelSource, path: Path, environment: Mapping[str, str]) -> Path:
    found = path if path.is_file() else _model_in(path, source)
    if found is None:
        raise ModelMissingError(
            f"There is no {source.method} model at {path}: correct the path, or leave it out and "
            f"{_advice(source, environment)}."
        )
    return found


def _advice(source: ModelSource, environment: Mapping[str, str]) -> str:
    folder = next(iter(_places(environment)), f"a folder that {FOLDER_VARIABLE} names")
    return (
        f"run `{source.command}`, or put the file from {source.page()} into {folder}, "
        "or use `--method flow`, which needs no model"
    )
