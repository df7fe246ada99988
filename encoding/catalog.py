"""Every encoder we use, in one table: container, pixel formats, quality scale, joinability.

The options make chunks joinable by packet copy: closed GOPs, headers that do not depend on the
machine, and thread counts that are constants, because x264's bitstream depends on them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

X26X_PRESETS = [
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
]
NVENC_PRESETS = [f"p{level}" for level in range(1, 8)]

Options = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """A constant-quality scale: lower is better and larger."""

    option: str
    lowest: int
    highest: int
    default: int
    with_it: Options = field(default_factory=dict)
    """Options without which the encoder would ignore the scale."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Presets:
    """Speed presets of an encoder: the user's word -> value of `option`."""

    option: str
    words: Options
    default: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One row of the table. `profiles.resolve_encoder` turns it into an Encoder for given frames."""

    name: str
    encoder: str
    """FFmpeg's name; as an alias it means the first profile that uses it."""
    chunk_suffix: str
    """Container of chunks: with exact times if packets are reordered, else any the codec fits."""
    containers: tuple[str, ...]
    """Suffixes of final files that can hold the codec."""
    pix_fmts: Mapping[str, Options]
    """Accepted formats, preferred first, with the options each needs."""
    from_rgb: tuple[str, ...] = ()
    """Formats chosen for RGB pictures, 8 bit first, if not any will do: see `profiles`."""
    options: Options = field(default_factory=dict)
    plainer: tuple[Options, ...] = ()
    """Replacements for some `options` that older hardware or some sizes refuse, best first."""
    quality: Quality | None = None
    presets: Presets | None = None
    aliases: tuple[str, ...] = ()
    tag: str = ""
    """Codec tag in mp4 and mov."""
    reorder: int = 0
    """Upper bound on how many frames packets precede their place in presentation order."""
    threads: int = 8
    needs_even: bool = False
    """Sizes must be multiples of the chroma subsampling."""
    least_size: tuple[int, int] = (1, 1)
    """Width and height; smaller pictures are refused, or make the encoder crash or never end."""
    highest_rate: int | None = None
    """Frames per second that the encoder takes, if there is a limit."""
    most_ticks: int | None = None
    """Ticks per second that the encoder takes, if it takes fewer than files can store."""
    is_intra: bool = False
    is_lossless: bool = False
    is_limited: bool = False
    """YUV is read as limited range, whatever the file says."""
    twin: str = ""
    """Software profile that makes the same kind of stream."""


def _same(words: Iterable[str]) -> dict[str, str]:
    return {word: word for word in words}


def _plain(names: str) -> dict[str, Options]:
    return {name: {} for name in names.split()}


