"""One frame of an IMAGE batch."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from ..tlbvfi.errors import FrameError, SettingsError
from .choices import CATEGORY
from .values import checked


class FrameFromBatch(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_FrameFromBatch",
            display_name="TLBVFI Frame From Batch",
            category=f"{CATEGORY}/utils",
            description="Takes one frame out of a batch of images.",
            inputs=[
                io.Image.Input("images", tooltip="The batch."),
                io.Int.Input(
                    "index",
                    default=0,
                    min=0,
                    max=999999,
                    step=1,
                    display_mode=io.NumberDisplay.number,
                    optional=True,
                    tooltip="Number of the frame, from 0.",
                ),
                io.Boolean.Input(
                    "clamp_index",
                    default=True,
                    optional=True,
                    tooltip="On: an index beyond the end gives the last frame. Off: it is an error.",
                ),
            ],
            outputs=[io.Image.Output("frame", display_name="frame")],
        )

    @classmethod
    @checked
    def execute(cls, images: Tensor, index: int = 0, clamp_index: bool = True) -> io.NodeOutput:
        if not len(images):
            raise FrameError("the batch is empty: connect one with at least 1 frame.")
        if index < 0:  # over a link, to which the widget's limits do not apply
            raise SettingsError(f"index {index} is below 0: frames are numbered from 0.")
        if index >= len(images) and not clamp_index:
            raise SettingsError(
                f"index {index} is beyond the batch, which has frames 0 to {len(images) - 1}: choose "
                "one of them or turn clamp_index on."
            )
        index = min(index, len(images) - 1)
        return io.NodeOutput(images[index : index + 1])
