"""The first release's node: a pair in one batch -> the frames in between. Kept for saved graphs."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from . import choices
from .host import NodeProgress
from .models import CheckpointNode, ModelWish, check_model
from .sequence import run_sequence
from .values import checked


class Interpolator(CheckpointNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_Interpolator",
            display_name="TLBVFI Interpolator [V1]",
            category=choices.LEGACY_CATEGORY,
            description="For saved graphs, and for graphs that save a chunk for each pair: it leaves "
            "out the second frame of every pair but the last. Otherwise use TLBVFI Interpolator V2.",
            is_deprecated=True,
            inputs=[
                io.Image.Input("frame_pair", tooltip="Two frames, from TLBVFI Frame Pair Slicer."),
                choices.model_name(),
                choices.times(default=1, minimum=1, optional=False),
                choices.gpu_id(maximum=100, optional=False),
                io.Boolean.Input(
                    "is_last_pair",
                    default=False,
                    optional=True,
                    tooltip="On: the sequence ends with the second frame. Off: it is left out, "
                    "because the next pair begins with it.",
                ),
                io.Boolean.Input(
                    "save_images",
                    default=False,
                    optional=True,
                    tooltip="Has no effect: connect a Save Image node to keep the frames.",
                ),
                choices.interp_model(),
            ],
            outputs=[io.Image.Output("interpolated_frames", display_name="interpolated_frames")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, model_name: str | None = None, interp_model: object = False
    ) -> bool | str:
        return check_model(model_name, linked=interp_model is None)

    @classmethod
    @checked
    def execute(
        cls,
        frame_pair: Tensor,
        model_name: str,
        times_to_interpolate: int,
        gpu_id: int,
        is_last_pair: bool = False,
        save_images: bool = False,
        interp_model: Any = None,  # noqa: ANN401 - ComfyUI's untyped patcher
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        wish = ModelWish(model_name=model_name, gpu_id=gpu_id, interp_model=interp_model)
        frames = run_sequence(
            frame_pair[:2],
            wish,
            progress,
            times=times_to_interpolate,
            ends_here=is_last_pair,
        )
        return io.NodeOutput(frames)
