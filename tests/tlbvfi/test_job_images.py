"""Numbered images out of and into a job: exact, complete, resumable, other files untouched."""

import json
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from comfyui_tlbvfi.encoding.color import from_rgb, to_rgb
from comfyui_tlbvfi.encoding.errors import EncoderError, OutputError
from comfyui_tlbvfi.encoding.frame import ColorTags
from comfyui_tlbvfi.encoding.image_encoder import encoded_image, image_format
from comfyui_tlbvfi.encoding.images import read_image
from comfyui_tlbvfi.encoding.layout import channel_views
from comfyui_tlbvfi.encoding.png import png_texts
from comfyui_tlbvfi.encoding.profiles import PictureFacts
from comfyui_tlbvfi.encoding.source import open_source
from comfyui_tlbvfi.tlbvfi.config import ChunkLength
from comfyui_tlbvfi.tlbvfi.progress import Encoding

RATE = Fraction(16)
SHORT = ChunkLength(frames=4)
TAGS = ColorTags(matrix=1, range=1)


@pytest.fixture
def images(tmp_path):
    """Factory for folders of images of random samples: images(".png", "rgb48be", 5, spread=3)."""

    def make(suffix=".png", pix_fmt="rgb24", count=5, *, spread=0.5, size=(40, 24), name="in"):
        folder = tmp_path / name
        folder.mkdir()
        rng = np.random.default_rng(7)
        channels = 4 if "a" in pix_fmt else 3
        for number in range(1, count + 1):
            rgb = rng.normal(0.5, spread, (channels, size[1], size[0])).astype(np.float32)
            picture = from_rgb(rgb, pix_fmt, TAGS)
            facts = PictureFacts(
                width=size[0], height=size[1], pix_fmt=pix_fmt, has_alpha=channels == 4
            )
            path = folder / f"f_{number:04d}{suffix}"
            path.write_bytes(encoded_image(picture, image_format(suffix, facts), TAGS))
        return folder

    return make


def codes(folder, suffix=".png"):
    """Samples of every image of a folder, in order."""
    pictures = [read_image(path) for path in sorted(folder.glob(f"*{suffix}"))]
    return [np.stack([view.copy() for view in channel_views(each)]) for each in pictures]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("suffix", "pix_fmt", "spread"),
    [
        (".png", "rgb24", 0.5),
        (".png", "rgba", 0.5),
        (".png", "rgb48be", 0.5),
        (".png", "rgba64be", 0.5),
        (".tif", "rgb24", 0.5),
        (".tif", "rgb48le", 0.5),
        (".exr", "gbrpf16le", 3),
        (".exr", "gbrapf16le", 3),
        (".exr", "gbrpf32le", 3),
        (".webp", "rgb24", 0.5),
    ],
)
def test_images_come_out_as_they_went_in(run, images, tmp_path, suffix, pix_fmt, spread):
    source = images(suffix, pix_fmt, spread=spread)
    result = run(source, f"out/f_%03d{suffix}", codec="auto", input_rate=RATE, chunk=SHORT)
    assert result.frames == 9
    assert names(tmp_path / "out") == [f"f_{n:03d}{suffix}" for n in range(1, 10)]
    given, made = codes(source, suffix), codes(tmp_path / "out", suffix)
    assert all(np.array_equal(a, b) for a, b in zip(given, made[::2], strict=True))
    if spread > 1:
        assert min(each.min() for each in made[1::2]) < 0
        assert max(each.max() for each in made[1::2]) > 1


