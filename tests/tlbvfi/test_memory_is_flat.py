"""A long clip needs the memory of a short one."""

import subprocess
import sys
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("measures peak memory as Linux reports it", allow_module_level=True)

# Not ru_maxrss: a process inherits it from its parent, here a large test runner.
JOB = """
import re, sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
root, source, output, rate, fps = sys.argv[1:]
spec = spec_from_file_location(
    "p", Path(root) / "__init__.py", submodule_search_locations=[root])
sys.modules["p"] = module = module_from_spec(spec)
spec.loader.exec_module(module)
from fractions import Fraction
from p.encoding.source import open_source
from p.tlbvfi.config import JobConfig
from p.tlbvfi.job import Destination, run_job
from p.tlbvfi.methods.blend import BlendMethod
rate = None if rate == "-" else Fraction(rate)
with open_source(source, input_rate=rate) as opened:
    config = JobConfig(fps=None if fps == "-" else Fraction(fps))
    run_job(opened, BlendMethod(), config, Destination(output=Path(output)))
print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


@pytest.fixture
def peak(root, tmp_path):
    """Peak memory of a job in its own process, in kB."""

    def measure(source, rate="-", output="out.mp4", fps="-"):
        words = [root, source, tmp_path / f"{source.stem}_{output}", rate, fps]
        command = [sys.executable, "-c", JOB, *map(str, words)]
        return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)

    return measure


def test_ten_times_the_frames_need_no_more_memory(clip, peak, tmp_path):
    short = clip(tmp_path / "short.mp4", 60, rate=Fraction(25), size=(160, 120))
    long = clip(tmp_path / "long.mp4", 600, rate=Fraction(25), size=(160, 120))
    assert peak(long) <= 1.05 * peak(short)


def test_a_pause_between_two_frames_needs_no_more_memory(peak, tmp_path):
    def paused(seconds):
        path = tmp_path / f"{seconds}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for number in range(4):
                picture = av.VideoFrame(320, 240, "yuv420p")
                picture.pts = number if number < 2 else number + 25 * seconds
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        return path

    assert peak(paused(8), fps="50") <= 1.1 * peak(paused(1), fps="50")


@pytest.mark.slow
def test_2000_frames_need_no_more_than_5_percent_above_200(clip, peak, tmp_path):
    short = clip(tmp_path / "short.mp4", 200, rate=Fraction(25), size=(640, 360))
    long = clip(tmp_path / "long.mp4", 2000, rate=Fraction(25), size=(640, 360))
    assert peak(long) <= 1.05 * peak(short)


@pytest.fixture
def pictures(tmp_path):
    """Factory for folders of `count` PNG images."""

    def make(count):
        folder = tmp_path / f"png{count}"
        folder.mkdir()
        for number in range(count):
            picture = np.full((120, 160, 3), number % 250, np.uint8)
            cv2.imwrite(str(folder / f"f_{number:05d}.png"), picture)
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize("output", ["out.mp4", "out/%06d.png", "out/%06d.exr"])
def test_a_folder_of_2000_png_needs_no_more_than_one_of_200(peak, pictures, output):
    assert peak(pictures(2000), "25", output) <= 1.05 * peak(pictures(200), "25", output)