_X264 = Profile(
    name="h264",
    encoder="libx264",
    aliases=("avc", "x264"),
    chunk_suffix=".mp4",
    containers=(".mp4", ".mov", ".mkv"),
    pix_fmts=_plain(
        "yuv420p yuvj420p nv12 yuv422p yuvj422p yuv444p yuvj444p"
        " yuv420p10le yuv422p10le yuv444p10le gray gray10le"
    ),
    from_rgb=("yuv420p",),  # browsers and most hardware decode no 10-bit H.264
    options={"flags": "+cgop"},
    quality=Quality(option="crf", lowest=0, highest=51, default=18),
    presets=Presets(option="preset", words=_same(X26X_PRESETS), default="medium"),
    reorder=2,
    needs_even=True,
)
_X265 = Profile(
    name="hevc",
    encoder="libx265",
    aliases=("h265", "x265"),
    chunk_suffix=".mp4",
    containers=(".mp4", ".mov", ".mkv"),
    pix_fmts=_plain(
        "yuv420p yuvj420p yuv422p yuvj422p yuv444p yuvj444p yuv420p10le yuv422p10le yuv444p10le"
        " yuv420p12le yuv422p12le yuv444p12le gray gray10le gray12le"
    ),
    from_rgb=("yuv420p", "yuv420p10le"),
    # open-gop: leading frames of a GOP are not seekable; info: its SEI names the thread pools.
    options={"x265-params": "open-gop=0:info=0:log-level=error"},
    quality=Quality(option="crf", lowest=0, highest=51, default=20),
    presets=Presets(option="preset", words=_same(X26X_PRESETS), default="medium"),
    tag="hvc1",
    reorder=2,
    threads=4,
    needs_even=True,
    least_size=(49, 1),  # x265 4.2 writes past the end of its lookahead's rows
)
_SVT_AV1 = Profile(
    name="av1",
    encoder="libsvtav1",
    aliases=("svtav1",),
    chunk_suffix=".mp4",
    containers=(".mp4", ".mkv", ".webm"),
    pix_fmts=_plain("yuv420p yuv420p10le"),
    from_rgb=("yuv420p", "yuv420p10le"),
    options={"svtav1-params": "irefresh-type=2"},
    quality=Quality(option="crf", lowest=1, highest=63, default=26),
    presets=Presets(option="preset", words=_same(map(str, range(14))), default="8"),
    threads=4,
    least_size=(32, 32),  # SVT-AV1 4.1 reads out of bounds, or waits forever, with 24 and less
    highest_rate=240,
)
_VP9 = Profile(
    name="vp9",
    encoder="libvpx-vp9",
    chunk_suffix=".mp4",
    containers=(".webm", ".mp4", ".mkv"),
    pix_fmts=_plain("yuv420p yuv422p yuv440p yuv444p"),
    from_rgb=("yuv420p",),
    options={"deadline": "good", "row-mt": "1"},
    quality=Quality(option="crf", lowest=0, highest=63, default=26),
    presets=Presets(option="cpu-used", words=_same(map(str, range(9))), default="4"),
    most_ticks=10**9,
)


# NVENC's GOPs are closed: FFmpeg sets its IDR period to the GOP length, which is given here
# because presets have lengths of their own. `strict_gop` is about bit rates, not about this.
# Three B-frames with the middle one as reference need two frames of reordering, as x264's do.
_NVENC_OPTIONS = {
    **{"forced-idr": "1", "g": "250", "bf": "3", "b_ref_mode": "middle"},
    **{"rc-lookahead": "16", "spatial-aq": "1", "temporal-aq": "1", "multipass": "qres"},
}
_NO_REFERENCES = {"b_ref_mode": "disabled"}  # before Turing
_NO_B_FRAMES = {**_NO_REFERENCES, "bf": "0"}  # HEVC before Turing, and on the GTX 1650 of 2019
_NO_LOOKAHEAD = {**_NO_B_FRAMES, "rc-lookahead": "0", "temporal-aq": "0"}  # and even older


def _nvenc(twin: Profile, default: int, pix_fmts: str) -> Profile:
    """The hardware row that matches a software one. It also accepts x264's preset names."""
    near = dict(
        zip(X26X_PRESETS, ["p1", "p1", "p2", "p3", "p3", "p4", "p5", "p6", "p7", "p7"], strict=True)
    )
    return replace(
        twin,
        name=f"{twin.name}_nvenc",
        encoder=f"{twin.name}_nvenc",
        aliases=(),
        pix_fmts=_plain(pix_fmts),
        from_rgb=tuple(name for name in pix_fmts.split() if name in ("yuv420p", "p010le")),
        options=_NVENC_OPTIONS,
        plainer=(_NO_REFERENCES, _NO_B_FRAMES, _NO_LOOKAHEAD),
        quality=Quality(
            option="cq",
            lowest=1,  # 0 leaves the choice to the driver
            highest=51,
            default=default,
            with_it={"rc": "vbr", "b": "0"},
        ),
        presets=Presets(option="preset", words={**_same(NVENC_PRESETS), **near}, default="p5"),
        threads=1,
        needs_even=True,
        highest_rate=None,
        twin=twin.name,
    )


