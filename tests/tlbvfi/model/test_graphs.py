"""Functions are recorded after some calls, which is possible as they never wait for a device."""

import copy
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.method import PairKey
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import TlbvfiMethod
from comfyui_tlbvfi.tlbvfi.model import SamplingOptions, plan_geometry, plan_memory
from comfyui_tlbvfi.tlbvfi.model import graphs as module
from comfyui_tlbvfi.tlbvfi.model.graphs import (
    CALLS_BEFORE_RECORDING,
    KINDS_KEPT,
    GpuRecorder,
    Graphs,
)
from comfyui_tlbvfi.tlbvfi.model.memory import WHOLE
from comfyui_tlbvfi.tlbvfi.model.whole_frames import Encoding, Halfway, Walk
from torch import nn

HALF = Fraction(1, 2)
INSTEAD = "everything runs one by one"


class Recorder:
    """Acts as CUDA graphs on the CPU: recomputes from and into the memory it recorded with."""

    def __init__(self, failure=None):
        self.ran = self.recorded = self.replayed = 0
        self.held = 0
        self.failure = failure

    def run(self, function, inputs):
        self.ran += 1
        return function(*inputs)

    def record(self, function, inputs, outputs):
        if self.failure is not None:
            raise self.failure
        self.recorded += 1
        self.held += 1

        def replay():
            self.replayed += 1
            for output, made in zip(outputs, function(*inputs), strict=True):
                output.copy_(made)

        return replay

    def forget(self):
        self.held = 0


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def layer():
    return nn.Linear(4, 4)


@pytest.fixture
def graphs(layer, recorder):
    return Graphs(layer, INSTEAD, recorder)


@pytest.fixture
def function(layer):
    return lambda y, noise: [layer(y) + noise.sum(0), y + 1]


