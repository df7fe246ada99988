"""Turns a node's widgets into the engine's rates and encoders."""

from __future__ import annotations

from fractions import Fraction

from ..encoding.catalog import Profile
from ..encoding.layout import pixel_layout
from ..encoding.profiles import Encoder, EncoderSettings, Picture, find_profile
from ..tlbvfi.errors import SettingsError
from ..tlbvfi.progress import Notice
from ..tlbvfi.timeline import LOWEST_RATE, Bisection, parse_rate

PLAYABLE, ODD_SIZES = "yuv420p", "yuv444p"
"""For images, which have no YUV format of their own: what browsers play, and for odd sizes."""
FLOAT_DENOMINATOR = 1001
"""A rate that went through a float means the nearest fraction with at most this denominator, which
keeps 24000/1001 and everything a widget holds."""


def exact_rate(fps: float) -> Fraction | None:
    """The exact frames per second: 23.976 is 24000/1001; None for 0, "as the source".

    A rate over a link may be a float that was computed: 12.000000000000002 is 12.

    Raises:
        SettingsError: above 0 and below the widget's step, or not a number.
    """
    if fps == 0:
        return None
    if not fps >= LOWEST_RATE:
        raise SettingsError(
            f"fps {fps} is too low for a video file: set at least {float(LOWEST_RATE)}, or 0 for the "
            "rate of the source."
        )
    return parse_rate(str(fps)).limit_denominator(FLOAT_DENOMINATOR)


def frames_per_pair(times: int) -> int:
    """2**times.

    Raises:
        SettingsError: `times` is out of range, which is possible over a link. A large 2**times takes
            all memory, and the server answers nobody while it is computed.
    """
    return int(Bisection(times=times).rate(Fraction(1)))


def meant_rate(rate: Fraction) -> Fraction:
    """The intended rate of a video in memory: Create Video makes its fraction from a float.

    23.976 then has a denominator of 2**47, too fine for any file's time base; 24000/1001 was meant.
    """
    is_of_float = rate.denominator & (rate.denominator - 1) == 0
    return parse_rate(str(rate.limit_denominator(FLOAT_DENOMINATOR))) if is_of_float else rate


def encoder_settings(
    codec: str, crf: int, bitrate: str, info: Picture, *, is_video: bool
) -> EncoderSettings:
    """A node's encoder settings; a codec without a quality scale ignores `crf`.

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
    """Suffix of the final file: the one that suits the codec best."""
    return find_profile("h264" if codec == "auto" else codec).containers[0]


def image_pix_fmt(profile: Profile, info: Picture) -> str | None:
    """Pixel format for images in a delivery codec; None leaves the choice to an editing codec."""
    if profile.is_intra or profile.is_lossless:
        return None
    is_even = info.width % 2 == 0 and info.height % 2 == 0
    wanted = PLAYABLE if is_even else ODD_SIZES
    return wanted if wanted in profile.pix_fmts else None


def encoder_notices(codec: str, encoder: Encoder, info: Picture) -> list[Notice]:
    """What the user should know about the chosen encoder."""
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
