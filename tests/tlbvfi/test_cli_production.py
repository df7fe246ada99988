"""Frames in, frames out and mezzanines on the command line."""

import json
import unicodedata
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from comfyui_tlbvfi.encoding.sequence import image_pattern

BLEND = ("--method", "blend")


@pytest.fixture
def source(clip, tmp_path):
    return clip(tmp_path / "in.mp4", 20, rate=Fraction(25), sound=True)


@pytest.fixture
def frames(tmp_path):
    """Factory for folders of PNG images with these numbers: frames([1, 2, 3], size=(64, 48))."""

    def make(numbers=range(1, 6), *, name="png", size=(64, 48), depth=np.uint8):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        for number in numbers:
            picture = np.full((size[1], size[0], 3), number * 9, depth)
            cv2.imwrite(str(folder / f"shot_{number:05d}_.png"), picture)
        return folder

    return make


def facts(path):
    """(codec, pix_fmt, frames) of a video."""
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        return context.name, context.pix_fmt, sum(1 for _ in container.decode(video=0))


@pytest.mark.parametrize("form", ["frames", "positional"])
def test_a_folder_of_frames_becomes_a_video(tlbvfi, frames, tmp_path, form):
    words = ["--frames", frames()] if form == "frames" else [frames()]
    code, out, err = tlbvfi("interpolate", *words, "out.mp4", "--input-fps", 16, *BLEND, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["frames"] == 9
    assert facts(tmp_path / "out.mp4") == ("h264", "yuv420p", 9)


@pytest.mark.parametrize(
    ("output", "codec", "first"),
    [
        ("made/", "auto", "frame_000001.png"),
        ("made", "png16", "frame_000001.png"),
        ("made", "jpeg", "frame_000001.jpg"),
        ("made/", "exr", "frame_000001.exr"),
        ("made/f%04d.tif", "auto", "f0001.tif"),
    ],
)
def test_a_folder_or_numbered_images_are_an_output(tlbvfi, source, tmp_path, output, codec, first):
    words = ["interpolate", source, output, "--codec", codec, *BLEND]
    code, out, _ = tlbvfi(*words, "--json")
    assert code == 0
    assert json.loads(out)["frames"] == 39
    names = sorted(path.name for path in (tmp_path / "made").iterdir())
    assert (len(names), names[0]) == (39, first)
    assert (tmp_path / "output" / "tlbvfi_chunks").is_dir()
    assert "already there and verified" in tlbvfi(*words)[2]


def test_ctrl_c_while_images_are_written_prints_the_command_that_resumes(
    tlbvfi, source, tmp_path, monkeypatch
):
    from comfyui_tlbvfi.encoding import sequence

    written, write = [], sequence._write

    def interrupted(path, encode, texts):
        written.append(path)
        if len(written) == 9:
            raise KeyboardInterrupt
        write(path, encode, texts)

    monkeypatch.setattr(sequence, "_write", interrupted)
    code, _, err = tlbvfi("interpolate", source, "made/", *BLEND, "--overwrite")
    assert code == 130
    there = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "made").glob("*.png")}
    assert len(there) >= 7
    words = err.splitlines()[-1].split()
    assert words[:2] == ["tlbvfi", "resume"]
    code, out, _ = tlbvfi(*words[1:], "--json")
    assert code == 0
    assert json.loads(out)["frames_made"] == 0
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "made").glob("*.png")}
    assert len(now) == 39
    assert now.items() >= there.items()


MEZZANINE = ("--mezzanine", "ffv1", "--session", "mine", "--chunk-frames", 8)


