import logging
from dataclasses import asdict

import pytest
from comfyui_tlbvfi.encoding.catalog import PROFILES
from comfyui_tlbvfi.encoding.errors import EncoderError
from comfyui_tlbvfi.encoding.pix_fmt import choose_pix_fmt
from comfyui_tlbvfi.encoding.profiles import (
    EncoderSettings,
    available_encoders,
    find_profile,
    parse_bitrate,
    resolve_encoder,
)

SOFTWARE = [profile.name for profile in PROFILES if not profile.twin]


def refusal(shape, settings, **options):
    with pytest.raises(EncoderError) as caught:
        resolve_encoder(settings, shape(), **options)
    return str(caught.value)


@pytest.mark.parametrize("name", SOFTWARE)
def test_every_software_profile_opens(name, shape):
    encoder = resolve_encoder(EncoderSettings(codec=name), shape(width=256, height=144))
    assert encoder.profile == name
    assert encoder.suffix in find_profile(name).containers
    assert asdict(encoder)["options"] == encoder.options


def test_encoder_names_of_ffmpeg_are_aliases():
    names = {"libx264": "h264", "libx265": "hevc", "libvpx-vp9": "vp9", "libsvtav1": "av1"}
    names |= {"prores_ks": "prores", "dnxhd": "dnxhr", "h264_nvenc": "h264_nvenc", "H264": "h264"}
    assert {name: find_profile(name).name for name in names} == names


def test_names_and_aliases_are_unique():
    words = [word for profile in PROFILES for word in (profile.name, *profile.aliases)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(
    ("codec", "source", "has_alpha", "expected"),
    [
        ("h264", "yuv420p", False, "yuv420p"),
        ("h264", "yuvj420p", False, "yuvj420p"),
        ("h264", "yuv420p12le", False, "yuv420p10le"),
        ("h264", "yuv411p", False, "yuv422p"),
        ("h264", "gray", False, "gray"),
        ("h264", "rgb24", False, "yuv444p"),
        ("hevc", "rgb48be", False, "yuv444p12le"),
        ("av1", "yuv444p10le", False, "yuv420p10le"),
        ("prores", "yuv420p", False, "yuv422p10le"),
        ("prores", "yuv444p", False, "yuv444p10le"),
        ("prores", "rgba", True, "yuva444p10le"),
        ("prores", "rgba", False, "yuv444p10le"),
        ("prores_4444", "yuv420p", False, "yuv444p10le"),
        ("dnxhr", "yuv420p", False, "yuv422p"),
        ("dnxhr", "yuv420p10le", False, "yuv422p10le"),
        ("ffv1", "yuv420p10le", False, "yuv420p10le"),
        ("ffv1", "rgb24", False, "bgr0"),
        ("ffv1", "rgba", True, "bgra"),
        ("ffv1", "rgb48be", False, "gbrp16le"),
        ("ffv1", "rgba64be", True, "gbrap16le"),
        ("ffv1", "gbrpf32le", False, "gbrp16le"),
        ("utvideo", "rgb24", False, "gbrp"),
        ("utvideo", "rgba", True, "gbrap"),
    ],
)
def test_pix_fmt_loses_least(codec, source, has_alpha, expected):
    accepted = find_profile(codec).pix_fmts
    assert choose_pix_fmt(source, accepted, has_alpha=has_alpha) == expected


@pytest.mark.parametrize(
    ("codec", "source", "expected"),
    [
        ("h264", "rgb24", "yuv420p"),
        ("h264", "rgb48be", "yuv420p"),
        ("h264", "gbrpf32le", "yuv420p"),
        ("hevc", "rgba", "yuv420p"),
        ("hevc", "rgb48be", "yuv420p10le"),
        ("hevc", "gbrpf32le", "yuv420p"),
        ("av1", "gbrp10le", "yuv420p10le"),
        ("vp9", "rgb48be", "yuv420p"),
        ("hevc", "yuv444p10le", "yuv444p10le"),
        ("h264-lossless", "rgb24", "yuv444p"),
        ("ffv1", "rgb48be", "gbrp16le"),
        ("prores", "rgb48be", "yuv444p10le"),
    ],
)
def test_rgb_plays_everywhere_after_delivery_and_stays_whole_elsewhere(
    encoder, shape, codec, source, expected
):
    picture = shape(width=256, height=144, pix_fmt=source)
    assert encoder(codec, picture).pix_fmt == expected


def test_subsampling_meant_for_players_is_no_loss_to_be_told(encoder, shape, caplog):
    with caplog.at_level(logging.WARNING, "tlbvfi.profiles"):
        encoder("h264", shape(pix_fmt="rgb24"))
    assert not caplog.messages


def test_prores_profile_follows_the_pixels(encoder, shape):
    assert encoder("prores").options["profile"] == "hq"
    deep = encoder("prores", shape(pix_fmt="yuva444p10le", has_alpha=True))
    assert deep.options["profile"] == "4444"


def test_dropped_alpha_is_told(encoder, shape, caplog):
    with caplog.at_level(logging.WARNING, "tlbvfi.profiles"):
        encoder("h264", shape(pix_fmt="yuva420p", has_alpha=True))
    assert caplog.messages == ["h264 stores yuva420p as yuv420p and drops alpha."]


def test_quality_reaches_the_encoder_in_its_own_words(encoder):
    assert encoder("h264", crf=23, preset="fast").options["crf"] == "23"
    assert encoder("h264", crf=23, preset="fast").options["preset"] == "fast"
    assert encoder("vp9", preset="6").options["cpu-used"] == "6"
    with_rate = encoder("h264", bitrate="8M")
    assert with_rate.bit_rate == 8_000_000
    assert "crf" not in with_rate.options
    assert encoder("h264-lossless").options["qp"] == "0"


@pytest.mark.parametrize(
    ("text", "expected"), [("8M", 8_000_000), ("800k", 800_000), ("1.5m", 1_500_000), ("42", 42)]
)
def test_bitrate_is_read_like_ffmpeg_does(text, expected):
    assert parse_bitrate(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3M", "fast", "8 M B"])
def test_nonsense_bitrate_is_refused(text):
    with pytest.raises(EncoderError, match="write it like 8M"):
        parse_bitrate(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"codec": "divx"}, ["'divx'", "h264", "ffv1"]),
        ({"codec": "h264", "crf": 60}, ["crf 60", "0 (best) to 51"]),
        ({"codec": "h264", "crf": 20, "bitrate": "8M"}, ["crf 20", "8M", "give one"]),
        ({"codec": "h264", "preset": "warp"}, ["'warp'", "veryslow"]),
        ({"codec": "prores", "preset": "fast"}, ["prores has no presets"]),
        ({"codec": "ffv1", "crf": 5}, ["ffv1 is lossless", "no crf"]),
        ({"codec": "dnxhr", "bitrate": "8M"}, ["dnxhr takes no bitrate"]),
        ({"codec": "av1", "pix_fmt": "yuv444p"}, ["yuv444p", "yuv420p, yuv420p10le"]),
    ],
)
def test_bad_settings_are_refused_with_the_way_out(shape, settings, words):
    message = refusal(shape, EncoderSettings(**settings))
    assert all(word in message for word in words), message
    assert message.count("\n") == 0