def test_every_16_bit_code_survives_png_and_ffv1(run, tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for number in range(3):
        image = np.stack([np.roll(ramp, number * 77), ramp[::-1], ramp.T], -1)
        cv2.imwrite(str(source / f"f_{number}.png"), image)
    run(source, "out/%d.png", codec="auto", input_rate=RATE)
    given, made = codes(source), codes(tmp_path / "out")
    assert all(np.array_equal(a, b) for a, b in zip(given, made[::2], strict=True))
    video = run(source, "out.mkv", codec="ffv1", input_rate=RATE).output
    with av.open(str(video)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "gbrp16le"
        frames = [to_rgb(frame, TAGS) for frame in container.decode(video=0)][::2]
    assert all(np.array_equal(np.rint(a * 65535), b) for a, b in zip(frames, given, strict=True))


@pytest.mark.parametrize(
    ("codec", "name", "pix_fmt"),
    [
        ("png", "%06d.png", "rgb24"),
        ("png16", "%06d.png", "rgb48be"),
        ("tiff", "%06d.tiff", "rgb24"),
        ("jpeg", "%06d.jpg", "yuvj444p"),
        ("webp", "%06d.webp", "yuv420p"),
        ("exr", "%06d.exr", "gbrpf16le"),
        ("exr-float", "%06d.exr", "gbrpf32le"),
    ],
)
def test_a_video_becomes_images_of_the_format_asked_for(clip, run, tmp_path, codec, name, pix_fmt):
    source = clip(tmp_path / "in.mp4", 4)
    run(source, f"out/{name}", codec=codec)
    pictures = [read_image(path) for path in sorted((tmp_path / "out").iterdir())]
    assert len(pictures) == 7
    if codec != "webp":  # lossless WebP decodes to RGB
        assert {each.format.name for each in pictures} == {pix_fmt}
    with open_source(source) as opened:
        tags = ColorTags(matrix=6, range=1)
        wanted = [to_rgb(frame.picture, tags) for frame in opened.frames()]
    full = ColorTags(matrix=6, range=2)
    for picture, rgb in zip(pictures[::2], wanted, strict=True):
        assert np.abs(to_rgb(picture, full)[:3] - rgb.clip(0, 1)).mean() < 1.5 / 255


def test_half_is_rounded_not_cut_off(run, images, tmp_path):
    source = images(".exr", "gbrpf32le", 2, spread=2)
    run(source, "out/%d.exr", codec="exr-half", input_rate=RATE)
    given, made = codes(source, ".exr"), codes(tmp_path / "out", ".exr")
    assert np.array_equal(made[0], given[0].astype(np.float16))


@pytest.fixture
def stop_at():
    """Factory for event callbacks that raise once `frames` images have been encoded."""

    def make(frames):
        def on_event(event):
            if isinstance(event, Encoding) and event.done >= frames:
                raise KeyboardInterrupt

        return on_event

    return make


def test_an_interrupted_folder_is_gone_on_with(run, images, tmp_path, stop_at):
    source = images(count=8)
    run(source, "whole/%d.png", codec="auto", input_rate=RATE)
    where = {"chunk": SHORT, "codec": "auto", "input_rate": RATE}
    with pytest.raises(KeyboardInterrupt):
        run(source, "out/%d.png", on_event=stop_at(9), **where)
    written = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert 4 <= len(written) < 15
    assert not [name for name in written if "part" in name]
    (tmp_path / "out" / ".15.part.png").write_bytes(b"torn by a kill")
    result = run(source, "out/%d.png", **where)
    assert result.frames_made == 0
    assert len(names(tmp_path / "out")) == 15
    now = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert now.items() >= written.items()
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_the_same_job_again_finds_its_images(run, images, tmp_path):
    source = images()
    options = {"codec": "auto", "input_rate": RATE}
    assert not run(source, "out/%d.png", **options).was_done
    assert run(source, "out/%d.png", **options).was_done
    (tmp_path / "out" / "4.png").unlink()
    again = run(source, "out/%d.png", destination={"overwrite": True}, **options)
    assert not again.was_done
    assert len(names(tmp_path / "out")) == 9


def test_images_of_others_are_left_alone(run, images, tmp_path):
    source = images()
    out = tmp_path / "out"
    out.mkdir()
    (out / "f_3.png").write_bytes(b"precious")
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"f_3\.png exists and was not made by this job"):
        run(source, "out/f_%d.png", codec="auto", input_rate=RATE)
    assert names(out) == ["f_3.png", "notes.txt"]
    assert (out / "f_3.png").read_bytes() == b"precious"
    run(source, "out/g_%d.png", codec="auto", input_rate=RATE)
    assert (out / "f_3.png").read_bytes() == b"precious"
    (out / "f_99.png").write_bytes(b"old")
    run(source, "out/f_%d.png", codec="auto", input_rate=RATE, destination={"overwrite": True})
    assert (out / "notes.txt").read_text() == "mine"
    assert len(list(out.glob("f_*.png"))) == 9


def test_the_workflow_goes_from_image_to_image_and_into_the_video(run, images, tmp_path):
    source = images()
    first = source / "f_0001.png"
    from comfyui_tlbvfi.encoding.png import with_texts

    texts = {"workflow": json.dumps({"nodes": ["ü", "木"]}, ensure_ascii=False), "prompt": "{}"}
    first.write_bytes(with_texts(first.read_bytes(), texts))
    run(source, "out/%d.png", codec="auto", input_rate=RATE)
    assert all(png_texts(path) == texts for path in (tmp_path / "out").iterdir())
    for name in ("out.mp4", "out.mkv"):
        video = run(source, name, input_rate=RATE).output
        with av.open(str(video)) as container:
            found = {key.lower(): value for key, value in container.metadata.items()}
        assert found.items() >= texts.items()


@pytest.mark.parametrize(
    ("name", "options", "error", "words"),
    [
        ("out.png", {}, OutputError, r"out\.png names one image.*out_%06d\.png"),
        ("%d_%d.png", {}, OutputError, "names one image"),
        ("%d.png", {"codec": "h264"}, EncoderError, "h264 does not make .png images: choose png"),
        ("%d.png", {"codec": "exr"}, EncoderError, "exr does not make .png images"),
        ("%d.png", {"crf": 18}, EncoderError, r"images take no crf \(18\): leave it out"),
        ("out.mp4", {"codec": "png"}, EncoderError, r"png makes images and \.mp4 is a video"),
    ],
)
def test_what_does_not_fit_images_is_refused_before_work(
    clip, run, tmp_path, name, options, error, words
):
    source = clip(tmp_path / "in.mp4", 4)
    with pytest.raises(error, match=words):
        run(source, name, **{"codec": "auto", **options})
    assert not (tmp_path / "output").exists()
