"""The Python interface: frames in, frames out; videos from and to disk and memory."""

import re
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from fractions import Fraction
from io import BufferedReader, BytesIO, StringIO
from pathlib import Path

import av
import comfyui_tlbvfi
import cv2
import numpy as np
import pytest
import torch
from comfyui_tlbvfi import (
    InterpolationError,
    MethodConfig,
    VideoError,
    create_method,
    interpolate_frames,
    interpolate_video,
)
from comfyui_tlbvfi.encoding.errors import OutputError, SourceError
from comfyui_tlbvfi.encoding.png import with_texts
from comfyui_tlbvfi.tlbvfi.errors import FrameError, ModelMissingError, SettingsError
from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod
from comfyui_tlbvfi.tlbvfi.progress import FrameDone, Notice

NUMPY = [np.uint8, np.uint16, np.float16, np.float32, np.float64]
TORCH = [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def moving(count=5, size=(40, 56), channels=3, first=0):
    """[N, H, W, C] float64 in [0, 1]: a square that moves over a gradient."""
    height, width = size
    frames = np.zeros((count, height, width, channels))
    frames += np.linspace(0.2, 0.7, width)[:, None]
    for number in range(count):
        left = 4 + 2 * (number + first)
        frames[number, 10:22, left : left + 12] = 0.95
    return frames


def as_dtype(frames, dtype):
    if isinstance(dtype, torch.dtype):
        if dtype.is_floating_point:
            return torch.from_numpy(frames).to(dtype)
        return torch.from_numpy(as_dtype(frames, np.dtype(str(dtype).removeprefix("torch."))))
    if np.issubdtype(dtype, np.integer):
        return np.round(frames * np.iinfo(dtype).max).astype(dtype)
    return frames.astype(dtype)


def spoiled(dtype, value):
    """Four frames, one pixel of the third being `value`."""
    frames = as_dtype(moving(4), dtype)
    frames[2, 3, 5, 1] = value
    return frames


def values(frame):
    """A frame of any kind as float64 in [0, 1]."""
    if isinstance(frame, torch.Tensor):
        frame = frame.double().numpy() if frame.dtype.is_floating_point else frame.numpy()
    scale = np.iinfo(frame.dtype).max if frame.dtype.kind == "u" else 1
    return frame.astype(np.float64) / scale


def halfway(frame0, frame1):
    """The mean of two frames; of RGBA, that of the pictures seen: colors weighted by alpha."""
    if frame0.shape[2] < 4:
        return (frame0 + frame1) / 2
    alpha0, alpha1 = frame0[..., 3:], frame1[..., 3:]
    color = (frame0[..., :3] * alpha0 + frame1[..., :3] * alpha1) / (alpha0 + alpha1)
    return np.concatenate([color, (alpha0 + alpha1) / 2], axis=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("dtype", [*NUMPY, *TORCH], ids=str)
def test_mid_frames_are_of_the_kind_that_went_in(dtype, channels):
    frames = as_dtype(moving(3, channels=channels), dtype)
    out = list(interpolate_frames(frames, method="blend"))
    assert len(out) == 5
    precise = {"uint8": 0.51 / 255, "float16": 1e-3, "torch.bfloat16": 8e-3, "torch.float16": 1e-3}
    for frame in out:
        assert type(frame) is type(frames)
        assert (frame.dtype, frame.shape) == (frames.dtype, frames[0].shape)
    for number in (1, 3):
        expected = halfway(values(frames[number // 2]), values(frames[number // 2 + 1]))
        error = np.abs(values(out[number]) - expected).max()
        assert error <= precise.get(
            str(frames.dtype), 0.51 / 255 if "uint8" in str(dtype) else 1e-5
        )


def test_source_frames_are_the_objects_that_went_in():
    frames = list(as_dtype(moving(4), np.uint8))
    out = list(interpolate_frames(frames, method="blend", times=2))
    assert len(out) == 13
    assert all(ours is given for ours, given in zip(out[::4], frames, strict=True))


def test_values_beyond_0_and_1_pass_through_floats_and_are_clipped_in_integers():
    frames = moving(2).astype(np.float32) * 6 - 2
    (_, mid, _) = interpolate_frames(frames, method="blend", cuts="ignore")
    assert mid.min() < -0.5
    assert mid.max() > 3
    black, white = np.zeros((40, 56, 3), np.uint8), np.full((40, 56, 3), 255, np.uint8)
    (_, mid, _) = interpolate_frames([black, white], method="blend", cuts="ignore")
    assert np.unique(mid).tolist() == [128]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_integer_value_survives_the_way_through_the_pipeline(dtype):
    count = np.iinfo(dtype).max + 1
    frame = np.arange(count, dtype=dtype).reshape(16, -1, 1).repeat(4, 2)
    (_, mid, _) = interpolate_frames([frame, frame.copy()], method="blend", cuts="ignore")
    assert np.array_equal(mid, frame)


def test_any_rate_shows_frames_at_exact_times():
    frames = moving(6).astype(np.float32)
    shown = list(interpolate_frames(frames, method="blend", fps=60, input_fps=24))
    assert len(shown) == 5 * 60 // 24 + 1
    third = frames[0] * np.float32(0.2) + frames[1] * np.float32(0.8)  # 2/60 s is at t = 0.8
    assert np.abs(shown[2] - third).max() < 1e-6
    assert np.array_equal(shown[5], frames[2])


def test_slow_motion_needs_no_rate():
    assert len(list(interpolate_frames(moving(4), method="blend", slowmo=2.5))) == 8


def test_scenes_are_not_blended_unless_asked():
    rng = np.random.default_rng(3)
    scenes = [rng.random((8, 8, 3)).repeat(12, 0).repeat(12, 1) for _ in range(2)]
    frames = [scenes[number // 4] for number in range(8)]
    held = list(interpolate_frames(frames, method="blend"))
    assert held[7] is frames[3]
    mixed = list(interpolate_frames(frames, method="blend", cuts="ignore"))
    assert np.allclose(mixed[7], (scenes[0] + scenes[1]) / 2, atol=1e-6)


def test_an_iterator_is_read_a_few_frames_ahead_and_closed_with_ours():
    read, closed = [], []

    def source():
        try:
            for number in range(1000):
                read.append(number)
                yield moving(1, first=number % 10)[0]
        finally:
            closed.append(True)

    out = interpolate_frames(source(), method="blend")
    assert read == []
    for _ in range(20):
        next(out)
    assert len(read) < 16
    out.close()
    assert closed == [True]


class Expectant(BlendMethod):
    """A method that wants to know how many output frames follow."""

    def __init__(self):
        self.told = []

    def expect(self, frames):
        self.told.append(frames)

    def prepare(self, frame):
        assert self.told
        return frame


def test_a_method_that_prepares_for_long_jobs_is_told_first_whatever_the_ends(clip, tmp_path):
    method = Expectant()
    assert len(list(interpolate_frames(moving(3), method=method))) == 5
    source = clip(tmp_path / "in.mp4", 3)
    interpolate_video(source, BytesIO(), method=method)
    interpolate_video(source, tmp_path / "out.mp4", method=method)
    interpolate_video(iter(moving(3)), tmp_path / "frames.mp4", method=method, input_fps=25)
    assert method.told == [0, 5, 5, 0]


def test_a_method_and_its_weights_may_be_named_in_text(tmp_path):
    assert create_method("flow").name == "flow"
    absent = MethodConfig(name="film", model=str(tmp_path / "absent.safetensors"))
    for use in (create_method, lambda config: interpolate_frames(moving(2), method=config)):
        with pytest.raises(ModelMissingError, match=r"no film model at .*absent"):
            list(use(absent))


@pytest.mark.parametrize("wrong", [None, MethodConfig(name="blend", steps="10")])
def test_what_names_no_method_is_one_sentence_whoever_is_asked(wrong):
    for use in (create_method, lambda config: interpolate_frames(moving(2), method=config)):
        with pytest.raises(SettingsError, match="pass a "):
            use(wrong)


def test_a_method_made_before_is_used_again():
    method = create_method(MethodConfig(name="flow"))
    frames = moving(3).astype(np.float32)
    first, second = (list(interpolate_frames(frames, method=method)) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([], "at least 2 frames, but got 0"),
        (moving(1), "at least 2 frames, but got 1"),
        (
            [moving(1)[0], moving(1, size=(40, 58))[0]],
            "frame 1 is float64 [40, 58, 3], but frame 0",
        ),
        ([moving(1)[0], moving(1)[0].astype("f4")], "frame 1 is float32 [40, 56, 3], but frame 0"),
        ([moving(1)[0], torch.from_numpy(moving(1)[0])], "frame 1 is torch.float64"),
        (np.zeros((3, 8, 8), np.uint8), "frame 0 is uint8 [8, 8]: frames are [height, width"),
        (np.zeros((3, 8, 8, 2), np.uint8), "1, 3 or 4 channels"),
        (np.zeros((3, 8, 8, 3), np.int64), "uint8, uint16 or float"),
        (np.zeros((3, 0, 8, 3), np.uint8), "frame 0 is uint8 [0, 8, 3]: frames are [height, width"),
        (spoiled(np.float32, np.nan), "frame 2 holds NaN or infinite pixels: repair it"),
        (spoiled(np.float64, 1e300), "frame 2 holds NaN or infinite pixels: repair it"),
        (spoiled(torch.float16, np.inf), "frame 2 holds NaN or infinite pixels: repair it"),
        (spoiled(torch.bfloat16, -np.inf), "frame 2 holds NaN or infinite pixels: repair it"),
        (["a.png", "b.png"], "frame 0 is of type str: pass numpy arrays or tensors"),
    ],
)
@pytest.mark.parametrize("cuts", ["hold", "ignore"])
def test_unusable_frames_are_refused_in_one_sentence(frames, message, cuts):
    with pytest.raises(FrameError, match=re.escape(message)):
        list(interpolate_frames(frames, method="blend", cuts=cuts))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": 0}, "times must be between 1 and 8"),
        ({"fps": 60}, "fps 60 needs input_fps"),
        ({"times": 2, "slowmo": 2}, "leave it out with fps or slowmo"),
        ({"fps": "fast", "input_fps": 24}, "a frame rate is a number"),
        ({"method": "magic"}, "name must be one of"),
    ],
)
def test_bad_settings_are_refused_before_a_frame_is_read(options, message):
    def source():
        pytest.fail("a frame was read")
        yield moving(1)[0]

    with pytest.raises(SettingsError, match=message):
        interpolate_frames(source(), **({"method": "blend"} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"times": 2.0}, "times is 2.0, not int | None: "),
        ({"seed": 1.5}, "seed is 1.5, not int: "),
        ({"crf": "18"}, "crf is '18', not int | None: "),
        ({"codec": None}, "codec is None, not str: "),
        ({"audio": "no"}, "audio is 'no', not bool: "),
        ({"cuts": None}, "cuts is None, not CutRule: "),
        ({"container": None}, "container is None, not str: "),
        ({"metadata": {"frames": 5}}, "metadata is {'frames': 5}, not Mapping[str, str] | None: "),
        ({"on_event": None}, "on_event is None, not OnEvent: "),
        ({"method": None}, "method is None: pass a name such as 'flow', "),
        ({"method": MethodConfig(name="flow", steps="4")}, "steps is '4', not int: "),
    ],
)
def test_values_of_another_type_are_refused_in_one_sentence(options, message):
    with pytest.raises((InterpolationError, VideoError), match=rf"^{re.escape(message)}.*\.$"):
        interpolate_video(moving(3), BytesIO(), **({"method": "blend", "input_fps": 8} | options))


def test_integers_of_any_kind_are_integers(tmp_path):
    options = {"method": "blend", "input_fps": 8, "codec": "h264"}
    for rate in ({"crf": np.int8(20)}, {"bitrate": 1_000_000}):
        result = interpolate_video(
            moving(3), BytesIO(), times=np.int64(2), seed=np.uint64(2**63 - 1), **options, **rate
        )
        assert result.frames == 9


def closed_file():
    file = BytesIO()
    file.close()
    return file


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (".", r"\.png is not a type of video file"),
        ("a\0b.mp4", "The output name contains a NUL character"),
        (closed_file(), "the target is closed, read-only or not seekable"),
        (BufferedReader(BytesIO()), "the target is closed, read-only or not seekable"),
        (StringIO(), "target is of type StringIO: pass a path or a binary file object"),
        (None, "target is of type NoneType: pass a path or a binary file object"),
    ],
    ids=["folder", "NUL", "closed", "read-only", "text", "none"],
)
def test_a_target_that_takes_no_video_is_refused(tmp_path, monkeypatch, target, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((OutputError, SettingsError), match=f"^{message}.*"):
        interpolate_video(moving(3), target, method="blend", input_fps=8)
    assert list(tmp_path.iterdir()) == []


def test_bytes_are_not_written_over_while_they_are_read(clip, tmp_path):
    content = BytesIO(clip(tmp_path / "in.mp4", 5).read_bytes())
    before = content.getvalue()
    for source, options in ((content, {}), (moving(3), {"sound": content, "input_fps": 8})):
        with pytest.raises(OutputError, match="the target is the source itself"):
            interpolate_video(source, content, method="blend", **options)
    assert content.getvalue() == before


def decoded(target):
    """(pictures as RGB, times, has sound) of a file or its bytes."""
    if isinstance(target, BytesIO):
        target.seek(0)
    with av.open(target) as container:
        frames = list(container.decode(video=0))
        return (
            [frame.to_ndarray(format="rgb24") for frame in frames],
            [frame.pts * Fraction(frame.time_base) for frame in frames],
            bool(container.streams.audio),
        )


def sound_packets(target):
    if isinstance(target, BytesIO):
        target.seek(0)
    with av.open(target) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size]


