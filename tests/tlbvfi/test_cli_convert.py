"""`tlbvfi convert`: an ordinary file, or an error of one sentence."""

import os
import stat

import pytest
import torch
from comfyui_tlbvfi.encoding.durable import sole_writer
from comfyui_tlbvfi.tlbvfi import checkpoint
from safetensors import SafetensorError


@pytest.fixture(autouse=True)
def weights(monkeypatch):
    monkeypatch.setattr(checkpoint, "read_weights", lambda path: {"a": torch.zeros(3)})


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask for readers")
def test_the_file_has_the_usual_permissions(tlbvfi, tmp_path):
    before = os.umask(0o027)
    try:
        assert tlbvfi("convert", "in.pth", "out.safetensors")[0] == 0
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out.safetensors").stat().st_mode) == 0o640


def test_a_full_disk_is_one_sentence(tlbvfi, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", full)
    code, _, err = tlbvfi("convert", "in.pth", "out.safetensors")
    assert code == 1
    assert err.startswith("tlbvfi: out.safetensors cannot be written (I/O error: No space left")
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(tlbvfi, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = tlbvfi("convert", "in.pth", "file/out.safetensors")
    assert code == 1
    assert err.startswith("tlbvfi: file cannot be written (")
    assert err.count("\n") == 1


def test_a_file_that_another_process_makes_is_left_to_it(tlbvfi, tmp_path):
    with sole_writer(tmp_path / "out.safetensors"):
        code, _, err = tlbvfi("convert", "in.pth", "out.safetensors")
    assert code == 1
    assert "out.safetensors is being made by another job" in err
    assert tlbvfi("convert", "in.pth", "out.safetensors")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.safetensors"]


def test_a_file_that_is_there_is_replaced_only_when_asked(tlbvfi, tmp_path):
    (tmp_path / "out.safetensors").write_text("precious")
    code, _, err = tlbvfi("convert", "in.pth", "out.safetensors")
    assert code == 1
    assert err.startswith("tlbvfi: out.safetensors exists: choose another name or")
    assert (tmp_path / "out.safetensors").read_text() == "precious"
    assert tlbvfi("convert", "in.pth", "out.safetensors", "--overwrite")[0] == 0
    assert (tmp_path / "out.safetensors").read_bytes() != b"precious"
