"""Nodes for a ComfyUI under test: inputs that its own nodes cannot make."""

import json
from io import BytesIO
from pathlib import Path

import folder_paths
import torch
from comfy_api.latest import InputImpl
from comfy_execution.graph_utils import GraphBuilder


class OddImages:
    """A flat frame for each of `levels`, such as `0 0.5 nan`; takes no memory at any size."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("IMAGE",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        size = ("INT", {"min": 0, "max": 2**31})
        return {
            "required": {
                "levels": ("STRING", {}),
                "height": size,
                "width": size,
                "channels": size,
            }
        }

    def run(self, levels, height, width, channels):
        frames = torch.tensor([float(level) for level in levels.split()])
        return (frames.reshape(-1, 1, 1, 1).expand(-1, height, width, channels),)


class OddSound:
    """A tone in any number of channels, samples and batches, at any rate."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("AUDIO",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        number = ("INT", {"min": 0, "max": 2**31})
        return {
            "required": {"channels": number, "samples": number, "rate": number},
            "optional": {"batch": number},
        }

    def run(self, channels, samples, rate, batch=1):
        wave = 0.3 * torch.sin(torch.arange(samples) * 0.05)
        return ({"waveform": wave.expand(batch, channels, -1), "sample_rate": rate},)


class OddFloat:
    """A float that was computed, without the limits of a widget."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("FLOAT",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"number": ("STRING", {})}}

    def run(self, number):
        return (float(number),)


class OddAny:
    """A JSON value, or another node's output, over a link of any type."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("*",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"optional": {"text": ("STRING", {}), "value": ("*", {})}}

    def run(self, text="null", value=None):
        return (json.loads(text) if value is None else value,)


class OddVideo:
    """A video file of the input folder, or of an absolute path.

    In memory only, as the nodes of web services return it; else as nodes that load any path do.
    """

    RETURN_TYPES, FUNCTION, CATEGORY = ("VIDEO",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"file": ("STRING", {})}, "optional": {"in_memory": ("BOOLEAN", {})}}

    def run(self, file, in_memory=True):
        path = Path(folder_paths.get_input_directory()) / file
        return (InputImpl.VideoFromFile(BytesIO(path.read_bytes()) if in_memory else str(path)),)


class EditedVideo(InputImpl.VideoFromFile):
    """A video with edits of its frames that are not in its file, as ComfyUI's crop makes it."""

    def has_pending_frame_edits(self):
        return True


class OddEdit:
    """A video file of the input folder, as an edited video."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("VIDEO",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"file": ("STRING", {})}}

    def run(self, file):
        return (EditedVideo(str(Path(folder_paths.get_input_directory()) / file)),)


class OddLoop:
    """Adds a chunk processor and a concatenator to the prompt while it runs, as loops do."""

    RETURN_TYPES, FUNCTION, CATEGORY = ("VIDEO",), "run", "tests"

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - ComfyUI's name
        return {"required": {"processor": ("STRING", {}), "concatenator": ("STRING", {})}}

    def run(self, processor, concatenator):
        graph = GraphBuilder()
        inputs = json.loads(processor)
        video = graph.node("LoadVideo", file=inputs.pop("file"))
        chunks = graph.node("TLBVFI_ChunkProcessor", images=video.out(0), **inputs)
        inputs = json.loads(concatenator)
        joined = graph.node("TLBVFI_VideoConcatenator", session_id=chunks.out(0), **inputs)
        return {"result": (joined.out(0),), "expand": graph.finalize()}


NODE_CLASS_MAPPINGS = {
    "OddImages": OddImages,
    "OddSound": OddSound,
    "OddFloat": OddFloat,
    "OddAny": OddAny,
    "OddVideo": OddVideo,
    "OddEdit": OddEdit,
    "OddLoop": OddLoop,
}