def test_lossless_chunks_are_encoded_once_at_the_end(tlbvfi, source, tmp_path):
    code, out, err = tlbvfi(
        *("interpolate", source, "out.mp4", *BLEND, *MEZZANINE, "--keep-chunks", "--json"),
        *("--codec", "h264", "--crf", 18),
    )
    assert (code, err) == (0, "")
    assert json.loads(out)["frames"] == 39
    assert facts(tmp_path / "out.mp4") == ("h264", "yuv420p", 39)
    sessions = tmp_path / "output" / "tlbvfi_chunks"
    assert [path.name for path in sessions.iterdir()] == ["mine"]
    assert len(list((sessions / "mine").glob("chunk_*.mkv"))) == 5
    # As if the frames had gone straight to that encoder.
    tlbvfi("interpolate", source, "ffv1.mkv", *BLEND, "--codec", "ffv1")
    with av.open("ffv1.mkv") as truth, av.open("out.mp4") as made:
        pairs = zip(truth.decode(video=0), made.decode(video=0), strict=True)
        errors = [
            np.mean((a.to_ndarray().astype(float) - b.to_ndarray().astype(float)) ** 2)
            for a, b in pairs
        ]
    assert 10 * np.log10(255**2 / np.mean(errors)) > 38


def test_a_kept_mezzanine_is_encoded_anew_without_interpolating(
    tlbvfi, source, tmp_path, monkeypatch
):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, *MEZZANINE, "--keep-chunks")
    from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod

    monkeypatch.setattr(BlendMethod, "between", None)
    code, out, _ = tlbvfi("concat", "mine", "out.mkv", "--codec", "hevc", "--crf", 20, "--json")
    assert code == 0
    assert json.loads(out)["frames"] == 39
    assert facts(tmp_path / "out.mkv")[0] == "hevc"
    with av.open("out.mkv") as made, av.open(str(source)) as given:
        sound = [[bytes(p) for p in each.demux(audio=0) if p.size] for each in (made, given)]
    assert sound[0] == sound[1]
    assert tlbvfi("concat", "mine", "made/")[0] == 0
    assert len(list((tmp_path / "made").glob("frame_*.png"))) == 39
    code, _, err = tlbvfi("concat", "mine", "out.mkv", "--codec", "h264")
    assert code == 1
    assert "out.mkv exists" in err
    code, _, err = tlbvfi("concat", "mine", "new.mp4")
    assert code == 1
    assert "choose .mkv or .nut, or name a codec to have them encoded once more" in err
    assert tlbvfi("concat", "mine", "copy.mkv")[0] == 0
    assert facts(tmp_path / "copy.mkv")[0] == "ffv1"


def test_ctrl_c_in_the_final_encode_is_gone_on_with(tlbvfi, source, tmp_path, monkeypatch):
    from comfyui_tlbvfi.encoding import mezzanine

    monkeypatch.setattr(mezzanine, "FRAMES_PER_CHUNK", 10)
    decoded, convert = [], mezzanine.convert

    def interrupted(*arguments):
        decoded.append(1)
        if len(decoded) == 25:
            raise KeyboardInterrupt
        return convert(*arguments)

    monkeypatch.setattr(mezzanine, "convert", interrupted)
    code, _, err = tlbvfi("interpolate", source, "out.mp4", *BLEND, *MEZZANINE)
    assert code == 130
    assert "tlbvfi resume mine" in err
    code, out, _ = tlbvfi("resume", "mine", "--json")
    assert code == 0
    assert json.loads(out)["frames_made"] == 0
    assert len(decoded) == 25 + 39 - 20
    assert facts(tmp_path / "out.mp4")[2] == 39


def test_what_a_job_killed_after_its_last_rename_left_is_removed(
    tlbvfi, source, tmp_path, monkeypatch
):
    from comfyui_tlbvfi.tlbvfi import join

    def killed(*_, **__):
        raise KeyboardInterrupt

    words = ("interpolate", source, "out.mp4", *BLEND, *MEZZANINE)
    sessions = tmp_path / "output" / "tlbvfi_chunks"
    with monkeypatch.context() as patch:
        patch.setattr(join, "clean_up", killed)
        assert tlbvfi(*words)[0] == 130
    assert {path.name for path in sessions.iterdir()} == {"mine", "mine.final"}
    code, out, _ = tlbvfi(*words, "--json")
    assert (code, json.loads(out)["was_done"]) == (0, True)
    assert [path.name for path in sessions.iterdir()] == ["mine"]
    assert not list(sessions.glob("*/chunk_*"))


