"""Arrays and tensors as a source of frames."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from comfyui_tlbvfi.encoding.color import resolve, to_rgb
from comfyui_tlbvfi.encoding.errors import SourceError
from comfyui_tlbvfi.encoding.memory import MemorySource
from comfyui_tlbvfi.encoding.source import open_source

RATE = Fraction(24000, 1001)


def random_frames(dtype, channels=3, count=5, size=(18, 22)):
    rng = np.random.default_rng(0)
    shape = (count, *size, channels)
    if np.issubdtype(dtype, np.floating):
        return rng.normal(0.5, 2, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(
    ("dtype", "scale"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1), (np.float16, 1)]
)
def test_frames_come_out_as_they_went_in(dtype, scale, channels):
    frames = random_frames(dtype, channels)
    with open_source(frames, input_rate=RATE) as source:
        assert (source.info.width, source.info.height, source.info.frame_count) == (22, 18, 5)
        assert source.info.has_alpha == (channels == 4)
        for frame in source.frames():
            assert frame.time == frame.index / RATE
            rgb = to_rgb(frame.picture, resolve(source.info))
            expected = np.moveaxis(frames[frame.index], -1, 0) / np.float32(scale)
            expected = expected.astype(np.float32)
            assert np.array_equal(rgb, np.broadcast_to(expected, rgb.shape))


def test_tensors_are_read_without_leaving_their_float_range():
    frames = torch.randn(3, 16, 16, 3)
    with open_source(frames, input_rate=RATE) as source:
        for frame in source.frames():
            rgb = to_rgb(frame.picture, resolve(source.info))
            assert np.array_equal(rgb, frames[frame.index].permute(2, 0, 1).numpy())


def test_a_sequence_is_read_from_any_index_and_again():
    frames = list(random_frames(np.uint8))
    with open_source(frames, input_rate=RATE) as source:
        for _ in range(2):
            assert [frame.index for frame in source.frames(2, 4)] == [2, 3]
        assert source.timestamps.index_at(Fraction(1, 10)) == 3
        assert source.shortfall() is None


def test_an_iterator_is_read_once_and_never_ahead():
    given = []

    def frames():
        for frame in random_frames(np.uint8):
            given.append(len(given))
            yield frame

    with open_source(frames(), input_rate=RATE) as source:
        assert source.info.frame_count is None
        reading = source.frames()
        assert next(reading).index == 0
        assert len(given) == 1
        assert [frame.index for frame in reading] == [1, 2, 3, 4]
        with pytest.raises(SourceError, match="has already given 5 frames"):
            next(source.frames(2))


def test_an_iterator_can_be_entered_midway():
    with open_source(iter(random_frames(np.uint8)), input_rate=RATE) as source:
        assert [frame.index for frame in source.frames(3)] == [3, 4]


def test_identity_is_that_of_the_content():
    frames = random_frames(np.uint8)
    one = open_source(frames, input_rate=RATE).identity
    assert one == open_source(list(frames), input_rate=RATE).identity
    changed = frames.copy()
    changed[4, 0, 0, 0] ^= 1
    assert one != open_source(changed, input_rate=RATE).identity
    stream = open_source(iter(frames), input_rate=RATE)
    assert stream.identity["sha256"] is None
    list(stream.frames())
    assert stream.identity["sha256"] == one["sha256"]


def test_reading_for_the_identity_tells_each_frame_and_may_be_stopped():
    frames, told = random_frames(np.uint8), []

    def stop_at_3(done: int, total: int) -> None:
        told.append((done, total))
        if done == 3:
            raise InterruptedError

    source = open_source(frames, input_rate=RATE)
    assert isinstance(source, MemorySource)
    with pytest.raises(InterruptedError):
        source.identify(stop_at_3)
    assert told == [(1, 5), (2, 5), (3, 5)]
    source.identify(lambda done, total: told.append((done, total)))
    assert told[3:] == [(n, 5) for n in range(1, 6)]
    assert source.identity == open_source(frames, input_rate=RATE).identity
    assert len(told) == 8


@pytest.mark.parametrize("frames", [[], iter([]), np.zeros((0, 16, 16, 3), np.uint8)])
def test_no_frames_are_refused(frames):
    with pytest.raises(SourceError, match="at least one"):
        open_source(frames, input_rate=RATE)


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (np.zeros((16, 16), np.uint8), r"uint8 \[16, 16\]"),
        (np.zeros((16, 16, 2), np.uint8), r"uint8 \[16, 16, 2\]"),
        (np.zeros((16, 16, 3), np.int64), r"int64 \[16, 16, 3\]"),
        (torch.zeros(16, 16, 3, dtype=torch.bfloat16), "cannot be read as an array"),
        (torch.zeros(16, 16, 3, requires_grad=True), "cannot be read as an array"),
    ],
)
def test_what_is_no_picture_is_named(frame, words):
    with pytest.raises(SourceError, match=words):
        open_source([frame], input_rate=RATE)


def test_a_frame_unlike_the_first_is_named():
    frames = [np.zeros((16, 16, 3), np.uint8)] * 2 + [np.zeros((16, 18, 3), np.uint8)]
    with open_source(frames, input_rate=RATE) as source:
        reading = source.frames()
        assert [next(reading).index, next(reading).index] == [0, 1]
        with pytest.raises(SourceError, match=r"Frame 2 is uint8 \[16, 18, 3\]"):
            next(reading)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_frame_with_broken_pixels_is_named(value):
    frames = random_frames(np.float32)
    frames[3, 5, 7, 1] = value
    with open_source(frames, input_rate=RATE) as source:
        assert len(list(source.frames(stop=3))) == 3
        for read in (lambda: list(source.frames()), lambda: source.identity):
            with pytest.raises(SourceError, match="Frame 3 holds NaN or infinite pixels"):
                read()


@pytest.mark.parametrize(("rate", "words"), [(None, "set the input rate"), (0, "above 0")])
def test_a_rate_is_needed(rate, words):
    with pytest.raises(SourceError, match=words):
        open_source(random_frames(np.uint8), input_rate=rate)
