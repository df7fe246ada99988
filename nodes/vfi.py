"""A whole batch, with the id and inputs of another pack's node. Kept for saved graphs."""

from __future__ import annotations

from comfy_api.latest import io
from torch import Tensor

from . import choices
from .host import NodeProgress
from .models import CheckpointNode, ModelWish, check_model
from .sequence import run_sequence
from .values import checked


class Vfi(CheckpointNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_VFI",
            display_name="TLBVFI Frame Interpolation [Legacy]",
            category=choices.LEGACY_CATEGORY,
            description="Kept for saved graphs: use TLBVFI Batch Interpolator V2 instead.",
            is_deprecated=True,
            inputs=[
                io.Image.Input("images", tooltip="The clip, at least 2 frames."),
                choices.model_name(),
                choices.times(default=1, minimum=1, optional=False),
                io.Int.Input(
                    "diffusion_steps",
                    default=10,
                    min=1,
                    max=100,
                    step=1,
                    tooltip="Steps of the diffusion bridge (TLB-VFI only).",
                ),
                io.Int.Input(
                    "batch_size",
                    default=2,
                    min=1,
                    max=64,
                    tooltip="Has no effect: pairs are processed one at a time, and each frame is "
                    "encoded once.",
                ),
                choices.flow_scale(minimum=0.1, optional=False),
            ],
            outputs=[io.Image.Output("frames", display_name="IMAGE")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        return check_model(model_name)

    @classmethod
    @checked
    def execute(
        cls,
        images: Tensor,
        model_name: str,
        times_to_interpolate: int,
        diffusion_steps: int,
        batch_size: int,
        flow_scale: float,
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        wish = ModelWish(model_name=model_name, sample_steps=diffusion_steps, flow_scale=flow_scale)
        return io.NodeOutput(run_sequence(images, wish, progress, times=times_to_interpolate))
