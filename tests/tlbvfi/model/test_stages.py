"""Every stage of the model against the reference's intermediate results."""

import re
from functools import cache

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model import plan_geometry
from comfyui_tlbvfi.tlbvfi.model.autoencoder import luma, of_wavelets
from comfyui_tlbvfi.tlbvfi.model.bands import WHOLE_MAPS, Bands, Kernel, Rows, keep, whole
from comfyui_tlbvfi.tlbvfi.model.unet import sinusoid
from torch.nn import functional as F

STAGES = "stages_256"
STEPS = 10


def result_of(inputs, output):
    """The map that a module computed, whether lazily, in place or as a plain result."""
    output = output[0] if isinstance(output, tuple) else output
    if isinstance(output, Rows):
        return whole(output).clone()
    return inputs[0].permute(0, 3, 1, 2).clone() if output is None else output.clone()


class Trace:
    """What every module of a network returned while the trace was open, in order of calls."""

    def __init__(self, network):
        self.results = {}
        self.handles = [
            module.register_forward_hook(self.recorder(name))
            for name, module in network.named_modules()
        ]

    def recorder(self, name):
        def record(module, inputs, output):
            self.results.setdefault(name, []).append(result_of(inputs, output))

        return record

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.fixture(scope="module")
def stages(golden_with_rules):
    return golden_with_rules(STAGES)


@pytest.fixture
def equal(stages):
    """Check a tensor against the golden one of that name, if the file has it."""
    vectors, rules = stages

    def check(name, computed, tolerance=1e-4):
        if name not in vectors:
            return
        wanted = vectors[name]
        rule = re.match(r"\[(.*?)\]", rules.get(name, ""))
        if rule:
            computed = computed[slices(rule[1])]
        off = (computed - wanted).abs().max().item()
        assert off < tolerance * max(1, wanted.abs().max().item()), f"{name} is {off:.1e} off"

    return check


def slices(rule):
    """The index written as text such as `:, ::4, ..., ::8, ::8`."""
    parts = [part.strip() for part in rule.split(",")]
    return tuple(
        ... if part == "..." else slice(*(int(n) if n else None for n in part.split(":")))
        for part in parts
    )


@pytest.fixture(scope="module")
def runs(model, stages, frames_of):
    """(trace of the encoder, trace of the clip, features, latent) of a flow scale, cached."""

    @cache
    def run(scale):
        frame0, frame1 = frames_of(stages[0])
        geometry = plan_geometry(256, 256, flow_scale=scale)
        with Trace(model) as encoding:
            features0 = model.encode(frame0, geometry)
            unknown = model.encode_unknown(geometry)
            features1 = model.encode(frame1, geometry)
        with Trace(model) as clip:
            y = model.encode_clip(features0, unknown, features1)
        return encoding.results, clip.results, (features0, features1), y

    return run


@pytest.mark.parametrize("level", range(5))
def test_encoder_levels_equal_the_reference(runs, equal, level):
    modules = runs(1.0)[0]
    block = f"encoder.down.{level}.block.0"
    equal(f"main/{block}", torch.cat(modules[f"vqgan.{block}"]))
    equal(
        f"main/encoder.down.{level}.downsample", torch.cat(modules[f"vqgan.encoder.down.{level}"])
    )


def test_encoder_attention_equals_the_reference(runs, equal):
    equal("main/encoder.down.4.attn.0", torch.cat(runs(1.0)[0]["vqgan.encoder.down.4.attn.0"]))


def test_frame_features_equal_the_reference(model, runs, equal):
    pair = runs(1.0)[2]
    equal("main/phi.0", torch.cat([model.flow_features(f).features[0] for f in pair]))
    for level in range(5):
        equal(f"main/phi.{level + 1}", torch.cat([f.levels[level] for f in pair]))
    for k in range(4):
        features = [f.flow.features[k] for f in runs(0.5)[2]]
        equal(f"scale0.5/flow_features.{k}", torch.cat(features))


def halves(clip, dim):
    """Haar sums and differences of a clip [B, T, H, W] along `dim`, a zero following."""
    following = torch.cat(
        [clip.narrow(dim, 1, clip.shape[dim] - 1), 0 * clip.narrow(dim, 0, 1)], dim
    )
    return 0.5 / 2**0.5 * (clip + following), 0.5 / 2**0.5 * (following - clip)


def haar(clip):
    """The bands LLL, LLH, ... HHH of one level, a frame less each."""
    frames = [half[:, :-1] for half in halves(clip, 1)]
    lines = [half for band in frames for half in halves(band, 2)]
    return [half for band in lines for half in halves(band, 3)]


def test_wavelets_equal_the_reference(stages, frames_of, equal):
    frame0, frame1 = frames_of(stages[0])
    clip = torch.cat([luma(f) for f in (frame0, torch.full_like(frame0, 0.5), frame1)], dim=1)
    low, *fine = haar(clip)
    lowest, *coarse = haar(low)
    equal("main/wavelet.luma", clip[:, None], 1e-6)
    equal("main/wavelet.low1", low[:, None], 1e-6)
    equal("main/wavelet.low2", lowest[:, None], 1e-6)
    equal("main/wavelet.high1", torch.cat(fine, dim=1), 1e-6)
    equal("main/wavelet.high2", torch.cat(coarse, dim=1), 1e-6)


