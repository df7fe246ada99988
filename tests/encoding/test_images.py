"""Folders of images as sources, and images as destinations."""

import gc
import os
import shutil
import struct
import subprocess
import tracemalloc
import zlib
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from comfyui_tlbvfi.encoding import images
from comfyui_tlbvfi.encoding.color import from_rgb, resolve, to_rgb
from comfyui_tlbvfi.encoding.errors import OutputError, SourceError
from comfyui_tlbvfi.encoding.exr import is_cut_off
from comfyui_tlbvfi.encoding.frame import ColorTags
from comfyui_tlbvfi.encoding.image_encoder import encoded_image, image_format
from comfyui_tlbvfi.encoding.images import ImageSource, read_image
from comfyui_tlbvfi.encoding.layout import channel_views
from comfyui_tlbvfi.encoding.png import MOST_TEXT, png_texts, without_deflated
from comfyui_tlbvfi.encoding.sequence import write_images
from comfyui_tlbvfi.encoding.source import open_source
from hypothesis import given
from hypothesis import strategies as st

RATE = Fraction(16)
TAGS = ColorTags(matrix=1, range=1)


def write_image(path, picture, form, tags):
    path.write_bytes(encoded_image(picture, form, tags))


@pytest.fixture
def picture():
    """Factory for pictures of random samples: picture("rgb24", number, values beyond [0, 1])."""

    def make(pix_fmt="rgb24", number=0, *, size=(40, 24), spread=0.5):
        rng = np.random.default_rng(number)
        channels = 4 if "a" in pix_fmt.replace("gray", "") else 3
        rgb = rng.normal(0.5, spread, (channels, size[1], size[0])).astype(np.float32)
        if channels == 4:
            rgb[3] = np.clip(rgb[3], 0, 1)
        return from_rgb(rgb, pix_fmt, TAGS)

    return make


@pytest.fixture
def folder(tmp_path, picture):
    """Factory for folders of images: folder(["f_1.png", ...], pix_fmt, depth)."""

    def make(names, pix_fmt="rgb24", depth=None, **facts):
        place = tmp_path / "frames"
        place.mkdir(exist_ok=True)
        info = describe(pix_fmt)
        for number, name in enumerate(names):
            path = place / name
            form = image_format(path.suffix, info, depth=depth)
            write_image(path, picture(pix_fmt, number, **facts), form, TAGS)
        return place

    return make


def describe(pix_fmt):
    picture = av.VideoFrame(16, 16, pix_fmt)
    alpha = any(component.is_alpha for component in picture.format.components)
    frames = np.zeros((1, 16, 16, 4 if alpha else 3), np.uint8)
    info = open_source(frames, input_rate=RATE).info
    return type(info)(
        **{name: getattr(info, name) for name in info.__slots__} | {"pix_fmt": pix_fmt}
    )


