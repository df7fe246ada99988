"""The path policy of the nodes, which needs no ComfyUI."""

import os
from pathlib import Path, PureWindowsPath

import pytest
from comfyui_tlbvfi.nodes import paths
from comfyui_tlbvfi.nodes.paths import (
    Folders,
    extra_read_folders,
    folder_in_output,
    is_foreign,
    plain_file_name,
    readable_file,
)
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    for name in ("input", "output", "temp", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "clip.mp4").write_bytes(name.encode())
    return Folders(input=tmp_path / "input", output=tmp_path / "output", temp=tmp_path / "temp")


def test_a_bare_name_is_looked_for_in_the_input_folder(folders):
    assert readable_file("clip.mp4", folders).read_bytes() == b"input"


@pytest.mark.parametrize("folder", ["input", "output", "temp"])
def test_an_annotated_name_is_looked_for_in_its_folder(folders, folder):
    assert readable_file(f"clip.mp4 [{folder}]", folders).read_bytes() == folder.encode()


def test_an_absolute_path_inside_the_folders_is_read(folders):
    assert readable_file(str(folders.output / "clip.mp4"), folders).read_bytes() == b"output"


@pytest.mark.parametrize(
    "text", ["../elsewhere/clip.mp4", "../elsewhere/clip.mp4 [temp]", "/etc/passwd", "clip\0.mp4"]
)
def test_a_file_elsewhere_is_refused(folders, text):
    with pytest.raises(SettingsError, match=r"outside ComfyUI's|is not a path"):
        readable_file(text, folders)


def test_a_link_out_of_the_folders_is_refused(folders, tmp_path):
    (folders.input / "link.mp4").symlink_to(tmp_path / "elsewhere" / "clip.mp4")
    with pytest.raises(SettingsError, match="TLBVFI_READ_FOLDERS"):
        readable_file("link.mp4", folders)


def test_a_link_to_itself_is_no_file(folders):
    (folders.input / "loop.mp4").symlink_to("loop.mp4")
    with pytest.raises(SettingsError, match=r"is not a path|there is no file"):
        readable_file("loop.mp4", folders)


def test_the_operator_can_allow_another_folder(folders, tmp_path, monkeypatch):
    monkeypatch.setenv("TLBVFI_READ_FOLDERS", f"{tmp_path / 'elsewhere'}{os.pathsep}")
    assert extra_read_folders() == (tmp_path / "elsewhere",)
    allowed = Folders(
        input=folders.input,
        output=folders.output,
        temp=folders.temp,
        readable=extra_read_folders(),
    )
    path = readable_file(str(tmp_path / "elsewhere" / "clip.mp4"), allowed)
    assert path.read_bytes() == b"elsewhere"


@pytest.mark.parametrize(
    ("text", "is_so"),
    [
        (r"\\evil\share\a.mp4", True),
        ("//evil/share/a.mp4", True),
        (r"\\NAS\Media\a.mp4", False),
        (r"//nas/media/../other/a.mp4", False),  # of which no link is followed
        (r"\\nas\other\a.mp4", True),
        (r"\\.\pipe\name", True),
        (r"\\?\UNC\evil\share\a.mp4", True),
        (r"D:\a.mp4", False),
        ("a.mp4", False),
    ],
)
def test_a_computer_is_foreign_unless_a_folder_is_on_it(text, is_so):
    roots = [PureWindowsPath(root) for root in (r"C:\comfy\input", r"\\nas\media\clips")]
    assert is_foreign(roots[0] / text, roots) == is_so


def test_no_prompt_makes_the_server_look_at_a_foreign_computer(folders, monkeypatch):
    """Windows would log in there."""

    def fail(path, strict=False):
        raise AssertionError(path)

    monkeypatch.setattr(paths, "is_foreign", lambda path, roots: True)
    monkeypatch.setattr(Path, "resolve", fail)
    for read in (readable_file, folder_in_output):
        with pytest.raises(SettingsError, match="is outside ComfyUI's"):
            read("a.mp4", folders)


def test_a_missing_file_is_named(folders):
    with pytest.raises(SettingsError, match=r"no file 'gone\.mp4'"):
        readable_file("gone.mp4", folders)


@pytest.mark.parametrize("text", ["x" * 300, "x" * 5000])
def test_a_name_longer_than_the_file_system_takes_is_a_missing_file(folders, text):
    with pytest.raises(SettingsError, match=r"no file 'x{80}'\.\.\. in ComfyUI's input folder"):
        readable_file(text, folders)


@pytest.mark.parametrize("text", ["x" * 231, "é" * 116, "a/" * 11, "a/" * 2500])
def test_an_output_dir_longer_than_file_systems_take_is_refused(folders, text):
    with pytest.raises(SettingsError, match="is too long: give at most 10 folders"):
        folder_in_output(text, folders)


def test_names_of_230_bytes_are_taken(folders):
    assert folder_in_output("é" * 115, folders).name == "é" * 115
    assert plain_file_name("é" * 115) == "é" * 115
    with pytest.raises(SettingsError, match="has 232 bytes and a name may have 230"):
        plain_file_name("é" * 116)


def test_an_empty_output_dir_is_the_output_folder(folders):
    assert folder_in_output("", folders) == folders.output


@pytest.mark.parametrize("text", ["..", "../../x", "/tmp", "a/../../b", "\0"])
def test_an_output_dir_elsewhere_is_refused(folders, text):
    with pytest.raises(SettingsError):
        folder_in_output(text, folders)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=st.text(alphabet="ab./\\ ~$[]", max_size=20))
def test_whatever_output_dir_says_the_result_is_below_output(folders, text):
    try:
        path = folder_in_output(text, folders)
    except SettingsError:
        return
    assert os.path.commonpath([path, folders.output]) == str(folders.output)


@pytest.mark.parametrize("text", ["smooth.mp4", "my clip 2.mkv", "한국어.webm"])
def test_a_plain_file_name_is_taken(text):
    assert plain_file_name(text) == text


@pytest.mark.parametrize(
    "text", ["", "a/b.mp4", "..", "../x.mp4", "C:\\x.mp4", "a\n.mp4", ".hidden", "\ud800"]
)
def test_a_file_name_with_a_path_is_refused(text):
    with pytest.raises(SettingsError, match="plain file name"):
        plain_file_name(text)


@pytest.mark.parametrize(
    "text", ["CON", "nul.mp4", "Com1.final.mkv", "aux .webm", "COM\u00b9.mp4", "conin$"]
)
def test_a_device_of_windows_is_no_file_name(text):
    with pytest.raises(SettingsError, match="device names of Windows"):
        plain_file_name(text)