def test_another_final_encoder_with_the_same_chunks_makes_no_frame_again(tlbvfi, source):
    words = ["interpolate", source, *BLEND, *MEZZANINE, "--keep-chunks", "--json"]
    tlbvfi(*words, "a.mp4", "--crf", 18)
    code, out, _ = tlbvfi(*words, "b.mp4", "--crf", 30)
    assert code == 0
    assert json.loads(out)["frames_made"] == 0
    code, _, err = tlbvfi(*words, "b.mp4", "--crf", 20)
    assert code == 1
    assert "b.mp4 exists" in err
    assert json.loads(tlbvfi(*words, "b.mp4", "--crf", 30)[1])["was_done"]


@pytest.mark.parametrize(
    ("codec", "crf", "name"),
    [("prores", None, "prores"), ("h264-lossless", None, "h264"), ("h264", 4, "h264")],
)
def test_mezzanines_of_every_kind(tlbvfi, source, tmp_path, codec, crf, name):
    options = [] if crf is None else ["--mezzanine-crf", crf]
    code, out, _ = tlbvfi(
        *("interpolate", source, "out.mp4", *BLEND, "--mezzanine", codec, *options),
        *("--keep-chunks", "--session", "m", "--json"),
    )
    assert code == 0
    assert json.loads(out)["frames"] == 39
    (chunk,) = (tmp_path / "output" / "tlbvfi_chunks" / "m").glob("chunk_*")
    assert facts(chunk)[0] == name


def test_a_lossy_session_is_encoded_again_with_a_word_on_it(tlbvfi, source, caplog):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, "--session", "mine", "--keep-chunks")
    assert tlbvfi("concat", "mine", "small.mp4", "--crf", 40)[0] == 0
    assert "Session mine holds h264: its pictures are compressed a second time." in caplog.messages


def test_sound_does_not_come_back_at_the_wrong_speed(tlbvfi, source, tmp_path):
    tlbvfi(
        *("interpolate", source, "slow.mp4", *BLEND, "--slowmo", 2),
        *("--session", "mine", "--keep-chunks"),
    )
    assert tlbvfi("concat", "mine", "again.mp4")[0] == 0
    with av.open("again.mp4") as container:
        assert not container.streams.audio


def test_probe_takes_a_folder(tlbvfi, frames):
    found = json.loads(tlbvfi("probe", frames(), "--input-fps", "23.976", "--json")[1])
    assert (found["rate"], found["frame_count"], found["codec"]) == ("24000/1001", 5, "png")


def test_resume_of_a_job_that_overwrites_does_not_begin_anew(tlbvfi, interrupted, source):
    (source.parent / "out.mp4").write_text("old")
    words = ["interpolate", source, "out.mp4", *BLEND, "--chunk-frames", 4, "--overwrite"]
    err = interrupted(*words)
    code, out, _ = tlbvfi(*err.splitlines()[-1].split()[1:], "--json")
    assert code == 0
    assert json.loads(out)["frames_made"] < 39


def test_verify_takes_a_folder_of_images(tlbvfi, frames):
    folder = frames()
    assert tlbvfi("verify", folder, "--deep")[0] == 0
    path = folder / "shot_00003_.png"
    path.write_bytes(path.read_bytes()[:-60])
    assert tlbvfi("verify", folder)[0] == 0
    code, out, _ = tlbvfi("verify", folder, "--deep")
    assert code == 1
    assert "shot_00003_.png is damaged" in out
    path.unlink()
    assert "shot_00004_.png does not follow shot_00002_.png" in tlbvfi("verify", folder)[1]


