"""The extension ComfyUI loads: the list of nodes, their model folder, a warning on id clashes."""

from __future__ import annotations

import logging
from pathlib import Path

import folder_paths
from comfy_api.latest import ComfyExtension, io
from server import PromptServer

from nodes import NODE_CLASS_MAPPINGS

from .batch_interpolator_v2 import BatchInterpolatorV2
from .choices import MODEL_FOLDER
from .chunk_processor import ChunkProcessor
from .chunk_video_saver import ChunkVideoSaver
from .clear_model_cache import ClearModelCache
from .frame_from_batch import FrameFromBatch
from .frame_pair_slicer import FramePairSlicer
from .interpolator import Interpolator
from .interpolator_v2 import InterpolatorV2
from .load_model import LoadModel
from .vfi import Vfi
from .vfi_tf32 import VfiTf32
from .video_concatenator import VideoConcatenator

log = logging.getLogger("tlbvfi.nodes")

NODES: tuple[type[io.ComfyNode], ...] = (
    LoadModel,
    ChunkProcessor,
    VideoConcatenator,
    ChunkVideoSaver,
    BatchInterpolatorV2,
    InterpolatorV2,
    FramePairSlicer,
    FrameFromBatch,
    ClearModelCache,
    Interpolator,
    Vfi,
    VfiTf32,
)


class TLBVFIExtension(ComfyExtension):
    async def on_load(self) -> None:
        folder = Path(folder_paths.models_dir) / MODEL_FOLDER
        folder_paths.add_model_folder_path(MODEL_FOLDER, str(folder))
        warn_of_clashes()
        PromptServer.instance.app.on_startup.append(_after_all_packs)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return list(NODES)


async def _after_all_packs(app: object) -> None:
    warn_of_clashes()


def warn_of_clashes() -> None:
    """Log which of our ids another pack also uses: ComfyUI silently keeps the one loaded last."""
    for node in NODES:
        node_id = node.GET_SCHEMA().node_id
        other = NODE_CLASS_MAPPINGS.get(node_id, node)
        if other is not node:
            log.warning(
                "%s is also a node of %s, and ComfyUI uses the one loaded last: remove one of the "
                "two packs.",
                node_id,
                getattr(other, "RELATIVE_PYTHON_MODULE", other.__module__),
            )
