"""`scripts/interpolate_pipeline.py`: familiar flags, the same engine underneath."""

import subprocess
import sys
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location

import av
import cv2
import numpy as np
import pytest


@pytest.fixture
def script(root, monkeypatch, tmp_path):
    """The script as a module, run in an empty folder."""
    spec = spec_from_file_location("pipeline", root / "scripts" / "interpolate_pipeline.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    return module


@pytest.fixture
def frames(tmp_path):
    """A folder of six PNG images."""
    folder = tmp_path / "shot"
    folder.mkdir()
    for number in range(6):
        image = np.full((48, 64, 3), 40, np.uint8)
        image[10:30, 4 + 4 * number : 24 + 4 * number] = (200, 180, 60)
        cv2.imwrite(str(folder / f"shot_{number:05}_.png"), image)
    return folder


def facts(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return stream.average_rate, sum(1 for _ in container.decode(video=0))


def test_a_video_becomes_a_smooth_one_beside_it(script, clip, tmp_path):
    source = clip(tmp_path / "clip.mp4", 8, rate=Fraction(25), sound=True)
    assert script.main([str(source), "--method", "blend", "--crf", "20", "--preset", "fast"]) == 0
    assert facts(tmp_path / "clip_smooth.mp4") == (50, 15)


def test_frames_take_their_rate_from_fps(script, frames, tmp_path):
    words = ["--frames", "shot", "--fps", "16", "--method", "flow", "--output", "out.mp4"]
    assert script.main(words) == 0
    assert facts(tmp_path / "out.mp4") == (32, 11)


def test_the_output_of_frames_lies_beside_their_folder(script, frames, tmp_path):
    words = ["--frames", "shot/", "--fps", "24000/1001", "--method", "blend", "--times", "2"]
    assert script.main(words) == 0
    assert facts(tmp_path / "shot_smooth.mp4") == (Fraction(96000, 1001), 21)


@pytest.mark.parametrize(("folder", "given"), [("shot", "."), ("shot/deeper", "..")])
def test_the_folder_one_is_in_has_a_name_too(script, frames, tmp_path, monkeypatch, folder, given):
    (tmp_path / folder).mkdir(exist_ok=True)
    monkeypatch.chdir(tmp_path / folder)
    assert script.main(["--frames", given, "--fps", "16", "--method", "blend"]) == 0
    assert facts(tmp_path / "shot_smooth.mp4") == (32, 11)


def test_kept_frames_are_those_of_the_video_and_the_sources_are_exact(script, frames, tmp_path):
    words = ["--frames", "shot", "--fps", "16", "--method", "blend", "--keep-frames"]
    assert script.main(words) == 0
    assert facts(tmp_path / "shot_smooth.mp4") == (32, 11)
    kept = sorted((tmp_path / "shot_smooth_frames").glob("*.png"))
    assert len(kept) == 11
    for number, source in enumerate(sorted(frames.glob("*.png"))):
        assert np.array_equal(cv2.imread(str(kept[2 * number])), cv2.imread(str(source)))
    assert not list(tmp_path.glob("output/tlbvfi_chunks/*/chunk_*"))


def test_the_same_command_again_does_nothing_unless_told_to_overwrite(
    script, frames, tmp_path, capsys
):
    words = ["--frames", "shot", "--fps", "16", "--method", "blend", "--keep-frames"]
    script.main(words)
    before = (tmp_path / "shot_smooth.mp4").stat().st_mtime_ns
    capsys.readouterr()
    assert script.main(words) == 0
    assert "already there" in capsys.readouterr().err
    assert (tmp_path / "shot_smooth.mp4").stat().st_mtime_ns == before
    assert script.main([*words, "--overwrite"]) == 0
    assert (tmp_path / "shot_smooth.mp4").stat().st_mtime_ns > before


def test_an_interrupted_run_with_kept_frames_goes_on(script, frames, tmp_path, monkeypatch):
    from comfyui_tlbvfi.encoding import delivery

    def interrupted(*given, **options):
        raise KeyboardInterrupt

    words = ["--frames", "shot", "--fps", "16", "--method", "blend", "--keep-frames"]
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "write_images", interrupted)
        assert script.main(words) == 130
    assert (tmp_path / "shot_smooth.mp4").is_file()
    assert script.main(words) == 0
    assert len(list((tmp_path / "shot_smooth_frames").glob("*.png"))) == 11


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a video, or --frames DIR"),
        (["a.mp4", "--frames", "shot"], "give a video, or --frames DIR"),
        (["--frames", "shot"], "--frames needs --fps"),
        (["a.mp4", "--fps", "60"], "tlbvfi interpolate --fps"),
        (["a.mp4", "--method", "magic"], "invalid choice"),
    ],
)
def test_a_wrong_command_is_a_usage_error(script, words, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        script.main(words)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_errors_and_exit_codes_are_those_of_the_engine(script, capsys):
    assert script.main(["missing.mp4", "--method", "blend"]) == 1
    assert "missing.mp4 does not exist" in capsys.readouterr().err


def test_it_runs_as_a_program_from_a_checkout_that_is_not_installed(root, clip, tmp_path):
    source = clip(tmp_path / "clip.mp4", 6, rate=Fraction(25))
    command = [sys.executable, str(root / "scripts" / "interpolate_pipeline.py")]
    subprocess.run(
        [*command, str(source), "--method", "blend", "--output", "out.mp4"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert facts(tmp_path / "out.mp4") == (50, 11)
