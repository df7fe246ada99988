import logging
from dataclasses import asdict

import pytest
from av.codec import CodecContext
from comfyui_tlbvfi.encoding import profiles
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
    ("text", "expected"),
    [("8M", 8_000_000), ("800k", 800_000), ("1.5m", 1_500_000), ("42000", 42_000)],
)
def test_bitrate_is_read_like_ffmpeg_does(text, expected):
    assert parse_bitrate(text) == expected


@pytest.mark.parametrize("text", ["", "0", "-3M", "fast", "8 M B", "9" * 5000])
def test_nonsense_bitrate_is_refused(text):
    with pytest.raises(EncoderError, match="write it like 8M"):
        parse_bitrate(text)


@pytest.mark.parametrize(("text", "word"), [("1", "low"), ("9.9k", "low"), ("999999G", "high")])
def test_a_bitrate_that_fits_no_video_is_refused_with_its_value(text, word):
    with pytest.raises(EncoderError, match=f"A bitrate of {text} is too {word} for a video"):
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
        ({"codec": "prores", "bitrate": "8M"}, ["prores takes no bitrate"]),
        ({"codec": "av1", "pix_fmt": "yuv444p"}, ["yuv444p", "yuv420p, yuv420p10le"]),
    ],
)
def test_bad_settings_are_refused_with_the_way_out(shape, settings, words):
    message = refusal(shape, EncoderSettings(**settings))
    assert all(word in message for word in words), message
    assert message.count("\n") == 0


@pytest.mark.parametrize(
    ("codec", "width", "height", "enough"),
    [
        ("hevc", 48, 1080, (49, 1080)),
        ("av1", 1920, 31, (1920, 32)),
        ("av1", 16, 128, (32, 128)),
    ],
)
def test_a_picture_that_would_crash_its_encoder_is_refused(shape, codec, width, height, enough):
    settings = EncoderSettings(codec=codec, pix_fmt="yuv420p" if codec == "av1" else "yuv444p")
    with pytest.raises(EncoderError, match=f"scale them to {enough[0]}x{enough[1]} or more"):
        resolve_encoder(settings, shape(width=width, height=height))
    assert resolve_encoder(settings, shape(width=enough[0], height=enough[1])).profile == codec


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
    with pytest.raises(EncoderError, match="crop or scale to 64x48, or choose pix_fmt yuv444p"):
        encoder("utvideo", shape(width=65, height=49))
    with pytest.raises(EncoderError, match="crop or scale to 64x49, or choose pix_fmt yuv444p"):
        encoder("utvideo", shape(width=65, height=49, pix_fmt="yuv422p"))
    assert encoder("utvideo", shape(width=65, height=49, pix_fmt="gbrp")).pix_fmt == "gbrp"


def test_pictures_too_small_for_dnxhr_are_refused_with_the_size_to_scale_to(encoder, shape):
    with pytest.raises(EncoderError, match="scale them to 256x120 or more"):
        encoder("dnxhr", shape(width=255, height=119))
    assert encoder("dnxhr", shape(width=256, height=120)).profile == "dnxhr"


@pytest.mark.parametrize(
    "size",
    [(1, 1), (5, 3), (95, 63), (427, 240), (607, 1080), (640, 359), (853, 480), (1919, 1079)],
)
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p10le", "yuva420p", "yuv444p"])
@pytest.mark.parametrize("codec", ["ffv1", "auto"])
def test_ffv1_takes_any_odd_size(shape, codec, pix_fmt, size):
    picture = shape(width=size[0], height=size[1], pix_fmt=pix_fmt)
    encoder = resolve_encoder(EncoderSettings(codec=codec), picture, container=".nut")
    assert (encoder.profile, encoder.pix_fmt) == ("ffv1", pix_fmt)


def test_size_an_encoder_cannot_do_is_found_before_work(encoder, shape):
    with pytest.raises(EncoderError, match="libsvtav1 is listed but cannot be opened here at 200"):
        encoder("av1", shape(width=20_000))


def test_auto_opens_something_and_says_which(shape, caplog):
    with caplog.at_level(logging.INFO, "tlbvfi.profiles"):
        encoder = resolve_encoder(EncoderSettings(), shape(), container=".mp4")
    assert encoder.profile in ("h264_nvenc", "h264")
    assert f"codec auto: {encoder.name}" in caplog.messages


def test_auto_fits_the_container(shape):
    chosen = {
        suffix: resolve_encoder(EncoderSettings(), shape(), container=suffix).profile
        for suffix in (".webm", ".avi", ".nut")
    }
    assert chosen == {".webm": "vp9", ".avi": "utvideo", ".nut": "ffv1"}


def test_unusable_hardware_names_its_twin_or_becomes_it(shape, caplog):
    nvenc = {s.profile: not s.problem for s in available_encoders()}["hevc_nvenc"]
    if nvenc:
        pytest.skip("NVENC works here")
    settings = EncoderSettings(codec="hevc_nvenc", crf=24, preset="p6")
    message = refusal(shape, settings)
    assert message.endswith("use hevc instead.")
    encoder = resolve_encoder(settings, shape(), software_twin=True)
    assert (encoder.profile, encoder.options["crf"]) == ("hevc", "24")
    assert "using hevc instead" in caplog.text