@pytest.mark.parametrize("bands", [WHOLE_MAPS, Bands(values=2000)], ids=str)
def test_a_convolution_of_wavelets_needs_none(bands):
    generator = torch.Generator().manual_seed(3)
    clip = torch.randn(2, 3, 24, 32, generator=generator)
    kernel = Kernel(torch.randn(8, 21, 3, 3, generator=generator), torch.arange(8.0))
    low, *fine = haar(clip.double())
    details = torch.cat([*fine, *haar(low)[1:]], dim=1)
    wanted = F.conv2d(details, kernel.weight.double(), kernel.bias.double(), 2, 1)
    assert (keep(of_wavelets(kernel, clip), bands) - wanted).abs().max() < 1e-5


def test_clip_encoder_equals_the_reference(runs, equal):
    modules, y = runs(0.5)[1], runs(0.5)[3]
    for name in ("frequency_extractor", "frequency_extractor.Blocks.0"):
        equal(f"main/encoder.{name}", modules[f"vqgan.encoder.{name}"][0])
    equal("main/encoder.conv_out", modules["vqgan.encoder"][0])
    for name in ("block_1", "attn_1", "block_2"):
        clip = modules[f"vqgan.encoder.mid.{name}"][0]
        equal(f"main/encoder.mid.{name}", clip[0].transpose(0, 1))
    equal("latent", y)


def test_denoiser_equals_the_reference(model, stages, equal):
    vectors = stages[0]
    unet = model.denoise_fn
    for t in (999, 500, 0):
        modulations = unet.embed([t], torch.device("cpu"))[0]
        equal(f"unet.t{t}.sinusoid", sinusoid(torch.tensor([t])))
        equal(f"unet.t{t}.time_embed", unet.time_embed(sinusoid(torch.tensor([t]))))
        with Trace(unet) as trace:
            out = unet(vectors["unet.x_t"], unet.embed_context(vectors["latent"]), modulations)
        equal(f"unet.t{t}.out", out)
        for group, count in (("input_blocks", 6), ("output_blocks", 6)):
            for index in range(count):
                last = [n for n in trace.results if re.fullmatch(rf"{group}\.{index}\.\d", n)]
                if last:
                    equal(f"unet.t{t}.{group}.{index}", trace.results[max(last)][0])


def test_sampler_follows_the_reference_step_by_step(model, stages, equal, monkeypatch):
    vectors = stages[0]
    y, noise = vectors["latent"], list(vectors["sampler.noise"])
    states = []
    predict = model.denoise_fn.forward

    def spy(x, context, emb):
        states.append(x)
        return predict(x, context, emb)

    monkeypatch.setattr(model.denoise_fn, "forward", spy)
    final = model.sample_latent(y, STEPS, noise)
    equal("sampler.trajectory", torch.stack([*states, final]))


def test_quantizer_equals_the_reference(model, stages):
    vectors = stages[0]
    latent = vectors["sampler.trajectory"][-1]
    assert torch.equal(model.vqgan.quantize.codes(latent), vectors["quantize.codes"].long())
    quantized = model.vqgan.quantize(latent)[0].transpose(0, 1)
    assert (quantized - vectors["quantize.out"]).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_flow_and_decoder_equal_the_reference(model, runs, stages, equal, scale):
    features = runs(scale)[2]
    with Trace(model) as trace:
        flow = model.estimate_flow(*features)
    modules = trace.results
    for block in range(3):
        name = f"decoder.flownet.block{block}"
        equal(f"scale{scale}/{name}", modules[f"vqgan.{name}"][0], 1e-3)
    equal(f"scale{scale}/ifnet.F3", modules["vqgan.decoder.flownet"][0], 1e-3)
    for block in range(1, 5):
        name = f"decoder.refinenet.rf_block{block}"
        equal(f"scale{scale}/{name}", modules[f"vqgan.{name}"][0], 1e-3)
    equal(f"scale{scale}/refined_flow", modules["vqgan.decoder.refinenet"][0], 1e-3)
    equal(f"scale{scale}/flow_full", flow, 1e-3)

    latent = stages[0]["quantize.out"].transpose(0, 1)[None]
    with Trace(model) as trace:
        between = model.decode(latent, *features, flow)
    modules = trace.results
    for name in ("block_1", "attn_1"):
        clip = modules[f"vqgan.decoder.mid.{name}"][0]
        equal(f"scale{scale}/decoder.mid.{name}", clip[0].transpose(0, 1))
    equal(f"scale{scale}/decoder.mid.block_2", modules["vqgan.decoder.mid.block_2"][0][:, :, 0])
    for level in range(5):
        name = f"decoder.up.{level}"
        for part in ("block.0", "attn.0", "cross_attn.proj_in", "cross_attn"):
            if f"vqgan.{name}.{part}" in modules:
                equal(f"scale{scale}/{name}.{part}", modules[f"vqgan.{name}.{part}"][0])
        equal(f"scale{scale}/{name}.upsample", modules[f"vqgan.{name}"][0])
    equal(f"scale{scale}/decoder.moduleout", modules["vqgan.decoder"][0])
    equal(f"scale{scale}/out", between * 2 - 1, 2e-4)