def test_frames_become_bytes_of_a_file_without_touching_the_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = BytesIO()
    frames = as_dtype(moving(6), np.uint8)
    result = interpolate_video(frames, target, method="blend", input_fps=16, crf=1)
    assert result.frames == 11
    pictures, times, _ = decoded(target)
    assert times == [Fraction(n, 32) for n in range(11)]
    assert np.abs(pictures[2].astype(int) - frames[1]).mean() < 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("container", ["mp4", "mov", "mkv", "webm", "nut", "avi"])
def test_every_container_can_be_written_to_memory(container, clip, tmp_path):
    source = clip(tmp_path / "in.mp4", 12, rate=Fraction(25), sound=True)
    target = BytesIO()
    interpolate_video(source, target, method="blend", container=container)
    pictures, times, has_sound = decoded(target)
    assert (len(pictures), has_sound) == (23, True)
    assert times[-1] - times[0] == pytest.approx(22 / 50, abs=0.002)


@pytest.mark.parametrize("container", ["mp4", "mov", "nut", "avi"])
def test_a_clock_below_zero_becomes_one_from_zero(container, clip, tmp_path):
    source = clip(tmp_path / "in.ts", 12, rate=Fraction(25), start=Fraction("95439.5"))
    target = BytesIO()
    interpolate_video(source, target, method="blend", container=container)
    _, times, _ = decoded(target)
    assert times == [Fraction(n, 50) for n in range(23)]


