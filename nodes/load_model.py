"""A checkpoint file -> a model that the interpolating nodes accept."""

from __future__ import annotations

import comfy.model_management as mm
from comfy_api.latest import io

from . import choices
from .models import CheckpointNode, check_checkpoint, named_model
from .values import checked


class LoadModel(CheckpointNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_LoadModel",
            display_name="Load TLBVFI Model",
            category=choices.CATEGORY,
            description="Loads a TLB-VFI checkpoint from models/interpolation for the interpolating "
            "nodes. One loaded model can serve several of them.",
            search_aliases=["vfi", "frame interpolation", "tlb-vfi"],
            inputs=[choices.checkpoint_name(), choices.precision()],
            outputs=[choices.TlbvfiModel.Output("model", display_name="model")],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        return check_checkpoint(model_name)

    @classmethod
    @checked
    def execute(cls, model_name: str, precision: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(named_model(model_name, precision, mm.get_torch_device()))
