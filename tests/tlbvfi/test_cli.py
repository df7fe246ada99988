"""The command line: exit codes, one sentence per mistake, data on stdout alone."""

import errno
import importlib.metadata
import json
import logging
import os
import re
import subprocess
import sys
from fractions import Fraction
from importlib.metadata import PackageNotFoundError
from io import BytesIO, TextIOWrapper
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import torch
from comfyui_tlbvfi.tlbvfi import device
from comfyui_tlbvfi.tlbvfi.cli import inspect, main, sessions
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from comfyui_tlbvfi.tlbvfi.model import kernels
from filelock import FileLock

ONE_SENTENCE = r"tlbvfi: [^\n]+\n"


@pytest.fixture
def source(clip, tmp_path):
    return clip(tmp_path / "in.mp4", 20, rate=Fraction(25), sound=True)


BLEND = ("--method", "blend")


def process(root, *words):
    """A command of the operating system that runs `tlbvfi` with these words."""
    program = (
        "import sys, importlib.util as u\n"
        f"s = u.spec_from_file_location('p', {str(root / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(root)!r}])\n"
        "m = sys.modules['p'] = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "from p.tlbvfi.cli import main; sys.exit(main())\n"
    )
    return [sys.executable, "-c", program, *map(str, words)]


def test_help_is_instant_and_loads_neither_torch_nor_pyav(root):
    code = (
        "import sys, importlib.util as u\n"
        f"s = u.spec_from_file_location('p', {str(root / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(root)!r}])\n"
        "m = sys.modules['p'] = u.module_from_spec(s); s.loader.exec_module(m)\n"
        "from p.tlbvfi.cli import build_parser; build_parser().format_help()\n"
        "assert not {'torch', 'av', 'cv2', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_interpolate_tells_the_result_as_json_on_stdout(tlbvfi, source):
    code, out, _ = tlbvfi("interpolate", source, "out.mp4", *BLEND, "--json")
    assert code == 0
    assert json.loads(out)["frames"] == 39


@pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev/full")
@pytest.mark.parametrize(
    ("out", "code", "told"),
    [
        ("/dev/full", 1, "tlbvfi: standard output cannot be used: No space left on device.\n"),
        ("closed pipe", 1, ""),
        ("closed", 0, ""),
    ],
)
def test_results_that_nobody_can_receive_are_no_crash(root, tmp_path, out, code, told):
    reading, writing = os.pipe()
    os.close(reading)
    file = os.open("/dev/full", os.O_WRONLY) if out == "/dev/full" else writing
    words = process(root, "sessions", "--json")
    if out == "closed":
        words = ["sh", "-c", 'exec "$@" >&-', "sh", *words]
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        words, cwd=tmp_path, env=environment, stdout=file, stderr=subprocess.PIPE, text=True
    )
    for each in {file, writing}:
        os.close(each)
    assert (done.returncode, done.stderr) == (code, told)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev/full")
