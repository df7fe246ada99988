import errno
import io
import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import av
import pytest
from comfyui_tlbvfi.encoding.color import stream_tags
from comfyui_tlbvfi.encoding.errors import EncoderError, OutputError, SourceError
from comfyui_tlbvfi.encoding.frame import ColorTags
from comfyui_tlbvfi.encoding.probe import probe
from comfyui_tlbvfi.encoding.writer import VideoWriter, with_mastering
from hypothesis import given, settings
from hypothesis import strategies as st

BT709 = ColorTags(primaries=1, transfer=1, matrix=1, range=1)
HDR10 = {
    "master-display": "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,1)",
    "max-cll": "1000,400",
}
MEASURES = {"width": 256, "height": 144}


def write(path, encoder, stream, pictures, pts=None):
    with VideoWriter(path, encoder, stream) as writer:
        for number, picture in enumerate(pictures):
            writer.write(picture, number if pts is None else pts[number])
    return writer


def packets(path):
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        return [
            (packet.pts * packet.time_base, packet.dts * packet.time_base)
            for packet in container.demux(video)
            if packet.size
        ]


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9", "h264-lossless"])
def test_reordered_streams_have_exact_times_however_short(
    tmp_path, encoder, stream, paint, codec, count
):
    path = tmp_path / "clip.mp4"
    writer = write(path, encoder(codec), stream(), [paint(n) for n in range(count)])
    times = packets(path)
    tick = Fraction(1001, 48000)
    assert sorted(pts for pts, _ in times) == [n * tick for n in range(count)]
    assert all(a[1] < b[1] for a, b in pairwise(times))
    assert all(dts <= pts for pts, dts in times)
    assert writer.packets == count


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9", "prores", "dnxhr"])
def test_tags_aspect_and_rotation_reach_the_file(
    tmp_path, encoder, stream, paint, shape, ffprobe, codec
):
    chosen = encoder(codec, shape(**MEASURES))
    path = tmp_path / f"clip{chosen.chunk_suffix}"
    spec = stream(**MEASURES, color=BT709, sample_aspect_ratio=Fraction(4, 3), rotation=90)
    write(path, chosen, spec, [paint(n, **MEASURES, pix_fmt=chosen.pix_fmt) for n in range(3)])
    found = ffprobe(path)["streams"][0]
    assert [found[f"color_{key}"] for key in ("primaries", "transfer", "space", "range")] == [
        *["bt709"] * 3,
        "tv",
    ]
    assert found["sample_aspect_ratio"] == "4:3"
    assert [data["rotation"] for data in found["side_data_list"]] == [90]
    assert (found["r_frame_rate"], found["nb_frames"]) == ("48000/1001", "3")


def test_every_frame_of_ffv1_tells_the_same_whatever_it_came_from(
    tmp_path, encoder, stream, paint, ffprobe
):
    plain = paint(0)
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=plain.width, height=plain.height, format=plain.format, time_base=Fraction(1, 25)
    )
    dvd = graph.add("setsar", "16/11"), graph.add("setfield", "tff")
    graph.link_nodes(source, *dvd, graph.add("buffersink")).configure()
    graph.vpush(plain)
    spec, path = stream(sample_aspect_ratio=Fraction(4, 3)), tmp_path / "clip.mkv"
    write(path, encoder("ffv1"), spec, [graph.vpull(), paint(1)])
    entries = "frame=sample_aspect_ratio,interlaced_frame"
    frames = ffprobe(path, "-show_entries", entries)["frames"]
    assert [(f["sample_aspect_ratio"], f["interlaced_frame"]) for f in frames] == [("4:3", 0)] * 2


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("vflip", [False, True])
def test_each_way_to_turn_and_mirror_reaches_the_file(
    tmp_path, encoder, stream, paint, degrees, hflip, vflip
):
    def turned(path):
        with av.open(str(path)) as container:
            frame = next(container.decode(video=0))
            return bytes(frame.side_data.get("DISPLAYMATRIX") or b"")

    source = tmp_path / "source.mp4"
    with av.open(str(source), "w") as out:
        video = out.add_stream("mpeg4", rate=25)
        video.width, video.height = 64, 48
        video.set_display_rotation(degrees, hflip=hflip, vflip=vflip)
        out.mux([*video.encode(paint(0)), *video.encode(None)])
    info = probe(source)
    spec = stream(rotation=info.rotation, is_mirrored=info.is_mirrored)
    with VideoWriter(tmp_path / "out.mp4", encoder("h264"), spec) as writer:
        writer.write(paint(0), 0)
    assert turned(tmp_path / "out.mp4") == turned(source)


