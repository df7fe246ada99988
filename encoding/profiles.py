"""Turns the user's settings into an encoder that is known to work on this machine.

encoder = resolve_encoder(EncoderSettings(codec="h264", crf=18), info, container=".mp4")
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol, cast

import cv2
from av import VideoFormat
from av.codec import CodecContext
from av.codec.codec import UnknownCodecError
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from .catalog import PROFILES, Options, Profile
from .color import FULL, LIMITED, stream_tags
from .errors import EncoderError
from .frame import ColorTags
from .layout import pixel_layout
from .pix_fmt import choose_pix_fmt, loss, loss_words
from .stored import require_types

log = logging.getLogger("tlbvfi.profiles")

WITHOUT_RANGE = (".nut", ".avi")
"""Containers that do not store the color range; nor do the codecs that we put into them."""
AVX_512 = 13
"""OpenCV's number of the instruction set (CV_CPU_AVX_512F), which its Python module does not name."""
LOWEST_BITRATE, HIGHEST_BITRATE = 10**4, 10**9
"""Bits per second; outside this range, encoders fail without a reason or ignore the value."""


class Picture(Protocol):
    """What an encoder must know about the frames it will get; a VideoInfo is one."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def pix_fmt(self) -> str: ...
    @property
    def has_alpha(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureFacts:
    """A `Picture` of which nothing else is known."""

    width: int
    height: int
    pix_fmt: str
    has_alpha: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSettings:
    """What a user asks for, in ffmpeg's terms; None leaves the choice to the profile."""

    codec: str = "auto"
    crf: int | None = None
    bitrate: str | None = None
    """Bits per second, like `8M` or `800k`."""
    preset: str | None = None
    pix_fmt: str | None = None

    def __post_init__(self) -> None:
        try:
            require_types(self, most=math.inf)  # ranges depend on the codec
        except TypeError as error:
            raise EncoderError(f"{error}: pass a value of that type.") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """Everything that determines the bitstream, resolved once and recorded in the manifest."""

    profile: str
    name: str
    """FFmpeg's encoder name."""
    pix_fmt: str
    options: dict[str, str]
    bit_rate: int | None
    """Bits per second, or None for constant quality."""
    thread_count: int
    chunk_suffix: str
    suffix: str
    """Container of the final file."""
    tag: str
    reorder: int
    is_intra: bool
    is_lossless: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderStatus:
    """Whether a profile works on this machine; `problem` is empty if it does."""

    profile: str
    encoder: str
    problem: str


def find_profile(codec: str) -> Profile:
    """The profile with this name or alias, or for this FFmpeg encoder name.

    Raises:
        EncoderError: there is none.
    """
    word = codec.lower()
    for profile in PROFILES:
        if word in (profile.name, *profile.aliases):
            return profile
    for profile in PROFILES:  # a shared encoder (libx264, prores_ks) means its first row
        if word == profile.encoder:
            return profile
    names = ", ".join(profile.name for profile in PROFILES)
    raise EncoderError(f"There is no codec {codec!r}: choose auto, {names}.")


def resolve_encoder(
    settings: EncoderSettings,
    picture: Picture,
    *,
    container: str | None = None,
    software_twin: bool = False,
) -> Encoder:
    """The encoder for these frames, proven by opening it at their size.

    If `settings` names no pix_fmt, YUV keeps its own or the nearest that the codec takes (ffmpeg's
    rule). RGB (images, frames from memory) becomes 4:2:0 with the delivery codecs h264, hevc, av1
    and vp9, because browsers play nothing else: 8 bit, or 10 bit in hevc and av1 if the
    pictures are integers of more than 8 bits. All other codecs keep what they can of RGB.

    `container`: suffix of the final file (`.mp4`), or None for the profile's first.
    `software_twin`: if a hardware profile cannot be opened, use its twin, with a warning.

    Raises:
        EncoderError: a setting is unknown, out of range or does not fit, or no encoder opens.
    """
    suffix = None if container is None else container.lower()
    if settings.codec.lower() == "auto":
        encoder = _resolve_auto(settings, picture, suffix)
    else:
        encoder = _resolve_named(settings, picture, suffix, software_twin=software_twin)
    if settings.pix_fmt is None:
        _tell_losses(encoder, picture)
    return encoder


