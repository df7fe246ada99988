"""Decoding on a GPU: the same frames, and a fallback to software if there is none or it fails.

Only the last test needs a GPU: the others decode in software in place of the device that FFmpeg
would open, and arrange the samples as a GPU does.
"""

import logging
from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import VideoReformatter
from comfyui_tlbvfi.encoding import container, hardware, hwaccel
from comfyui_tlbvfi.encoding.errors import DecoderError
from comfyui_tlbvfi.encoding.hardware import in_software_format, regrouped
from comfyui_tlbvfi.encoding.layout import channel_views, pixel_layout
from comfyui_tlbvfi.encoding.reader import VideoSource
from comfyui_tlbvfi.encoding.source import open_source
from hypothesis import given
from hypothesis import strategies as st

ARRANGED = {
    "yuv420p": "nv12",
    "yuvj420p": "nv12",
    "yuv420p10le": "p010le",
    "yuv422p10le": "p210le",
    "yuv444p10le": "yuv444p16le",
}
"""Pixel formats of software decoders, and those of the same frames from a GPU."""


def arranged(picture):
    """The picture as a GPU returns it: interleaved chroma, samples in the upper bits."""
    name = ARRANGED.get(picture.format.name)
    if name is None:
        return picture
    given = VideoReformatter().reformat(picture, format=name)  # keeps time, tags and side data
    fill(given, [np.asarray(view) for view in channel_views(picture)], picture.format.name)
    return given


def fill(picture, channels, pix_fmt):
    layout = pixel_layout(picture.format.name)
    shift = layout.shift + layout.bits - pixel_layout(pix_fmt).bits
    for view, samples in zip(channel_views(picture), channels, strict=True):
        view[...] = samples << shift


OPEN, CREATE = av.open, av.CodecContext.create


class Gpu:
    """A stand-in for a GPU, in software; fails on demand."""

    def __init__(self):
        self.opened = 0
        self.refuses_from = None
        """Number, from 1, of the attempt to open the device at which it begins to refuse."""
        self.fails_after = None
        """Frames after which each decoder fails, without prior warning."""
        self.spoils = False
        self.asked = set()
        """Decoders created without a file."""

    def open_device(self):
        self.opened += 1
        if self.refuses_from is not None and self.opened >= self.refuses_from:
            raise av.error.MemoryError(12, "Cannot allocate memory")

    def open_file(self, *args, hwaccel=None, **options):
        if hwaccel is self:
            self.open_device()
        return OPEN(*args, **options)

    def create(self, name, mode, device=None):
        if device is not self:
            return CREATE(name, mode)
        self.open_device()
        self.asked.add(name)
        return CREATE({"av1": "libdav1d"}.get(name, name), mode)

    def frames(self, pictures, chosen):
        return in_software_format(self.given(pictures), chosen)

    def given(self, pictures):
        for number, picture in enumerate(pictures):
            if picture is None or number == self.fails_after:
                yield None
                return
            result = arranged(picture)
            if self.spoils:
                channel_views(result)[0][0, 0] += 1
            yield result


@pytest.fixture
def gpu(monkeypatch):
    """A stand-in for a GPU that decodes what NVIDIA's GPUs decode."""
    made = Gpu()
    monkeypatch.setattr(hardware, "HWAccel", lambda device, *, allow_software_fallback: made)
    monkeypatch.setattr(av, "open", made.open_file)
    monkeypatch.setattr(av, "CodecContext", made)
    monkeypatch.setattr(hwaccel, "hwdevices_available", lambda: ["cuda"])
    monkeypatch.setattr(hwaccel, "KEEPS_TAGS", (0, 0))  # nothing is downloaded here
    monkeypatch.setattr(container, "in_software_format", made.frames)
    return made


@pytest.fixture
def messages(caplog):
    """Log messages of level INFO and above."""
    caplog.set_level(logging.INFO, "tlbvfi")
    return lambda: [record.getMessage() for record in caplog.records]