@pytest.mark.parametrize(
    ("suffix", "depth", "pix_fmt", "spread"),
    [
        (".png", None, "rgb24", 0.5),
        (".png", None, "rgba", 0.5),
        (".png", None, "gbrp16le", 0.5),
        (".png", None, "gbrap16le", 0.5),
        (".tif", None, "rgb24", 0.5),
        (".tiff", None, "rgba64le", 0.5),
        (".tiff", None, "rgb48be", 0.5),
        (".tif", None, "gbrpf32le", 3),
        (".tif", None, "gbrapf32le", 3),
        (".exr", None, "gbrpf16le", 3),
        (".exr", None, "gbrpf32le", 3),
        (".exr", None, "gbrapf32le", 3),
        (".exr", None, "gbrp10le", 0.5),
        (".webp", None, "rgb24", 0.5),
        (".webp", None, "rgba", 0.5),
    ],
)
def test_what_a_format_holds_comes_back_exactly(tmp_path, picture, suffix, depth, pix_fmt, spread):
    given = picture(pix_fmt, spread=spread)
    path = tmp_path / f"a{suffix}"
    form = image_format(suffix, describe(pix_fmt), depth=depth)
    write_image(path, given, form, TAGS)
    back = to_rgb(read_image(path), TAGS)
    wanted = to_rgb(given, TAGS)
    if suffix == ".webp":
        assert np.all(back[3] == (wanted[3] if len(wanted) == 4 else 1))
        seen = back[3] > 0
        assert np.array_equal(back[:3, seen], wanted[:3, seen])
    elif form.options.get("format") == "half" and pix_fmt != "gbrpf16le":
        assert np.array_equal(back, wanted.astype(np.float16).astype(np.float32))
        assert np.array_equal(np.rint(back * 1023), np.rint(wanted * 1023))
    else:
        assert np.array_equal(back, wanted)
    if spread > 1:
        assert back.min() < 0 < 1 < back.max()
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_16_bit_png_sequence_keeps_every_code(tmp_path):
    codes = np.random.default_rng(0).integers(0, 65536, (3, 24, 40, 3), np.uint16)
    for number, image in enumerate(codes):
        cv2.imwrite(str(tmp_path / f"f_{number}.png"), image[..., ::-1])
    with open_source(tmp_path, input_rate=RATE) as source:
        assert (source.info.bit_depth, source.info.codec) == (16, "png")
        for frame in source.frames():
            assert np.array_equal(np.stack(channel_views(frame.picture), -1), codes[frame.index])


def test_float_tiff_files_of_others_are_read(tmp_path):
    image = np.random.default_rng(0).normal(0, 4, (24, 40, 3)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "a.tif"), image, [cv2.IMWRITE_TIFF_COMPRESSION, 1])
    with open_source(tmp_path, input_rate=RATE) as source:
        (frame,) = source.frames()
        rgb = to_rgb(frame.picture, resolve(source.info))
    assert np.array_equal(rgb, np.moveaxis(image[..., ::-1], -1, 0))


def test_jpeg_is_close_and_read_as_full_range_bt601(tmp_path):
    ramp = np.linspace(0, 1, 64, dtype=np.float32)
    rgb = np.stack([np.tile(ramp, (32, 1)), np.full((32, 64), 0.3), np.tile(ramp[::-1], (32, 1))])
    rgb = rgb.astype(np.float32)
    for pix_fmt in ("rgb24", "yuv444p"):
        form = image_format(".jpg", describe(pix_fmt))
        write_image(tmp_path / "a.jpg", from_rgb(rgb, pix_fmt, TAGS), form, TAGS)
        with open_source(tmp_path, input_rate=RATE) as source:
            (frame,) = source.frames()
            tags = resolve(source.info)
        assert tags.range == 2
        assert np.abs(to_rgb(frame.picture, tags) - rgb).mean() < 1.5 / 255
        judged = cv2.imread(str(tmp_path / "a.jpg"))[..., ::-1] / 255
        assert np.abs(np.moveaxis(judged, -1, 0) - rgb).mean() < 1.5 / 255


def test_numbers_decide_the_order_and_names_decide_without_numbers(folder):
    with open_source(folder(["f_9.png", "f_10.png", "f_8.png"]), input_rate=RATE) as source:
        assert source._names == ["f_8.png", "f_9.png", "f_10.png"]
        assert [frame.time for frame in source.frames()] == [0, 1 / RATE, 2 / RATE]


def test_names_without_numbers_are_sorted(folder):
    with open_source(folder(["c.png", "a.png", "b.png"]), input_rate=RATE) as source:
        assert source._names == ["a.png", "b.png", "c.png"]


def test_a_folder_of_many_images_takes_little_memory(folder):
    place = folder(["f_0000.png"])
    for number in range(1, 2000):
        os.link(place / "f_0000.png", place / f"f_{number:04d}.png")
    tracemalloc.start()
    try:
        with open_source(place, input_rate=RATE) as source:
            gc.collect()
            held, _ = tracemalloc.get_traced_memory()
            assert source.info.frame_count == 2000
    finally:
        tracemalloc.stop()
    assert held < 2000 * 300