def test_codec_that_does_not_fit_the_container_names_those_that_do(shape):
    message = refusal(shape, EncoderSettings(codec="ffv1"), container=".mp4")
    assert ".mkv" in message
    assert "h264" in message
    assert "prores" not in message


def test_odd_size_with_subsampled_chroma_names_both_ways_out(encoder, shape):
    with pytest.raises(EncoderError, match="crop or scale to 64x48, or choose pix_fmt yuv444p"):
        encoder("h264", shape(width=65, height=49))
    assert encoder("h264", shape(width=65, height=49, pix_fmt="yuv444p")).pix_fmt == "yuv444p"
    assert encoder("ffv1", shape(width=65, height=49)).pix_fmt == "yuv420p"


def test_size_an_encoder_cannot_do_is_found_before_work(encoder):
    with pytest.raises(EncoderError, match="dnxhd is listed but cannot be opened here at 64x48"):
        encoder("dnxhr")


def test_auto_opens_something_and_says_which(shape, caplog):
    with caplog.at_level(logging.INFO, "tlbvfi.profiles"):
        encoder = resolve_encoder(EncoderSettings(), shape(), container="mp4")
    assert encoder.profile in ("h264_nvenc", "h264")
    assert f"codec auto: {encoder.name}" in caplog.messages


def test_auto_fits_the_container(shape):
    chosen = {
        suffix: resolve_encoder(EncoderSettings(), shape(), container=suffix).profile
        for suffix in (".webm", ".avi", ".nut")
    }
    assert chosen == {".webm": "vp9", ".avi": "utvideo", ".nut": "ffv1"}


def test_unusable_hardware_names_its_twin_or_becomes_it(shape, caplog):
    nvenc = {s.profile: s.works for s in available_encoders()}["hevc_nvenc"]
    if nvenc:
        pytest.skip("NVENC works here")
    settings = EncoderSettings(codec="hevc_nvenc", crf=24, preset="p6")
    message = refusal(shape, settings)
    assert message.endswith("use hevc instead.")
    encoder = resolve_encoder(settings, shape(), software_twin=True)
    assert (encoder.profile, encoder.options["crf"]) == ("hevc", "24")
    assert "using hevc instead" in caplog.text


def test_every_profile_has_a_status():
    found = {status.profile: status.works for status in available_encoders()}
    assert list(found) == [profile.name for profile in PROFILES]
    assert all(found[name] for name in SOFTWARE)
