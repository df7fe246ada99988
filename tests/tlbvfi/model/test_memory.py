"""Memory plans stay within the available memory, make use of it, and never change a frame."""

import logging
from dataclasses import replace

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.bench.sizes import Size
from comfyui_tlbvfi.tlbvfi.checkpoint import Bare
from comfyui_tlbvfi.tlbvfi.methods import tlbvfi as methods
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import TlbvfiMethod, memory_left
from comfyui_tlbvfi.tlbvfi.model import (
    TLBVFI,
    MemoryPlan,
    SamplingOptions,
    plan_geometry,
    plan_memory,
)
from comfyui_tlbvfi.tlbvfi.model.bands import Bands
from comfyui_tlbvfi.tlbvfi.model.memory import LIBRARIES, WHOLE_VALUES
from hypothesis import example, given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

STAGES = ("encode", "canvas", "flow", "clip", "decode")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

geometries = st.builds(
    plan_geometry,
    st.integers(16, 4320),
    st.integers(16, 7680),
    flow_scale=st.sampled_from([0.25, 0.5, 0.75, 1.0]),
    padding=st.sampled_from(["reference", "tight"]),
)
targets = st.fixed_dictionaries(
    {
        "device": st.sampled_from(["cpu", "cuda"]),
        "dtype": st.sampled_from(DTYPES),
        "batch": st.integers(1, 3),
    }
)


CLIP_NEEDS_A_SMALLER_BAND = (
    plan_geometry(16, 1025, flow_scale=0.25),
    {"device": "cpu", "dtype": torch.float16, "batch": 1},
    1.0,
)
"""Here the encoder of the frames fits with larger bands than that of the clip."""


@example(*CLIP_NEEDS_A_SMALLER_BAND)
@given(geometries, targets, st.floats(0, 3))
def test_a_plan_keeps_to_the_memory_wherever_any_plan_does(geometry, target, part):
    least = plan_memory(geometry, available=0, **target).peak
    available = int(part * least)
    peak = plan_memory(geometry, available=available, **target).peak
    assert peak <= max(available, least)


@given(geometries, targets)
def test_without_a_limit_everything_is_stored(geometry, target):
    plan = plan_memory(geometry, **target)
    assert plan.keeps_flow_features
    assert all(getattr(plan, stage).room is None for stage in STAGES)
    assert plan_memory(geometry, available=plan.peak, **target) == replace(plan, gives_back=True)
    widest = 64 * target.get("batch", 1) * geometry.padded_height * geometry.padded_width
    if target["device"] == "cuda" and 2 * widest < WHOLE_VALUES:
        assert all(getattr(plan, stage).values is None for stage in STAGES)


def test_a_cpu_keeps_what_stages_have_freed_where_twice_the_memory_is_available():
    geometry = plan_geometry(512, 512)
    plan = plan_memory(geometry)
    assert not plan.gives_back
    assert plan_memory(geometry, available=2 * plan.peak) == plan
    assert plan_memory(geometry, available=2 * plan.peak - 1).gives_back


@pytest.mark.parametrize("pairs", [1, 4])
def test_graphs_are_for_pictures_whose_kernels_outrun_their_launches_if_there_is_room(pairs):
    small, large = plan_geometry(512, 512), plan_geometry(2160, 3840)
    target = {"device": "cuda", "dtype": torch.float16, "batch": pairs}
    plan = plan_memory(small, **target)
    assert plan.in_graphs
    without = plan_memory(small, available=plan.peak - 1, **target)
    assert without == replace(plan, in_graphs=False, peak=without.peak)
    assert without.peak < plan.peak < 1.5 * without.peak
    assert not plan_memory(small, **{**target, "device": "cpu"}).in_graphs
    assert not plan_memory(large, **target).in_graphs


@given(geometries, targets, st.floats(0, 3))
def test_only_whole_maps_are_computed_in_graphs(geometry, target, part):
    most = plan_memory(geometry, **target).peak
    plan = plan_memory(geometry, available=int(part * most), **target)
    if plan.in_graphs:
        assert plan.peak <= part * most
        assert replace(plan, in_graphs=False, peak=0) == MemoryPlan()


