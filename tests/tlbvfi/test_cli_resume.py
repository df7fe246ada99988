"""`tlbvfi resume` continues exactly the named session, wherever the command is run."""

import json
import shutil
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath

import pytest
from comfyui_tlbvfi.tlbvfi.cli.interpolate import name_from

OPTIONS = ("--method", "blend", "--chunk-frames", 4)


@pytest.fixture
def source(clip, tmp_path):
    return clip(tmp_path / "in.mp4", 20, rate=Fraction(25))


def sessions(root):
    return sorted(path.name for path in (root / "tlbvfi_chunks").iterdir())


def test_resume_refuses_a_source_that_has_changed_and_begins_no_other_session(
    tlbvfi, interrupted, source, clip, tmp_path
):
    interrupted("interpolate", "in.mp4", "out.mp4", *OPTIONS)
    (session,) = sessions(tmp_path / "output")
    clip(source, 22, rate=Fraction(25))
    code, _, err = tlbvfi("resume", session)
    assert code == 1
    assert f"Session {session} belongs to another job (source." in err
    assert sessions(tmp_path / "output") == [session]


def test_resume_goes_on_in_the_folder_a_session_was_moved_to(tlbvfi, interrupted, source, tmp_path):
    interrupted("interpolate", "in.mp4", "out.mp4", *OPTIONS)
    (session,) = sessions(tmp_path / "output")
    shutil.move(tmp_path / "output", tmp_path / "moved")
    for named in ((session, "--root", "moved"), (f"moved/tlbvfi_chunks/{session}",)):
        code, out, _ = tlbvfi("resume", *named, "--json")
        assert code == 0
        assert json.loads(out)["session_id"] == session
        assert not (tmp_path / "output").exists()
    assert (tmp_path / "out.mp4").is_file()


@pytest.mark.parametrize(
    ("place", "named"), [(".", "."), ("..", "./{}"), ("inner", ".."), ("..", "{}/")]
)
def test_a_session_is_found_by_every_name_of_its_folder(
    tlbvfi, interrupted, source, tmp_path, monkeypatch, place, named
):
    interrupted("interpolate", source, "out.mp4", *OPTIONS)
    (session,) = sessions(tmp_path / "output")
    folder = tmp_path / "output" / "tlbvfi_chunks" / session
    (folder / "inner").mkdir()
    monkeypatch.chdir(folder / place)
    code, _, err = tlbvfi("resume", named.format(session))
    assert code == 0, err
    assert (tmp_path / "out.mp4").is_file()


def test_resume_works_from_another_folder(tlbvfi, interrupted, source, tmp_path, monkeypatch):
    interrupted("interpolate", "in.mp4", "made/out.mp4", "--root", "state", *OPTIONS)
    (session,) = sessions(tmp_path / "state")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, _ = tlbvfi("resume", session, "--root", "../state", "--json")
    assert code == 0
    assert json.loads(out)["frames_made"] < 39
    assert (tmp_path / "made" / "out.mp4").is_file()
    assert not any((tmp_path / "elsewhere").iterdir())
    assert tlbvfi("resume", session, "--root", "../state")[0] == 0


def test_resume_into_a_folder_of_images_works_from_another_folder(
    tlbvfi, interrupted, source, tmp_path, monkeypatch
):
    interrupted("interpolate", "in.mp4", "frames/", "--root", "state", *OPTIONS)
    (session,) = sessions(tmp_path / "state")
    monkeypatch.chdir(tmp_path / "state")
    assert tlbvfi("resume", session, "--root", ".")[0] == 0
    assert len(list((tmp_path / "frames").glob("*.png"))) == 39


def test_resume_of_one_of_many_videos_runs_that_one_alone(tlbvfi, interrupted, source, tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        shutil.copy(source, tmp_path / name)
    words = ("a.mp4", "b.mp4", "c.mp4", "--out-dir", "many", *OPTIONS)
    interrupted("interpolate", *words, at=28)
    session = sessions(tmp_path / "many" / "output")[1]
    assert session.startswith("b-")
    code, out, _ = tlbvfi("resume", session, "--root", "many/output", "--json")
    assert code == 0
    assert json.loads(out)["output"] == str(Path("many/b.mp4"))
    assert not (tmp_path / "many" / "c.mp4").exists()


def test_resume_tells_the_command_and_its_folder(tlbvfi, interrupted, source, tmp_path):
    interrupted("interpolate", "in.mp4", "out.mp4", *OPTIONS)
    (session,) = sessions(tmp_path / "output")
    _, _, err = tlbvfi("resume", session)
    assert f"in {tmp_path}: tlbvfi interpolate in.mp4 out.mp4 --method blend" in err


def test_resume_runs_no_command_that_begins_no_session(tlbvfi, interrupted, source, tmp_path):
    interrupted("interpolate", "in.mp4", "out.mp4", *OPTIONS)
    (session,) = sessions(tmp_path / "output")
    origin = tmp_path / "output" / "tlbvfi_chunks" / session / "origin.json"
    command = ["sessions", "--remove", session, "--root", str(tmp_path / "output")]
    origin.write_text(json.dumps({"command": command}))
    code, _, err = tlbvfi("resume", session)
    assert code == 1
    assert "says it was begun with tlbvfi sessions" in err
    assert sessions(tmp_path / "output") == [session]


@pytest.mark.parametrize(
    ("folder", "text", "meant"),
    [
        (PurePosixPath("/a"), "in.mp4", "/a/in.mp4"),
        (PurePosixPath("/a"), "/in.mp4", "/in.mp4"),
        (PurePosixPath("/a"), "frames/", "/a/frames/"),
        (PureWindowsPath("C:/a"), "in.mp4", r"C:\a\in.mp4"),
        (PureWindowsPath("C:/a"), r"\clips\in.mp4", r"C:\clips\in.mp4"),
        (PureWindowsPath("C:/a"), "D:/in.mp4", r"D:\in.mp4"),
        (PureWindowsPath("C:/a"), "C:frames/", "C:\\a\\frames/"),
    ],
)
def test_a_name_means_elsewhere_what_it_meant_in_its_folder(folder, text, meant):
    assert name_from(folder, text) == meant
