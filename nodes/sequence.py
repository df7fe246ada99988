"""Shared by the nodes that turn images into images: choose a method, fill the output, report."""

from __future__ import annotations

from torch import Tensor

from ..tlbvfi.pipeline import OutputFrame
from ..tlbvfi.progress import Meter
from ..tlbvfi.spans import CutRule
from .host import NodeProgress, empty_images, memory_notice
from .images import interpolate_images, require_images, require_pairs, sequence_length
from .models import ModelWish, chosen_method


def run_sequence(
    images: Tensor,
    wish: ModelWish,
    progress: NodeProgress,
    *,
    times: int,
    seed: int = 0,
    sources: bool = True,
    ends_here: bool = True,
    cuts: CutRule = "ignore",
) -> Tensor:
    """The interpolated batch, [B', H, W, C], on the device and in the dtype of ComfyUI's images.

    `images`: [B >= 2, H, W, C]. `times` 0 gives only the one mid frame of each pair. A batch
    of two is a pair to be interpolated, whatever `cuts` says.

    Raises:
        FrameError: no pair, or frames that are not color pictures.
        MemoryBudgetError: the result exceeds the total memory.
    """
    require_pairs(images)
    require_images(images)
    count = sequence_length(len(images), times, sources=sources, ends_here=ends_here)
    if notice := memory_notice(count, *images.shape[1:]):
        progress(notice)
    meter = Meter(frames_total=count)

    def on_frame(frame: OutputFrame[int]) -> None:
        progress(meter.frame(frame.image))

    with chosen_method(wish, progress) as method:
        return interpolate_images(
            images,
            method,
            empty_images(count, *images.shape[1:]),
            times=times,
            seed=seed,
            sources=sources,
            ends_here=ends_here,
            cuts=cuts if len(images) > 2 else "ignore",
            on_frame=on_frame,
        )