@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "<&- >&- 2>&-"])
def test_messages_that_nobody_can_receive_stop_no_job(root, tmp_path, source, redirection):
    done, failed = (
        subprocess.run(
            ["sh", "-c", f'exec "$@" {redirection}', "sh", *process(root, *words)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
        )
        for words in (
            ("interpolate", source, "out.mp4", *BLEND, "--codec", "h264"),
            ("probe", "missing.mp4"),
        )
    )
    assert (done.returncode, done.stdout) == (0, b"")
    assert (failed.returncode, failed.stdout) == (1, b"")
    assert main(["verify", str(tmp_path / "out.mp4"), "--deep"]) == 0


def test_progress_and_messages_go_to_stderr(tlbvfi, source):
    code, out, err = tlbvfi("interpolate", source, "out.mp4", *BLEND)
    assert (code, out) == (0, "")
    assert "39/39" in err


def test_every_pass_over_the_data_shows_its_progress(interrupted, tlbvfi, source):
    command = ("interpolate", source, "out.mp4", *BLEND, "--chunk-frames", 4)
    interrupted(*command)
    _, _, err = tlbvfi(*command)
    stages = re.findall(r"(\w+): 100%\|[^\r\n]*? (\d+)/\d+", err)
    assert list(dict(stages)) == ["reading", "joining", "verifying"]
    assert dict(stages)["joining"] == dict(stages)["verifying"] == "39"


def test_lines_of_the_log_stand_on_lines_of_their_own(tlbvfi, source, monkeypatch):
    from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod

    between = BlendMethod.between

    def talkative(self, *arguments):
        logging.getLogger("tlbvfi.blend").warning("a word on the way.")
        return between(self, *arguments)

    monkeypatch.setattr(BlendMethod, "between", talkative)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as outside of tests
    _, _, err = tlbvfi("interpolate", source, "out.mp4", *BLEND)
    lines = re.split(r"[\r\n]+", err)
    assert lines.count("tlbvfi: a word on the way.") == err.count("a word") == 19


def test_what_becomes_of_the_sound_is_told_once(tlbvfi, source, caplog):
    code, _, err = tlbvfi("interpolate", source, "out.webm", *BLEND)
    assert code == 0
    assert (err + caplog.text).count("it becomes libopus") == 1


@pytest.mark.parametrize("words", [("-v", "probe"), ("probe", "-v")])
def test_verbose_may_stand_before_the_command(tlbvfi, words, caplog):
    tlbvfi(*words, "missing.mp4")
    assert "Traceback" in caplog.text


def test_json_may_stand_before_the_command(tlbvfi, source):
    assert json.loads(tlbvfi("--json", "probe", source)[1])["width"] == 64


def test_the_same_command_again_says_that_it_is_done(tlbvfi, source):
    tlbvfi("interpolate", source, "out.mp4", *BLEND)
    code, _, err = tlbvfi("interpolate", source, "out.mp4", *BLEND)
    assert code == 0
    assert "already there and verified; --overwrite makes it again" in err


def test_ctrl_c_prints_the_command_that_resumes_and_it_does(tlbvfi, interrupted, source):
    err = interrupted("interpolate", source, "out.mp4", *BLEND, "--chunk-frames", 4)
    words = err.splitlines()[-1].split()
    assert words[:2] == ["tlbvfi", "resume"]
    code, out, _ = tlbvfi(*words[1:], "--json")
    result = json.loads(out)
    assert code == 0
    assert result["frames"] == 39
    assert result["frames_made"] < 39


def test_names_with_colons_and_percent_signs_are_just_names(tlbvfi, source, monkeypatch):
    monkeypatch.chdir(source.parent)
    assert tlbvfi("interpolate", "in.mp4", "take:2 %03d.mp4", *BLEND)[0] == 0
    assert tlbvfi("verify", "take:2 %03d.mp4", "--deep")[0] == 0


def test_a_name_that_a_console_cannot_show_is_still_told(source, monkeypatch):
    named = source.rename(source.with_name("動画.mp4"))
    console = BytesIO()
    monkeypatch.setattr(sys, "stdout", TextIOWrapper(console, "cp1252", write_through=True))
    assert main(["probe", str(named)]) == 0
    assert rb"\u52d5" in console.getvalue()


def test_what_the_system_refuses_is_one_sentence(tlbvfi):
    code, _, err = tlbvfi("verify", "n" * 300)
    assert code == 1
    assert re.fullmatch(ONE_SENTENCE, err)


@pytest.mark.parametrize(
    ("kind", "named"), [("InvalidDataError", "in.mp4"), ("PermissionError", ""), ("BugError", "")]
)
def test_what_ffmpeg_raises_is_one_sentence(tlbvfi, source, monkeypatch, kind, named):
    def fail(*arguments, **options):
        raise getattr(av.error, kind)(1, "Something went wrong", named or None)

    monkeypatch.setattr("comfyui_tlbvfi.encoding.probe.probe", fail)
    code, _, err = tlbvfi("probe", source)
    assert code == 1
    assert re.fullmatch(ONE_SENTENCE, err)
    assert f"{named}: FFmpeg failed (Something went wrong)".removeprefix(": ") in err


def test_what_ffmpeg_raises_ends_one_of_many_videos_alone(tlbvfi, source, monkeypatch):
    from comfyui_tlbvfi.tlbvfi import chunks

    def fail(*arguments, **options):
        raise av.error.InvalidDataError(1, "Something went wrong")

    monkeypatch.setattr(chunks, "load_frames", fail)
    code, _, err = tlbvfi("interpolate", source, "--out-dir", "many", *BLEND)
    assert code == 1
    assert "0 of 1 videos done" in err


def test_concat_joins_again_what_was_kept(tlbvfi, source, tmp_path):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, "--keep-chunks", "--session", "mine")
    code, out, _ = tlbvfi("concat", "mine", "again.mp4", "--json")
    assert code == 0
    assert json.loads(out)["frames"] == 39
    assert (tmp_path / "again.mp4").stat().st_size == (tmp_path / "out.mp4").stat().st_size