def written_tags(tags: ColorTags, encoder: Encoder) -> ColorTags:
    """The tags to write for frames with `tags`: limited range if the file cannot signal full.

    Readers take a missing range as limited, and would clip blacks and whites.
    """
    is_told = not find_profile(encoder.profile).is_limited and encoder.suffix not in WITHOUT_RANGE
    if not is_told and tags.range == FULL and pixel_layout(encoder.pix_fmt).family == "yuv":
        tags = replace(tags, range=LIMITED)
        if encoder.is_lossless:
            log.warning(
                "%s in %s cannot signal full range: it becomes limited, which rounds values. "
                "Choose ffv1 in .mkv to keep every value.",
                encoder.profile,
                encoder.suffix,
            )
    return stream_tags(tags, encoder.pix_fmt)


def require_rate(encoder: Encoder, rate: Fraction, time_base: Fraction) -> None:
    """Refuse an output rate, or the ticks that its times are counted in, if the encoder does not open.

    Raises:
        EncoderError: the rate is too high, or the ticks are too fine.
    """
    profile = find_profile(encoder.profile)
    highest, most = profile.highest_rate, profile.most_ticks
    if highest is not None and rate > highest:
        raise EncoderError(
            f"{encoder.profile} takes at most {highest} frames per second, and the output would have "
            f"{float(rate):.6g}: choose another codec, fewer times or a lower fps."
        )
    if most is not None and time_base.denominator > most:
        raise EncoderError(
            f"{encoder.profile} counts at most {most} ticks per second, and the output's times need "
            f"{time_base.denominator}: choose another codec, fewer times or another fps."
        )


def available_encoders() -> list[EncoderStatus]:
    """Every profile and whether it works here, tested by opening it at 640x360."""
    return [
        EncoderStatus(profile=profile.name, encoder=profile.encoder, problem=_trial(profile))
        for profile in PROFILES
    ]


def expected_bits(encoder: Encoder, pixels: int, rate: Fraction) -> Fraction:
    """Typical bits of a frame with this many pixels, for a first guess at disk space.

    A given bitrate is used as it is. Else: lossless half of the raw samples, intra codecs 3.5
    bits per pixel (ProRes HQ and DNxHR HQ at 1080p), others 0.2 (x264 at crf 18 on film).
    """
    if encoder.bit_rate is not None:
        return encoder.bit_rate / rate
    if encoder.is_lossless:
        return Fraction(pixels * VideoFormat(encoder.pix_fmt, 16, 16).padded_bits_per_pixel, 2)
    return pixels * (Fraction(7, 2) if encoder.is_intra else Fraction(1, 5))


def parse_bitrate(text: str) -> int:
    """Bits per second of `8M`, `800k` or `1500000` (ffmpeg's suffixes, powers of ten).

    Raises:
        EncoderError: not a positive number with an optional k, M or G, or too low or high.
    """
    value = parse_amount(text)
    if value is None:
        raise EncoderError(
            f"A bitrate of {text!r:.80} is not understood: write it like 8M or 800k."
        )
    if not LOWEST_BITRATE <= value <= HIGHEST_BITRATE:
        raise EncoderError(
            f"A bitrate of {text} is too {'low' if value < LOWEST_BITRATE else 'high'} for a video: "
            "choose 10k to 1G, such as 8M or 800k."
        )
    return value


def parse_amount(text: str) -> int | None:
    """The whole number above 0 in `4G`, `1.5M`, `800k` or `42` (powers of ten); else None."""
    match = re.fullmatch(r"(\d{1,30}(?:\.\d{1,30})?)([kKmMgG]?)", text.strip())
    scale = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
    return int(Fraction(match[1]) * scale[match[2].lower()]) or None if match else None


@contextmanager
def quiet_encoders() -> Iterator[None]:
    """Keep SVT-AV1 from writing to stderr; its only switch is an environment variable."""
    if "SVT_LOG" in os.environ:
        yield
        return
    os.environ["SVT_LOG"] = "1"
    try:
        yield
    finally:
        os.environ.pop("SVT_LOG", None)


def _resolve_named(
    settings: EncoderSettings, picture: Picture, suffix: str | None, *, software_twin: bool
) -> Encoder:
    profile = find_profile(settings.codec)
    encoder, problem = _best_opening(profile, settings, picture, suffix)
    if not problem:
        return encoder
    if profile.twin and software_twin:
        log.warning("%s: using %s instead.", problem, profile.twin)
        return _resolve_named(_for_twin(profile, settings), picture, suffix, software_twin=False)
    raise EncoderError(f"{problem}: use {profile.twin or 'another codec'} instead.")


