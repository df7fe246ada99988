"""TLB-VFI with random weights within the memory that ComfyUI has left.

test_in_its_python.py runs this in ComfyUI's Python, where this pack is loaded as `pack`.
"""

import gc
import unittest
import weakref
from collections.abc import Container
from contextlib import AbstractContextManager
from fractions import Fraction
from itertools import count, pairwise
from types import SimpleNamespace
from unittest.mock import patch

import comfy.model_management as mm
import psutil
import torch
from comfy.model_patcher import ModelPatcher
from pack.nodes import host
from pack.nodes.host import memory_notice
from pack.nodes.tlbvfi_model import HostedNetwork, HostedTlbvfi, LoadedModel, tile_memory
from pack.tlbvfi.errors import MemoryBudgetError
from pack.tlbvfi.method import PairKey
from pack.tlbvfi.methods.tlbvfi import FREE_SHARE
from pack.tlbvfi.model import TLBVFI, SamplingOptions, plan_memory
from torch import Tensor

CPU = torch.device("cpu")
HEIGHT, WIDTH = 64, 64
OPTIONS = SamplingOptions(steps=1, padding="tight")
GEOMETRY = OPTIONS.geometry(HEIGHT, WIDTH)
FASTEST = plan_memory(GEOMETRY).peak
LEAST = plan_memory(GEOMETRY, available=0).peak
PLAN_ARGUMENT = {"encode": 2, "forward": 5}


def random_model(device: torch.device = CPU) -> LoadedModel:
    torch.manual_seed(0)
    network = TLBVFI().eval().requires_grad_(False)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    for buffer in network.buffers():
        buffer.fill_(1)
    patcher = ModelPatcher(HostedNetwork(network), load_device=device, offload_device=CPU)
    return LoadedModel(patcher=patcher, network=network, weights_hash="")


def short_of_memory(
    name: str, failures: Container[int], peaks: list[int]
) -> AbstractContextManager[object]:
    """Make the calls of the network's `encode` or `forward` with these numbers fail.

    The peak of every call's plan is appended to `peaks`.
    """
    function, calls = getattr(TLBVFI, name), count()

    def short(network: TLBVFI, *arguments: object) -> object:
        peaks.append(arguments[PLAN_ARGUMENT[name]].peak)
        if next(calls) in failures:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return function(network, *arguments)

    return patch.object(TLBVFI, name, short)


def mid_frame(method: HostedTlbvfi, frames: Tensor) -> Tensor:
    features0, features1 = [method.prepare(frame) for frame in frames]
    (frame,) = method.between(features0, features1, [Fraction(1, 2)], PairKey(0, 0))
    return frame


class MemoryTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.model = random_model()
        cls.frames = torch.rand(2, 3, HEIGHT, WIDTH)
        cls.expected = mid_frame(HostedTlbvfi(cls.model, OPTIONS), cls.frames)

    def hosted(self, tile_size: int = 0) -> HostedTlbvfi:
        return HostedTlbvfi(self.model, OPTIONS, tile_size=tile_size)

    def test_a_shortage_goes_on_with_less_and_the_same_frames(self):
        encoded, tried = [], []
        with short_of_memory("encode", {1}, encoded), short_of_memory("forward", {0}, tried):
            assert torch.equal(mid_frame(self.hosted(), self.frames), self.expected)
        peaks = [*encoded[1:], tried[1]]
        assert encoded[0] == FASTEST
        assert encoded[2] == tried[0]
        assert all(a > b >= LEAST for a, b in pairwise(peaks)), peaks

    def test_without_vram_for_weights_frames_are_still_computed_on_the_device(self):
        device = torch.device("meta")  # stands for a GPU, which holds no values here
        model = random_model(device)
        self.addCleanup(mm.current_loaded_models.clear)
        with (
            patch.object(mm, "vram_state", mm.VRAMState.NO_VRAM),
            patch.object(mm, "free_memory", lambda *_, **__: []),
            patch.object(mm, "get_free_memory", lambda *_: 1e12),
        ):
            features = HostedTlbvfi(model, OPTIONS).prepare(self.frames[0])
        assert (model.network.device, features.frame.device) == (device, device)

    def test_other_models_make_room_before_the_budget_shrinks(self):
        other = ModelPatcher(torch.nn.Linear(8, 8), load_device=CPU, offload_device=CPU)
        mm.load_models_gpu([other])
        tried = []
        with short_of_memory("forward", {0}, tried):
            assert torch.equal(mid_frame(self.hosted(), self.frames), self.expected)
        assert tried == [FASTEST, FASTEST]
        assert [loaded.model for loaded in mm.current_loaded_models] == [self.model.patcher]

    def test_what_a_node_held_is_freed_with_it(self):
        gc.disable()
        self.addCleanup(gc.enable)
        method = self.hosted()
        mid_frame(method, self.frames)
        freed = weakref.ref(method)
        del method
        assert freed() is None

    def test_a_tile_size_changes_no_bit(self):
        middle, tried = (LEAST + FASTEST) // 2, []
        with (
            patch("pack.nodes.tlbvfi_model.tile_memory", lambda *_: middle),
            short_of_memory("forward", (), tried),
        ):
            assert torch.equal(mid_frame(self.hosted(tile_size=128), self.frames), self.expected)
        assert LEAST <= tried[0] <= middle, (LEAST, tried, middle)

    def test_a_tile_size_is_a_budget_of_memory(self):
        tile = tile_memory(1024, OPTIONS, torch.float32)
        with patch.object(mm, "get_free_memory", lambda *_: 1e12):
            assert self.hosted(1024).memory_needed(2160, 3840) <= tile
            assert self.hosted().memory_needed(2160, 3840) > tile

    def test_a_tile_size_below_what_a_frame_needs_takes_the_least(self):
        least = plan_memory(OPTIONS.geometry(1080, 1920), available=0).peak
        assert tile_memory(128, OPTIONS, torch.float32) < least
        assert self.hosted(128).memory_needed(1080, 1920) == least

    def test_room_is_made_for_the_fastest_plan_and_what_is_free_is_the_budget(self):
        middle = (LEAST + FASTEST) // 2
        free = middle / FREE_SHARE + mm.extra_reserved_memory()
        tried, method = [], self.hosted()
        with (
            patch.object(mm, "load_models_gpu", wraps=mm.load_models_gpu) as load,
            patch.object(mm, "get_free_memory", lambda *_: free),
            short_of_memory("forward", (), tried),
        ):
            assert torch.equal(mid_frame(method, self.frames), self.expected)
            assert method.memory_needed(HEIGHT, WIDTH) == tried[0]
        load.assert_called_once()
        assert load.call_args.kwargs["memory_required"] == FASTEST / FREE_SHARE
        assert LEAST <= tried[0] <= middle, (LEAST, tried, middle)
        with patch.object(mm, "get_free_memory", lambda *_: 0):
            assert method.memory_needed(HEIGHT, WIDTH) == LEAST

    def test_a_batch_that_does_not_fit_is_announced_with_its_size(self):
        assert memory_notice(2, 64, 64, 3) is None
        with patch.object(mm, "get_free_memory", lambda *_: 10**8):
            notice = memory_notice(100, 480, 640, 3)
        assert "100 frames of 640x480 need 0.4 GB as one IMAGE batch and 0.1 GB" in notice.text
        assert "use TLBVFI Chunk Processor, which streams to a file" in notice.text

    def test_windows_may_take_three_times_the_memory_from_its_page_file(self):
        total = mm.get_total_memory(mm.intermediate_device())
        frame = 1000 * 1000 * 3 * mm.intermediate_dtype().itemsize
        with (
            patch.object(host, "sys", SimpleNamespace(platform="win32")),
            patch.object(psutil, "swap_memory", side_effect=RuntimeError("PdhAddEnglishCounterW")),
        ):
            assert memory_notice(2 * total // frame, 1000, 1000, 3).text
            with self.assertRaises(MemoryBudgetError):  # noqa: PT027 - there may be no pytest
                memory_notice(5 * total // frame, 1000, 1000, 3)
