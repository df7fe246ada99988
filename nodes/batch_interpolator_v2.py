"""A batch of frames -> the interpolated sequence."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..tlbvfi.spans import CutRule
from . import choices
from .clip import ImagesOrVideo, as_images
from .host import NodeProgress
from .models import CheckpointNode, ModelWish, check_model
from .sequence import run_sequence
from .values import checked


class BatchInterpolatorV2(CheckpointNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TLBVFI_BatchInterpolator_V2",
            display_name="TLBVFI Batch Interpolator V2",
            category=choices.CATEGORY,
            description="Multiplies the frame rate of a batch by 2 to 16, in memory. For more than a "
            "few seconds use TLBVFI Chunk Processor, which streams to a file.",
            search_aliases=["slow motion", "smooth video", "interpolate frames", "vfi"],
            inputs=[
                io.MultiType.Input(
                    "images", [io.Image, io.Video], tooltip="The clip, at least 2 frames."
                ),
                choices.model_name(),
                choices.times(default=1, minimum=0, optional=True),
                choices.enable_tf32(),
                io.Combo.Input(
                    "sample_steps",
                    options=[10, 20, 50],
                    default=10,
                    optional=True,
                    tooltip="Steps of the diffusion bridge (TLB-VFI only). 10 is the paper's choice.",
                ),
                choices.flow_scale(),
                choices.cpu_offload(),
                choices.gpu_id(maximum=7, optional=True),
                io.Boolean.Input(
                    "include_source_frames",
                    default=True,
                    optional=True,
                    tooltip="Off: only the new frames.",
                ),
                *choices.new_inputs(),
                choices.scene_cuts(),
            ],
            outputs=[
                io.Image.Output("interpolated_sequence", display_name="interpolated_sequence"),
                io.Int.Output("frame_count", display_name="frame_count"),
            ],
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
        images: ImagesOrVideo,
        model_name: str,
        times_to_interpolate: int = 1,
        include_source_frames: bool = True,
        seed: int = 0,
        scene_cuts: CutRule = "hold",
        **wish: Any,  # noqa: ANN401 - the fields of ModelWish by name
    ) -> io.NodeOutput:
        progress = NodeProgress(cls.hidden.unique_id)
        frames = run_sequence(
            as_images(images),
            ModelWish(model_name=model_name, **wish),
            progress,
            times=times_to_interpolate,
            seed=seed,
            sources=include_source_frames,
            cuts=scene_cuts,
        )
        return io.NodeOutput(frames, len(frames))
