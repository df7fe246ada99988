"""Frees the memory held by models."""

from __future__ import annotations

import comfy.model_management as mm
from comfy_api.latest import io

from .choices import CATEGORY
from .tlbvfi_model import read_model


class ClearModelCache(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_ClearModelCache",
            display_name="TLBVFI Clear Model Cache",
            category=f"{CATEGORY}/utils",
            description="Unloads all models from the GPU and forgets the TLB-VFI model that was "
            "loaded last. ComfyUI unloads models by itself when it needs room.",
            inputs=[
                io.AnyType.Input(
                    "trigger",
                    optional=True,
                    tooltip="Anything: the node runs after whatever is connected here.",
                )
            ],
            outputs=[],
            is_output_node=True,
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, trigger: object = None) -> float:
        return float("nan")  # never the same: there may be something to clear again

    @classmethod
    def execute(cls, trigger: object = None) -> io.NodeOutput:
        read_model.cache_clear()
        mm.unload_all_models()
        mm.soft_empty_cache()
        return io.NodeOutput()
