"""ComfyUI's own interpolation models as a method of this pack."""

import json
import os
import subprocess
import sys
from fractions import Fraction
from math import prod
from types import SimpleNamespace

import pytest
import torch
from comfyui_tlbvfi.nodes.interp_model import Features, InterpModelMethod
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from comfyui_tlbvfi.tlbvfi.method import PairKey

# Runs inside ComfyUI: compares our loop over the adapter with core's node, on random weights.
PARITY = """
import json, sys
from importlib.util import module_from_spec, spec_from_file_location
from comfy.cli_args import args
args.cpu = True
import comfy.model_management as mm, comfy.model_patcher, torch
from comfy_extras.nodes_frame_interpolation import FILMNet, FrameInterpolate, IFNet

root, network, height, width = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
spec = spec_from_file_location("pack", f"{root}/__init__.py", submodule_search_locations=[root])
sys.modules["pack"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.nodes.images import interpolate_images
from pack.nodes.interp_model import InterpModelMethod

torch.set_num_threads(2)
torch.manual_seed(0)
model = {"film": FILMNet, "rife": IFNet}[network]().eval()
for parameter in model.parameters():
    torch.nn.init.normal_(parameter, std=0.03)
device, offload = mm.get_torch_device(), mm.unet_offload_device()
patcher = comfy.model_patcher.CoreModelPatcher(model, load_device=device, offload_device=offload)
images = torch.rand(3, height, width, 3)
with torch.inference_mode():
    theirs = FrameInterpolate.execute(patcher, images, 4).result[0]
ours = torch.empty_like(theirs)
method = InterpModelMethod(patcher)
interpolate_images(images, method, ours, times=2, on_frame=lambda frame: None)
print(json.dumps([torch.equal(ours, theirs), theirs.std().item(), len(method.weights_hash())]))
"""


@pytest.mark.comfyui
@pytest.mark.parametrize(("network", "height", "width"), [("rife", 66, 98), ("film", 128, 192)])
def test_frames_equal_those_of_comfyui_bit_for_bit(root, network, height, width):
    code = os.environ.get("COMFYUI_DIR")
    if not code:
        pytest.skip("COMFYUI_DIR does not name a ComfyUI checkout")
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", PARITY, str(root), network, str(height), str(width)]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    equal, spread, hash_length = json.loads(done.stdout.splitlines()[-1])
    assert equal
    assert spread > 0.05  # with random weights, frames still vary
    assert hash_length == 64


def test_a_model_that_lacks_a_call_is_refused_by_name():
    patcher = SimpleNamespace(
        model=SimpleNamespace(extract_features=None),
        load_device="cpu",
        model_dtype=None,
        model_size=None,
    )
    with pytest.raises(SettingsError, match="has no memory_used_forward, state_dict"):
        InterpModelMethod(patcher)


def test_a_value_that_is_no_model_is_refused():
    with pytest.raises(SettingsError, match="interp_model str has no model, load_device"):
        InterpModelMethod("film")


class OutOfMemoryError(Exception):
    pass


class Mixing:
    """A model that mixes linearly, with memory for so many frames at once."""

    def __init__(self, room: int) -> None:
        self.room, self.made_at_once = room, []

    def extract_features(self, image):
        return image

    def memory_used_forward(self, shape, dtype):
        return prod(shape) * dtype.itemsize

    def state_dict(self):
        return {}

    def forward_multi_timestep(self, image0, image1, times, cache):
        if len(times) > self.room:
            raise OutOfMemoryError
        self.made_at_once.append(len(times))
        return torch.cat([torch.lerp(image0, image1, t) for t in times])


@pytest.fixture
def loads(monkeypatch):
    """What the model asks of a stand-in for ComfyUI's memory management: (patchers, bytes)."""
    asked = []
    host = SimpleNamespace(
        OOM_EXCEPTION=OutOfMemoryError,
        soft_empty_cache=lambda: None,
        load_models_gpu=lambda models, memory_required: asked.append((models, memory_required)),
    )
    monkeypatch.setitem(sys.modules, "comfy", SimpleNamespace(model_management=host))
    monkeypatch.setitem(sys.modules, "comfy.model_management", host)
    monkeypatch.setitem(sys.modules, "comfy.ldm", SimpleNamespace())
    padding = SimpleNamespace(pad_to_patch_size=lambda *given, **options: None)
    monkeypatch.setitem(sys.modules, "comfy.ldm.common_dit", padding)
    return asked


@pytest.fixture
def mixed(loads):
    """Frames that a model makes at all eighths between black and white, as levels."""

    def run(method: InterpModelMethod) -> list[float]:
        frames = [torch.full((4, 2, 2), float(n)) for n in range(2)]
        features = [Features(padded=f[None, :3], cached=None, frame=f) for f in frames]
        times = [Fraction(n, 8) for n in range(1, 8)]
        made = list(method.between(*features, times, PairKey(0, 0)))
        assert all((frame == frame[0, 0, 0]).all() for frame in made)
        return [8 * frame[0, 0, 0].item() for frame in made]

    return run


def method_of(model: Mixing, dtype: torch.dtype = torch.float32) -> InterpModelMethod:
    return InterpModelMethod(
        SimpleNamespace(
            model=model,
            load_device=torch.device("cpu"),
            model_dtype=lambda: dtype,
            model_size=lambda: 0,
        )
    )


def test_frames_for_which_memory_runs_out_are_made_fewer_at_once(mixed):
    model = Mixing(room=3)
    method = method_of(model)
    for _ in range(2):  # the second pair begins with the number that fitted
        assert mixed(method) == [1, 2, 3, 4, 5, 6, 7]
    assert model.made_at_once == [3, 3, 1] * 2


def test_memory_that_lacks_for_a_single_frame_ends_the_run(mixed):
    with pytest.raises(OutOfMemoryError):
        mixed(method_of(Mixing(room=0)))


def test_the_model_is_loaded_once_per_size_with_room_for_its_frames(loads):
    method = method_of(Mixing(room=1), torch.float16)
    for height, width in [(48, 64), (48, 64), (96, 64)]:
        features = method.prepare(torch.rand(4, height, width))
        assert (features.padded.shape, features.padded.dtype) == (
            (1, 3, height, width),
            torch.float16,
        )
        assert features.cached is features.padded
        assert features.frame.shape == (4, height, width)
    assert [needed for _, needed in loads] == [2 * 3 * 48 * 64, 2 * 3 * 96 * 64]
    assert all(patcher.model.room == 1 for (patcher,), _ in loads)
    assert method.memory_needed(48, 64) == 2 * 3 * 48 * 64
