"""One session and the files it is joined into: all are remembered, existing files are kept."""

import errno
import logging
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from comfyui_tlbvfi.encoding import delivery

BLEND = ("--method", "blend", "--chunk-frames", 8)
PROC = pytest.param("/proc", marks=pytest.mark.skipif(sys.platform != "linux", reason="Linux only"))


@pytest.fixture
def source(clip, tmp_path):
    return clip(tmp_path / "in.mp4", 12, rate=Fraction(25))


def test_each_of_several_outputs_of_a_job_is_known_again(tlbvfi, source, tmp_path):
    for name in ("o1.mp4", "o2.mp4"):
        assert tlbvfi("interpolate", source, name, *BLEND)[0] == 0
    for name in ("o1.mp4", "o2.mp4", "o1.mp4"):
        code, _, err = tlbvfi("interpolate", source, name, *BLEND)
        assert code == 0
        assert f"{name} is already there and verified" in err
    (tmp_path / "o2.mp4").unlink()
    assert "already there" in tlbvfi("interpolate", source, "o1.mp4", *BLEND)[2]


def test_all_outputs_of_a_session_are_listed(tlbvfi, source):
    for name in ("o1.mp4", "o2.mp4"):
        tlbvfi("interpolate", source, name, *BLEND)
    out = tlbvfi("sessions")[1]
    assert "o1.mp4, " in out
    assert "o2.mp4" in out


@pytest.mark.parametrize("is_gone", [False, True])
def test_chunks_that_a_join_removed_are_no_damage(tlbvfi, source, tmp_path, caplog, is_gone):
    tlbvfi("interpolate", source, "o1.mp4", *BLEND)
    if is_gone:
        (tmp_path / "o1.mp4").unlink()
    caplog.clear()
    assert tlbvfi("interpolate", source, "o1.mp4" if is_gone else "o2.mp4", *BLEND)[0] == 0
    told = [r.getMessage() for r in caplog.records if r.name == "tlbvfi.session"]
    assert len(told) == 1
    assert "was joined and its chunks removed: 3 are made again" in told[0]
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_damaged_chunk_is_told_even_after_a_join(tlbvfi, source, tmp_path, caplog):
    tlbvfi("interpolate", source, "o1.mp4", *BLEND, "--keep-chunks", "--session", "mine")
    chunk = tmp_path / "output" / "tlbvfi_chunks" / "mine" / "chunk_000001.mp4"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    tlbvfi("interpolate", source, "o2.mp4", *BLEND, "--session", "mine")
    assert "chunk_000001.mp4 has" in caplog.text
    assert "chunks removed" not in caplog.text


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mov", ".mkv", ".nut"])
@pytest.mark.parametrize("start", ["5", "95439.5"], ids=["late", "before the clock of TS wraps"])
def test_a_source_that_does_not_begin_at_zero_is_done_once(tlbvfi, clip, tmp_path, suffix, start):
    source = clip(tmp_path / "in.ts", 12, rate=Fraction(25), start=Fraction(start))
    for told in ("23 frames", "already there and verified"):
        code, _, err = tlbvfi("interpolate", source, f"out{suffix}", *BLEND)
        assert code == 0
        assert told in err


def test_a_run_that_is_refused_leaves_no_session(tlbvfi, source, tmp_path):
    (tmp_path / "taken.mp4").write_text("of somebody else")
    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "frame_000001.png").write_text("of somebody else")
    for name in ("taken.mp4", "frames/"):
        code, _, err = tlbvfi("interpolate", source, name, *BLEND)
        assert code == 1
        assert "was not made by this job" in err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("folder", ["file", "file/deeper", PROC])
def test_an_output_folder_that_takes_no_files_is_told_before_the_first_chunk(
    tlbvfi, source, tmp_path, folder
):
    (tmp_path / "file").write_text("in the way")
    code, _, err = tlbvfi("interpolate", source, f"{folder}/out.mp4", *BLEND, "--root", "state")
    assert code == 1
    assert err.count("\n") == 1
    assert f"{Path(folder)} cannot be written" in err
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("words", [("in.mp4", ""), ("", "out.mp4"), ("", "--out-dir", "many")])
def test_an_empty_name_is_refused(tlbvfi, source, tmp_path, words):
    code, _, err = tlbvfi("interpolate", *words, *BLEND)
    assert code == 1
    assert "An empty name" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4"]


@pytest.mark.parametrize(
    "words",
    [
        ("verify", ""),
        ("interpolate", "in.mp4", "out.mp4", "--root", ""),
        ("interpolate", "in.mp4", "--out-dir", ""),
        ("comfy", "run", "prompt.json", "-o", ""),
        ("comfy", "rewrite", ""),
    ],
)
def test_an_empty_name_is_not_the_current_folder(tlbvfi, capsys, words):
    with pytest.raises(SystemExit, match="2"):
        tlbvfi(*words)
    assert "an empty name ('') is not a file: write it out" in capsys.readouterr().err


def test_concat_into_an_empty_name_is_refused(tlbvfi, source):
    tlbvfi("interpolate", source, "o1.mp4", *BLEND, "--keep-chunks", "--session", "mine")
    code, _, err = tlbvfi("concat", "mine", "")
    assert code == 1
    assert "The output name is empty" in err


def test_concat_into_what_another_job_makes_is_refused(tlbvfi, source, tmp_path):
    from comfyui_tlbvfi.encoding.durable import sole_writer

    tlbvfi("interpolate", source, "o1.mp4", *BLEND, "--keep-chunks", "--session", "mine")
    with sole_writer(tmp_path / "o2.mp4"):
        code, _, err = tlbvfi("concat", "mine", "o2.mp4")
    assert code == 1
    assert "o2.mp4 is being made by another job" in err
    assert tlbvfi("concat", "mine", "o2.mp4")[0] == 0


@pytest.mark.parametrize("name", ["out.mp4", "frames/"])
def test_a_full_disk_at_the_output_is_no_matter_of_the_root(tlbvfi, source, monkeypatch, name):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("comfyui_tlbvfi.encoding.concat._write", full)
    monkeypatch.setattr("comfyui_tlbvfi.encoding.sequence.with_texts", full)
    code, _, err = tlbvfi("interpolate", source, name, *BLEND)
    assert code == 1
    assert "The disk is full while writing" in err
    assert "name an output on another disk" in err
    assert "--root" not in err


@pytest.mark.parametrize("name", ["aux.mp4", "NUL", "a:b.mp4", "what?.mp4", "dots./", 'a"b.mp4'])
def test_a_name_that_windows_does_not_store_is_refused_there(tlbvfi, source, monkeypatch, name):
    monkeypatch.setattr(delivery.sys, "platform", "win32")
    code, _, err = tlbvfi("interpolate", source, f"new/{name}", *BLEND)
    assert code == 1
    assert err.startswith(f"tlbvfi: Windows stores no file as {name.rstrip('/')}: leave out")
    assert not Path("new").exists()


@pytest.mark.parametrize("name", ["smooth.mp4", "f_%06d.png", "../", ".", "console.mp4"])
def test_other_names_are_outputs_on_windows(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(delivery.sys, "platform", "win32")
    assert delivery.output_path(name, "auto")
