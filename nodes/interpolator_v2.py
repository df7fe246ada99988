"""One pair of frames -> the frames in between."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from . import choices
from .host import NodeProgress
from .images import pair_of
from .models import CheckpointNode, ModelWish, check_model
from .sequence import run_sequence
from .values import checked


class InterpolatorV2(CheckpointNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_Interpolator_V2",
            display_name="TLBVFI Interpolator V2",
            category=choices.CATEGORY,
            description="Makes the frames between two frames. For a clip, TLBVFI Batch Interpolator "
            "V2 computes each frame's features once instead of twice.",
            inputs=[
                io.Image.Input("prev_frame", tooltip="The earlier frame."),
                io.Image.Input("next_frame", tooltip="The later frame, of the same size."),
                choices.model_name(),
                choices.times(default=0, minimum=0, optional=True),
                choices.enable_tf32(),
                choices.sample_steps(),
                choices.flow_scale(),
                choices.tile_size(),
                choices.cpu_offload(),
                choices.gpu_id(maximum=7, optional=True),
                *choices.new_inputs(),
            ],
            outputs=[io.Image.Output("interpolated_frames", display_name="interpolated_frames")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(
        cls, model_name: str | None = None, model: object = False, interp_model: object = False
    ) -> bool | str:
        return check_model(model_name, linked=model is None or interp_model is None)

    @classmethod
    @checked
    def execute(
        cls,
        prev_frame: Tensor,
        next_frame: Tensor,
        model_name: str,
        times_to_interpolate: int = 0,
        seed: int = 0,
        **wish: Any,  # noqa: ANN401 - the fields of ModelWish by name
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        frames = run_sequence(
            pair_of(prev_frame, next_frame),
            ModelWish(model_name=model_name, **wish),
            progress,
            times=times_to_interpolate,
            seed=seed,
        )
        return io.NodeOutput(frames)