@pytest.mark.parametrize("codec", ["hevc", "av1"])
def test_hdr10_metadata_reaches_the_file(tmp_path, encoder, stream, paint, shape, ffprobe, codec):
    chosen = encoder(codec, shape(**MEASURES, pix_fmt="yuv420p10le"))
    path = tmp_path / "hdr.mp4"
    pq = ColorTags(primaries=9, transfer=16, matrix=9, range=1)
    spec = stream(**MEASURES, color=pq, mastering=HDR10)
    write(path, chosen, spec, [paint(0, **MEASURES, pix_fmt="yuv420p10le")])
    found = ffprobe(path, "-show_frames")
    assert found["streams"][0]["color_transfer"] == "smpte2084"
    data = {entry["side_data_type"]: entry for entry in found["frames"][0]["side_data_list"]}
    master = data["Mastering display metadata"]
    assert Fraction(master["red_x"]) == pytest.approx(0.68, abs=1e-4)
    assert Fraction(master["max_luminance"]) == 1000
    assert Fraction(master["min_luminance"]) == pytest.approx(0.0001, abs=1e-4)
    assert data["Content light level metadata"]["max_content"] == 1000


def test_the_last_frame_of_a_variable_rate_lasts_as_long_as_the_average(
    tmp_path, encoder, stream, paint
):
    path = tmp_path / "clip.mp4"
    spec = stream(rate=Fraction(25), time_base=Fraction(1, 90000))
    write(path, encoder("h264"), spec, [paint(n) for n in range(3)], pts=[0, 1000, 9000])
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        assert video.duration * video.time_base == Fraction(9000, 90000) + Fraction(1, 25)


@pytest.mark.parametrize(
    "rate",
    [
        Fraction(107_999 * 180_000, 648_013_337),  # an hour at about 30 fps, in ticks of 1/90000 s
        Fraction(3_000_000_019, 3_000_000_018),
        Fraction(2**31 - 1, 2**31 + 11),
    ],
)
@pytest.mark.parametrize("codec", ["h264", "ffv1", "vp9"])
def test_an_average_rate_of_many_digits_is_taken(tmp_path, encoder, stream, paint, codec, rate):
    path = tmp_path / f"out{encoder(codec).suffix}"
    spec = stream(rate=rate, time_base=Fraction(1, 180_000))
    pts = [0, 6007, 11_995]
    write(path, encoder(codec), spec, [paint(n) for n in range(3)], pts)
    assert len(packets(path)) == 3
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        told = (video.average_rate, video.guessed_rate)
    assert min(abs(each - rate) for each in told) < Fraction(1, 500)


def test_options_for_hdr_are_given_where_there_is_hdr_metadata_that_can_be_stored(encoder):
    for codec in ("hevc", "av1"):
        assert with_mastering(encoder(codec), {}) == encoder(codec)
        assert with_mastering(encoder(codec), HDR10) != encoder(codec)
        alone = [with_mastering(encoder(codec), {key: HDR10[key]}).options for key in HDR10]
        told = [str(list(options.values())).count("1000") for options in alone]
        assert told == [1, 1]
    assert with_mastering(encoder("h264"), HDR10) == encoder("h264")


def test_rgb_is_tagged_as_rgb(tmp_path, encoder, stream, paint, shape, ffprobe):
    chosen = encoder("ffv1", shape(pix_fmt="rgb24"))
    path = tmp_path / "clip.mkv"
    tags = stream_tags(BT709, chosen.pix_fmt)
    write(path, chosen, stream(color=tags), [paint(0, pix_fmt="bgr0")])
    found = ffprobe(path)["streams"][0]
    assert (found["color_space"], found["color_range"]) == ("gbr", "pc")


def test_hevc_carries_the_tag_that_apple_players_want(tmp_path, encoder, stream, paint, ffprobe):
    path = tmp_path / "clip.mp4"
    write(path, encoder("hevc"), stream(), [paint(0)])
    assert ffprobe(path)["streams"][0]["codec_tag_string"] == "hvc1"


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        *(("ffv1", name) for name in ("yuv420p", "yuv420p10le", "gbrp16le", "gray")),
        *(("h264-lossless", name) for name in ("yuv420p", "yuv420p10le", "yuv444p")),
        *(("utvideo", name) for name in ("gbrp", "yuv422p")),
    ],
)
def test_lossless_profiles_return_every_sample(
    tmp_path, encoder, stream, paint, shape, decoded, samples, codec, pix_fmt
):
    chosen = encoder(codec, shape(pix_fmt=pix_fmt))
    path = tmp_path / f"clip{chosen.chunk_suffix}"
    pictures = [paint(n, pix_fmt=pix_fmt) for n in range(5)]
    write(path, chosen, stream(), pictures)
    assert decoded(path) == [samples(picture) for picture in pictures]