def bad(*words, message):
    return pytest.param(words, message, id=message[:30])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        bad("gap", "out.mp4", message="shot_00004_.png does not follow shot_00002_.png"),
        bad("mixed", "out.mp4", message="shot_00003_.png has another size or depth"),
        bad("deep", "out.mp4", message="shot_00003_.png has another size or depth"),
        bad("empty", "out.mp4", message="empty contains no images"),
        bad("one", "out.mp4", message="only one frame"),
        bad("png", "png/", message="png is the source itself"),
        bad("png", "png/x_%d.png", message="png is the source itself"),
        bad("png", "out", message="out has no suffix: write out.mp4 for a video or out/"),
        bad("png", "out.png", message="out.png names one image and the output has many"),
        bad("png", "made/", "--codec", "h264", message="made is a folder and h264 makes a video"),
        bad("png", "out.mp4", "--codec", "png", message="png makes images and .mp4 is a video"),
        bad("png", "made/", "--crf", "18", message=".png images take no crf (18): leave it out"),
        bad("png", "%d.jpg", "--codec", "png16", message="png16 does not make .jpg images"),
        bad("png", "file/%d.png", message="file"),
        bad("png", "out.mp4", "--mezzanine", "h264", message="is not a mezzanine, because quality"),
        bad("png", "out.mp4", "--mezzanine", "nope", message="There is no codec 'nope'"),
        bad("png", "out.mp4", "--mezzanine-crf", "4", message="has no effect without --mezzanine"),
        bad(
            *("png", "out.mp4", "--mezzanine", "ffv1", "--mezzanine-crf", "4"),
            message="ffv1 is lossless and takes no crf",
        ),
        bad("png", "out.mp4", "--mezzanine", "ffv1", "--codec", "ffv1", message="not fit into"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(tlbvfi, frames, tmp_path, words, message):
    frames()
    frames([1, 2, 4], name="gap")
    frames([1], name="one")
    frames([1, 2], name="mixed")
    frames([3], name="mixed", size=(32, 32))
    frames([1, 2], name="deep")
    frames([3], name="deep", depth=np.uint16)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("in the way")
    code, out, err = tlbvfi("interpolate", *words, "--input-fps", 16, *BLEND)
    assert (code, out) == (1, "")
    assert message in err
    assert err.splitlines()[-1].startswith("tlbvfi: ")
    assert "Traceback" not in err
    assert not (tmp_path / "made").exists()


def test_images_of_somebody_else_are_named(tlbvfi, frames, tmp_path):
    folder = frames([3], name="made")
    code, _, err = tlbvfi(
        *("interpolate", frames(), "made/shot_%05d_.png", "--input-fps", 16, *BLEND)
    )
    assert code == 1
    assert "shot_00003_.png exists and was not made by this job" in err
    assert len(list(folder.iterdir())) == 1
    assert list((tmp_path / "output" / "tlbvfi_chunks").glob("*/chunk_*")) == []


ALIKE = "E\u0301_003.PNG"  # in capitals, and with an accent of its own


@pytest.fixture
def folding_disk(monkeypatch):
    """A disk that takes names for one that differ in case or in how an accent is written."""

    def folded(path):
        return unicodedata.normalize("NFC", str(path.absolute())).casefold()

    def exists(path):
        return any(folded(each) == folded(path) for each in path.absolute().parent.iterdir())

    monkeypatch.setattr(Path, "samefile", lambda path, other: folded(path) == folded(other))
    monkeypatch.setattr(Path, "exists", exists)


def test_names_that_a_disk_takes_for_ours_are_found(tmp_path, folding_disk):
    (tmp_path / ALIKE).touch()
    pattern = image_pattern(tmp_path / "\u00e9_%03d.png")
    assert pattern.found() == {3: tmp_path / "\u00e9_003.png"}


def test_names_that_only_look_like_ours_are_left_alone(tmp_path):
    (tmp_path / ALIKE).touch()
    assert image_pattern(tmp_path / "\u00e9_%03d.png").found() == {}


def test_a_full_disk_leaves_whole_images_and_the_advice(tlbvfi, frames, tmp_path, monkeypatch):
    import errno

    from comfyui_tlbvfi.encoding import sequence

    def full(data, texts):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sequence, "with_texts", full)
    code, _, err = tlbvfi("interpolate", frames(), "made/", "--input-fps", 16, *BLEND)
    assert code == 1
    assert "The disk is full while writing" in err
    assert "running the same job again resumes it" in err
    assert list((tmp_path / "made").iterdir()) == []
