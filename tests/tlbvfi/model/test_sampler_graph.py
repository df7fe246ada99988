"""The sampler is recorded once per shape, which is possible as it never waits for a device."""

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model.bridge import sample_bridge, step_list
from comfyui_tlbvfi.tlbvfi.model.sampler_graph import GRAPHS_KEPT, GraphedSampler, compute_anew
from torch import nn


class Recorder:
    """Acts as a CUDA graph on the CPU: recomputes from and into the memory it was recorded with."""

    def __init__(self):
        self.recorded = 0

    def __call__(self, function, inputs):
        self.recorded += 1
        return compute_anew(function, inputs)


@pytest.fixture
def recorder():
    return Recorder()


@pytest.fixture
def layer():
    return nn.Linear(4, 4)


@pytest.fixture
def graphed(layer, recorder):
    return GraphedSampler(lambda y, noise: layer(y) + noise.sum(0), layer.parameters, recorder)


def inputs(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randn((3, *shape), generator=generator)


def test_every_call_gives_the_function_of_its_own_inputs(graphed, layer, recorder):
    results = [graphed(*inputs(seed, 2, 4)) for seed in range(4)]
    for seed, result in enumerate(results):
        y, noise = inputs(seed, 2, 4)
        assert torch.equal(result, layer(y) + noise.sum(0))
    assert recorded_once(recorder)


def recorded_once(recorder):
    return recorder.recorded == 1


def test_every_shape_is_recorded_once_and_few_are_kept(graphed, recorder):
    for _ in range(2):
        for rows in range(1, GRAPHS_KEPT + 1):
            graphed(*inputs(0, rows, 4))
    assert recorder.recorded == GRAPHS_KEPT
    graphed(*inputs(0, GRAPHS_KEPT + 1, 4))
    graphed(*inputs(0, 1, 4))  # the least recently used one
    assert recorder.recorded == GRAPHS_KEPT + 2


def test_where_graphs_do_not_work_a_warning_says_so_once(layer, caplog):
    def fails(function, inputs):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nMore")

    graphed = GraphedSampler(lambda y, noise: layer(y) + noise.sum(0), layer.parameters, fails)
    for rows in (2, 2, 3):
        y, noise = inputs(rows, rows, 4)
        assert torch.equal(graphed(y, noise), layer(y) + noise.sum(0))
    (record,) = caplog.records
    assert "not permitted when stream is capturing): the sampler's steps" in record.getMessage()


def test_weights_that_were_moved_are_recorded_anew(graphed, layer, recorder):
    y, noise = inputs(0, 2, 4)
    graphed(y, noise)
    layer.weight.data = layer.weight.data * 2
    assert torch.equal(graphed(y, noise), layer(y) + noise.sum(0))
    assert recorder.recorded == 2


def test_weights_overwritten_in_place_are_seen(graphed, layer, recorder):
    y, noise = inputs(0, 2, 4)
    graphed(y, noise)
    layer.weight.mul_(3)
    assert torch.equal(graphed(y, noise), layer(y) + noise.sum(0))
    assert recorded_once(recorder)


def test_a_precision_of_its_own_is_recorded_for_tf32(graphed, recorder, monkeypatch):
    graphed(*inputs(0, 2, 4))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", not torch.backends.cudnn.allow_tf32)
    graphed(*inputs(0, 2, 4))
    assert recorder.recorded == 2


def test_recorded_in_inference_mode_it_works_outside_of_it(graphed, layer):
    y, noise = inputs(0, 2, 4)
    with torch.inference_mode():
        inside = graphed(y.clone(), noise.clone())
    outside = graphed(y, noise)
    assert torch.equal(inside, outside)
    assert not outside.is_inference()


def test_the_sampler_replayed_equals_the_sampler(model, recorder):
    steps, unet = 3, model.denoise_fn
    embeddings = unet.embed(step_list(steps), torch.device("cpu"))

    def sample(y, noise, embeddings):
        context = unet.embed_context(y)
        return sample_bridge(
            lambda x, step: unet(x, context, embeddings[step]), y, steps, list(noise)
        )

    graphed = GraphedSampler(sample, unet.parameters, recorder)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        y = torch.randn((1, 3, 3, 8, 8), generator=generator)
        noise = torch.randn((steps - 1, *y.shape), generator=generator)
        wanted = model.sample_latent(y, steps, list(noise))
        assert torch.equal(graphed(y, noise, embeddings), wanted)
    assert recorded_once(recorder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_graph_equals_its_function():
    layer = nn.Linear(4, 4).cuda()
    graphed = GraphedSampler(lambda y, noise: layer(y) + noise.sum(0), layer.parameters)
    for rows in (2, 3, 2):
        y, noise = (x.cuda() for x in inputs(rows, rows, 4))
        assert torch.equal(graphed(y, noise.cpu().pin_memory()), layer(y) + noise.sum(0))