_INTRA_444 = {
    "yuv444p10le": {"profile": "4444"},
    "yuva444p10le": {"profile": "4444", "alpha_bits": "16"},
}
_PRORES = Profile(
    name="prores",
    encoder="prores_ks",
    chunk_suffix=".mov",
    containers=(".mov", ".mkv"),
    pix_fmts={"yuv422p10le": {"profile": "hq"}, **_INTRA_444},
    is_intra=True,
    is_limited=True,
)
_EXR = Profile(
    name="exr",
    encoder="exr",
    aliases=("exr-half",),
    chunk_suffix=".mov",  # the only container FFmpeg puts it into
    containers=(".mov",),
    pix_fmts=_plain("gbrpf32le gbrapf32le"),
    options={"format": "half", "compression": "zip1"},
    is_intra=True,
)
_LOSSLESS_FORMATS = (
    "yuv420p yuv422p yuv444p yuv440p yuv411p yuv410p yuva420p yuva422p yuva444p"
    " yuv420p9le yuv422p9le yuv444p9le yuv420p10le yuv422p10le yuv444p10le"
    " yuv420p12le yuv422p12le yuv444p12le yuv420p14le yuv422p14le yuv444p14le"
    " yuv420p16le yuv422p16le yuv444p16le yuva420p10le yuva422p10le yuva444p10le"
    " yuva422p12le yuva444p12le yuva420p16le yuva422p16le yuva444p16le"
    " bgr0 bgra gbrp9le gbrp10le gbrap10le gbrp12le gbrap12le gbrp14le gbrp16le gbrap16le"
    " gray gray9le gray10le gray12le gray14le gray16le ya8"
)

PROFILES: tuple[Profile, ...] = (
    _X264,
    _X265,
    _SVT_AV1,
    _VP9,
    _nvenc(_X264, 19, "yuv420p nv12 yuv444p"),
    _nvenc(_X265, 21, "yuv420p nv12 p010le yuv444p"),
    _nvenc(_SVT_AV1, 28, "yuv420p nv12 p010le"),
    _PRORES,
    replace(_PRORES, name="prores_4444", pix_fmts=_INTRA_444),
    Profile(
        name="dnxhr",
        encoder="dnxhd",
        chunk_suffix=".mov",
        containers=(".mov",),
        pix_fmts={
            "yuv422p": {"profile": "dnxhr_hq"},
            "yuv422p10le": {"profile": "dnxhr_hqx"},
            "yuv444p10le": {"profile": "dnxhr_444"},
        },
        least_size=(256, 120),
        is_intra=True,
    ),
    Profile(
        name="ffv1",
        encoder="ffv1",
        chunk_suffix=".mkv",
        containers=(".mkv", ".nut"),
        pix_fmts=_plain(_LOSSLESS_FORMATS),
        options={"level": "3", "g": "1", "slices": "16", "slicecrc": "1"},
        # Slices must begin on a chroma sample: of odd sizes, half cannot be divided into 16.
        plainer=tuple({"slices": count} for count in ("20", "12", "9", "0", "1")),
        is_intra=True,
        is_lossless=True,
    ),
    _EXR,
    replace(
        _EXR,
        name="exr-float",
        aliases=(),
        options={**_EXR.options, "format": "float"},
        is_lossless=True,
    ),
    replace(
        _X264,
        name="h264-lossless",
        aliases=("h264_lossless",),
        # crf=0 is lossless in 8 bit only, qp=0 in 10 bit as well.
        options={**_X264.options, "qp": "0"},
        from_rgb=(),
        quality=None,
        is_lossless=True,
    ),
    Profile(
        name="utvideo",
        encoder="utvideo",
        chunk_suffix=".nut",
        containers=(".nut", ".avi"),
        pix_fmts=_plain("yuv420p yuv422p yuv444p gbrp gbrap"),
        needs_even=True,
        is_intra=True,
        is_lossless=True,
    ),
)