def test_frames_are_exact_from_any_index(folder, picture, samples):
    names = [f"f{n:04d}.tif" for n in range(12)]
    with open_source(folder(names), input_rate=Fraction(30000, 1001)) as source:
        assert source.info.frame_count == 12
        assert source.info.duration == Fraction(12 * 1001, 30000)
        for start, stop in ((0, None), (5, 9), (11, None), (12, None)):
            frames = list(source.frames(start, stop))
            assert [frame.index for frame in frames] == list(range(12))[start:stop]
            for frame in frames:
                assert samples(frame.picture) == samples(picture("rgb24", frame.index))


def add_text(path, kind, data):
    content = path.read_bytes()
    chunk = struct.pack(">I", len(data)) + kind + data
    chunk += struct.pack(">I", zlib.crc32(kind + data))
    path.write_bytes(content[:33] + chunk + content[33:])  # after the header


def test_saveimage_names_and_the_workflow_in_the_first_one_are_understood(folder):
    place = folder([f"ComfyUI_{n:05d}_.png" for n in range(1, 5)])
    first = place / "ComfyUI_00001_.png"
    add_text(first, b"tEXt", b'workflow\0{"nodes": []}')
    add_text(first, b"zTXt", b"prompt\0\0" + zlib.compress(b'{"1": {}}'))
    add_text(first, b"iTXt", b"comment\0\0\0\0\0" + "ü".encode())
    with open_source(place, input_rate=RATE) as source:
        assert source.info.metadata == {"workflow": '{"nodes": []}', "prompt": '{"1": {}}'}
        assert len(list(source.frames())) == 4


def test_files_of_other_kinds_are_passed_over(folder):
    place = folder(["f_1.png", "f_2.png"])
    (place / "Thumbs.db").write_bytes(b"x")
    (place / "prompt.json").write_text("{}")
    (place / ".hidden_7.png").write_bytes(b"x")
    with open_source(place, input_rate=RATE) as source:
        assert source.info.frame_count == 2


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], r"contains no images"),
        (["f_1.png", "f_2.png", "f_4.png"], r"f_4\.png does not follow f_2\.png"),
        (["f_1.png", "f_01.png"], r"f_1\.png has the same number as f_01\.png"),
        (["a_1.png", "a_2.png", "b_1.png"], r"several sequences: a_#\.png \(2\), b_#\.png \(1\)"),
        (["a_1.png", "a_2.png", "cover.png"], r"several sequences: a_#\.png \(2\), cover\.png"),
        (["a_1.png", "a_2.jpg"], r"a_2\.jpg has another format than a_1\.png"),
    ],
)
def test_what_is_no_sequence_is_refused_with_the_first_bad_file(folder, names, words):
    with pytest.raises(SourceError, match=words):
        open_source(folder(names), input_rate=RATE)


def test_a_folder_without_a_rate_is_refused(folder):
    with pytest.raises(SourceError, match="set the input rate"):
        open_source(folder(["a.png"]))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".exr", ".webp"])
def test_an_image_of_another_size_is_named(folder, suffix):
    place = folder([f"f_{n}{suffix}" for n in range(3)])
    odd = place / f"f_3{suffix}"
    (place / f"f_3{suffix}").write_bytes(b"")
    larger = np.zeros((26, 40, 3), np.uint8)
    picture = from_rgb(np.moveaxis(larger, -1, 0).astype(np.float32), "rgb24", TAGS)
    write_image(odd, picture, image_format(suffix, describe("rgb24")), TAGS)
    delivered = []

    def read():
        with open_source(place, input_rate=RATE) as source:
            delivered.extend(frame.index for frame in source.frames())

    with pytest.raises(SourceError, match=rf"f_3\{suffix} (is|has another size)"):
        read()


def test_an_image_of_another_depth_is_named_before_work_begins(folder, picture):
    place = folder([f"f_{n}.png" for n in range(3)])
    deep = image_format(".png", describe("rgb48le"))
    write_image(place / "f_3.png", picture("rgb48le"), deep, TAGS)
    with pytest.raises(SourceError, match=r"f_3\.png has another size or depth"):
        open_source(place, input_rate=RATE)