@given(st.lists(st.integers(1, 400), min_size=1, max_size=9))
@settings(max_examples=25, deadline=None)
def test_variable_rate_keeps_every_pts_and_distance(encoder, stream, paint, gaps):
    pts = [sum(gaps[:n]) for n in range(len(gaps) + 1)]
    target = io.BytesIO()
    spec = stream(rate=Fraction(25), time_base=Fraction(1, 12800))
    write(target, encoder("h264"), spec, [paint(n) for n in range(len(pts))], pts)
    target.seek(0)
    with av.open(target) as container:
        found = sorted(
            (packet.pts, packet.duration) for packet in container.demux(video=0) if packet.size
        )
    assert [time - found[0][0] for time, _ in found] == [time - pts[0] for time in pts]


ENCODE = """
import hashlib, sys
from fractions import Fraction
from importlib.util import module_from_spec, spec_from_file_location
from io import BytesIO
from pathlib import Path
import av
import numpy as np

root, width = Path(sys.argv[1]), int(sys.argv[2])
spec = spec_from_file_location("pack", root / "__init__.py", submodule_search_locations=[str(root)])
sys.modules["pack"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.encoding.profiles import EncoderSettings, PictureFacts, resolve_encoder
from pack.encoding.writer import StreamSpec, VideoWriter

picture = PictureFacts(width=width, height=48, pix_fmt="yuv420p")
encoder = resolve_encoder(EncoderSettings(codec="h264"), picture)
rate = Fraction(48)
spec = StreamSpec(width=width, height=48, rate=rate, time_base=1 / rate)
target = BytesIO()
with VideoWriter(target, encoder, spec, suffix=".mp4") as writer:
    for number in range(12):
        noise = np.random.default_rng(number).integers(0, 3, (72, width))
        gray = np.linspace(40, 200, width).astype(np.uint8)[None] + noise.astype(np.uint8)
        gray[12:24, 2 * number : 2 * number + 16] = 220
        gray[48:] = 128
        writer.write(av.VideoFrame.from_ndarray(gray, format="yuv420p"), number)
print(hashlib.sha256(target.getvalue()).hexdigest())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc fills memory on request")
@pytest.mark.parametrize("width", [64, 320])
def test_the_same_pictures_give_the_same_bits_whatever_memory_held(root, width):
    command = [sys.executable, "-c", ENCODE, str(root), str(width)]
    made = set()
    for byte in ("1", "85", "254"):
        world = {**os.environ, "MALLOC_PERTURB_": byte}
        made.add(subprocess.run(command, capture_output=True, check=True, env=world).stdout)
    assert len(made) == 1


def test_the_source_picture_types_are_not_imposed(tmp_path, encoder, stream, paint):
    pictures = [paint(n) for n in range(8)]
    for picture in pictures:
        picture.pict_type = 1
    path = tmp_path / "clip.mp4"
    write(path, encoder("h264"), stream(), pictures)
    with av.open(str(path)) as container:
        assert [packet.is_keyframe for packet in container.demux(video=0) if packet.size] == [
            True,
            *[False] * 7,
        ]


def test_another_size_or_format_is_refused_rather_than_rescaled(tmp_path, encoder, stream, paint):
    path = tmp_path / "clip.mp4"
    for other in (paint(1, width=32), paint(1, pix_fmt="yuv444p")):
        with pytest.raises(EncoderError, match="planned as 64x48 yuv420p but got"):
            write(path, encoder("h264"), stream(), [paint(0), other])
    assert list(tmp_path.iterdir()) == []


def test_pts_out_of_order_are_refused(tmp_path, encoder, stream, paint):
    with pytest.raises(EncoderError, match="pts 3 does not come after 3"):
        write(tmp_path / "clip.mp4", encoder("h264"), stream(), [paint(0), paint(1)], [3, 3])


def test_no_frames_make_no_file(tmp_path, encoder, stream):
    with pytest.raises(EncoderError, match="no frame was written"):
        write(tmp_path / "clip.mp4", encoder("h264"), stream(), [])
    assert list(tmp_path.iterdir()) == []


def test_the_file_appears_only_when_it_is_whole(tmp_path, encoder, stream, paint):
    path = tmp_path / "clip.mkv"
    seen = {}

    def note(step):
        seen[step] = path.exists()

    with VideoWriter(path, encoder("ffv1"), stream(), on_step=note) as writer:
        writer.write(paint(0), 0)
    assert seen == {
        "before close": False,
        "after close": False,
        "after fsync": False,
        "after rename": True,
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["clip.mkv"]


def test_a_failed_check_leaves_nothing(tmp_path, encoder, stream, paint):
    def refuse(path):
        raise OutputError(f"{path.name} is refused.")

    writer = VideoWriter(tmp_path / "clip.mkv", encoder("ffv1"), stream())
    writer.write(paint(0), 0)
    with pytest.raises(OutputError, match=r"\.clip\.part\.mkv is refused"):
        writer.finish(refuse)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_way_out(tmp_path, encoder, stream, paint):
    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = VideoWriter(tmp_path / "c.mkv", encoder("ffv1"), stream(), if_full="go west")
    writer.write(paint(0), 0)
    with pytest.raises(OutputError, match=r"The disk is full while writing .* go west\."):
        writer.finish(full)


def test_a_finished_writer_gives_its_encoder_back_at_once(tmp_path, encoder, stream, paint):
    import gc
    import weakref

    gc.disable()  # an encoder holds megabytes that the garbage collector does not see
    try:
        writer = VideoWriter(tmp_path / "c.mp4", encoder("h264"), stream())
        writer.write(paint(0), 0)
        writer.finish(lambda path: None)
        gone = weakref.ref(writer)
        del writer
        assert gone() is None
    finally:
        gc.enable()


def test_a_missing_folder_is_told(tmp_path, encoder, stream):
    with pytest.raises(OutputError, match=r"clip\.mp4 cannot be written \(No such file"):
        VideoWriter(tmp_path / "no" / "clip.mp4", encoder("h264"), stream())


def test_an_encoder_that_does_not_take_its_options_is_refused(tmp_path, encoder, stream):
    wrong = replace(encoder("h264"), options={"preset": "no such"})
    with pytest.raises(EncoderError, match=r"libx264 cannot be opened for 64x48 yuv420p in \.mp4"):
        VideoWriter(tmp_path / "clip.mp4", wrong, stream())
    assert not list(tmp_path.iterdir())


def test_sound_that_cannot_be_read_leaves_nothing(tmp_path, encoder, stream):
    def broken():
        raise SourceError("gone")
        yield

    with pytest.raises(SourceError, match="gone"):
        VideoWriter(tmp_path / "clip.mkv", encoder("ffv1"), stream(), beside=lambda out: broken())
    assert not list(tmp_path.iterdir())


def test_an_encoder_that_reorders_more_than_is_known_of_it_is_refused(
    tmp_path, encoder, stream, paint
):
    wrong = replace(encoder("h264"), reorder=0)
    with pytest.raises(EncoderError, match="libx264 reorders by more than 0 frames"):
        write(tmp_path / "clip.mp4", wrong, stream(), [paint(n) for n in range(9)])
    assert not list(tmp_path.iterdir())


def test_sound_beside_the_picture_is_read_as_the_picture_comes_to_it(
    tmp_path, encoder, stream, paint
):
    read = []

    def beside(out):
        sound = out.add_stream("pcm_s16le", rate=8000, layout="mono")

        def packets():
            for start in range(0, 8000, 800):
                frame = av.AudioFrame(format="s16", layout="mono", samples=800)
                frame.planes[0].update(bytes(frame.planes[0].buffer_size))
                frame.rate, frame.pts, frame.time_base = 8000, start, Fraction(1, 8000)
                for packet in sound.encode(frame):
                    read.append(start / 8000)
                    yield start / 8000, packet

        return packets()

    path = tmp_path / "clip.mkv"
    with VideoWriter(path, encoder("ffv1"), stream(rate=Fraction(24)), beside=beside) as writer:
        for number in range(24):
            writer.write(paint(number), number)
            assert read[-1] <= number / 24 + 0.1
    assert len(read) == 10
    with av.open(str(path)) as container:
        assert container.duration == 1_000_000
        assert sum(p.size for p in container.demux(audio=0)) == 16000
