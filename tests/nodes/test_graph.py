"""What nodes derive from widgets and prompts; needs no ComfyUI."""

from dataclasses import replace
from fractions import Fraction

import pytest
from comfyui_tlbvfi.encoding.profiles import PROFILES, PictureFacts
from comfyui_tlbvfi.nodes.graph import is_linked, leads_to
from comfyui_tlbvfi.nodes.output_settings import (
    container_of,
    encoder_settings,
    exact_rate,
    frames_per_pair,
    meant_rate,
)
from comfyui_tlbvfi.nodes.validation import (
    check_bitrate,
    check_file_name,
    check_rate,
    check_session_id,
    first_problem,
)
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from comfyui_tlbvfi.tlbvfi.timeline import parse_rate
from hypothesis import given
from hypothesis import strategies as st

PICTURE = PictureFacts(width=64, height=48, pix_fmt="gbrpf32le")


def prompt(**links) -> dict:
    """Nodes of class "<id>-class", each reading output 0 of those it names."""
    return {
        reader: {
            "class_type": f"{reader}-class",
            "inputs": {"text": "hello", "pair": [1, 2], **{name: [name, 0] for name in sources}},
        }
        for reader, sources in links.items()
    }


def test_a_node_downstream_is_found_over_others_in_between():
    graph = prompt(a="", b="a", c="b", d="")
    assert leads_to(graph, "a", 0, "c-class")
    assert not leads_to(graph, "a", 0, "d-class")
    assert not leads_to(graph, "c", 0, "a-class")


def test_what_reads_another_output_is_not_downstream_of_this_one():
    assert not leads_to(prompt(a="", b="a", c="b"), "a", 1, "c-class")


def test_a_node_is_not_downstream_of_itself_and_loops_end():
    assert not leads_to(prompt(a="b", b="a"), "a", 0, "a-class")


def test_only_the_output_that_is_read_counts_as_linked():
    graph = prompt(a="", b="a")
    assert is_linked(graph, "a", 0)
    assert not is_linked(graph, "a", 1)


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (0.0, None),
        (30.0, 30),
        (60, 60),
        (23.976, Fraction(24000, 1001)),
        (47.952, Fraction(48000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (12.5, Fraction(25, 2)),
        (16.667, Fraction(16667, 1000)),
        (0.001, Fraction(1, 1000)),
        (1 / (1 / 49), 49),
        (50 / 3, Fraction(50, 3)),
    ],
)
def test_a_rate_means_the_exact_one(fps, rate):
    assert exact_rate(fps) == rate


@given(st.integers(1, 1_000_000))
def test_every_rate_of_the_widget_is_kept(thousandths):
    typed = Fraction(thousandths, 1000)
    assert exact_rate(thousandths / 1000) in (typed, parse_rate(str(typed)))


@pytest.mark.parametrize("fps", [1e-5, float("nan")])
def test_a_rate_that_no_file_holds_is_refused(fps):
    with pytest.raises(SettingsError, match=f"fps {fps} is too low for a video file"):
        exact_rate(fps)


@pytest.mark.parametrize("times", [-1, 9, 10**6])
def test_a_depth_from_a_link_is_checked_before_it_is_a_power(times):
    assert frames_per_pair(4) == 16
    with pytest.raises(SettingsError, match=f"times must be between 0 and 8 .*, got {times}"):
        frames_per_pair(times)


@given(st.integers(1, 1000))
def test_whole_rates_stay_whole(fps):
    assert exact_rate(float(fps)) == fps


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (23.976, Fraction(24000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        (16.67, Fraction(1667, 100)),
        (12.5, Fraction(25, 2)),
    ],
)
def test_a_rate_that_went_through_a_float_means_what_was_typed(fps, rate):
    assert meant_rate(Fraction(fps)) == rate


def test_a_rate_that_is_no_float_stays_exact():
    assert meant_rate(Fraction(90000, 3003)) == Fraction(90000, 3003)
    assert meant_rate(Fraction(12345, 1002)) == Fraction(12345, 1002)


@pytest.mark.parametrize("codec", ["auto", "libx264", *(profile.name for profile in PROFILES)])
def test_every_codec_gets_settings_it_takes_and_a_container(codec):
    settings = encoder_settings(codec, 18, "", PICTURE, is_video=False)
    assert settings.codec == codec
    assert container_of(codec).startswith(".")


def test_images_are_stored_as_browsers_play_them_unless_a_codec_for_editing_is_named():
    def pix_fmt(codec: str, picture: PictureFacts = PICTURE) -> str | None:
        return encoder_settings(codec, 18, "", picture, is_video=False).pix_fmt

    assert pix_fmt("auto") == pix_fmt("av1") == "yuv420p"
    assert pix_fmt("libx264", replace(PICTURE, width=63)) == "yuv444p"
    assert pix_fmt("ffv1") is pix_fmt("prores") is pix_fmt("h264-lossless") is None


def test_a_video_keeps_its_own_pixel_format():
    assert encoder_settings("auto", 18, "", PICTURE, is_video=True).pix_fmt is None


def test_a_bitrate_takes_the_place_of_the_quality():
    settings = encoder_settings("libx264", 18, "20M", PICTURE, is_video=True)
    assert (settings.bitrate, settings.crf) == ("20M", None)


def test_values_over_a_link_are_not_refused():
    assert check_session_id(None) is check_bitrate(None) is check_file_name(None) is True


def test_what_is_wrong_with_a_value_is_an_answer_and_no_error():
    assert "session" in str(check_session_id("../elsewhere"))
    assert "bitrate" in str(check_bitrate("lots"))
    assert "not a plain file name" in str(check_file_name("a/b.mp4"))
    assert "fps must be a number" in str(check_rate({}))


def test_the_first_problem_is_told():
    assert first_problem(True, "one", "two") == "one"
    assert first_problem(True, True) is True
