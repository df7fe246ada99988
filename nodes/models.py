"""Which method a node runs: from its inputs to the object that makes the frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import torch
from comfy_api.latest import io

from ..encoding.unchanged import Facts, file_facts
from ..tlbvfi.errors import ModelMissingError, SettingsError
from ..tlbvfi.method import Method
from ..tlbvfi.methods import WITHOUT_WEIGHTS, MethodConfig, create_method
from ..tlbvfi.model import Padding, SamplingOptions
from ..tlbvfi.models import model_source
from ..tlbvfi.progress import Notice
from .choices import MODEL_FOLDER, model_files
from .host import NodeProgress
from .interp_model import InterpModelMethod
from .tlbvfi_model import HostedTlbvfi, LoadedModel, load_model

LEAST_FLOW_SCALE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWish:
    """The inputs of a node that determine its method, with the defaults of saved graphs."""

    model_name: str
    sample_steps: int = 10
    flow_scale: float = 0.5
    enable_tf32: bool = True
    cpu_offload: bool = True
    gpu_id: int = 0
    tile_size: int = 0
    precision: str = "auto"
    padding: Padding = "reference"
    model: LoadedModel | None = None
    interp_model: Any = None  # ComfyUI's untyped patcher


def check_model(model_name: str | None, *, linked: bool = False) -> bool | str:
    """ComfyUI's validation result: True, or what is wrong with `model_name`.

    None stands for a name that comes over a link. `linked`: a model is connected, which wins.
    """
    if linked or model_name is None or model_name in (*WITHOUT_WEIGHTS, *model_files()):
        return True
    return missing_model(model_name)


def check_checkpoint(model_name: str | None) -> bool | str:
    """The same for nodes that accept only a checkpoint."""
    return True if model_name is None or model_name in model_files() else missing_model(model_name)


class CheckpointNode(io.ComfyNode):
    """A node whose input `model_name` names a checkpoint.

    A file replaced under its name is loaded again: the cache key of the node's results includes when
    the file was changed and its size. It covers every checkpoint if the name comes over a link, and
    none if there is no such file.
    """

    @classmethod
    def fingerprint_inputs(
        cls, model_name: str | None = None, **inputs: object
    ) -> list[Facts | None]:
        return checkpoint_versions(model_name)


def checkpoint_versions(model_name: str | None) -> list[Facts | None]:
    """What changes with the checkpoint files that a node with this `model_name` may use."""
    names = [name for name in model_files() if model_name in (None, name)]
    paths = [folder_paths.get_full_path(MODEL_FOLDER, name) for name in names]
    return [file_facts(path) for path in paths if path is not None]


def missing_model(model_name: str) -> str:
    """What to do about a missing checkpoint."""
    source = model_source("tlbvfi")
    return (
        f"there is no model {model_name!r} in models/{MODEL_FOLDER}: put {source.file_name} from "
        f"{source.page()} into {Path(folder_paths.models_dir) / MODEL_FOLDER} and press R, or choose "
        f"{' or '.join(WITHOUT_WEIGHTS)}, which need no model."
    )


@contextmanager
def chosen_method(wish: ModelWish, progress: NodeProgress) -> Iterator[Method]:
    """The method of a node, ready to run; leaving the block frees what should not stay in memory.

    Raises:
        ModelMissingError: there is no such model.
        CheckpointError, SettingsError: it cannot be used.
    """
    if wish.interp_model is not None:
        yield InterpModelMethod(wish.interp_model)
    elif wish.model is None and wish.model_name in WITHOUT_WEIGHTS:
        yield create_method(MethodConfig(name=wish.model_name))
    else:
        model = wish.model or named_model(
            wish.model_name, wish.precision, chosen_device(wish.gpu_id, progress)
        )
        if not isinstance(model, LoadedModel):
            raise SettingsError(
                f"model {type(model).__name__} is not a TLB-VFI model: connect the output of 'Load "
                "TLBVFI Model'."
            )
        method = HostedTlbvfi(model, sampling_options(wish), tile_size=wish.tile_size)
        try:
            yield method
        finally:
            if wish.cpu_offload:
                method.release()


def named_model(name: str, precision: str, device: torch.device) -> LoadedModel:
    """The checkpoint `name` of the model folder.

    Raises:
        ModelMissingError: it does not exist.
    """
    if name not in model_files():
        raise ModelMissingError(missing_model(name))
    path = Path(folder_paths.get_full_path_or_raise(MODEL_FOLDER, name))
    return load_model(path, precision, device)


def sampling_options(wish: ModelWish) -> SamplingOptions:
    """How TLB-VFI samples. A flow_scale of 0, which old graphs may contain, is read as 0.1."""
    return SamplingOptions(
        steps=wish.sample_steps,
        flow_scale=max(wish.flow_scale, LEAST_FLOW_SCALE),
        padding=wish.padding,
        tf32=wish.enable_tf32,
    )


def chosen_device(gpu_id: int, progress: NodeProgress) -> torch.device:
    """ComfyUI's device for 0, CUDA device n for n above 0 if it exists."""
    if gpu_id == 0:
        return mm.get_torch_device()
    if 0 < gpu_id < torch.cuda.device_count() and not mm.cpu_mode():
        return torch.device("cuda", gpu_id)
    progress(Notice(text=f"gpu_id {gpu_id}: there is no such GPU, using {mm.get_torch_device()}."))
    return mm.get_torch_device()