def _resolve_auto(settings: EncoderSettings, picture: Picture, suffix: str | None) -> Encoder:
    """NVENC if it opens and keeps as much of the picture, else software."""
    software = {".webm": "vp9", ".nut": "ffv1", ".avi": "utvideo"}.get(suffix or "", "h264")
    fallback, problem = _best_opening(find_profile(software), settings, picture, suffix)
    if software == "h264":
        try:
            hardware, missing = _best_opening(find_profile("h264_nvenc"), settings, picture, suffix)
        except EncoderError as error:
            log.debug("codec auto skips h264_nvenc: %s", error)
        else:
            if not missing and _loses_no_more(hardware, fallback, picture):
                log.info("codec auto: %s", hardware.name)
                return hardware
            log.debug("codec auto skips h264_nvenc: %s", missing or "it would lose detail")
    if problem:
        raise EncoderError(f"{problem}: name another codec.")
    log.info("codec auto: %s", fallback.name)
    return fallback


def _best_opening(
    profile: Profile, settings: EncoderSettings, picture: Picture, suffix: str | None
) -> tuple[Encoder, str]:
    """The encoder with the best options that open here, and an empty string; else the problem."""
    best = _configure(profile, settings, picture, suffix)
    problem = _opening_problem(best, picture)
    for options in profile.plainer if problem else ():
        lesser = replace(profile, options={**profile.options, **options})
        encoder = _configure(lesser, settings, picture, suffix)
        if not _opening_problem(encoder, picture):
            words = ", ".join(f"{name}={value}" for name, value in options.items())
            log.info("%s opens here only with %s.", encoder.name, words)
            return encoder, ""
    return best, problem


def _configure(
    profile: Profile, settings: EncoderSettings, picture: Picture, suffix: str | None
) -> Encoder:
    if suffix is not None and suffix not in profile.containers:
        raise EncoderError(_misfit(profile, suffix))
    pix_fmt = _pix_fmt(profile, settings.pix_fmt, picture)
    _check_size(profile, pix_fmt, picture)
    bit_rate = _bit_rate(profile, settings)
    options = {
        **profile.options,
        **profile.pix_fmts[pix_fmt],
        **_quality_options(profile, settings),
        **_preset_options(profile, settings.preset),
    }
    return Encoder(
        profile=profile.name,
        name=profile.encoder,
        pix_fmt=pix_fmt,
        options=options,
        bit_rate=bit_rate,
        thread_count=profile.threads,
        chunk_suffix=profile.chunk_suffix,
        suffix=suffix or profile.containers[0],
        tag=profile.tag,
        reorder=profile.reorder,
        is_intra=profile.is_intra,
        is_lossless=profile.is_lossless,
    )


def _misfit(profile: Profile, suffix: str) -> str:
    fitting = [other.name for other in PROFILES if suffix in other.containers]
    instead = f", or a codec that fits it ({', '.join(fitting)})" if fitting else ""
    return (
        f"{profile.name} does not fit into a {suffix} file: "
        f"choose {' or '.join(profile.containers)}{instead}."
    )


def _pix_fmt(profile: Profile, wanted: str | None, picture: Picture) -> str:
    if wanted is not None:
        if wanted not in profile.pix_fmts:
            raise EncoderError(
                f"{profile.name} does not take pix_fmt {wanted}: "
                f"choose one of {', '.join(profile.pix_fmts)}."
            )
        return wanted
    accepted = _from_rgb(profile, picture) or profile.pix_fmts
    return choose_pix_fmt(picture.pix_fmt, accepted, has_alpha=picture.has_alpha)


def _from_rgb(profile: Profile, picture: Picture) -> tuple[str, ...]:
    """Formats to choose from for an RGB picture; empty if any format of the profile will do."""
    layout = pixel_layout(picture.pix_fmt)
    if layout.family != "rgb":
        return ()
    return profile.from_rgb[:1] if layout.is_float else profile.from_rgb


def _tell_losses(encoder: Encoder, picture: Picture) -> None:
    lost = loss_words(picture.pix_fmt, encoder.pix_fmt, has_alpha=picture.has_alpha)
    if _from_rgb(find_profile(encoder.profile), picture):
        lost = [word for word in lost if word != "chroma resolution"]  # intended
    if lost:
        log.warning(
            "%s stores %s as %s and drops %s.",
            encoder.profile,
            picture.pix_fmt,
            encoder.pix_fmt,
            " and ".join(lost),
        )


def _check_size(profile: Profile, pix_fmt: str, picture: Picture) -> None:
    layout = pixel_layout(pix_fmt)
    step_x, step_y = 1 << layout.log2_x, 1 << layout.log2_y
    width, height = picture.width, picture.height
    least_width, least_height = profile.least_size
    if width < least_width or height < least_height:
        raise EncoderError(
            f"{profile.name} cannot store pictures of {width}x{height}: scale them to "
            f"{max(width, least_width)}x{max(height, least_height)} or more, or choose another codec."
        )
    if not profile.needs_even or not (width % step_x or height % step_y):
        return
    full = next((name for name in profile.pix_fmts if name.startswith("yuv444")), None)
    raise EncoderError(
        f"{profile.name} with {pix_fmt} cannot store the odd size {width}x{height}: "
        f"crop or scale to {width - width % step_x or step_x}x{height - height % step_y or step_y}, "
        f"or choose {f'pix_fmt {full}' if full else 'another codec'}."
    )