def test_verify_has_an_exit_code_for_sessions_and_files(tlbvfi, source, tmp_path):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, "--keep-chunks", "--session", "mine")
    assert tlbvfi("verify", "mine")[0] == 0
    assert tlbvfi("verify", "out.mp4", "--deep")[0] == 0
    chunk = tmp_path / "output" / "tlbvfi_chunks" / "mine" / "chunk_000000.mp4"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    code, out, _ = tlbvfi("verify", "mine")
    assert code == 1
    assert "FAIL size and checksum" in out


def test_a_session_without_chunks_is_as_good_as_what_it_was_joined_into(tlbvfi, source, tmp_path):
    output = tmp_path / "out.mp4"
    tlbvfi("interpolate", source, output, *BLEND, "--session", "mine")
    assert tlbvfi("verify", "mine")[1].startswith(f"{output}: good\n")
    output.write_bytes(output.read_bytes()[:-9])
    code, out, _ = tlbvfi("verify", "mine")
    assert code == 1
    assert "FAIL size" in out
    output.unlink()
    code, out, _ = tlbvfi("verify", "mine")
    assert code == 1
    assert "FAIL file: is missing" in out


def test_a_failure_of_the_system_that_names_no_file_is_a_sentence(tlbvfi, monkeypatch):
    def fail(arguments):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(sessions, "run_sessions", fail)
    code, out, err = tlbvfi("sessions")
    assert (code, out) == (1, "")
    assert err == f"tlbvfi: the system failed ({os.strerror(errno.EIO)}): -v shows where.\n"


def test_verify_shows_its_progress(tlbvfi, source):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, "--session", "mine", "--keep-chunks")
    whole, uncounted = r"verifying: 100%\|[^\r\n]*? 39/39", "verifying: 39frame"
    assert re.search(whole, tlbvfi("verify", "mine")[2])
    assert re.search(uncounted, tlbvfi("verify", "out.mp4")[2])
    assert re.search(f"(?s){uncounted}.*{whole}", tlbvfi("verify", "out.mp4", "--deep")[2])
    assert "verifying" not in tlbvfi("verify", "mine", "--json")[2]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ImportError("libGL.so.1: cannot open shared object file", name="cv2"),
            "a library cannot be loaded (libGL.so.1: cannot open shared object file): check its "
            "installation, or put opencv-python-headless in place of opencv-python where there is no "
            "libGL.",
        ),
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            "a library cannot be loaded (No module named 'torch'): check its installation.",
        ),
        (
            RuntimeError("can't start new thread"),
            "too many processes, close other programs or raise the limit (ulimit -u): can't start "
            "new thread",
        ),
    ],
)
def test_what_a_machine_lacks_is_a_sentence(tlbvfi, monkeypatch, error, told):
    def fail(arguments):
        raise error

    monkeypatch.setattr(sessions, "run_sessions", fail)
    assert tlbvfi("sessions") == (1, "", f"tlbvfi: {told}\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows removes no folder that is in use")
def test_a_current_folder_that_was_removed_is_told(tlbvfi, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    told = "tlbvfi: The current folder has been removed: change to another one.\n"
    assert tlbvfi("doctor") == (1, "", told)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tlbvfi, source, monkeypatch):
    def refuse(path, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    code, out, err = tlbvfi("verify", source)
    assert (code, out) == (1, "")
    assert err == f"tlbvfi: {source} cannot be used: Permission denied.\n"


def test_sessions_are_listed_and_removed(tlbvfi, source):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, "--session", "mine")
    assert json.loads(tlbvfi("sessions", "--json")[1])[0]["id"] == "mine"
    code, out, err = tlbvfi("sessions", "--remove", "mine")
    assert (code, out) == (0, "")
    assert "There are no sessions in" in err


