"""From the widgets of a node to rates and encoders the engine knows."""

from __future__ import annotations

from fractions import Fraction

from ..encoding.catalog import Profile
from ..encoding.layout import pixel_layout
from ..encoding.profiles import Encoder, EncoderSettings, Picture, find_profile
from ..tlbvfi.errors import SettingsError
from ..tlbvfi.progress import Notice
from ..tlbvfi.timeline import parse_rate

PLAYABLE, ODD_SIZES = "yuv420p", "yuv444p"
"""For images, which have no pixel format of their own: what browsers play, and for odd sizes."""
LOWEST_RATE = 0.001
"""Frames per second; slower, one frame lasts longer than mp4 can say."""


def exact_rate(fps: float) -> Fraction | None:
    """Frames per second as meant: 23.976 is 24000/1001; None for 0, "as the source".

    Raises:
        SettingsError: above 0 and below the step of the widget, or not a number.
    """
    if fps == 0:
        return None
    if not fps >= LOWEST_RATE:
        raise SettingsError(
            f"fps {fps} is too low for a video file: give at least {LOWEST_RATE}, or 0 for the rate "
            "of the source."
        )
    return parse_rate(str(fps))


def meant_rate(rate: Fraction) -> Fraction:
    """The rate of a video in memory as meant: Create Video makes its fraction of a float.

    23.976 then has a denominator of 2**47, which no file can count in; 24000/1001 was meant.
    """
    is_of_float = rate.denominator & (rate.denominator - 1) == 0
    return parse_rate(str(rate.limit_denominator(1001))) if is_of_float else rate


def encoder_settings(
    codec: str, crf: int, bitrate: str, info: Picture, *, is_video: bool
) -> EncoderSettings:
    """What a node asks of the encoder; a codec without a quality scale leaves `crf` out.

    Raises:
        EncoderError: there is no such codec.
    """
    profile = find_profile("h264" if codec == "auto" else codec)
    has_crf = profile.quality is not None and not bitrate
    return EncoderSettings(
        codec=codec,
        crf=crf if has_crf else None,
        bitrate=bitrate or None,
        pix_fmt=None if is_video else image_pix_fmt(profile, info),
    )


def container_of(codec: str) -> str:
    """Suffix of the final file: what suits the codec best."""
    return find_profile("h264" if codec == "auto" else codec).containers[0]


def image_pix_fmt(profile: Profile, info: Picture) -> str | None:
    """Pixel format for images in a codec for watching; None leaves it to a codec for editing."""
    if profile.is_intra or profile.is_lossless:
        return None
    is_even = info.width % 2 == 0 and info.height % 2 == 0
    wanted = PLAYABLE if is_even else ODD_SIZES
    return wanted if wanted in profile.pix_fmts else None


def encoder_notices(codec: str, encoder: Encoder, info: Picture) -> list[Notice]:
    """What the user should know of the encoder that was found."""
    notices = []
    if codec != "auto" and find_profile(codec).name != encoder.profile:
        notices.append(Notice(text=f"{codec} cannot run here: {encoder.profile} is used instead."))
    if info.has_alpha and not pixel_layout(encoder.pix_fmt).has_alpha:
        notices.append(
            Notice(
                text=f"{encoder.profile} has no alpha channel: choose prores_4444 or ffv1 for it."
            )
        )
    return notices
