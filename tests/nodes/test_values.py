"""Values that arrive over links of any type; needs no ComfyUI."""

import math
import traceback

import pytest
import torch
from comfyui_tlbvfi.nodes.validation import check_rate
from comfyui_tlbvfi.nodes.values import as_type, make_writable, writable
from comfyui_tlbvfi.tlbvfi.errors import SettingsError


@pytest.mark.parametrize(
    ("io_type", "value", "meant"),
    [
        ("INT", 2, 2),
        ("INT", 2.0, 2),
        ("INT", "2", 2),
        ("INT", True, 1),
        ("INT", 2**63 - 1, 2**63 - 1),
        ("INT", torch.tensor(2), 2),
        ("FLOAT", "23.976", 23.976),
        ("FLOAT,INT", 24, 24.0),
        ("STRING", 5, "5"),
        ("COMBO", "libx264", "libx264"),
        ("TLBVFI_MODEL", None, None),
    ],
)
def test_a_value_becomes_what_its_input_takes(io_type, value, meant):
    got = as_type(io_type, "x", value)
    assert (got, type(got)) == (meant, type(meant))


def test_images_and_videos_stay_as_they_are():
    class Video:
        def get_components(self): ...

    images, video = torch.zeros(2, 4, 4, 3), Video()
    assert as_type("IMAGE", "images", images) is as_type("IMAGE,VIDEO", "images", images) is images
    assert as_type("IMAGE,VIDEO", "images", video) is video
    with pytest.raises(SettingsError, match=r"images must be .*, got Video:"):
        as_type("IMAGE", "images", video)


@pytest.mark.parametrize(
    ("io_type", "value", "words"),
    [
        ("INT", 1.5, "x must be a whole number, got 1.5: set it, or connect another output."),
        ("INT", "1.5", "x must be a whole number, got '1.5':"),
        ("INT", None, "x must be a whole number, got None:"),
        ("INT", math.inf, "x must be a whole number, got inf:"),
        ("INT", [1], "x must be a whole number, got list:"),
        ("FLOAT", "fast", "x must be a number, got 'fast':"),
        ("FLOAT,INT", None, "x must be a number, got None:"),
        ("STRING", None, "x must be a text, got None:"),
        ("COMBO", {}, "x must be a text, got dict:"),
        ("IMAGE", torch.zeros(2, 4, 4), "channels], got a tensor [2, 4, 4]:"),
        ("IMAGE,VIDEO", {"samples": 0}, "channels], got dict:"),
    ],
)
def test_a_value_of_another_type_is_named(io_type, value, words):
    with pytest.raises(SettingsError) as refused:
        as_type(io_type, "x", value)
    assert words in str(refused.value)


@pytest.mark.parametrize("fps", [0, 24, "24", 23.976, None])
def test_a_rate_may_be_text_or_come_over_a_link(fps):
    assert check_rate(fps) is True


@pytest.mark.parametrize(("fps", "words"), [("fast", "must be a number"), (-1, "is too low")])
def test_a_rate_that_is_none_is_refused_with_a_sentence(fps, words):
    assert words in str(check_rate(fps))


def test_an_error_and_its_causes_can_be_written_whatever_names_they_hold():
    cause = ValueError("half \ud800", 3)
    error = SettingsError("v\udcff.mp4 is no video")
    error.__cause__, cause.__context__ = cause, KeyError("\udcff")
    make_writable(error)
    text = "".join(traceback.format_exception(error))
    assert text.encode().decode() == text
    assert str(error) == r"v\udcff.mp4 is no video"
    assert cause.args == (r"half \ud800", 3)


def test_no_text_of_others_commands_the_terminal_that_shows_the_log():
    assert writable("a\x1b[2J\x9b31m\u202eb\tc\nd") == "a\\x1b[2J\\x9b31m\\x202eb\tc\nd"