def test_a_session_that_ends_while_sessions_are_listed_is_passed_over(tlbvfi, source, monkeypatch):
    from comfyui_tlbvfi.encoding.session import Session

    for name in ("a", "b"):
        tlbvfi("interpolate", source, f"{name}.mp4", *BLEND, "--session", name)
    records = Session.records

    def after_removal(session):
        if session.id == "a":
            session.remove()
        return records(session)

    monkeypatch.setattr(Session, "records", after_removal)
    code, out, err = tlbvfi("sessions", "--json")
    assert (code, err) == (0, "")
    assert [row["id"] for row in json.loads(out)] == ["b"]


def test_probe_tells_the_exact_rate(tlbvfi, source):
    facts = json.loads(tlbvfi("probe", source, "--count", "--json")[1])
    assert (facts["rate"], facts["frame_count"], facts["width"]) == ("25", 20, 64)


def test_probe_refuses_a_rate_for_a_file_that_has_one(tlbvfi, source):
    code, _, err = tlbvfi("probe", source, "--input-fps", "10")
    assert code == 1
    assert "leave" in err
    assert re.fullmatch(ONE_SENTENCE, err)


def test_doctor_tells_of_each_gpu_whether_it_and_triton_work(tlbvfi, monkeypatch):
    names = ("GPU A", "GPU B", "GPU C")

    def choose(name):
        if name == "cuda:2":
            raise SettingsError("This PyTorch was not built for GPU C.")
        return torch.device(name)

    monkeypatch.setattr(device, "choose_device", choose)
    memory = SimpleNamespace(total_memory=8 * 10**9)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(names))
    monkeypatch.setattr(torch.cuda, "get_device_name", names.__getitem__)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: memory)
    monkeypatch.setattr(kernels, "has_triton", lambda device: device.index == 0)
    code, out, _ = tlbvfi("doctor", "--json")
    assert code == 0
    assert json.loads(out)["gpu"] == {
        "cuda:0": "GPU A, 8.0 GB, with Triton",
        "cuda:1": "GPU B, 8.0 GB, without Triton",
        "cuda:2": "GPU C, 8.0 GB, This PyTorch was not built for GPU C.",
    }


@pytest.mark.parametrize(("built", "told"), [(None, ", as this PyTorch has no CUDA"), ("12.8", "")])
def test_doctor_tells_why_there_is_no_gpu(tlbvfi, monkeypatch, built, told):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)
    gpus = json.loads(tlbvfi("doctor", "--json")[1])["gpu"]
    assert gpus == {"cuda": f"not available{told}: networks run on the CPU"}


@pytest.mark.parametrize(
    ("installed", "told"),
    [
        ({"opencv-python": "5.0"}, "5.0"),
        ({"opencv-python-headless": "5.0"}, "opencv-python-headless 5.0"),
        (
            {"opencv-python": "5.0", "opencv-contrib-python": "4.9"},
            "5.0, opencv-contrib-python 4.9",
        ),
        ({}, "missing"),
    ],
)
def test_doctor_knows_every_package_that_holds_opencv(tlbvfi, monkeypatch, installed, told):
    def version(package):
        if package not in installed:
            raise PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(inspect, "_encoders", dict)
    assert json.loads(tlbvfi("doctor", "--json")[1])["packages"]["opencv-python"] == told


def test_doctor_names_encoders_models_and_versions(tlbvfi):
    code, out, _ = tlbvfi("doctor", "--json")
    report = json.loads(out)
    assert code == 0
    assert "works" in report["encoders"]["h264"]
    assert report["models"]["flow"] == "needs none"