def inputs(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn((3, *shape), generator=generator)


def call_until_recorded(graphs, function, *given):
    for _ in range(CALLS_BEFORE_RECORDING + 2):
        made = graphs(function, *given)
    return made


def all_equal(found, wanted):
    return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_every_call_gives_the_function_of_its_own_inputs(graphs, function, recorder):
    seeds = range(CALLS_BEFORE_RECORDING + 4)
    results = [graphs(function, *inputs(seed, 2, 4)) for seed in seeds]
    for seed, result in zip(seeds, results, strict=True):
        assert all_equal(result, function(*inputs(seed, 2, 4)))
    assert (recorder.ran, recorder.recorded) == (CALLS_BEFORE_RECORDING + 1, 1)
    assert recorder.replayed == 3


def test_a_short_job_records_nothing(graphs, function, recorder):
    for _ in range(CALLS_BEFORE_RECORDING):
        graphs(function, *inputs(0, 2, 4))
    assert recorder.recorded == 0


def test_all_functions_of_a_job_are_recorded_from_the_same_frame_on(graphs, function, recorder):
    """Otherwise one would take memory for its maps beside the graphs of the others."""

    def other(y):
        return [2 * y]

    y, noise = inputs(0, 2, 4)
    ran_beside_graphs = []
    for _ in range(CALLS_BEFORE_RECORDING):
        for name, *given in ((function, y, noise), (other, y), (other, y)):
            before = recorder.ran
            graphs(name, *given)
            if recorder.held:
                ran_beside_graphs.append(recorder.ran - before)
    assert recorder.held == 2
    assert not any(ran_beside_graphs)


def test_what_runs_for_the_first_time_finds_no_memory_held_by_graphs(graphs, function, recorder):
    call_until_recorded(graphs, function, *inputs(0, 2, 4))
    held = []

    def larger(y):
        held.append(recorder.held)
        return [y]

    graphs(larger, inputs(0, 3, 4)[0])
    assert held == [0]
    call_until_recorded(graphs, function, *inputs(0, 2, 4))
    assert recorder.held == 1


def test_few_kinds_of_calls_are_remembered(graphs, function):
    for rows in range(1, 3 * KINDS_KEPT):
        graphs(function, *inputs(0, rows, 4))
        assert len(graphs._made) <= KINDS_KEPT


def test_where_graphs_do_not_work_a_warning_says_so_once_and_nothing_is_lost(
    layer, function, caplog
):
    error = RuntimeError("CUDA error: operation not permitted when stream is capturing\nMore")
    graphs = Graphs(layer, INSTEAD, Recorder(error))
    for rows in (2, 2, 3):
        wanted = function(*inputs(rows, rows, 4))
        assert all_equal(call_until_recorded(graphs, function, *inputs(rows, rows, 4)), wanted)
    (record,) = caplog.records
    assert f"not permitted when stream is capturing): {INSTEAD}, which" in record.getMessage()
    assert not graphs.work


def test_a_full_memory_is_not_taken_for_missing_support(layer, function):
    graphs = Graphs(layer, INSTEAD, Recorder(torch.cuda.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        call_until_recorded(graphs, function, *inputs(0, 2, 4))
    assert graphs.work


def test_weights_that_were_moved_are_recorded_anew(graphs, layer, function, recorder):
    given = inputs(0, 2, 4)
    call_until_recorded(graphs, function, *given)
    layer.weight.data = layer.weight.data * 2
    assert all_equal(graphs(function, *given), function(*given))
    assert recorder.held == 0
    assert all_equal(call_until_recorded(graphs, function, *given), function(*given))
    assert recorder.recorded == 2


def test_weights_that_were_replaced_and_buffers_count_as_moved(recorder):
    norm = nn.Sequential(nn.BatchNorm1d(4).eval())

    def function(y):
        return [norm(y)]

    graphs = Graphs(norm, INSTEAD, recorder)
    y = inputs(0, 2, 4)[0]
    call_until_recorded(graphs, function, y)
    norm[0].weight = nn.Parameter(torch.full((4,), 3.0))
    assert all_equal(graphs(function, y), function(y))
    call_until_recorded(graphs, function, y)
    norm[0].running_mean = torch.ones(4)
    assert all_equal(graphs(function, y), function(y))
    assert recorder.recorded == 2
    assert recorder.held == 0


def test_weights_overwritten_in_place_are_seen(graphs, layer, function, recorder):
    given = inputs(0, 2, 4)
    call_until_recorded(graphs, function, *given)
    layer.weight.mul_(3)
    assert all_equal(graphs(function, *given), function(*given))
    assert recorder.recorded == 1


def test_a_precision_of_its_own_is_recorded_for_tf32(graphs, function, recorder, monkeypatch):
    call_until_recorded(graphs, function, *inputs(0, 2, 4))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
    call_until_recorded(graphs, function, *inputs(0, 2, 4))
    assert recorder.recorded == 2


def test_recorded_in_inference_mode_it_works_outside_of_it(graphs, function):
    y, noise = inputs(0, 2, 4)
    with torch.inference_mode():
        inside = call_until_recorded(graphs, function, y.clone(), noise.clone())
    outside = graphs(function, y, noise)
    assert all_equal(inside, outside)
    assert not outside[0].is_inference()


def test_the_sampler_replayed_equals_the_sampler(model, recorder):
    steps, graphs = 2, Graphs(model.denoise_fn, INSTEAD, recorder)
    walk = model.prepare_walk(steps)
    for seed in range(CALLS_BEFORE_RECORDING + 3):
        generator = torch.Generator().manual_seed(seed)
        y = torch.randn((1, 3, 3, 8, 8), generator=generator)
        noise = torch.randn((steps - 1, *y.shape), generator=generator)
        (made,) = graphs(Walk(model), y, noise, *walk)
    assert torch.equal(made, model.sample_latent(y, steps, list(noise)))
    assert recorder.replayed == 2


@pytest.fixture
def frames_in_graphs(monkeypatch, recorder):
    """Make a method that treats the CPU as a GPU with graphs; options as of `TlbvfiMethod`."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)

    def make(model, **options):
        method = TlbvfiMethod(model, SamplingOptions(steps=2, padding="tight"), **options)
        method._frames = Graphs(model, INSTEAD, recorder)

        def plan(geometry, pairs=1):
            return plan_memory(geometry, available=method.available, device="cuda", batch=pairs)

        monkeypatch.setattr(method, "plan", plan)
        return method

    return make


def mid_frames(method, pictures, times):
    features = [method.prepare(picture) for picture in pictures[:1]]
    for n, (_, picture) in enumerate(pairwise(pictures)):
        features = [features[-1], method.prepare(picture)]
        yield from method.between(*features, times, PairKey(0, n))


def drawn(number, side=48):
    return torch.rand(number, 3, side, side, generator=torch.Generator().manual_seed(1))


def test_frames_replayed_equal_frames_computed(sketch, frames_in_graphs, recorder):
    """In a bisection a mid frame's features are inputs of the graph that made it."""
    pictures, times = drawn(5), [Fraction(1, 4), HALF, Fraction(3, 4)]
    plain = TlbvfiMethod(sketch, SamplingOptions(steps=2, padding="tight"))
    wanted = list(mid_frames(plain, pictures, times))
    found = list(mid_frames(frames_in_graphs(sketch), pictures, times))
    assert all_equal(found, wanted)
    assert recorder.recorded == 2
    assert recorder.replayed > 5


def test_the_functions_of_a_frame_are_those_of_the_network(model):
    geometry, pictures = plan_geometry(48, 48), drawn(2)
    features = [model.encode(picture[None], geometry) for picture in pictures]
    encoded = Encoding(model, geometry, WHOLE)(pictures[:1])
    assert all_equal(encoded, features[0].tensors)
    unknown, walk = model.encode_unknown(geometry), model.prepare_walk(2)
    noise = torch.randn((1, 1, 3, 3, *geometry.latent))
    halfway = Halfway(model, geometry, WHOLE, 2)
    (found,) = halfway(*halfway.inputs(features[0], unknown, features[1], noise, *walk))
    assert torch.equal(found, model(features[0], unknown, features[1], 2, noise))


def test_frames_of_another_size_find_no_graphs(sketch, frames_in_graphs, recorder):
    method = frames_in_graphs(sketch)
    list(mid_frames(method, drawn(8), [Fraction(1, 2)]))
    assert recorder.held == 2
    held = []
    encode_unknown = sketch.encode_unknown
    sketch.encode_unknown = lambda *given: held.append(recorder.held) or encode_unknown(*given)
    list(mid_frames(method, drawn(2, side=300), [Fraction(1, 2)]))
    assert held == [0]


def test_what_cannot_be_recorded_is_computed_and_the_sampler_still_is_a_graph(
    sketch, frames_in_graphs, recorder, monkeypatch
):
    wanted = list(mid_frames(TlbvfiMethod(sketch, SamplingOptions(steps=2)), drawn(8), [HALF]))
    recorder.failure = RuntimeError("operation not permitted")
    method = frames_in_graphs(sketch)
    sampled, sample = [], method.sample
    monkeypatch.setattr(method, "sample", lambda *given: sampled.append(1) or sample(*given))
    assert all_equal(list(mid_frames(method, drawn(8), [HALF])), wanted)
    assert 0 < len(sampled) < 7


def test_memory_that_runs_out_drops_the_graphs_first(sketch, frames_in_graphs, recorder):
    method = frames_in_graphs(sketch)
    wanted = list(mid_frames(TlbvfiMethod(sketch, SamplingOptions(steps=2)), drawn(9), [HALF]))
    found = []
    for number, frame in enumerate(mid_frames(method, drawn(9), [HALF])):
        found.append(frame)
        if number == 5:
            assert recorder.held == 2
            method._frames._graphs.clear()  # so that the next frame records
            recorder.failure = torch.cuda.OutOfMemoryError("CUDA out of memory.")
    assert all_equal(found, wanted)
    assert recorder.held == 0
    assert method._frames.work
    assert not method.plan(plan_geometry(48, 48)).in_graphs


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.gpu
@needs_cuda
def test_a_cuda_graph_equals_its_function():
    layer = nn.Linear(4, 4).cuda()
    graphs = Graphs(layer, INSTEAD)

    def function(y, noise):
        return [layer(y) + noise.sum(0)]

    for seed in range(CALLS_BEFORE_RECORDING + 4):
        for rows in (2, 3):
            y, noise = (x.cuda() for x in inputs(seed, rows, 4))
            (found,) = graphs(function, y, noise.cpu().pin_memory())
            assert torch.equal(found, *function(y, noise))
    assert len(graphs._graphs) == 2


@pytest.mark.gpu
@needs_cuda
def test_a_recording_that_fails_leaves_a_device_that_works():
    layer = nn.Linear(4, 4).cuda()
    graphs, stream = Graphs(layer, INSTEAD), torch.cuda.current_stream()

    def waits(y):
        return [layer(y) + y.sum().item()]

    y = inputs(0, 2, 4)[0].cuda()
    found = call_until_recorded(graphs, waits, y)
    assert not graphs.work
    assert all_equal(found, waits(y))
    assert torch.cuda.current_stream() == stream
    assert not torch.cuda.is_current_stream_capturing()


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("channels", [3, 4])
def test_frames_from_cuda_graphs_are_those_computed_one_by_one(model, channels, monkeypatch):
    monkeypatch.setattr(module, "CALLS_BEFORE_RECORDING", 2)
    network = copy.deepcopy(model).cuda()
    pictures = torch.rand(4, channels, 64, 48, generator=torch.Generator().manual_seed(2))
    methods = [TlbvfiMethod(network, SamplingOptions(steps=2)) for _ in range(2)]
    methods[0].launches_frames_at_once = False
    plain, replayed = (
        [frame.cpu() for frame in mid_frames(method, pictures, [HALF])] for method in methods
    )
    assert len(methods[1]._frames._graphs) == 2
    assert all_equal(replayed, plain)


@pytest.mark.gpu
@needs_cuda
def test_dropped_graphs_give_their_memory_back():
    recorder = GpuRecorder()
    x = torch.ones(1 << 24, device="cuda")
    out = torch.empty_like(x)
    replay = recorder.record(lambda x: [x + 1 + x], [x], [out])
    replay()
    assert (out == 3).all()
    held = torch.cuda.memory_reserved()
    del replay
    recorder.forget()
    assert torch.cuda.memory_reserved() <= held - x.nbytes
