"""Clips with known frames, and jobs that run on them."""

from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest


@pytest.fixture(scope="session")
def clip():
    """Factory for video files in which every frame has different pixels.

    `times` (seconds, multiples of `base`) gives a variable rate; `sound` adds an AAC tone of the
    same length.
    """

    def make(
        path: Path,
        frames: int = 12,
        *,
        rate: Fraction = Fraction(24000, 1001),
        size: tuple[int, int] = (64, 48),
        codec: str = "libx264",
        pix_fmt: str = "yuv420p",
        times: list[Fraction] | None = None,
        start: Fraction = Fraction(0),
        sound: bool = False,
        tags: tuple[int, int, int, int] | None = None,
        base: Fraction = Fraction(1, 90000),
    ) -> Path:
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=rate)
            stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
            if not (times or start):
                base = 1 / rate
            stream.codec_context.time_base = stream.time_base = base
            if codec == "libx264":
                stream.codec_context.options = {"crf": "10", "preset": "ultrafast", "g": "5"}
            if tags:
                context = stream.codec_context
                context.color_primaries, context.color_trc = tags[:2]
                context.colorspace, context.color_range = tags[2:]
            tone = out.add_stream("aac", rate=48000, layout="stereo") if sound else None
            out.start_encoding()
            shown = times or [start + i / rate for i in range(frames)]
            for number, time in enumerate(shown):
                picture = _picture(number, *size, pix_fmt)
                picture.pts, picture.time_base = int(time / base), base
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
            if tone is not None:
                _add_tone(out, tone, frames / rate)
        return path

    return make


def _picture(number: int, width: int, height: int, pix_fmt: str) -> av.VideoFrame:
    """A bright square that moves over a gradient, one step per frame."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[..., 0] = np.linspace(30, 200, width)[None]
    rgb[..., 1] = np.linspace(40, 180, height)[:, None]
    rgb[..., 2] = 40 + number * 7 % 150
    left = 4 + number * 2 % (width - 20)
    rgb[height // 4 : height // 4 + 12, left : left + 12] = (240, 230, 40)
    return av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=pix_fmt)


def _add_tone(out, stream, seconds: Fraction) -> None:
    for first in range(0, int(seconds * 48000), 1024):
        t = np.arange(first, first + 1024) / 48000
        wave = (0.2 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = 48000, first, Fraction(1, 48000)
        out.mux(stream.encode(frame))
    out.mux(stream.encode(None))


@pytest.fixture(params=["autocast", "device", "dtype"])
def around(request):
    """A context in which the calling program has set PyTorch to something else than usual."""
    import torch

    @contextmanager
    def float64_by_default():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(before)

    return {
        "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
        "device": partial(torch.device, "meta"),
        "dtype": float64_by_default,
    }[request.param]


@pytest.fixture
def run(tmp_path):
    """Run a whole job: run(source_path, "out.mp4", times=1, codec="ffv1", ...)."""
    from comfyui_tlbvfi.encoding.profiles import EncoderSettings
    from comfyui_tlbvfi.encoding.source import open_source
    from comfyui_tlbvfi.tlbvfi.config import JobConfig
    from comfyui_tlbvfi.tlbvfi.job import Destination, run_job
    from comfyui_tlbvfi.tlbvfi.methods import MethodConfig, create_method

    def go(source, name="out.mkv", *, method="blend", input_rate=None, destination=None, **options):
        hooks = {"on_event": options.pop("on_event")} if "on_event" in options else {}
        wishes = ("codec", "crf", "bitrate", "preset", "pix_fmt")
        encoder = {key: options.pop(key) for key in wishes if key in options}
        encoder.setdefault("codec", "ffv1" if name.endswith(".mkv") else "h264")
        config = JobConfig(encoder=EncoderSettings(**encoder), **options)
        sound = source if isinstance(source, Path) and source.is_file() else None
        where = Destination(output=tmp_path / name, sound=sound, **(destination or {}))
        engine = method if not isinstance(method, str) else create_method(MethodConfig(name=method))
        with open_source(source, input_rate=input_rate) as opened:
            return run_job(opened, engine, config, where, **hooks)

    return go


@pytest.fixture(scope="session")
def pictures():
    """Read a file's frames as lists of plane bytes, in order."""

    def read(path: Path) -> list[list[bytes]]:
        with av.open(str(path)) as container:
            return [_planes(frame) for frame in container.decode(video=0)]

    return read


def _planes(frame: av.VideoFrame) -> list[bytes]:
    """Samples without the padding of rows, whose content is undefined."""
    planes = []
    for plane in frame.planes:
        rows = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        deep = frame.format.components[0].bits > 8
        planes.append(rows[:, : plane.width * (2 if deep else 1)].tobytes())
    return planes


@pytest.fixture(scope="session")
def times():
    """Read a file's exact presentation times."""

    def read(path: Path) -> list[Fraction]:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size]
            found = sorted(p.pts * Fraction(stream.time_base) for p in packets)
        assert all(a < b for a, b in pairwise(found))
        return found

    return read


@pytest.fixture
def tlbvfi(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder: (exit code, stdout, stderr)."""
    from comfyui_tlbvfi.tlbvfi.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words):
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def interrupted(tlbvfi, monkeypatch):
    """Run a command that Ctrl-C interrupts at its pair number `at`; what it says on stderr."""
    from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod

    def run(*words, at=9):
        between, calls = BlendMethod.between, []

        def counted(self, *arguments):
            calls.append(1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return between(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(BlendMethod, "between", counted)
            code, _, err = tlbvfi(*words)
        assert code == 130
        return err

    return run