def bad(*words, message):
    return pytest.param(words, message, id=message[:30])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        bad("missing.mp4", "out.mp4", message="missing.mp4 does not exist"),
        bad("f_%04d.png", "out.mp4", message="name the folder that holds the images"),
        bad("text.mp4", "out.mp4", message="text.mp4 is not a video"),
        bad("sound.m4a", "out.mp4", message="has no video stream; it holds only sound"),
        bad("one.mp4", "out.mp4", message="only one frame"),
        bad("one.png", "out.mp4", message="or for images the folder that holds them"),
        bad("one.png", "out.mp4", "--input-fps", "9", message="leave it out, or name the folder"),
        bad("folder", "out.mp4", message="set the input rate (input_fps, on the command line --"),
        bad("in.mp4", "in.mp4", "--overwrite", message="in.mp4 is the source itself"),
        bad(
            "in.mp4",
            "out.mp4",
            "--times",
            "0",
            message="times must be between 1 and 8, got 0: that would only encode",
        ),
        bad(
            "in.mp4", "out.mp4", "--times", "9", message="got 9: 1 doubles the frames, 8 makes 256"
        ),
        bad("in.mp4", "out.mp4", "--times", "2", "--fps", "60", message="leave it out with fps"),
        bad("in.mp4", "out.mp4", "--fps", "fast", message="a frame rate is a number"),
        bad("in.mp4", "out.mp4", "--start", "9", message="before start"),
        bad("in.mp4", "out.mp4", "--session", "../../x", message="is not a session id"),
        bad("in.mp4", "out.mp4", "--codec", "h265x", message="no codec 'h265x'"),
        bad("in.mp4", "out.mp4", "--codec", "h264_nvenc", message="use h264 instead"),
        bad("in.mp4", "out.mp4", "--codec", "ffv1", message="ffv1 does not fit into a .mp4 file"),
        bad("in.mp4", "out.mp4", "--pix-fmt", "yuv422p12le", message="does not take pix_fmt"),
        bad("in.mp4", "out.mp4", "--crf", "99", message="crf 99 is out of range"),
        bad("in.mp4", "out.mp4", "--crf", "9", "--bitrate", "9M", message="contradict each other"),
        bad("in.mp4", "out.mp4", "--preset", "warp", message="has no preset 'warp'"),
        bad("in.mp4", "out.xyz", message=".xyz"),
        bad("odd.mkv", "out.mp4", message="odd size 63x47"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_1(tlbvfi, source, clip, tmp_path, words, message):
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "folder").mkdir()
    clip(tmp_path / "one.mp4", 1)
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((48, 64, 3), np.uint8))
    clip(tmp_path / "odd.mkv", 5, size=(63, 47), codec="ffv1")
    _strip_video(source, tmp_path / "sound.m4a")
    code, out, err = tlbvfi("interpolate", *words, *BLEND)
    assert (code, out) == (1, "")
    assert message in err
    assert err.splitlines()[-1].startswith("tlbvfi: ")
    assert "Traceback" not in err


def _strip_video(source, target):
    with av.open(str(source)) as given, av.open(str(target), "w", format="ipod") as out:
        sound = out.add_stream_from_template(given.streams.audio[0])
        for packet in given.demux(audio=0):
            if packet.size:
                packet.stream = sound
                out.mux(packet)


def test_tlbvfi_without_a_model_names_file_place_command_and_flow(tlbvfi, source, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "nowhere")
    monkeypatch.delenv("TLBVFI_MODELS", raising=False)
    code, _, err = tlbvfi("interpolate", source, "out.mp4")
    assert code == 1
    for part in ("vimeo_unet.pth", "nowhere", "tlbvfi download tlbvfi", "--method flow"):
        assert part in err


def test_an_output_folder_that_cannot_be_written_is_named(tlbvfi, source, tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, err = tlbvfi("interpolate", source, "file/out.mp4", *BLEND)
    assert code == 1
    assert err.splitlines()[-1].startswith("tlbvfi: file cannot be written (")


def test_an_unknown_session_is_told_with_the_known_ones(tlbvfi, source):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, "--session", "mine")
    for command in (["resume", "other"], ["concat", "other", "x.mp4"], ["verify", "other"]):
        code, _, err = tlbvfi(*command)
        assert code == 1
        assert "There is no session other" in err
        assert "mine" in err


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (["verify", "typo.mp4"], "typo.mp4 does not exist: check the path."),
        (
            ["verify", "smooth/typo.mp4"],
            f"{Path('smooth/typo.mp4')} does not exist: check the path.",
        ),
        (
            ["verify", "gone/frames"],
            f"{Path('gone/frames')} is not a session's folder: check the path",
        ),
        (
            ["resume", "output/tlbvfi_chunks/typo"],
            f"{os.sep}typo is not a session's folder: check the path",
        ),
    ],
)
def test_a_path_where_nothing_is_is_told_as_one(tlbvfi, command, told):
    code, _, err = tlbvfi(*command)
    assert code == 1
    assert told in err


