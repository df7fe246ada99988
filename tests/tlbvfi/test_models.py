"""Where model files are looked for."""

import re
import sys
from pathlib import Path

import pytest
from comfyui_tlbvfi.tlbvfi import models
from comfyui_tlbvfi.tlbvfi.errors import ModelMissingError, SettingsError


@pytest.fixture
def places(tmp_path):
    """Folders of every step of the search order, and the environment that names them."""
    names = {name: tmp_path / name for name in ("flag", "variable", "cache")}
    for folder in (*names.values(), tmp_path / "cache" / "tlbvfi"):
        folder.mkdir()
    environment = {
        "TLBVFI_MODELS": str(names["variable"]),
        "XDG_CACHE_HOME": str(names["cache"]),
    }
    return {**names, "cache": tmp_path / "cache" / "tlbvfi"}, environment


def put(folder: Path, name: str = "vimeo_unet.pth") -> Path:
    path = folder / name
    path.write_bytes(b"weights")
    return path


def test_search_order_is_flag_variable_cache(places):
    folders, environment = places

    def find(path=None):
        return models.find_model("tlbvfi", path=path, environment=environment)

    for place in ("cache", "variable"):
        path = put(folders[place])
        assert find() == path
    named = put(folders["flag"], "other.pth")
    assert find(named) == named


def test_a_path_may_be_a_folder(places):
    folders, environment = places
    path = put(folders["flag"])
    assert models.find_model("tlbvfi", path=folders["flag"], environment=environment) == path


def test_converted_file_is_preferred_to_the_published_one(places):
    folders, environment = places
    put(folders["cache"])
    path = put(folders["cache"], "vimeo_unet.safetensors")
    assert models.find_model("tlbvfi", environment=environment) == path


def test_a_path_that_does_not_exist_never_falls_back(places):
    folders, environment = places
    put(folders["cache"])
    with pytest.raises(ModelMissingError, match=r"no tlbvfi model at .*typo\.pth"):
        models.find_model("tlbvfi", path=folders["flag"] / "typo.pth", environment=environment)


def test_missing_model_names_file_place_command_and_what_runs_without(places):
    folders, environment = places
    with pytest.raises(ModelMissingError) as caught:
        models.find_model("tlbvfi", environment=environment)
    text = str(caught.value)
    for word in (
        "vimeo_unet.pth",
        str(folders["variable"]),
        str(folders["cache"]),
        "`tlbvfi download tlbvfi`",
        "https://huggingface.co/ucfzl/TLBVFI",
        "`--method flow`",
    ):
        assert word in text
    assert "\n" not in text
    assert text.endswith(".")


@pytest.mark.parametrize("name", ["film_net_fp16.safetensors", "film_net_fp32.safetensors"])
def test_film_is_found_in_either_precision(places, name):
    folders, environment = places
    path = put(folders["variable"], name)
    assert models.find_model("film", environment=environment) == path


def test_methods_without_a_file_are_refused():
    with pytest.raises(SettingsError, match="flow has no model file"):
        models.find_model("flow")


def test_download_folder_is_one_that_is_searched(places):
    folders, environment = places
    assert models.download_folder("here", environment=environment) == Path("here")
    assert models.download_folder(environment=environment) == folders["variable"]
    del environment["TLBVFI_MODELS"]
    assert models.download_folder(environment=environment) == folders["cache"]


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {}, "/home/ada/.cache/tlbvfi"),
        ("linux", {"XDG_CACHE_HOME": "/scratch"}, "/scratch/tlbvfi"),
        ("darwin", {}, "/home/ada/Library/Caches/tlbvfi"),
        ("win32", {"LOCALAPPDATA": "/home/ada/AppData/Local"}, "/home/ada/AppData/Local/tlbvfi"),
    ],
)
def test_cache_folder_is_the_one_of_the_platform(monkeypatch, platform, environment, folder):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    assert models.cache_folder(environment) == Path(folder)


@pytest.fixture
def homeless(monkeypatch):
    """A user without a home folder, such as the bare number that a container runs under."""

    def fail():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", fail)


def test_without_a_home_folder_a_named_one_serves(homeless, tmp_path):
    environment = {"TLBVFI_MODELS": str(tmp_path)}
    assert models.download_folder(environment=environment) == tmp_path
    with pytest.raises(ModelMissingError, match=re.escape(f"is not in {tmp_path}: run")):
        models.find_model("tlbvfi", environment=environment)
    path = put(tmp_path)
    assert models.find_model("tlbvfi", environment=environment) == path
    assert models.cache_folder({"XDG_CACHE_HOME": "/scratch"}) == Path("/scratch/tlbvfi")


def test_without_any_folder_the_variable_that_names_one_is_told(homeless):
    with pytest.raises(ModelMissingError, match="into a folder that TLBVFI_MODELS names, or use"):
        models.find_model("film", environment={})
    with pytest.raises(SettingsError, match=r"no home folder .* --folder or in .* TLBVFI_MODELS"):
        models.download_folder(environment={})


def test_addresses_are_those_of_the_official_repositories():
    assert models.SOURCES["tlbvfi"].url() == (
        "https://huggingface.co/ucfzl/TLBVFI/resolve/main/vimeo_unet.pth"
    )
    assert models.SOURCES["film"].url() == (
        "https://huggingface.co/Comfy-Org/frame_interpolation/resolve/main/frame_interpolation/"
        "film_net_fp16.safetensors"
    )
    assert all(source.file_name in source.names for source in models.SOURCES.values())