def everything(source, samples, start=0, stop=None):
    return [(f.index, f.time, samples(f.picture)) for f in source.frames(start, stop)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv420p10le", "yuv422p10le"])
@given(size=st.tuples(st.integers(1, 70), st.integers(1, 40)), seed=st.integers(0, 2**32))
def test_samples_of_a_gpu_are_put_back_bit_for_bit(pix_fmt, size, seed):
    layout, random = pixel_layout(pix_fmt), np.random.default_rng(seed)
    software = av.VideoFrame(*size, pix_fmt)
    drawn = [
        random.integers(0, 1 << layout.bits, view.shape, layout.dtype)
        for view in channel_views(software)
    ]
    given_by_gpu = av.VideoFrame(*size, ARRANGED[pix_fmt])
    fill(given_by_gpu, drawn, pix_fmt)
    found = regrouped(given_by_gpu, pix_fmt, VideoReformatter())
    assert found.format.name == pix_fmt
    assert all(map(np.array_equal, channel_views(found), drawn))


@pytest.mark.parametrize(
    ("given_format", "wanted"),
    [
        ("p016le", "yuv420p12le"),
        ("p012le", "yuv420p12le"),
        ("nv16", "yuvj422p"),
        ("nv24", "yuv444p"),
        ("yuv444p10msble", "yuv444p10le"),
        ("yuv444p16le", "yuv444p12le"),
        ("yuv444p", "yuvj444p"),
    ],
)
def test_other_arrangements_are_put_back_too(given_format, wanted):
    picture = av.VideoFrame(16, 8, given_format)
    channels = [
        np.arange(view.size).reshape(view.shape).astype(view.dtype) + 7
        for view in channel_views(picture)
    ]
    fill(picture, channels, wanted)
    found = regrouped(picture, wanted, VideoReformatter())
    assert all(map(np.array_equal, channel_views(found), channels))


@pytest.mark.parametrize(
    ("given_format", "wanted"),
    [("p010le", "yuv420p"), ("nv12", "yuv422p"), ("nv12", "yuv420p10le"), ("nv12", "gray")],
)
def test_a_format_that_does_not_hold_the_same_is_refused(given_format, wanted):
    with pytest.raises(DecoderError, match=f"{given_format} instead of {wanted}"):
        regrouped(av.VideoFrame(16, 8, given_format), wanted, VideoReformatter())


def test_time_tags_and_side_data_stay_with_the_picture(clip):
    x265 = "log-level=none:lossless=1:hdr10=1:max-cll=1000,400"
    path = clip(
        "a.mp4",
        codec="libx265",
        frames=3,
        pix_fmt="yuv420p10le",
        tags=(9, 16, 9, 1),
        rotation=90,
        options={"preset": "ultrafast", "x265-params": x265},
    )
    with av.open(str(path)) as opened:
        software = next(opened.decode(video=0))
    found = regrouped(arranged(software), "yuv420p10le", VideoReformatter())
    assert (found.pts, found.dts, found.time_base) == (
        software.pts,
        software.dts,
        software.time_base,
    )
    tags = ("color_primaries", "color_trc", "colorspace", "color_range")
    assert [int(getattr(found, tag)) for tag in tags] == [9, 16, 9, 1]
    assert found.rotation == software.rotation != 0
    for kind in ("CONTENT_LIGHT_LEVEL", "DISPLAYMATRIX"):
        assert bytes(found.side_data[kind]) == bytes(software.side_data[kind]) != b""


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("a.mp4", {}),
        ("a.mp4", {"has_audio": True, "pts": tuple(n * n + 7 for n in range(30))}),
        ("full.mkv", {"pix_fmt": "yuvj420p"}),
        ("deep.mp4", {"pix_fmt": "yuv420p10le"}),
        ("a.ts", {}),
        ("open.mkv", {"options": {"qp": "0", "bf": "3", "g": "9", "x264-params": "open-gop=1"}}),
        ("a.webm", {"codec": "libvpx-vp9", "options": {"lossless": "1", "cpu-used": "8"}}),
    ],
)
def test_frames_of_a_gpu_equal_those_of_software_from_any_index(clip, samples, gpu, name, facts):
    path = clip(name, **facts)
    with VideoSource(path, hwaccel="none") as plain, VideoSource(path) as source:
        whole = everything(plain, samples)
        assert (plain.decoder, source.decoder) == ("software", "cuda")
        assert source.info == plain.info
        assert source.identity == plain.identity
        assert everything(source, samples) == whole
        for start in range(3, 30, 8):
            assert everything(source, samples, start, start + 3) == whole[start : start + 3]
        assert source.decoder == "cuda"
        assert source.shortfall() is None