@pytest.fixture(scope="module")
def unreal():
    """The network without values: arithmetic is counted, not computed."""
    with torch.device("meta"):
        return TLBVFI(Bare()).eval()


def gflop(model, geometry, plan):
    """GFLOP of a mid frame inside a sequence, including what is computed twice."""
    frame = torch.empty(1, 3, geometry.height, geometry.width, device="meta")
    unknown = torch.empty(1, 256, *geometry.latent, device="meta")
    with FlopCounterMode(display=False) as counter:
        features = model.encode(frame, geometry, plan)
        model(features, unknown, features, 1, [], plan)
    return counter.get_total_flops() / 1e9


def test_spare_memory_is_spent_on_arithmetic(unreal):
    geometry = plan_geometry(256, 256)
    least, most = (plan_memory(geometry, available=limit).peak for limit in (0, None))
    limits = (least, (least + most) // 2, most)
    costs = [gflop(unreal, geometry, plan_memory(geometry, available=limit)) for limit in limits]
    assert costs[0] > costs[1] > costs[2]
    assert costs[0] > 1.2 * costs[2]


@pytest.mark.parametrize(
    ("height", "width", "dtype", "budget"),
    [
        (2160, 3840, torch.bfloat16, 4e9),
        (2160, 3840, torch.float16, 4e9),
        (2160, 3840, torch.float32, 7e9),
        (4320, 7680, torch.bfloat16, 12e9),
    ],
)
def test_large_frames_fit_a_gpu(height, width, dtype, budget):
    with torch.device("meta"):
        model = TLBVFI(Bare())
    model.to_compute_dtype(dtype)
    weights = sum(p.nbytes for p in (*model.parameters(), *model.buffers()))
    available = int(budget) - weights
    geometry = plan_geometry(height, width)
    plan = plan_memory(geometry, available=available, device="cuda", dtype=dtype)
    assert plan.peak <= available


def test_less_precision_takes_less():
    geometry = plan_geometry(1080, 1920)
    full, half = (plan_memory(geometry, dtype=dtype).peak for dtype in DTYPES[:2])
    assert 0.5 * full < half < full


@pytest.fixture
def one_thread():
    """Use one thread: with several, libraries may sum in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def frames_of_size(height, width, channels):
    """Two smooth pictures [1, C, H, W] in [0, 1], the second a little to the right of the first."""
    coarse = torch.rand(1, channels, 7, 9, generator=torch.Generator().manual_seed(5))
    wide = F.interpolate(coarse, size=(height, width + 8), mode="bicubic").clamp(0, 1)
    return wide[..., :width], wide[..., 8:]


def halfway(model, frames, geometry, plan):
    """The mid frame and the codes of its latent."""
    codes = []
    hook = model.vqgan.quantize.register_forward_pre_hook(
        lambda quantizer, clips: codes.append(quantizer.codes(clips[0]))
    )
    try:
        features = [model.encode(frame, geometry, plan) for frame in frames]
        unknown = model.encode_unknown(geometry, plan)
        frame = model(features[0], unknown, features[1], 1, [], plan)
    finally:
        hook.remove()
    return frame, codes[0]


def in_bands(geometry, number, room=None, *, keeps=True):
    """A plan that cuts the largest maps of every stage into `number` bands.

    `room`: the fraction of a stage's maps that may be stored.
    """
    height, width = geometry.padded_height, geometry.padded_width
    scale = float(geometry.flow_scale)

    def cut(channels, side_scale=1.0):
        rows, columns = int(side_scale * height), int(side_scale * width)
        most = 96 * rows * columns
        values = -(-rows // number) * channels * columns
        return Bands(values=values, room=None if room is None else int(room * most))

    return MemoryPlan(
        encode=cut(64),
        canvas=cut(64, scale),
        flow=cut(130, scale),
        clip=cut(64, 0.5),
        decode=cut(64),
        keeps_flow_features=keeps,
    )


@pytest.fixture
def cuts(monkeypatch):
    """The numbers of bands into which maps were cut."""
    found = set()
    cut = Bands.cut

    def noted(self, height, values_per_row):
        ranges = list(cut(self, height, values_per_row))
        found.add(len(ranges))
        return iter(ranges)

    monkeypatch.setattr(Bands, "cut", noted)
    return found


@pytest.mark.parametrize(
    ("flow_scale", "plans"),
    [
        (0.5, [(3, 0, True), (7, None, False)]),
        (1.0, [(7, 0.4, False)]),
    ],
)
def test_no_plan_changes_a_bit(model, one_thread, cuts, flow_scale, plans):
    """RGBA, because alpha takes a path of its own."""
    geometry = plan_geometry(256, 256, flow_scale=flow_scale)
    frames = frames_of_size(256, 256, 4)
    wanted, wanted_codes = halfway(model, frames, geometry, MemoryPlan())
    assert cuts == {1}
    for number, room, keeps in plans:
        plan = in_bands(geometry, number, room, keeps=keeps)
        frame, codes = halfway(model, frames, geometry, plan)
        assert number in cuts
        assert torch.equal(codes, wanted_codes)
        assert torch.equal(frame, wanted), (number, room, keeps)


@pytest.mark.slow
@pytest.mark.parametrize("flow_scale", [0.5, 1.0])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("room", [None, 0.4, 0])
@pytest.mark.parametrize("number", [2, 3, 7])
def test_bands_equal_whole_maps(model, one_thread, number, room, keeps, flow_scale):
    geometry = plan_geometry(512, 768, flow_scale=flow_scale)
    frames = frames_of_size(512, 768, 3)
    wanted, wanted_codes = halfway(model, frames, geometry, MemoryPlan())
    plan = in_bands(geometry, number, room, keeps=keeps)
    frame, codes = halfway(model, frames, geometry, plan)
    assert torch.equal(codes, wanted_codes)
    assert (frame - wanted).abs().max() <= 5e-5
    assert torch.equal(frame, wanted)


@pytest.mark.slow
@pytest.mark.parametrize("budget", [1_200_000_000, 1_600_000_000, 2_000_000_000, 4_000_000_000])
def test_a_process_keeps_to_its_budget(measured, budget):
    assert measured(Size(1536, 1024), 2, memory=budget)["peak_bytes"] <= 1.1 * budget


def test_a_budget_is_for_the_whole_process(monkeypatch):
    monkeypatch.setattr(methods, "used_memory", lambda device: 300)
    monkeypatch.setattr(methods, "free_memory", lambda device: 10 * LIBRARIES[device.type])
    for name, libraries in LIBRARIES.items():
        device = torch.device(name)
        assert memory_left(device, libraries + 1000) == 700
        assert memory_left(device, libraries) == 0
        assert memory_left(device, None) == 8 * libraries


def test_a_budget_is_no_setting_of_the_frames(model):
    tight, free = (TlbvfiMethod(model, available=limit) for limit in (0, None))
    assert tight.settings == free.settings
    assert tight.memory_needed(512, 512) < free.memory_needed(512, 512)


def test_what_cannot_fit_is_told_once_in_one_sentence(model, caplog):
    method = TlbvfiMethod(model, SamplingOptions(), available=10**8)
    enough = [TlbvfiMethod(model, SamplingOptions(), available=limit) for limit in (10**11, None)]
    with caplog.at_level(logging.WARNING, "tlbvfi"):
        assert all(each.memory_needed(480, 640) for each in enough)
        assert not caplog.records
        needed = [method.memory_needed(480, 640) for _ in range(2)]
    assert needed[0] > 10**8
    (record,) = caplog.records
    assert record.getMessage().startswith("frames of 640x480 take about 0.3 GB without the weights")
    assert "the 0.1 GB available" in record.getMessage()