def test_a_session_that_is_not_finished_is_not_joined_and_says_what_to_do(tlbvfi, source, tmp_path):
    words = ["--session", "mine", "--keep-chunks", "--chunk-frames", "4"]
    tlbvfi("interpolate", source, "out.mp4", *BLEND, *words)
    progress = tmp_path / "output" / "tlbvfi_chunks" / "mine" / "progress.jsonl"
    progress.write_text("".join(progress.read_text().splitlines(keepends=True)[:-1]))
    for output in (["part.mp4"], ["part.mp4", "--codec", "h264"], ["part/"]):
        code, _, err = tlbvfi("concat", "mine", *output)
        assert code == 1
        assert "mine is not finished (the chunks after number" in err
        assert "tlbvfi resume" in err


def test_a_session_whose_chunks_were_removed_names_what_it_was_joined_into(tlbvfi, source):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, "--session", "mine")
    code, _, err = tlbvfi("concat", "mine", "again.mp4")
    assert code == 1
    assert "out.mp4 and its chunks removed: use that file" in err
    assert tlbvfi("interpolate", source, "again.mp4", *BLEND, "--session", "mine")[0] == 0


def test_two_processes_do_not_share_a_session(tlbvfi, source, tmp_path):
    folder = tmp_path / "output" / "tlbvfi_chunks" / "mine"
    folder.mkdir(parents=True)
    with FileLock(folder / "lock"):
        code, _, err = tlbvfi("interpolate", source, "out.mp4", *BLEND, "--session", "mine")
    assert code == 1
    assert "Session mine is in use" in err


def test_a_session_of_another_source_names_the_difference_and_how_to_restart(tlbvfi, source, clip):
    tlbvfi("interpolate", source, "out.mp4", *BLEND, "--session", "mine", "--keep-chunks")
    other = clip(source.with_name("other.mp4"), 22, rate=Fraction(25))
    code, _, err = tlbvfi("interpolate", other, "other_out.mp4", *BLEND, "--session", "mine")
    assert code == 1
    assert "source." in err
    assert "--overwrite" in err


def test_a_small_disk_is_told_before_the_job_begins(tlbvfi, source, monkeypatch):
    from comfyui_tlbvfi.encoding import session

    monkeypatch.setattr(session, "free_bytes", lambda folder: 1000)
    code, _, err = tlbvfi("interpolate", source, "out.mp4", *BLEND)
    assert code == 0
    assert "of disk space are needed and 1 kB are free at" in err
    assert "0.0" not in err.split("are free")[0]


def test_a_change_of_size_midway_keeps_what_came_before(tlbvfi, clip, tmp_path):
    a = clip(tmp_path / "a.ts", 12, rate=Fraction(25))
    b = clip(tmp_path / "b.ts", 12, rate=Fraction(25), size=(96, 64))
    (tmp_path / "both.ts").write_bytes(a.read_bytes() + b.read_bytes())
    code, _, err = tlbvfi("interpolate", "both.ts", "out.mp4", *BLEND, "--chunk-frames", 4)
    assert code == 1
    assert "64x48" in err
    assert "96x64" in err
    assert list((tmp_path / "output" / "tlbvfi_chunks").glob("both-*/chunk_*.mp4"))


def test_one_damaged_session_does_not_hide_the_others(tlbvfi, source, tmp_path):
    for name in ("good", "bad"):
        words = ("interpolate", source, f"{name}.mp4", "--method", "blend", "--session", name)
        assert tlbvfi(*words)[0] == 0
    (tmp_path / "output" / "tlbvfi_chunks" / "bad" / "result.json").write_text("[5]")
    code, out, err = tlbvfi("sessions")
    assert code == 0
    assert out.startswith("good")
    assert "result.json is damaged" in err


def test_control_characters_in_tags_and_names_do_not_reach_the_terminal(tlbvfi, clip, tmp_path):
    path = clip(tmp_path / "a.mkv")
    # Windows takes no control characters into names.
    tagged = tmp_path / ("b.mkv" if os.name == "nt" else "b\x1b[31m.mkv")
    with av.open(str(path)) as made, av.open(str(tagged), "w") as out:
        out.metadata["title"] = "x\x1b]0;owned\x07\nrotation 90"
        stream = out.add_stream_from_template(made.streams.video[0])
        for packet in made.demux(video=0):
            if packet.size:
                packet.stream = stream
                out.mux(packet)
    code, shown, _ = tlbvfi("probe", tagged)
    assert code == 0
    assert r"title=x\x1b]0;owned\x07\nrotation 90" in shown
    tagged.unlink()
    code, _, told = tlbvfi("probe", tagged)
    assert code == 1
    assert "\x1b" not in shown + told