def test_av1_is_decoded_by_the_decoder_that_knows_gpus(clip, samples, gpu):
    path = clip("a.mp4", codec="libsvtav1", size=(64, 64), options={"preset": "12", "crf": "30"})
    with VideoSource(path, hwaccel="none") as plain, VideoSource(path, hwaccel="cuda") as source:
        assert everything(source, samples) == everything(plain, samples)
        assert everything(source, samples, 21) == everything(plain, samples, 21)
    assert gpu.asked == {"av1"}


def test_a_gpu_that_fails_midway_hands_over_to_software_and_loses_nothing(
    clip, samples, gpu, messages
):
    path = clip("a.mp4")
    with VideoSource(path, hwaccel="none") as plain, VideoSource(path, hwaccel="cuda") as source:
        whole = everything(plain, samples)
        gpu.fails_after = 13
        assert everything(source, samples, 4) == whole[4:]
        assert source.decoder == "software"
        assert everything(source, samples) == whole
        assert source.shortfall() is None
    told = [text for text in messages() if "software continues" in text]
    assert len(told) == 1
    assert told[0].startswith("a.mp4: cuda stops at frame 13 (")


def test_a_gpu_that_does_not_open_again_hands_over_to_software(clip, samples, gpu, messages):
    path = clip("a.mp4")
    with VideoSource(path, hwaccel="none") as plain, VideoSource(path) as source:
        gpu.refuses_from = gpu.opened + 1
        assert everything(source, samples, 9) == everything(plain, samples, 9)
    assert messages()[-1] == (
        "a.mp4: cuda stops at frame 9 (the device does not open with the file); "
        "software continues from there."
    )


def test_damage_ends_the_same_way_with_and_without_a_gpu(clip, samples, gpu):
    path = clip("a.mp4")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with VideoSource(path, hwaccel="none") as plain, VideoSource(path) as source:
        assert everything(source, samples) == everything(plain, samples)
        assert source.shortfall() == plain.shortfall() is not None


def test_a_gpu_whose_first_frame_differs_is_not_used(clip, gpu, messages):
    path = clip("a.mp4", frames=4)
    gpu.spoils = True
    with VideoSource(path) as source:
        assert source.decoder == "software"
    problem = (
        "a.mp4 cannot be decoded by cuda here: "
        "its first frame differs from the one decoded in software"
    )
    assert messages() == [f"{problem}; software decodes it."]
    with pytest.raises(DecoderError) as caught:
        VideoSource(path, hwaccel="cuda")
    assert str(caught.value) == f"{problem}; choose hwaccel auto or none."


def test_a_gpu_that_does_not_decode_the_video_is_told_once(clip, samples, gpu, messages):
    gpu.fails_after = 0
    with VideoSource(clip("a.mp4", frames=4)) as source:
        assert len(everything(source, samples)) == 4
    assert len(messages()) == 1
    assert "cannot be decoded by cuda here: the cuda decoder fails" in messages()[0]


def test_what_decodes_is_told(clip, gpu, messages):
    VideoSource(clip("a.mp4", frames=3)).close()
    assert messages() == ["a.mp4 is decoded by cuda."]


def test_without_a_gpu_software_decodes_and_nothing_is_said(clip, gpu, messages):
    gpu.refuses_from = 1
    with VideoSource(clip("a.mp4", frames=3)) as source:
        assert source.decoder == "software"
    assert not messages()