def test_what_should_be_read_goes_to_the_log_where_nobody_asks_for_events(clip, tmp_path, caplog):
    source = clip(tmp_path / "in.mp4", 5, sound=True)
    interpolate_video(source, tmp_path / "out.webm", method="blend")
    assert caplog.text.count("it becomes libopus") == 1


def test_empty_names_are_refused(clip, tmp_path):
    source = clip(tmp_path / "in.mp4", 3)
    with pytest.raises(OutputError, match="name is empty"):
        interpolate_video(source, "", method="blend")
    with pytest.raises(SourceError, match="name is empty"):
        interpolate_video("", tmp_path / "out.mp4", method="blend")


def test_bytes_in_are_bytes_out_with_the_very_sound(clip, tmp_path):
    path = clip(tmp_path / "in.mp4", 20, rate=Fraction(25), sound=True)
    target = BytesIO()
    interpolate_video(BytesIO(path.read_bytes()), target, method="blend")
    assert sound_packets(target) == sound_packets(str(path))


def heard(container, stream):
    """Audio frames, without those that cannot be decoded."""
    for packet in container.demux(stream):
        with suppress(av.error.FFmpegError):
            yield from packet.decode()


@pytest.fixture
def damaged(clip, tmp_path):
    """Two seconds of video, with a few packets in the middle of the sound overwritten."""
    source = clip(tmp_path / "in.mp4", 50, rate=Fraction(25), sound=True)
    content = source.read_bytes()
    for _, packet in sound_packets(str(source))[40:55]:
        content = content.replace(packet, b"\xff" * len(packet))
    source.write_bytes(content)
    return source