@pytest.mark.parametrize(
    ("suffix", "depth"), [(".exr", "half"), (".exr", "float"), (".tif", "float")]
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_image_with_broken_pixels_is_named_after_the_frames_before_it(
    folder, suffix, depth, value
):
    place = folder([f"f_{n}{suffix}" for n in range(3)], "gbrpf32le", depth)
    broken = np.full((3, 24, 40), 0.5, np.float32)
    broken[1, 7, 9] = value
    form = image_format(suffix, describe("gbrpf32le"), depth=depth)
    write_image(place / f"f_1{suffix}", from_rgb(broken, "gbrpf32le", TAGS), form, TAGS)
    delivered = []

    def read():
        with open_source(place, input_rate=RATE) as source:
            delivered.extend(frame.index for frame in source.frames())

    with pytest.raises(
        SourceError, match=rf"f_1\{suffix} \(frame 1\) holds NaN or infinite pixels"
    ):
        read()
    assert delivered == [0]


@pytest.mark.parametrize("content", [b"", b"no image at all", None])
def test_a_damaged_image_is_named_after_the_frames_before_it(folder, content):
    place = folder([f"f_{n}.tif" for n in range(9)])
    broken = place / "f_6.tif"
    broken.write_bytes(broken.read_bytes()[:200] if content is None else content)
    delivered = []
    with open_source(place, input_rate=RATE) as source:
        frames = (delivered.append(frame.index) for frame in source.frames())
        with pytest.raises(SourceError, match=r"f_6\.tif"):
            list(frames)
    assert delivered == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg", ".exr"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_an_image_that_is_cut_off_is_named(folder, suffix, part):
    path = folder([f"f_1{suffix}"], size=(128, 96)) / f"f_1{suffix}"
    assert read_image(path).width == 128
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * part)])
    with pytest.raises(SourceError, match=rf"f_1\{suffix} is (damaged|cut off)"):
        read_image(path)


