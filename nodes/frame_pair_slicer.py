"""Frames n and n+1 of an IMAGE batch."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..tlbvfi.errors import SettingsError
from .choices import CATEGORY
from .images import require_pairs
from .values import checked


class FramePairSlicer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_FramePairSlicer",
            display_name="TLBVFI Frame Pair Slicer",
            category=f"{CATEGORY}/chunk",
            description="Takes two neighboring frames out of a batch, for graphs that go through a "
            "clip pair by pair. TLBVFI Chunk Processor does the whole clip in one node.",
            inputs=[
                io.Image.Input("images", tooltip="The batch, at least 2 frames."),
                io.Int.Input(
                    "pair_index",
                    default=0,
                    min=0,
                    max=999999,
                    step=1,
                    display_mode=io.NumberDisplay.number,
                    optional=True,
                    tooltip="Number of the pair, from 0: pair n is frames n and n+1. May be linked to "
                    "the counter of a loop.",
                ),
            ],
            outputs=[
                io.Image.Output("frame_pair", display_name="frame_pair"),
                io.Int.Output("pair", display_name="pair_index"),
                io.Int.Output("total_pairs", display_name="total_pairs"),
                io.Boolean.Output("is_last_pair", display_name="is_last_pair"),
            ],
        )

    @classmethod
    @checked
    def execute(cls, images: Tensor, pair_index: int = 0) -> io.NodeOutput:
        require_pairs(images)
        total = len(images) - 1
        if not 0 <= pair_index < total:
            raise SettingsError(
                f"pair_index {pair_index} is not in the batch: {len(images)} frames have pairs 0 to "
                f"{total - 1}."
            )
        pair = images[pair_index : pair_index + 2]
        return io.NodeOutput(pair, pair_index, total, pair_index == total - 1)