@pytest.mark.parametrize(
    ("name", "options", "seconds"),
    [
        ("converted.webm", {}, 2),
        ("stretched.mp4", {"slowmo": 2, "slowmo_sound": "stretch"}, 4),
    ],
)
def test_damaged_sound_is_silent_for_a_moment_and_stays_in_step(
    damaged, tmp_path, name, options, seconds
):
    interpolate_video(damaged, tmp_path / name, method="blend", **options)
    with av.open(str(tmp_path / name)) as container:
        (sound,) = container.streams.audio
        length = sum(frame.samples for frame in heard(container, sound))
        assert length / sound.rate == pytest.approx(seconds, abs=0.1)


def test_what_a_video_in_memory_lacks_is_told(clip, tmp_path, caplog):
    content = clip(tmp_path / "in.mkv", 60).read_bytes()
    broken = BytesIO(content[: len(content) * 2 // 3])
    interpolate_video(broken, BytesIO(), method="blend", container="mkv")
    assert "the video in memory is cut off" in caplog.text


def test_another_sound_makes_another_file(clip, tmp_path):
    source = clip(tmp_path / "in.mp4", 12)
    sounds = [clip(tmp_path / f"{n}.mp4", n, sound=True) for n in (12, 24)]
    wish = {"method": "blend", "root": tmp_path}
    results = [
        interpolate_video(source, tmp_path / f"{n}.mp4", sound=sound, **wish)
        for n, sound in enumerate(sounds)
    ]
    again = interpolate_video(source, tmp_path / "1.mp4", sound=sounds[1], **wish)
    with pytest.raises(OutputError, match="exists and was not made by this job"):
        interpolate_video(source, tmp_path / "1.mp4", sound=sounds[0], **wish)
    assert [result.was_done for result in (*results, again)] == [False, False, True]


def test_one_go_and_a_job_show_the_same_frames_at_the_same_times(clip, tmp_path, pictures):
    source = clip(tmp_path / "in.mkv", 12, start=Fraction(1, 8), sound=True)
    wish = {"method": "flow", "codec": "ffv1"}
    interpolate_video(source, tmp_path / "job.mkv", **wish)
    interpolate_video(BytesIO(source.read_bytes()), tmp_path / "go.mkv", **wish)
    assert pictures(tmp_path / "go.mkv") == pictures(tmp_path / "job.mkv")
    (_, ours, _), (_, theirs, _) = (decoded(str(tmp_path / f"{n}.mkv")) for n in ("go", "job"))
    assert ours == theirs
    assert sound_packets(str(tmp_path / "go.mkv")) == sound_packets(str(tmp_path / "job.mkv"))
    assert not list(tmp_path.glob("output/tlbvfi_chunks/*/chunk*"))


def test_source_frames_reach_a_lossless_file_in_memory_bit_for_bit(clip, tmp_path, pictures):
    source = clip(tmp_path / "in.mp4", 9, pix_fmt="yuv420p10le")
    target = BytesIO()
    interpolate_video(source, target, method="blend", codec="ffv1", container="mkv")
    (tmp_path / "out.mkv").write_bytes(target.getvalue())
    assert pictures(tmp_path / "out.mkv")[::2] == pictures(source)


def test_a_window_of_a_video_in_memory_begins_at_0_with_its_own_sound(clip, tmp_path):
    path = clip(tmp_path / "in.mp4", 50, rate=Fraction(25), sound=True)
    target = BytesIO()
    result = interpolate_video(path, target, method="blend", start=1, end="00:00:01.4")
    _, times, _ = decoded(target)
    assert (result.frames, times[0], times[-1]) == (19, 0, Fraction(18, 50))
    assert 0 <= sound_packets(target)[0][0] < 0.03


def test_sound_of_another_file_goes_with_frames_and_slow_motion_is_silent(clip, tmp_path):
    path = clip(tmp_path / "in.mp4", 10, rate=Fraction(16), sound=True)
    for options, expected in (({}, True), ({"audio": False}, False), ({"slowmo": 2}, False)):
        target = BytesIO()
        frames = (frame for frame in moving(10))
        interpolate_video(frames, target, method="blend", input_fps=16, sound=path, **options)
        assert decoded(target)[2] is expected


def test_sound_that_one_go_cannot_carry_over_is_told_like_any_other_loss():
    content = BytesIO()
    with av.open(content, "w", format="vob") as out:
        stream = out.add_stream("mp2", rate=48000, layout="stereo")
        for first in range(0, 48000, 1152):
            tone = 6000 * np.sin(np.arange(first, first + 1152) * 0.06)
            samples = np.repeat(tone, 2)[None].astype(np.int16)
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = 48000, first, Fraction(1, 48000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    cut = BytesIO(content.getvalue()[2048:])  # its first packet began before, and has no time
    told = []
    interpolate_video(
        moving(4), BytesIO(), method="blend", input_fps=4, sound=cut, on_event=told.append
    )
    (loss,) = [event.text for event in told if isinstance(event, Notice)]
    assert "of audio stream 0 has no time of its own or comes out of order" in loss


@pytest.mark.parametrize("name", ["out.mp4", None], ids=["disk", "memory"])
def test_sound_that_ends_before_the_window_is_told_in_memory_as_on_disk(clip, tmp_path, name):
    source = clip(tmp_path / "in.mp4", 50, rate=Fraction(25))
    short = clip(tmp_path / "short.mp4", 5, rate=Fraction(25), sound=True)
    target, told = (tmp_path / name if name else BytesIO()), []
    interpolate_video(source, target, method="blend", start=1, sound=short, on_event=told.append)
    (loss,) = [event.text for event in told if isinstance(event, Notice)]
    assert "has no sound in this part, and .mp4 keeps no empty track" in loss


@pytest.mark.parametrize("target", ["out.mp4", BytesIO()], ids=["disk", "memory"])
@pytest.mark.parametrize(
    ("sound", "message"),
    [
        ("typo.wav", r"sound '.*typo\.wav' is not a file: "),
        (".", "sound '.*' is not a file: "),
        (b"RIFF", "sound is of type bytes: pass a file's path, or"),
    ],
)
def test_sound_that_is_none_is_refused_not_left_out(clip, tmp_path, sound, message, target):
    source = clip(tmp_path / "in.mp4", sound=True)
    named = tmp_path / sound if isinstance(sound, str) else sound
    place = tmp_path / target if isinstance(target, str) else target
    with pytest.raises((SourceError, SettingsError), match=f"^{message}"):
        interpolate_video(source, place, method="blend", sound=named)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_from_disk_to_disk_the_same_call_finds_its_work_done(clip, tmp_path):
    source = clip(tmp_path / "in.mp4", 12)
    first = interpolate_video(source, str(tmp_path / "out.mp4"), method="blend")
    again = interpolate_video(str(source), tmp_path / "out.mp4", method="blend")
    assert (first.frames, first.was_done) == (23, False)
    assert (again.frames, again.was_done) == (23, True)


def test_tags_and_progress_reach_whoever_asked(tmp_path):
    target, events = BytesIO(), []
    interpolate_video(
        as_dtype(moving(5), np.uint8),
        target,
        method="blend",
        input_fps=Fraction(24000, 1001),
        metadata={"title": "Moving", "workflow": "{}"},
        on_event=events.append,
    )
    done = [event for event in events if isinstance(event, FrameDone)]
    assert [(event.frames_done, event.frames_total) for event in done] == [
        (n, 9) for n in range(1, 10)
    ]
    target.seek(0)
    with av.open(target) as container:
        assert container.metadata["title"] == "Moving"
        assert container.metadata["workflow"] == "{}"


def test_the_workflow_in_comfyui_images_reaches_a_file_in_memory(tmp_path):
    for number, frame in enumerate(as_dtype(moving(4), np.uint8)):
        _, data = cv2.imencode(".png", frame)
        texts = with_texts(data.tobytes(), {"workflow": '{"nodes": []}'})
        (tmp_path / f"shot_{number:05}_.png").write_bytes(texts)
    target = BytesIO()
    interpolate_video(tmp_path, target, method="blend", input_fps=16)
    target.seek(0)
    with av.open(target) as container:
        assert container.metadata["workflow"] == '{"nodes": []}'


def test_from_disk_images_can_be_written_too(clip, tmp_path):
    source = clip(tmp_path / "in.mp4", 5)
    interpolate_video(source, f"{tmp_path}/frames/", method="blend", codec="png16")
    interpolate_video(source, tmp_path / "more" / "f_%03d.jpg", method="blend")
    assert len(list((tmp_path / "frames").glob("frame_*.png"))) == 9
    assert (tmp_path / "more" / "f_009.jpg").is_file()


def test_an_existing_file_is_not_touched_unless_asked(tmp_path):
    target = tmp_path / "out.mp4"
    target.write_bytes(b"mine")
    frames = as_dtype(moving(3), np.uint8)
    with pytest.raises(OutputError, match="overwrite=True"):
        interpolate_video(frames, target, method="blend", input_fps=8)
    assert target.read_bytes() == b"mine"
    interpolate_video(frames, target, method="blend", input_fps=8, overwrite=True)
    assert len(decoded(str(target))[0]) == 5


def test_a_source_is_not_replaced_even_if_its_sound_comes_from_elsewhere(clip, tmp_path):
    source, sound = clip(tmp_path / "in.mp4", 5), clip(tmp_path / "song.mp4", 5, sound=True)
    before = source.read_bytes()
    with pytest.raises(OutputError, match=r"in\.mp4 is the source itself"):
        interpolate_video(source, source, method="blend", sound=sound, overwrite=True)
    assert source.read_bytes() == before


def test_images_are_not_written_among_those_that_are_read(clip, tmp_path):
    interpolate_video(clip(tmp_path / "in.mp4", 3), f"{tmp_path}/f/", method="blend", codec="png")
    for target in (f"{tmp_path}/f/", f"{tmp_path}/f/x_%d.png"):
        with pytest.raises(OutputError, match="f is the source itself"):
            interpolate_video(
                tmp_path / "f", target, input_fps=9, method="blend", codec="png", overwrite=True
            )
    assert len(list((tmp_path / "f").iterdir())) == 5


def test_another_call_for_the_same_file_is_refused_and_harms_nothing(tmp_path, pictures):
    target, refused = tmp_path / "out.mkv", []
    wish = {"method": "blend", "input_fps": 8, "codec": "ffv1"}

    def call_again(event):
        if not refused:
            with pytest.raises(OutputError, match="is being made by another job: wait") as error:
                interpolate_video(moving(9), target, **wish, overwrite=True)
            refused.append(error)

    interpolate_video(moving(4), target, **wish, on_event=call_again)
    assert len(pictures(target)) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]


@pytest.mark.parametrize("reason", ["stopped", "broken"])
def test_what_fails_in_one_go_leaves_no_file(tmp_path, reason):
    def stop(event):
        raise KeyboardInterrupt

    def frames():
        yield from moving(9)
        if reason == "broken":
            raise OSError("the camera is gone")

    with pytest.raises(KeyboardInterrupt if reason == "stopped" else OSError):
        interpolate_video(
            frames(),
            tmp_path / "out.mp4",
            method="blend",
            input_fps=8,
            **({"on_event": stop} if reason == "stopped" else {}),
        )
    assert list(tmp_path.iterdir()) == []


def test_one_frame_from_an_iterator_is_refused(tmp_path):
    with pytest.raises(InterpolationError, match="but got 1"):
        interpolate_video(iter(moving(1)), BytesIO(), method="blend", input_fps=8)


@pytest.mark.parametrize("container", ["xyz", "png", ""])
def test_a_container_that_is_none_is_refused(container):
    with pytest.raises(OutputError, match=r"not a type of video file: choose one of \.mp4"):
        interpolate_video(moving(3), BytesIO(), method="blend", input_fps=8, container=container)


def test_an_open_file_is_refused_with_what_to_hand_in(clip, tmp_path):
    with (
        clip(tmp_path / "in.mp4", 5).open("rb") as file,
        pytest.raises(SettingsError, match="pass the file's path"),
    ):
        interpolate_video(file, BytesIO(), method="blend")


def test_memory_is_flat_in_the_number_of_frames(root):
    """Five times the frames raise the peak by at most 5 %; if kept, they would raise it by 50 %."""
    code = (
        "import re, sys, importlib.util as u, numpy as np\n"
        f"s = u.spec_from_file_location('p', {str(root / '__init__.py')!r}, "
        f"submodule_search_locations=[{str(root)!r}])\n"
        "p = sys.modules['p'] = u.module_from_spec(s); s.loader.exec_module(p)\n"
        "def frames(count):\n"
        "    for n in range(count):\n"
        "        frame = np.zeros((135, 240, 3), np.uint8); frame[:, n % 150:][:, :90] = 200\n"
        "        yield frame\n"
        "def peak(count):\n"
        "    for _ in p.interpolate_frames(frames(count), method='blend'): pass\n"
        # Not ru_maxrss: a process inherits it from its parent, a large test runner.
        "    status = open('/proc/self/status').read()\n"
        "    return int(re.search(r'VmHWM:\\s+(\\d+)', status)[1])\n"
        "short = peak(100); long = peak(500); assert long < 1.05 * short, (short, long)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_public_names_are_exactly_these():
    assert all(getattr(comfyui_tlbvfi, name) for name in comfyui_tlbvfi.__all__)
    assert set(comfyui_tlbvfi.__all__) == set(comfyui_tlbvfi._HOMES)
    with pytest.raises(AttributeError, match="no attribute 'interpolate'"):
        _ = comfyui_tlbvfi.interpolate
    assert isinstance(interpolate_frames(moving(2), method="blend"), Iterable)


def examples():
    text = (Path(__file__).parents[2] / "docs" / "python.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("number", range(len(examples())))
def test_the_examples_of_the_documentation_run(number, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip(tmp_path / "clip.mp4", 12, rate=Fraction(25), sound=True)
    exec(compile(examples()[number], f"docs/python.md, example {number + 1}", "exec"), {})