@pytest.mark.parametrize("compression", ["none", "rle", "zip1", "zip16"])
@pytest.mark.parametrize("is_finished", [True, False])
def test_an_exr_file_is_whole_with_its_last_line_only(picture, compression, is_finished):
    form = image_format(".exr", describe("gbrpf32le"))
    form = replace(form, options={"compression": compression})
    data = encoded_image(picture("gbrpf32le", size=(33, 70)), form, TAGS)
    if not is_finished:  # offsets are written last
        count = -(-70 // (16 if compression == "zip16" else 1))
        offsets = next(
            place
            for place in range(len(data))
            if struct.unpack_from("<Q", data, place) == (place + 8 * count,)
        )
        data = data[:offsets] + bytes(8 * count) + data[offsets + 8 * count :]
    assert not is_cut_off(data)
    assert is_cut_off(data[:-1])
    assert is_cut_off(data[: len(data) // 2])
    assert not is_cut_off(data[:20])  # the decoder refuses it


def tiled_exr(samples: np.ndarray, side: int) -> bytes:
    """An uncompressed OpenEXR file of tiles, as renderers write them, from gray [h, w] float32."""
    height, width = samples.shape
    box = struct.pack("<4i", 0, 0, width - 1, height - 1)
    attributes = {
        ("channels", "chlist"): b"".join(
            name + b"\0" + struct.pack("<4i", 2, 0, 1, 1) for name in (b"B", b"G", b"R")
        )
        + b"\0",
        ("compression", "compression"): b"\0",
        ("dataWindow", "box2i"): box,
        ("displayWindow", "box2i"): box,
        ("lineOrder", "lineOrder"): b"\0",
        ("pixelAspectRatio", "float"): struct.pack("<f", 1),
        ("screenWindowCenter", "v2f"): bytes(8),
        ("screenWindowWidth", "float"): struct.pack("<f", 1),
        ("tiles", "tiledesc"): struct.pack("<2IB", side, side, 0),
    }
    head = b"\x76\x2f\x31\x01" + struct.pack("<I", 0x202)
    for (name, kind), value in attributes.items():
        head += f"{name}\0{kind}\0".encode() + struct.pack("<I", len(value)) + value
    tiles = []
    for y in range(0, height, side):
        for x in range(0, width, side):
            part = samples[y : y + side, x : x + side]
            data = part[:, None].repeat(3, axis=1).tobytes()
            tiles.append(struct.pack("<5i", x // side, y // side, 0, 0, len(data)) + data)
    begin = len(head) + 1 + 8 * len(tiles)
    offsets = np.cumsum([begin, *map(len, tiles[:-1])], dtype="<u8")
    return head + b"\0" + offsets.tobytes() + b"".join(tiles)


def test_a_tiled_exr_file_is_whole_with_its_last_tile_only(tmp_path):
    samples = np.random.default_rng(0).random((70, 100), np.float32)
    data = tiled_exr(samples, 32)
    path = tmp_path / "a.exr"
    path.write_bytes(data)
    assert all(np.array_equal(view, samples) for view in channel_views(read_image(path)))
    begin = data.index(b"\0" + struct.pack("<5i", 0, 0, 0, 0, 32 * 32 * 12)) + 1
    for part in (data[:-1], data[:500], data[: begin - 8] + bytes(8) + data[begin:]):
        path.write_bytes(part)
        with pytest.raises(SourceError, match=r"a\.exr is cut off: its end is missing"):
            read_image(path)


@given(st.integers(4, 400), st.binary(min_size=1, max_size=8), st.booleans())
def test_no_exr_header_leads_astray(place, other, is_tiled):
    picture = from_rgb(np.zeros((3, 4, 4), np.float32), "gbrpf32le", TAGS)
    data = encoded_image(picture, image_format(".exr", describe("gbrpf32le")), TAGS)
    if is_tiled:
        data = tiled_exr(np.zeros((4, 4), np.float32), 2)
    is_cut_off(data[:place] + other + data[place + len(other) :])


def test_a_photograph_is_turned_as_its_exif_says(folder):
    place = folder(["f_1.jpg"])
    path, data = place / "f_1.jpg", (place / "f_1.jpg").read_bytes()
    tiff = b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    exif = b"\xff\xe1" + struct.pack(">H", len(tiff) + 8) + b"Exif\0\0" + tiff
    path.write_bytes(data[:2] + exif + data[2:])
    if not read_image(path).rotation:
        pytest.skip("this FFmpeg takes no notice of EXIF")
    with open_source(place, input_rate=RATE) as source:
        assert source.info.rotation == -90


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".exr"])
def test_images_of_an_anamorphic_film_keep_its_sample_aspect_ratio(
    tmp_path, filled, stream, ffprobe, suffix
):
    session = filled(stream=stream(color=TAGS, sample_aspect_ratio=Fraction(4, 3)))
    form = image_format(suffix, describe("gbrp"))
    assert write_images(session, tmp_path / "i" / f"f_%d{suffix}", form).notes == ()
    found = ffprobe(tmp_path / "i" / f"f_1{suffix}")["streams"][0]
    assert found["sample_aspect_ratio"] == "4:3"
    with open_source(tmp_path / "i", input_rate=RATE) as source:
        assert source.info.sample_aspect_ratio == Fraction(4, 3)


def test_what_images_do_not_keep_of_a_video_is_told(tmp_path, filled, stream):
    facts = {"rotation": 90, "is_mirrored": True, "sample_aspect_ratio": Fraction(4, 3)}
    form = image_format(".webp", describe("gbrp"))
    turned = filled(stream=stream(color=TAGS, **facts))
    notes = write_images(turned, tmp_path / "f_%d.webp", form, metadata={"prompt": "{}"}).notes
    assert notes == (
        ".webp images do not keep the rotation by 90 degrees.",
        ".webp images do not keep the mirroring.",
        ".webp images do not keep the sample aspect ratio 4/3.",
        ".webp images do not keep the prompt: .png images do.",
    )
    plain = filled(id="plain", stream=stream(color=TAGS, sample_aspect_ratio=Fraction(1)))
    assert write_images(plain, tmp_path / "g_%d.webp", form).notes == ()


def test_an_image_that_vanishes_is_named(folder):
    place = folder([f"f_{n}.png" for n in range(3)])
    with open_source(place, input_rate=RATE) as source:
        (place / "f_2.png").unlink()
        with pytest.raises(SourceError, match=r"f_2\.png was removed"):
            list(source.frames())


def test_identity_follows_names_sizes_and_times(folder):
    place = folder(["f_1.png", "f_2.png"])
    before = open_source(place, input_rate=RATE).identity
    assert open_source(place, input_rate=RATE).identity == before
    os.utime(place / "f_2.png", ns=(1, 1))
    assert open_source(place, input_rate=RATE).identity != before


def test_images_are_decoded_only_a_few_ahead(folder, monkeypatch):
    place = folder([f"f_{n:02d}.png" for n in range(30)])
    with open_source(place, input_rate=RATE) as source:
        read, original = [], read_image

        def counting(path):
            read.append(path)
            return original(path)

        monkeypatch.setattr(images, "read_image", counting)
        reading = source.frames()
        next(reading)
        assert len(read) <= 5
        reading.close()


@pytest.mark.parametrize(
    ("suffix", "depth", "words"),
    [
        (".gif", None, r"\.gif is not an image format"),
        (".png", "half", r"\.png images cannot have depth half; choose 8, 16"),
        (".jpg", "16", r"choose 8\."),
    ],
)
def test_a_format_that_cannot_hold_it_is_refused(suffix, depth, words):
    with pytest.raises(OutputError, match=words):
        image_format(suffix, describe("rgb24"), depth=depth)


def test_our_webp_images_have_alpha_only_where_the_pictures_had(folder, picture):
    with ImageSource(folder(["f_1.webp", "f_2.webp"], "rgb24"), rate=RATE) as source:
        assert not source.info.has_alpha
        assert len(list(source.frames())) == 2
    place = folder(["f_2.webp"], "rgba")
    with ImageSource(place, rate=RATE) as source:
        assert source.info.has_alpha


@pytest.mark.parametrize("quality", ["-lossless 1", "-lossless 0"])
def test_webp_of_others_tells_its_alpha(tmp_path, quality):
    from comfyui_tlbvfi.encoding.webp import is_opaque

    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        pytest.skip("ffmpeg is not installed")
    for name, alpha in (("a", "1"), ("b", "0.5")):
        path = tmp_path / f"{name}.webp"
        graph = f"testsrc=s=32x32:d=0.04,format=rgba,colorchannelmixer=aa={alpha}"
        command = [ffmpeg, "-v", "error", "-f", "lavfi", "-i", graph, *quality.split(), str(path)]
        subprocess.run(command, check=True)
        assert is_opaque(path) == (alpha == "1")


@pytest.mark.parametrize("alpha", [b"", b"\x80", b"\xff\0"])
def test_a_palette_has_alpha_where_the_file_says_so(tmp_path, alpha):
    for number in (1, 2):
        header = struct.pack(">IIBBBBB", 4, 2, 8, 3, 0, 0, 0)
        rows = zlib.compress(b"\0\0\1\1\0" * 2)
        opaque = number == 1 or not alpha
        chunks = [
            png_chunk(b"IHDR", header),
            png_chunk(b"PLTE", bytes([250, 0, 0, 0, 0, 250])),
            b"" if opaque else png_chunk(b"tRNS", alpha),
            png_chunk(b"IDAT", rows),
            png_chunk(b"IEND", b""),
        ]
        (tmp_path / f"f_{number}.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    with open_source(tmp_path, input_rate=RATE) as source:
        assert source.info.has_alpha == bool(alpha)
        shown = [to_rgb(frame.picture, TAGS)[3, 0, 0] for frame in source.frames()]
    assert shown == [1, np.float32(alpha[0] / 255) if alpha else 1]


def png_chunk(kind, content):
    crc = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def test_texts_that_inflate_to_anything_are_not_inflated(tmp_path, picture, samples):
    path = tmp_path / "f_1.png"
    write_image(path, picture("rgb24"), image_format(".png", describe("rgb24")), TAGS)
    decoded = samples(read_image(path))
    plain = path.read_bytes()
    bomb = zlib.compress(b"a" * (MOST_TEXT // 4))
    texts = b"".join(png_chunk(b"zTXt", b"k%d\0\0" % n + bomb) for n in range(9))
    prompt = png_chunk(b"tEXt", b"prompt\0{}")
    path.write_bytes(plain[:33] + prompt + texts + plain[33:])
    assert without_deflated(path.read_bytes()) == plain[:33] + prompt + plain[33:]
    assert sum(map(len, png_texts(path).values())) <= MOST_TEXT
    assert png_texts(path)["prompt"] == "{}"
    assert samples(read_image(path)) == decoded


@pytest.fixture
def with_bomb(tmp_path, picture):
    """PNG data: plain, with color chunks, and with those and an ICC profile of a megabyte."""
    path = tmp_path / "f_1.png"
    write_image(path, picture("rgb24"), image_format(".png", describe("rgb24")), TAGS)
    plain = path.read_bytes()
    colors = png_chunk(b"sRGB", b"\0") + png_chunk(b"gAMA", struct.pack(">I", 45455))
    bomb = png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1 << 20)))
    return plain, plain[:33] + colors + plain[33:], plain[:33] + bomb + colors + plain[33:]


def test_a_profile_that_inflates_to_anything_is_not_inflated_and_still_counts(
    tmp_path, samples, with_bomb
):
    plain, colored, profiled = with_bomb
    assert without_deflated(profiled) == plain
    assert without_deflated(colored) == colored
    read = []
    for data in with_bomb:
        (tmp_path / "f_1.png").write_bytes(data)
        read.append(read_image(tmp_path / "f_1.png"))
    assert samples(read[0]) == samples(read[1]) == samples(read[2])
    assert read[2].color_trc == read[0].color_trc != read[1].color_trc


def test_png_pictures_with_a_profile_go_through_in_a_video(tmp_path, samples, with_bomb):
    plain, _, profiled = with_bomb
    with av.open(str(tmp_path / "in.mov"), "w") as container:
        stream = container.add_stream("png", rate=25)
        stream.width, stream.height, stream.pix_fmt = 40, 24, "rgb24"
        for n in range(3):
            packet = av.Packet(profiled)
            packet.stream, packet.time_base, packet.pts, packet.dts = stream, 1 / Fraction(25), n, n
            packet.is_keyframe = True
            container.mux(packet)
    (tmp_path / "plain.png").write_bytes(plain)
    expected = samples(read_image(tmp_path / "plain.png"))
    with open_source(tmp_path / "in.mov") as source:
        frames = list(source.frames())
        assert [frame.time for frame in frames] == [Fraction(n, 25) for n in range(3)]
        for frame in frames:
            assert samples(frame.picture) == expected
            assert len(frame.picture.side_data) == 0


def test_an_animated_png_with_a_profile_goes_through(tmp_path, samples, clip, with_bomb):
    _, _, profiled = with_bomb
    profile = profiled[33 : profiled.index(b"IDAT") - 4]
    plain = clip("a.apng", frames=3, codec="apng", pix_fmt="rgb24", options={}).read_bytes()
    (tmp_path / "b.apng").write_bytes(plain[:33] + profile + plain[33:])
    read = []
    for name in ("a.apng", "b.apng"):
        with open_source(tmp_path / name) as source:
            frames = list(source.frames())
        assert len(frames) == 3
        assert all(len(frame.picture.side_data) == 0 for frame in frames)
        read.append([samples(frame.picture) for frame in frames])
    assert read[0] == read[1]