def test_every_profile_has_a_status():
    found = {status.profile: not status.problem for status in available_encoders()}
    assert list(found) == [profile.name for profile in PROFILES]
    assert all(found[name] for name in SOFTWARE)


def accepted(option):
    """Predicate for values that FFmpeg accepts for an entry of its option table."""
    names = {choice.name for choice in option.choices}

    def understands(value):
        if option.name == "flags":
            return value.lstrip("+-") in names
        if value in names:
            return True
        try:
            return option.min <= float(value) <= option.max
        except ValueError:
            return option.type.name in ("STRING", "DICT")

    return understands


def option_sets(profile):
    """All combinations of options that the profile may pass to its encoder."""
    quality = profile.quality
    chosen = {quality.option: str(quality.default), **quality.with_it} if quality else {}
    presets = profile.presets
    speeds = [{presets.option: word} for word in presets.words.values()] if presets else [{}]
    return [
        {**profile.options, **plainer, **chosen, **speed, **of_format}
        for plainer in ({}, *profile.plainer)
        for speed in speeds
        for of_format in profile.pix_fmts.values()
    ]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_every_option_is_in_the_encoders_own_table(profile):
    # FFmpeg silently accepts a misspelled option, and NVENC cannot be opened everywhere.
    context = CodecContext.create(profile.encoder, "w")
    if not hasattr(context, "supported_options"):
        pytest.skip("this PyAV does not show the options of encoders")
    known = context.supported_options
    table = {option.name: option for option in (*known.generic, *known.private)}
    for options in option_sets(profile):
        assert not set(options) - set(table)
        for name, value in options.items():
            assert accepted(table[name])(value), f"{name}={value}"


@pytest.mark.parametrize("name", ["h264_nvenc", "hevc_nvenc", "av1_nvenc"])
def test_nvenc_looks_ahead_and_closes_its_gops(name):
    options = find_profile(name).options
    assert (options["bf"], options["b_ref_mode"], options["multipass"]) == ("3", "middle", "qres")
    assert (options["spatial-aq"], options["temporal-aq"]) == ("1", "1")
    assert int(options["rc-lookahead"]) > int(options["bf"])
    assert int(options["g"]) > 0
    assert find_profile(name).reorder == find_profile(find_profile(name).twin).reorder


class Card:
    """Hardware that refuses some options: an encoder opens unless `refuses(options)` is true."""

    def __init__(self, refuses):
        self.refuses = refuses
        self.tried = []

    def problem(self, encoder, picture):
        self.tried.append(encoder.options)
        if encoder.name.endswith("_nvenc") and self.refuses(encoder.options):
            return f"{encoder.name} is listed but cannot be opened here"
        return ""


def has_reference_b_frames(options):
    return options["b_ref_mode"] != "disabled"


def has_b_frames(options):
    return options["bf"] != "0"


def looks_ahead(options):
    return options["rc-lookahead"] != "0"


@pytest.mark.parametrize(
    ("refuses", "expected"),
    [
        (lambda _: False, {}),
        (has_reference_b_frames, {"b_ref_mode": "disabled"}),
        (has_b_frames, {"b_ref_mode": "disabled", "bf": "0"}),
        (
            looks_ahead,
            {"b_ref_mode": "disabled", "bf": "0", "rc-lookahead": "0", "temporal-aq": "0"},
        ),
    ],
)
def test_older_cards_get_the_best_options_they_take(monkeypatch, shape, caplog, refuses, expected):
    card = Card(refuses)
    monkeypatch.setattr(profiles, "_opening_problem", card.problem)
    caplog.set_level(logging.INFO, "tlbvfi.profiles")
    encoder = resolve_encoder(EncoderSettings(codec="hevc_nvenc", crf=24), shape())
    best = find_profile("hevc_nvenc").options
    assert encoder.profile == "hevc_nvenc"
    assert encoder.options.items() >= {**best, **expected, "cq": "24"}.items()
    told = ["hevc_nvenc opens here only with " + ", ".join(map("=".join, expected.items())) + "."]
    assert caplog.messages == (told if expected else [])


def test_auto_takes_an_older_card_too_and_software_where_there_is_none(monkeypatch, shape):
    monkeypatch.setattr(profiles, "_opening_problem", Card(has_b_frames).problem)
    encoder = resolve_encoder(EncoderSettings(), shape(), container=".mp4")
    assert (encoder.profile, encoder.options["bf"]) == ("h264_nvenc", "0")
    none = Card(lambda _: True)
    monkeypatch.setattr(profiles, "_opening_problem", none.problem)
    encoder = resolve_encoder(EncoderSettings(), shape(), container=".mp4")
    assert encoder.profile == "h264"
    assert len(none.tried) == len(find_profile("h264_nvenc").plainer) + 2


def test_nvenc_refuses_the_quality_that_means_none(shape):
    assert "choose 1 (best) to 51" in refusal(shape, EncoderSettings(codec="h264_nvenc", crf=0))
