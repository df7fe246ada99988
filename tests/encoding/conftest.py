"""Small pictures, encoders and sessions, made rather than stored."""

import io
import json
import shutil
import subprocess
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import pytest


@pytest.fixture(scope="session")
def shape():
    """Factory for picture descriptions: shape(width=..., pix_fmt=...)."""
    from comfyui_tlbvfi.encoding.profiles import PictureFacts

    def make(**changes):
        return PictureFacts(**{"width": 64, "height": 48, "pix_fmt": "yuv420p", **changes})

    return make


@pytest.fixture(scope="session")
def paint():
    """Factory for frame n: a moving gradient, another per plane, in any 8 or 16 bit format."""

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
def decoded(samples):
    """Read the samples of every frame of a file, as hashable bytes."""

    def read(path):
        with av.open(str(path)) as container:
            return [samples(frame) for frame in container.decode(video=0)]

    return read


@pytest.fixture(scope="session")
def ffprobe():
    """ffprobe's JSON for a file, as an independent check."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")

    def ask(path, *options):
        command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", *options, str(path)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        for stream in found["streams"]:
            if stream.get("codec_name") == "prores":  # always limited; ffprobe 7 leaves that out
                stream.setdefault("color_range", "tv")
        return found

    return ask


@pytest.fixture(scope="session")
def encoder(shape):
    """Factory for encoders: encoder("ffv1", pix_fmt=..., container=...)."""
    from comfyui_tlbvfi.encoding.profiles import EncoderSettings, resolve_encoder

    def make(codec, picture=None, *, container=None, **settings):
        wish = EncoderSettings(codec=codec, **settings)
        return resolve_encoder(wish, picture or shape(), container=container)

    return make


@pytest.fixture(scope="session")
def stream():
    """Factory for stream descriptions, by default 64x48 at 48000/1001."""
    from comfyui_tlbvfi.encoding.writer import StreamSpec

    def make(**changes):
        rate = changes.get("rate", Fraction(48000, 1001))
        return StreamSpec(
            **{"width": 64, "height": 48, "rate": rate, "time_base": 1 / rate, **changes}
        )

    return make


@pytest.fixture
def manifest(encoder, stream):
    """Factory for manifests: manifest("h264", stream=..., settings=...)."""
    from comfyui_tlbvfi.encoding.manifest import Manifest

    def make(codec="ffv1", **changes):
        known = {"source": {"name": "clip.mp4", "size": 1}, "settings": {"times": 1}}
        made = {"encoder": encoder(codec), "stream": stream()}
        return Manifest(**{**known, **made, **changes})

    return make


@pytest.fixture
def filled(tmp_path, manifest, paint):
    """Factory for finished sessions: filled("h264", frames=7, per_chunk=3)."""
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


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video to make: lossless, every frame different, keyframes far apart, B-frames between."""

    frames: int = 30
    rate: Fraction = Fraction(25)
    codec: str = "libx264"
    pix_fmt: str = "yuv420p"
    size: tuple[int, int] = (64, 48)
    options: dict[str, str] | None = None
    pts: tuple[int, ...] | None = None
    """In units of `time_base`; None: evenly spaced at `rate`."""
    time_base: Fraction | None = None
    tags: tuple[int, int, int, int] | None = None
    """Primaries, transfer, matrix, range."""
    sample_aspect_ratio: Fraction | None = None
    rotation: int = 0
    has_audio: bool = False
    first: int = 0
    """Number of the first painted frame."""

    def write(self, path, paint, container=None):
        """Encode it; `path` is a file or a file object."""
        with av.open(path if container else str(path), "w", format=container) as output:
            video = output.add_stream(self.codec, rate=self.rate)
            video.width, video.height = self.size
            video.pix_fmt = self.pix_fmt
            base = self.time_base or 1 / self.rate
            video.time_base = video.codec_context.time_base = base
            video.options = self._options()
            self._describe(video)
            audio = output.add_stream("aac", rate=48000, layout="mono") if self.has_audio else None
            for number in range(self.frames):
                picture = paint(
                    self.first + number,
                    width=self.size[0],
                    height=self.size[1],
                    pix_fmt=self.pix_fmt,
                )
                picture.pts = self.pts[number] if self.pts else number
                picture.time_base = base  # the stream's base changes when the header is written
                output.mux(video.encode(picture))
            output.mux(video.encode())
            if audio:
                silence = av.AudioFrame(format="fltp", layout="mono", samples=1024)
                silence.rate = 48000
                silence.planes[0].update(bytes(silence.planes[0].buffer_size))
                for number in range(int(self.frames / self.rate * 48000) // 1024 + 1):
                    silence.pts = number * 1024
                    output.mux(audio.encode(silence))
                output.mux(audio.encode())
        return path

    def _options(self):
        if self.options is not None:
            return self.options
        if self.codec == "libx264":
            return {"qp": "0", "preset": "ultrafast", "bf": "2", "g": "10", "threads": "2"}
        return {}

    def _describe(self, video):
        context = video.codec_context
        if self.tags:
            context.color_primaries, context.color_trc = self.tags[:2]
            context.colorspace, context.color_range = self.tags[2:]
        if self.sample_aspect_ratio:
            context.sample_aspect_ratio = self.sample_aspect_ratio
        if self.rotation:
            video.set_display_rotation(self.rotation)


@pytest.fixture
def clip(tmp_path, paint):
    """Factory for video files: clip("a.mkv", frames=12, rate=Fraction(24)) -> path."""

    def make(name, **changes):
        return Clip(**changes).write(tmp_path / name, paint)

    return make


@pytest.fixture
def clip_bytes(paint):
    """Factory for videos in memory: clip_bytes("mp4", frames=12) -> BytesIO."""

    def make(container="mp4", **changes):
        return Clip(**changes).write(io.BytesIO(), paint, container)

    return make


@pytest.fixture(scope="session")
def samples():
    """The samples of a decoded picture, as hashable bytes."""
    from comfyui_tlbvfi.encoding.layout import channel_views

    def read(picture):
        return b"".join(np.ascontiguousarray(view).tobytes() for view in channel_views(picture))

    return read