def test_a_named_device_that_is_not_there_is_refused_in_one_sentence(clip, gpu):
    gpu.refuses_from = 1
    with pytest.raises(DecoderError) as caught:
        open_source(clip("a.mp4", frames=3), hwaccel="cuda")
    assert str(caught.value) == (
        "a.mp4 cannot be decoded by cuda here: no such device can be opened "
        "(Cannot allocate memory); choose hwaccel auto or none."
    )


@pytest.mark.parametrize(
    ("name", "facts", "words"),
    [
        ("a.mov", {"codec": "prores_ks", "pix_fmt": "yuv422p10le"}, "no decoder for prores"),
        ("a.webm", {"codec": "libvpx-vp9", "pix_fmt": "yuva420p"}, "no decoder for vp9"),
        ("a.mp4", {"codec": "mpeg4"}, "decoders of mpeg4 may give different samples"),
        ("a.h264", {}, "no usable timestamps"),
    ],
)
def test_a_video_no_gpu_decodes_is_refused_by_name_and_left_to_software_by_auto(
    clip, gpu, messages, name, facts, words
):
    path = clip(name, frames=4, **facts)
    with pytest.raises(DecoderError, match=words):
        open_source(path, hwaccel="cuda")
    with VideoSource(path) as source:
        assert source.decoder == "software"
    assert not [text for text in messages() if "cuda" in text]


def test_a_pyav_that_loses_tags_on_the_way_uses_no_gpu(clip, gpu, monkeypatch, messages):
    monkeypatch.setattr(hwaccel, "KEEPS_TAGS", (99, 0))
    path = clip("a.mp4", frames=3)
    with VideoSource(path) as source:
        assert source.decoder == "software"
    assert not messages()
    with pytest.raises(DecoderError, match="PyAV before 18 loses color tags and side data"):
        VideoSource(path, hwaccel="cuda")


def test_an_unknown_device_is_refused_with_those_there_are(clip):
    with pytest.raises(DecoderError, match="no hwaccel 'gpu' here: choose one of auto, none"):
        open_source(clip("a.mp4", frames=3), hwaccel="gpu")


def test_images_and_memory_know_no_device(tmp_path):
    rate = Fraction(25)
    with pytest.raises(DecoderError, match="No cuda decoder is used for the images in"):
        open_source(tmp_path, input_rate=rate, hwaccel="cuda")
    with pytest.raises(DecoderError, match="No cuda decoder is used for frames in memory"):
        open_source([], input_rate=rate, hwaccel="cuda")


def test_real_video_is_the_same_with_whatever_decodes_here(real_video, samples):
    with open_source(real_video, hwaccel="none") as plain, open_source(real_video) as source:
        for ours, theirs in zip(source.frames(0, 24), plain.frames(0, 24), strict=True):
            assert (ours.index, ours.time) == (theirs.index, theirs.time)
            assert samples(ours.picture) == samples(theirs.picture)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("codec", "pix_fmt", "options"),
    [
        ("libx264", "yuv420p", {"preset": "fast", "g": "20", "bf": "3"}),
        ("libx265", "yuv420p", {"preset": "fast", "x265-params": "log-level=none"}),
        ("libx265", "yuv420p10le", {"preset": "fast", "x265-params": "log-level=none"}),
        ("libvpx-vp9", "yuv420p", {"cpu-used": "8"}),
        ("libsvtav1", "yuv420p10le", {"preset": "10"}),
    ],
)
def test_a_real_gpu_decodes_what_software_decodes(clip, samples, codec, pix_fmt, options):
    path = clip("a.mkv", codec=codec, pix_fmt=pix_fmt, options=options, size=(322, 178), frames=50)
    try:
        source = VideoSource(path, hwaccel="cuda")
    except DecoderError as error:
        pytest.skip(str(error))
    with source, VideoSource(path, hwaccel="none") as plain:
        assert everything(source, samples) == everything(plain, samples)
        assert everything(source, samples, 33, 40) == everything(plain, samples, 33, 40)
        assert source.decoder == "cuda"
