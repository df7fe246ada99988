"""What is chosen on a node reaches the model, and what it has no input for is as the paper's.

test_in_its_python.py runs this in ComfyUI's Python, where this pack is loaded as `pack`.
"""

import inspect
import unittest
from contextlib import ExitStack
from dataclasses import fields
from types import SimpleNamespace
from unittest.mock import patch

import comfy.model_management as mm
import torch
from pack.nodes.batch_interpolator_v2 import BatchInterpolatorV2
from pack.nodes.chunk_processor import ChunkProcessor
from pack.nodes.clear_model_cache import ClearModelCache
from pack.nodes.extension import NODES
from pack.nodes.interpolator import Interpolator
from pack.nodes.interpolator_v2 import InterpolatorV2
from pack.nodes.load_model import LoadModel
from pack.nodes.models import ModelWish
from pack.nodes.tlbvfi_model import read_model
from pack.nodes.values import READERS
from pack.nodes.vfi import Vfi
from pack.nodes.vfi_tf32 import VfiTf32
from pack.tlbvfi.errors import SettingsError
from pack.tlbvfi.model import SamplingOptions

IMAGES = torch.tensor([0.4, 0.5, 0.6]).reshape(3, 1, 1, 1).expand(3, 48, 64, 3)
NETWORK = torch.nn.Linear(1, 1)
GIVEN = {
    "images": IMAGES,
    "frame_pair": IMAGES,
    "prev_frame": IMAGES,
    "next_frame": IMAGES,
    "model_name": "m.pth",
    "scene_cuts": "ignore",  # flat frames differ as scenes do
}
"""What has no default, or is not looked at here."""
CHOSEN = {
    "sample_steps": 20,
    "diffusion_steps": 20,
    "flow_scale": 0.25,
    "padding": "tight",
    "enable_tf32": False,
    "tile_size": 384,
    "cpu_offload": False,
    "precision": "float16",
    "seed": 5,
}
"""What decides on frames and memory; nothing is its input's default."""


class Recorder:
    """Stands for the model: mixes two frames, and knows what it was made and asked with."""

    name, any_time = "recorder", True

    def __init__(self, model, options, *, tile_size):
        self.model, self.options, self.tile_size = model, options, tile_size
        self.seeds, self.is_released = set(), False

    def prepare(self, frame):
        return frame

    def between(self, a, b, times, key):
        self.seeds.add(key.seed)
        return [torch.lerp(a, b, float(t)) for t in times]

    def release(self):
        self.is_released = True


class ChoiceTest(unittest.TestCase):
    def setUp(self):
        self.made, self.dtypes = [], []
        self.addCleanup(read_model.cache_clear)
        server = SimpleNamespace(instance=SimpleNamespace(client_id=None))
        with ExitStack() as patches:
            for target, stand_in in {
                "pack.nodes.host.PromptServer": server,
                "pack.nodes.choices.model_files": lambda: ["m.pth"],
                "pack.nodes.models.model_files": lambda: ["m.pth"],
                "pack.nodes.models.folder_paths.get_full_path_or_raise": lambda *names: "m.pth",
                "pack.nodes.tlbvfi_model.load_identified": self._load,
                "pack.nodes.models.HostedTlbvfi": self._host,
                "pack.nodes.chunk_processor.make_session": self._make_session,
                "pack.nodes.chunk_processor.deliver": lambda *result: None,
            }.items():
                patches.enter_context(patch(target, stand_in))
            self.addCleanup(patches.pop_all().close)

    def _load(self, path, *, dtype, device):
        self.dtypes.append(dtype)
        return NETWORK, "hash"

    def _host(self, *arguments, **options):
        self.made.append(Recorder(*arguments, **options))
        return self.made[-1]

    def _make_session(self, clip, method, config, destination, progress):
        method.seeds.add(config.seed)

    def _run(self, node, values):
        """(options, tile size, dtype, whether the VRAM is freed, seeds) of a run, and its inputs."""
        inputs = {each.id: each for each in node.GET_SCHEMA().inputs}
        required = {
            i: each.default for i, each in inputs.items() if not each.optional and i not in GIVEN
        }
        chosen = {i: value for i, value in (GIVEN | values).items() if i in inputs}
        node.hidden = SimpleNamespace(unique_id="1")
        read_model.cache_clear()
        self.dtypes.clear()
        node.execute(**(required | chosen))
        made, (dtype,) = self.made.pop(), self.dtypes
        assert (made.model.network, made.model.weights_hash) == (NETWORK, "hash")
        seen = made.options, made.tile_size, dtype, made.is_released, made.seeds
        return seen, set(inputs)

    def test_what_is_chosen_on_a_node_reaches_the_model(self):
        paper = SamplingOptions(tf32=True)
        for node in (
            BatchInterpolatorV2,
            InterpolatorV2,
            Interpolator,
            Vfi,
            VfiTf32,
            ChunkProcessor,
        ):
            with self.subTest(node=node.__name__):
                seen, _ = self._run(node, {})
                assert seen == (paper, 0, torch.float32, True, {0}), seen
                seen, names = self._run(node, CHOSEN)
                has_steps = names & {"sample_steps", "diffusion_steps"}
                options = SamplingOptions(
                    steps=20 if has_steps else 10,
                    flow_scale=0.25 if "flow_scale" in names else 0.5,
                    padding="tight" if "padding" in names else "reference",
                    tf32="enable_tf32" not in names,
                )
                expected = (
                    options,
                    384 if "tile_size" in names else 0,
                    torch.float16 if "precision" in names else torch.float32,
                    "cpu_offload" not in names,
                    {5 if "seed" in names else 0},
                )
                assert seen == expected, (seen, expected)

    def test_an_input_that_a_prompt_leaves_out_is_as_its_widget_is_at_first(self):
        of_a_wish = {each.name: each.default for each in fields(ModelWish)}
        for node in NODES:
            taken = {n: p.default for n, p in inspect.signature(node.execute).parameters.items()}
            for each in node.GET_SCHEMA().inputs:
                if each.optional and getattr(each, "default", None) is not None:
                    assert (of_a_wish | taken)[each.id] == each.default, (node.__name__, each.id)

    def test_every_node_names_a_value_that_is_of_another_type(self):
        for node in NODES:
            for each in node.GET_SCHEMA().inputs:
                if each.get_io_type() in READERS:
                    with self.assertRaisesRegex(SettingsError, f"^{each.id} must be "):  # noqa: PT027
                        node.execute(**{each.id: {}})

    def test_a_loaded_model_has_its_precision_and_is_forgotten_when_the_cache_is_cleared(self):
        read_model.cache_clear()
        LoadModel.GET_SCHEMA()
        for _ in range(2):
            (model,) = LoadModel.execute(model_name="m.pth", precision="float16").result
            assert (model.network, model.weights_hash) == (NETWORK, "hash")
        assert self.dtypes == [torch.float16]
        with patch.object(mm, "unload_all_models") as unload:
            ClearModelCache.execute()
        unload.assert_called_once_with()
        LoadModel.execute(model_name="m.pth")
        assert self.dtypes == [torch.float16, torch.float32]
