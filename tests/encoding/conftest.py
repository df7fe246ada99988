"""Small pictures, encoders and sessions, made rather than stored."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest


@dataclass(frozen=True)
class Shape:
    """What an encoder must know of its frames."""

    width: int = 64
    height: int = 48
    pix_fmt: str = "yuv420p"
    has_alpha: bool = False


@pytest.fixture(scope="session")
def shape():
    """Maker of the description of a picture: shape(width=..., pix_fmt=...)."""
    return Shape


@pytest.fixture(scope="session")
def paint():
    """Maker of frame n: a moving gradient, another one in every plane, in any 8 or 16 bit format."""

    def make(number, *, width=64, height=48, pix_fmt="yuv420p"):
        picture = av.VideoFrame(width, height, pix_fmt)
        deep = max(part.bits for part in picture.format.components) > 8
        for index, plane in enumerate(picture.planes):
            values = np.arange(plane.buffer_size, dtype=np.int64) * (index + 1) + 5 * number
            if deep:
                values = (values[: plane.buffer_size // 2] * 3 % 1000).astype("<u2")
            else:
                values = (values % 220 + 16).astype(np.uint8)
            plane.update(values.tobytes())
        return picture

    return make


@pytest.fixture(scope="session")
def decoded():
    """Reader of a file: the samples of every frame, as hashable bytes."""

    def read(path):
        with av.open(str(path)) as container:
            return [frame.to_ndarray().tobytes() for frame in container.decode(video=0)]

    return read


@pytest.fixture(scope="session")
def ffprobe():
    """The independent judge: ffprobe's JSON for a file."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")

    def ask(path, *options):
        command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", *options, str(path)]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    return ask


@pytest.fixture(scope="session")
def encoder():
    """Maker of encoders: encoder("ffv1", pix_fmt=..., container=...)."""
    from comfyui_tlbvfi.encoding.profiles import EncoderSettings, resolve_encoder

    def make(codec, picture=None, *, container=None, **settings):
        wish = EncoderSettings(codec=codec, **settings)
        return resolve_encoder(wish, picture or Shape(), container=container)

    return make


@pytest.fixture(scope="session")
def stream():
    """Maker of stream descriptions, 64x48 at 48000/1001 unless told otherwise."""
    from comfyui_tlbvfi.encoding.writer import StreamSpec

    def make(**changes):
        rate = changes.get("rate", Fraction(48000, 1001))
        return StreamSpec(
            **{"width": 64, "height": 48, "rate": rate, "time_base": 1 / rate, **changes}
        )

    return make


@pytest.fixture
def manifest(encoder, stream):
    """Maker of manifests: manifest("h264", stream=..., settings=...)."""
    from comfyui_tlbvfi.encoding.manifest import Manifest

    def make(codec="ffv1", **changes):
        known = {"source": {"name": "clip.mp4", "size": 1}, "settings": {"times": 1}}
        made = {"encoder": encoder(codec), "stream": stream()}
        return Manifest(**{**known, **made, **changes})

    return make


@pytest.fixture
def filled(tmp_path, manifest, paint):
    """Maker of a finished session: filled("h264", frames=7, per_chunk=3)."""
    from comfyui_tlbvfi.encoding.session import Session

    def make(codec="ffv1", *, frames=7, per_chunk=3, id="job", pts=None, **changes):
        session = Session.create(tmp_path, id, manifest(codec, **changes))
        pix_fmt = session.manifest.encoder.pix_fmt
        step = session.manifest.stream.step
        times = pts or [number * step for number in range(frames)]
        with session.locked():
            for index, first in enumerate(range(0, len(times), per_chunk)):
                end = min(first + per_chunk, len(times))
                with session.new_chunk(index) as chunk:
                    for number in range(first, end):
                        chunk.write(paint(number, pix_fmt=pix_fmt), times[number])
                    chunk.commit(pairs=(first, end), first_frame=first, is_last=end == len(times))
        return session

    return make
