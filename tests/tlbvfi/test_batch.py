"""Many videos in one command: names, failures, the summary, resuming."""

import json
import os
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
from comfyui_tlbvfi.tlbvfi.batch import plan_videos
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod

BLEND = ("--method", "blend", "--preset", "ultrafast")


@pytest.fixture
def clips(clip, tmp_path):
    """Three clips in a folder, and a file that is not a video."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, name in enumerate(("a.mp4", "b.mkv", "c.mov")):
        clip(folder / name, 5 + number, rate=Fraction(25))
    (folder / "notes.txt").write_text("none")
    return folder


@pytest.fixture
def frame_folder(tmp_path):
    """Factory for folders of PNG images."""
    import cv2
    import numpy as np

    def make(path, frames=4):
        path.mkdir(parents=True)
        for number in range(frames):
            cv2.imwrite(str(path / f"f_{number:03}.png"), np.full((32, 48, 3), 40 * number, "u1"))
        return path

    return make


def test_a_folder_of_videos_is_done_with_one_model_and_one_session_each(
    tlbvfi, clips, monkeypatch, tmp_path
):
    from comfyui_tlbvfi.tlbvfi import methods

    made = []
    create = methods.create_method
    monkeypatch.setattr(methods, "create_method", lambda *given: made.append(1) or create(*given))
    code, out, _ = tlbvfi("interpolate", clips, "--out-dir", "smooth", *BLEND, "--json")
    summary = json.loads(out)
    assert (code, summary["done"], summary["failed"]) == (0, 3, 0)
    assert [Path(video["output"]).name for video in summary["videos"]] == [
        *("a.mp4", "b.mkv", "c.mov")
    ]
    assert [video["frames"] for video in summary["videos"]] == [9, 11, 13]
    assert len(made) == 1
    assert len(list((tmp_path / "smooth" / "output" / "tlbvfi_chunks").iterdir())) == 3


def test_a_failure_is_told_and_the_rest_is_done(tlbvfi, clips, tmp_path):
    (clips / "b.mkv").write_text("no video")
    inputs = (clips / "a.mp4", clips / "missing.mp4", clips / "b.mkv", clips / "c.mov")
    code, out, err = tlbvfi("interpolate", *inputs, "--out-dir", "smooth", *BLEND, "--json")
    summary = json.loads(out)
    assert (code, summary["done"], summary["failed"]) == (1, 2, 2)
    errors = [video.get("error", "") for video in summary["videos"]]
    assert "does not exist" in errors[1]
    assert "is not a video" in errors[2]
    assert (tmp_path / "smooth" / "c.mov").is_file()
    code, _, err = tlbvfi("interpolate", *inputs, "--out-dir", "smooth", *BLEND)
    assert code == 1
    assert "2 of 4 videos done." in err
    assert "failed: " in err.splitlines()[-1]


def test_what_a_gpu_or_a_codec_throws_does_not_cost_the_others(tlbvfi, clips, monkeypatch):
    between, calls = BlendMethod.between, []

    def out_of_memory_once(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("CUDA out of memory")
        return between(self, *arguments)

    monkeypatch.setattr(BlendMethod, "between", out_of_memory_once)
    code, _, err = tlbvfi("interpolate", clips, "--out-dir", "smooth", *BLEND)
    assert code == 1
    assert "a.mp4 failed: RuntimeError: CUDA out of memory" in err
    assert "2 of 3 videos done." in err


def test_the_same_command_again_finds_what_is_done(tlbvfi, clips):
    command = ("interpolate", clips, "--out-dir", "smooth", *BLEND, "--json")
    tlbvfi(*command)
    code, out, _ = tlbvfi(*command)
    assert code == 0
    assert [video["was_done"] for video in json.loads(out)["videos"]] == [True] * 3


def test_ctrl_c_prints_the_command_that_does_the_rest(tlbvfi, interrupted, clips):
    command = ("interpolate", clips, "--out-dir", "my smooth", *BLEND, "--chunk-frames", 2)
    err = interrupted(*command, at=8)  # in the second video of 6 frames, after 4 pairs of the first
    assert "interrupted after 1 of 3 videos" in err
    assert err.splitlines()[-1].startswith("tlbvfi interpolate")
    quoted = '"my smooth"' if os.name == "nt" else "'my smooth'"
    assert quoted in err.splitlines()[-1]
    code, out, _ = tlbvfi(*command, "--json")
    done, resumed, fresh = json.loads(out)["videos"]
    assert code == 0
    assert (done["was_done"], resumed["was_done"]) == (True, False)
    assert 0 < resumed["frames_made"] < resumed["frames"]
    assert fresh["frames_made"] == fresh["frames"]


def test_ctrl_c_among_videos_that_are_overwritten_names_no_command_that_begins_anew(
    tlbvfi, interrupted, clips
):
    command = ("interpolate", clips, "--out-dir", "smooth", *BLEND, "--chunk-frames", 2)
    assert tlbvfi(*command)[0] == 0
    err = interrupted(*command, "--overwrite", at=8)  # in the second video
    assert "after 1 of 3 videos, which --overwrite would make again: leave them out" in err
    words = err.splitlines()[-1].split()
    assert words[:2] == ["tlbvfi", "resume"]
    result = json.loads(tlbvfi(*words[1:], "--json")[1])
    assert result["output"].endswith("b.mkv")
    assert 0 < result["frames_made"] < result["frames"]


def test_resume_of_one_session_goes_on_with_its_command(tlbvfi, clips, tmp_path):
    tlbvfi("interpolate", clips, "--out-dir", "smooth", *BLEND)
    (tmp_path / "smooth" / "b.mkv").unlink()
    root = tmp_path / "smooth" / "output"
    session = next((root / "tlbvfi_chunks").glob("b-*")).name
    assert tlbvfi("resume", session, "--root", root)[0] == 0
    assert (tmp_path / "smooth" / "b.mkv").is_file()


def test_folders_of_images_are_videos_of_their_own(tlbvfi, frame_folder, tmp_path):
    one, two = (frame_folder(tmp_path / "shots" / name) for name in ("one", "two"))
    command = ("interpolate", one, two, "--out-dir", "smooth", *BLEND, "--input-fps", 12)
    code, out, _ = tlbvfi(*command, "--json")
    assert code == 0
    assert [Path(video["output"]).name for video in json.loads(out)["videos"]] == [
        *("one.mp4", "two.mp4")
    ]


@pytest.mark.parametrize(
    ("codec", "names"),
    [
        ("auto", ["a.mp4", "b.mkv", "c.mov"]),
        ("h264", ["a.mp4", "b.mkv", "c.mov"]),
        ("vp9", ["a.mp4", "b.mkv", "c.webm"]),
        ("prores", ["a.mov", "b.mkv", "c.mov"]),
        ("ffv1", ["a.mkv", "b.mkv", "c.mkv"]),
        ("dnxhr", ["a.mov", "b.mov", "c.mov"]),
    ],
)
def test_the_container_stays_where_the_codec_fits(clips, tmp_path, codec, names):
    tasks = plan_videos([clips], tmp_path / "out", codec=codec)
    assert [task.output.name for task in tasks] == names


def test_images_get_a_folder_for_each_input(tlbvfi, clips, tmp_path):
    inputs = (clips / "a.mp4", clips / "b.mkv")
    code, _, _ = tlbvfi("interpolate", *inputs, "--out-dir", "f", "--codec", "png", *BLEND[:2])
    assert code == 0
    assert len(list((tmp_path / "f" / "a").glob("*.png"))) == 9
    assert len(list((tmp_path / "f" / "b").glob("*.png"))) == 11


def test_names_that_collide_are_refused_before_anything_is_done(tlbvfi, clips, tmp_path):
    shutil.copy(clips / "a.mp4", tmp_path / "A.MP4")
    code, _, err = tlbvfi("interpolate", clips, "A.MP4", "--out-dir", "smooth", *BLEND)
    assert code == 1
    assert "would both become" in err
    assert not (tmp_path / "smooth").exists()


def test_an_output_that_is_an_input_is_refused(tlbvfi, clips):
    before = (clips / "a.mp4").read_bytes()
    code, _, err = tlbvfi("interpolate", clips, "--out-dir", clips, *BLEND, "--overwrite")
    assert code == 1
    assert "is one of the inputs" in err
    assert (clips / "a.mp4").read_bytes() == before


def test_images_are_not_written_among_the_images_of_an_input(tlbvfi, frame_folder, tmp_path):
    one = frame_folder(tmp_path / "shots" / "one")
    before = sorted(one.iterdir())
    words = ("--out-dir", "shots", "--codec", "png", "--input-fps", 12, "--overwrite", *BLEND[:2])
    code, _, err = tlbvfi("interpolate", one, *words)
    assert code == 1
    assert f"{Path('shots/one')} is one of the inputs" in err
    assert sorted(one.iterdir()) == before


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="neither videos nor images"):
        plan_videos([tmp_path], tmp_path / "out", codec="auto")


def test_a_session_id_cannot_name_many(tlbvfi, clips):
    code, _, err = tlbvfi("interpolate", clips, "--out-dir", "x", "--session", "mine", *BLEND)
    assert code == 1
    assert "leave it out with --out-dir" in err


@pytest.mark.parametrize(
    "words",
    [
        ("clips/a.mp4", "--method", "blend", "clips/b.mkv", "--out-dir", "smooth", "clips/c.mov"),
        ("--out-dir", "smooth", "--method", "blend", "clips/a.mp4", "clips/b.mkv", "clips/c.mov"),
    ],
)
def test_paths_may_stand_anywhere_among_the_options(tlbvfi, clips, words):
    code, out, _ = tlbvfi("interpolate", *words, "--json")
    assert (code, json.loads(out)["done"]) == (0, 3)


@pytest.mark.parametrize("words", [("clips/a.mp4",), ("clips/a.mp4", "b.mp4", "c.mp4")])
def test_another_number_of_paths_than_two_is_a_usage_error(tlbvfi, clips, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        tlbvfi("interpolate", *words)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("usage: tlbvfi interpolate INPUT OUTPUT")
    assert "with --out-dir DIR it takes any number of inputs" in told


def test_in_and_out_may_stand_on_both_sides_of_an_option(tlbvfi, clips, tmp_path):
    assert tlbvfi("interpolate", "clips/a.mp4", *BLEND, "out.mp4")[0] == 0
    assert (tmp_path / "out.mp4").is_file()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("interpolate", "clips/a.mp4", "o.mp4", "--methd", "flow"), "did you mean --method?"),
        (("interpolate", "clips/a.mp4", "o.mp4", "--input_fps=16"), "did you mean --input-fps?"),
        (("interpolate", "clips/a.mp4", "o.mp4", "--deep"), "tlbvfi interpolate --help lists"),
        (("comfy", "run", "p.json", "-o", "o.mp4", "--sever", "x"), "did you mean --server?"),
        (("verify", "clips/a.mp4", "more"), "unrecognized arguments: more: tlbvfi verify --help"),
    ],
)
def test_an_unknown_option_is_a_usage_error_of_its_command(tlbvfi, clips, capsys, words, told):
    with pytest.raises(SystemExit) as stopped:
        tlbvfi(*words)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: tlbvfi {words[0]}")
    assert told in error