def _bit_rate(profile: Profile, settings: EncoderSettings) -> int | None:
    if settings.bitrate is None:
        return None
    if settings.crf is not None:
        raise EncoderError(
            f"crf {settings.crf} and bitrate {settings.bitrate} contradict each other: give one."
        )
    if profile.quality is None:
        raise EncoderError(f"{profile.name} takes no bitrate: leave it out.")
    return parse_bitrate(settings.bitrate)


def _quality_options(profile: Profile, settings: EncoderSettings) -> Options:
    scale = profile.quality
    if scale is None:
        if settings.crf is not None:
            kind = "is lossless" if profile.is_lossless else "has a fixed quality"
            raise EncoderError(f"{profile.name} {kind} and takes no crf: leave it out.")
        return {}
    if settings.bitrate is not None:
        return {}
    crf = scale.default if settings.crf is None else settings.crf
    if not scale.lowest <= crf <= scale.highest:
        raise EncoderError(
            f"crf {crf} is out of range for {profile.name}: "
            f"choose {scale.lowest} (best) to {scale.highest}."
        )
    return {**scale.with_it, scale.option: str(crf)}


def _preset_options(profile: Profile, preset: str | None) -> Options:
    if profile.presets is None:
        if preset is not None:
            raise EncoderError(f"{profile.name} has no presets: leave preset {preset!r} out.")
        return {}
    word = profile.presets.default if preset is None else preset
    if word not in profile.presets.words:
        raise EncoderError(
            f"{profile.name} has no preset {word!r}: "
            f"choose one of {', '.join(profile.presets.words)}."
        )
    return {profile.presets.option: profile.presets.words[word]}


def _for_twin(profile: Profile, settings: EncoderSettings) -> EncoderSettings:
    """The same settings for the twin: presets that only NVENC knows become the default."""
    twin = find_profile(profile.twin)
    known = twin.presets is not None and settings.preset in twin.presets.words
    fits = settings.pix_fmt in twin.pix_fmts
    return replace(
        settings,
        codec=profile.twin,
        preset=settings.preset if known else None,
        pix_fmt=settings.pix_fmt if fits else None,
    )


def _loses_no_more(hardware: Encoder, software: Encoder, picture: Picture) -> bool:
    ours, theirs = (
        loss(picture.pix_fmt, encoder.pix_fmt, has_alpha=picture.has_alpha)
        for encoder in (hardware, software)
    )
    return ours <= theirs


def _trial(profile: Profile) -> str:
    picture = PictureFacts(width=640, height=360, pix_fmt=next(iter(profile.pix_fmts)))
    settings = EncoderSettings(codec=profile.name)
    return _best_opening(profile, settings, picture, None)[1]


def _opening_problem(encoder: Encoder, picture: Picture) -> str:
    """Why the encoder cannot be opened here at this size; empty if it can.

    Being listed proves nothing: NVENC is listed on machines without a GPU.
    """
    try:
        context = cast(VideoCodecContext, CodecContext.create(encoder.name, "w"))
        context.width, context.height = picture.width, picture.height
        context.pix_fmt = encoder.pix_fmt
        context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
        configure_context(context, encoder)
        with quiet_encoders():
            context.open()
    except UnknownCodecError:
        return f"{encoder.name} is missing from this build of FFmpeg"
    except FFmpegError as error:
        return (
            f"{encoder.name} is listed but cannot be opened here at "
            f"{picture.width}x{picture.height} {encoder.pix_fmt} ({error.strerror})"
        )
    return ""


def configure_context(context: VideoCodecContext, encoder: Encoder) -> None:
    """Apply an encoder's settings to a codec context that is not yet open."""
    context.options = dict(encoder.options)
    if encoder.name == "libx264" and cv2.checkHardwareSupport(AVX_512):
        # Its AVX-512 code weighs macroblocks beyond the end of a row (mbtree), where memory holds
        # anything: the same frames gave other bits from run to run, at 854x480 and 720x1280, say.
        context.options = {**encoder.options, "x264-params": "asm=avx2"}
    context.thread_count = encoder.thread_count
    if encoder.bit_rate is not None:
        context.bit_rate = encoder.bit_rate
