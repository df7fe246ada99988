"""Which pixel format an encoder gets, and what the picture loses by it."""

from __future__ import annotations

from collections.abc import Iterable

from .layout import PixelLayout, pixel_layout


def choose_pix_fmt(source: str, accepted: Iterable[str], *, has_alpha: bool) -> str:
    """The accepted format that loses least of `source`: itself, else the nearest.

    What can be lost counts in this order: color, depth, chroma, alpha, staying RGB or YUV; then
    the least waste. That is ffmpeg's rule (`avcodec_find_best_pix_fmt_of_list`) with its losses
    ranked instead of summed, so that depth is never traded for something else.
    """
    candidates = list(accepted)
    if source in candidates:
        return source
    return min(
        candidates, key=lambda name: (loss(source, name, has_alpha=has_alpha), _waste(source, name))
    )


def loss(source: str, target: str, *, has_alpha: bool) -> tuple[int, ...]:
    """What `target` loses of `source`, for comparison: color, depth, chroma, alpha, family.

    `has_alpha` False means that the alpha of `source` is not used. All zeros: nothing is lost.
    """
    have, get = pixel_layout(source), pixel_layout(target)
    return (
        int(_has_color(have) and not _has_color(get)),
        max(0, have.bits - get.bits),
        sum(_coarser(have, get)) if _has_color(have) else 0,
        int(has_alpha and have.has_alpha and not get.has_alpha),
        int(_has_color(have) and have.family != get.family),
    )


def loss_words(source: str, target: str, *, has_alpha: bool) -> list[str]:
    """What `target` loses of `source`, in words; rounding between RGB and YUV does not count."""
    words = ("color", "bit depth", "chroma resolution", "alpha")
    lost = loss(source, target, has_alpha=has_alpha)
    return [word for word, amount in zip(words, lost, strict=False) if amount]


def _waste(source: str, target: str) -> tuple[int, ...]:
    have, get = pixel_layout(source), pixel_layout(target)
    return (
        int(get.has_alpha and not have.has_alpha),
        get.bits - have.bits,
        int(_has_color(get) and not _has_color(have)),
        sum(_coarser(get, have)),
    )


def _has_color(layout: PixelLayout) -> bool:
    return layout.family != "gray"


def _coarser(have: PixelLayout, get: PixelLayout) -> tuple[int, int]:
    return max(0, get.log2_x - have.log2_x), max(0, get.log2_y - have.log2_y)
