"""Inputs that several nodes share: written once, so that the nodes cannot drift apart.

Saved graphs rely on ids, order and defaults; new inputs go to the end and are optional.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import get_args

import folder_paths
from comfy_api.latest import io

from ..encoding.profiles import PROFILES, find_profile
from ..tlbvfi.methods import WITHOUT_WEIGHTS
from ..tlbvfi.methods.config import Padding
from ..tlbvfi.models import model_source
from ..tlbvfi.spans import CutRule

MODEL_FOLDER = "interpolation"
CATEGORY = "frame_interpolation/TLBVFI"
LEGACY_CATEGORY = f"{CATEGORY}/legacy"

TlbvfiModel = io.Custom("TLBVFI_MODEL")
InterpModel = io.Custom("INTERP_MODEL")

SAVED_CODECS = ("h264_nvenc", "hevc_nvenc", "libx264", "libx265", "libvpx-vp9")
"""Values that saved graphs contain."""
CODECS = (
    "auto",
    *SAVED_CODECS,
    *(p.name for p in PROFILES if p.name not in {find_profile(c).name for c in SAVED_CODECS}),
)
PRECISIONS = ("auto", "float32", "bfloat16", "float16")


def model_files() -> list[str]:
    """Checkpoints below models/interpolation, except those in folders of other packs."""
    names = folder_paths.get_filename_list(MODEL_FOLDER)
    return [n for n in names if n.endswith((".pth", ".safetensors")) and "gimm" not in n.lower()]


def official_model(files: list[str]) -> str | None:
    """The official checkpoint, if present; the folder also holds models of other packs."""
    names = model_source("tlbvfi").names
    return next((file for file in files if PurePath(file).name in names), None)


def model_name() -> io.Combo.Input:
    files = model_files()
    return io.Combo.Input(
        "model_name",
        options=[*files, *WITHOUT_WEIGHTS],
        default=official_model(files) or WITHOUT_WEIGHTS[0],
        tooltip="A TLB-VFI checkpoint in models/interpolation, or a method that needs no model: "
        "'flow' (optical flow, good and fast) or 'blend' (a plain cross-fade).",
    )


def checkpoint_name() -> io.Combo.Input:
    """As `model_name`, but only checkpoints; if there is none, the official one, to explain it."""
    options = model_files() or [model_source("tlbvfi").file_name]
    return io.Combo.Input(
        "model_name",
        options=options,
        default=official_model(options) or options[0],
        tooltip="A TLB-VFI checkpoint in models/interpolation.",
    )


def times(*, default: int, minimum: int, optional: bool) -> io.Int.Input:
    mid = " 0 gives only the mid frame." if minimum == 0 else ""
    return io.Int.Input(
        "times_to_interpolate",
        default=default,
        min=minimum,
        max=4,
        step=1,
        display_mode=io.NumberDisplay.number,
        optional=optional,
        tooltip="How often each gap is halved: 1 gives 2 times the frame rate, 2 gives 4 times, 3 "
        f"gives 8 times, 4 gives 16 times.{mid}",
    )


def gpu_id(*, maximum: int, optional: bool) -> io.Int.Input:
    return io.Int.Input(
        "gpu_id",
        default=0,
        min=0,
        max=maximum,
        step=1,
        optional=optional,
        advanced=True,
        tooltip="0 is the device ComfyUI uses, which its memory management handles best. n above "
        "0 is CUDA device n, if there is one.",
    )


def enable_tf32() -> io.Boolean.Input:
    return io.Boolean.Input(
        "enable_tf32",
        default=True,
        optional=True,
        advanced=True,
        tooltip="Let NVIDIA GPUs (RTX 30 and newer) multiply float32 with a 10-bit mantissa: faster, "
        "but about 1 % of TLB-VFI's codes change, which shows in small areas. Off is exact. Only in "
        "effect while this node runs.",
    )


def sample_steps() -> io.Int.Input:
    return io.Int.Input(
        "sample_steps",
        default=10,
        min=1,
        max=50,
        step=1,
        display_mode=io.NumberDisplay.slider,
        optional=True,
        tooltip="Steps of the diffusion bridge (TLB-VFI only). 10 is the paper's choice; more steps "
        "cost time and change little.",
    )


def flow_scale(*, minimum: float = 0.0, optional: bool = True) -> io.Float.Input:
    return io.Float.Input(
        "flow_scale",
        default=0.5,
        min=minimum,
        max=1.0,
        step=0.1,
        optional=optional,
        tooltip="Size at which motion is estimated, relative to the frame's (TLB-VFI only): 0.5 "
        "suits 1080p and up, 1.0 small frames. 0 is read as 0.1.",
    )


def tile_size() -> io.Int.Input:
    return io.Int.Input(
        "tile_size",
        default=0,
        min=0,
        max=2048,
        step=128,
        display_mode=io.NumberDisplay.number,
        optional=True,
        advanced=True,
        tooltip="Saves memory (TLB-VFI only): frames are computed whole, in about the memory that a "
        "tile of this size takes in packs that tile, or in the least they need; less memory takes "
        "more time. 0: uses what is free. The frames are the same for every value, up to float "
        "rounding.",
    )


def cpu_offload() -> io.Boolean.Input:
    return io.Boolean.Input(
        "cpu_offload",
        default=True,
        optional=True,
        advanced=True,
        tooltip="On: the weights leave the VRAM when this node is done. Off: they stay until ComfyUI "
        "needs the room for another model, so the next run starts sooner.",
    )


def new_inputs() -> list[io.Input]:
    """Inputs added to the interpolating nodes since graphs were first saved; always at the end."""
    return [
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**63 - 1,
            control_after_generate=False,  # the page adds a randomizing widget to every "seed"
            optional=True,
            tooltip="Seed of the noise TLB-VFI draws. The same seed gives the same frames, however "
            "the work is split or resumed.",
        ),
        precision(),
        io.Combo.Input(
            "padding",
            options=list(get_args(Padding)),
            default="reference",
            optional=True,
            advanced=True,
            tooltip="reference: pad to multiples of 512 as the paper's code does. tight: pad to "
            "multiples of 256, which is faster and gives slightly different frames.",
        ),
        TlbvfiModel.Input(
            "model",
            optional=True,
            tooltip="From 'Load TLBVFI Model'. Overrides model_name.",
        ),
        interp_model(),
    ]


def precision() -> io.Combo.Input:
    return io.Combo.Input(
        "precision",
        options=list(PRECISIONS),
        default="auto",
        optional=True,
        advanced=True,
        tooltip="Number format of TLB-VFI's decoder. auto: bfloat16 on GPUs that support it, else "
        "float32. What decides on codes is float32 in any case.",
    )


def interp_model() -> io.Input:
    return InterpModel.Input(
        "interp_model",
        optional=True,
        tooltip="FILM or RIFE from ComfyUI's 'Load Frame Interpolation Model'. Overrides model and "
        "model_name.",
    )


def codec(*, optional: bool) -> io.Combo.Input:
    return io.Combo.Input(
        "codec",
        options=list(CODECS),
        default="auto",
        optional=optional,
        tooltip="auto uses the best encoder that works here: NVENC, else x264. Without NVENC, an "
        "*_nvenc choice falls back to its software twin, and the node says so. For later editing: "
        "ffv1, h264-lossless and utvideo lose nothing, prores and dnxhr little.",
    )


def scene_cuts() -> io.Combo.Input:
    return io.Combo.Input(
        "scene_cuts",
        options=list(get_args(CutRule)),
        default="hold",
        optional=True,
        tooltip="What is shown between the last frame of a scene and the first of the next. hold: "
        "the last frame. nearest: the nearer of the two. ignore: frames interpolated between them.",
    )


def final_codec() -> io.Combo.Input:
    return io.Combo.Input(
        "codec",
        options=["copy", *CODECS],
        default="copy",
        optional=True,
        tooltip="copy joins the chunks as they are. Any other choice encodes them once more, which "
        "suits lossless chunks (ffv1, h264-lossless): one compression, at the end.",
    )


def crf() -> io.Int.Input:
    return io.Int.Input(
        "crf",
        default=18,
        min=0,
        max=63,
        optional=True,
        tooltip="Constant quality, used if no bitrate is given: lower is better and larger.",
    )
