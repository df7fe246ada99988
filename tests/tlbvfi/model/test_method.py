"""TLB-VFI behind the Method protocol: bisection, reuse of features, noise by node."""

import copy
import inspect
import json
import shutil
from dataclasses import fields, replace
from fractions import Fraction

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.bench.stand_in import write_stand_in
from comfyui_tlbvfi.tlbvfi.errors import FrameError, SettingsError
from comfyui_tlbvfi.tlbvfi.method import Batching, PairKey, Request
from comfyui_tlbvfi.tlbvfi.methods import MethodConfig, create_method
from comfyui_tlbvfi.tlbvfi.methods import tlbvfi as tlbvfi_method
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import TlbvfiMethod
from comfyui_tlbvfi.tlbvfi.model import compiled
from comfyui_tlbvfi.tlbvfi.model.compiled import CACHE_VARIABLE
from comfyui_tlbvfi.tlbvfi.model.memory import WHOLE
from comfyui_tlbvfi.tlbvfi.model.sampling import SamplingOptions, sample
from comfyui_tlbvfi.tlbvfi.pipeline import Rules, interpolate
from comfyui_tlbvfi.tlbvfi.spans import SourceFrame
from comfyui_tlbvfi.tlbvfi.timeline import Bisection
from torch.nn import functional as F

KEY = PairKey(3, 11)
HALF, QUARTER = Fraction(1, 2), Fraction(1, 4)


def picture(seed, channels=3):
    coarse = torch.rand(1, channels, 8, 8, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(64, 48), mode="bilinear")[0]


@pytest.fixture
def method(sketch):
    return TlbvfiMethod(sketch, SamplingOptions(steps=2))


@pytest.fixture
def pair(method):
    """Features of two pictures."""
    return [method.prepare(picture(n)) for n in (1, 2)]


@pytest.mark.parametrize("channels", [3, 4])
def test_the_frame_halfway_is_that_of_sample(model, halfway, channels):
    """For RGBA as for RGB: alpha moves with the picture."""
    method = TlbvfiMethod(model, SamplingOptions(steps=1))
    frames = [picture(n) for n in (1, 2)]
    if channels == 4:
        frames = [torch.cat([frame, torch.full_like(frame[:1], 0.25)]) for frame in frames]
    features = [method.prepare(frame) for frame in frames]
    (frame,) = method.between(*features, [HALF], PairKey(3, 0))
    assert len(frame) == channels
    assert torch.equal(frame[:3], halfway)
    assert ((frame[3:] - 0.25).abs() < 1e-6).all()
    assert frame.device.type == "cpu"
    assert frame.dtype == torch.float32


@pytest.fixture(scope="module")
def halfway(model):
    """The mid frame that `sample` computes for two pictures."""
    frames = (picture(n)[None] for n in (1, 2))
    return sample(model, *frames, steps=1, seed=3)[0]


def test_a_node_is_the_same_whatever_else_is_asked_for(method, pair):
    times = [QUARTER, HALF, 3 * QUARTER]
    every = list(method.between(*pair, times, KEY))
    (alone,) = method.between(*pair, times[2:], KEY)
    assert torch.equal(every[2], alone)
    assert not torch.equal(every[0], every[2])


def test_only_wanted_nodes_and_their_ancestors_are_computed(method, sketch, pair, monkeypatch):
    calls = {"halves": 0, "encodings": 0}
    forward, encode = sketch.forward, sketch.encode

    def count(name, function):
        def counted(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return counted

    monkeypatch.setattr(sketch, "forward", count("halves", forward))
    monkeypatch.setattr(sketch, "encode", count("encodings", encode))
    list(method.between(*pair, [Fraction(3, 8)], KEY))
    assert calls == {"halves": 3, "encodings": 2}


def test_the_pair_decides_the_noise(method, pair):
    frames = [next(method.between(*pair, [HALF], key)) for key in (KEY, PairKey(3, 12))]
    assert not torch.equal(*frames)


def test_values_beyond_the_range_are_kept_and_unseen_by_the_network(model):
    """Highlights of EXR, and whites of video above 235, would flicker if mid frames clipped them."""
    method = TlbvfiMethod(model, SamplingOptions(steps=1))
    wide = [method.prepare(4 * picture(n) - 1) for n in (1, 2)]
    known = [method.prepare((4 * picture(n) - 1).clamp(0, 1)) for n in (1, 2)]
    for features, same in zip(wide, known, strict=True):
        pairs = zip(features.tensors[1:], same.tensors[1:], strict=True)
        assert all(torch.equal(*pair) for pair in pairs)
    (beyond,), (within,) = (method.between(*pair, [HALF], KEY) for pair in (wide, known))
    assert beyond.min() < -0.2
    assert beyond.max() > 2
    assert within.min() >= 0
    assert within.max() <= 1


@pytest.mark.parametrize("t", [Fraction(1, 3), Fraction(0), Fraction(1), Fraction(5, 6)])
def test_times_that_halving_cannot_reach_are_refused(method, t):
    features = method.prepare(picture(1))
    with pytest.raises(SettingsError, match="j / 2"):
        method.between(features, features, [t], KEY)


def test_pairs_that_do_not_match_are_refused(method):
    features = method.prepare(picture(1))
    for other in (picture(2, 4), F.pad(picture(2), (0, 8))):
        with pytest.raises(FrameError, match="differ"):
            method.between(features, method.prepare(other), [HALF], KEY)


@pytest.mark.parametrize(
    "frame", [torch.rand(1, 64, 64), torch.rand(64, 64, 3), torch.full((3, 64, 64), torch.nan)]
)
def test_bad_frames_are_refused(method, frame):
    with pytest.raises(FrameError):
        method.prepare(frame)


def test_settings_and_memory_tell_what_a_manifest_and_a_warning_need(method):
    assert json.dumps(method.settings) == json.dumps(
        {
            "steps": 2,
            "flow_scale": 0.5,
            "padding": "reference",
            "tf32": False,
            "dtype": "float32",
            "weights": "",
        }
    )
    assert 0.05e9 < method.memory_needed(256, 256) < method.memory_needed(1080, 1920) < 10e9


def test_defaults_are_the_same_wherever_they_can_be_left_out():
    of_options = {field.name: field.default for field in fields(SamplingOptions)}
    of_config = {field.name: field.default for field in fields(MethodConfig)}
    of_sample = {n: p.default for n, p in inspect.signature(sample).parameters.items()}
    assert of_options.items() <= of_sample.items()
    of_options.pop("tf32")  # a precision of the config
    assert of_options.items() <= of_config.items()
    assert of_sample["seed"] == Rules().seed


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "stand_in.safetensors"
    write_stand_in(path)
    return path


@pytest.mark.parametrize(
    ("precision", "dtype", "tf32"),
    [
        ("float32", "float32", False),
        ("tf32", "float32", True),
        ("bfloat16", "bfloat16", False),
        ("float16", "float16", False),
    ],
)
def test_the_method_computes_as_its_config_asks(weights_file, monkeypatch, precision, dtype, tf32):
    compiled_ones = []
    monkeypatch.setattr(tlbvfi_method, "compile_blocks", lambda *given: compiled_ones.append(given))
    config = MethodConfig(
        model=weights_file,
        steps=3,
        flow_scale=0.25,
        padding="tight",
        precision=precision,
        device="cpu",
        compile="on",
        memory=10**12,
    )
    method = create_method(config)
    settings = dict(method.settings)
    assert len(settings.pop("weights")) == 64
    expected = {"steps": 3, "flow_scale": 0.25, "padding": "tight", "tf32": tf32, "dtype": dtype}
    assert settings == expected
    assert method.device == torch.device("cpu")
    assert 0.9e12 < method.available < 1e12
    method.expect(1)
    assert len(compiled_ones) == 1


def test_a_precision_the_device_lacks_is_refused_before_the_weights_are_read(
    weights_file, monkeypatch
):
    def refuse(dtype, device):
        raise SettingsError(f"{device} does not compute in {dtype}")

    monkeypatch.setattr(tlbvfi_method, "require_dtype", refuse)
    monkeypatch.setattr(tlbvfi_method, "load_identified", None)
    config = MethodConfig(model=weights_file, precision="bfloat16", device="cpu")
    with pytest.raises(SettingsError, match=r"^cpu does not compute in torch\.bfloat16$"):
        create_method(config)


@pytest.mark.parametrize(
    ("wish", "frames", "is_compiled"),
    [("off", 10**6, False), ("auto", 10**6, False), ("on", 1, True)],
)
def test_a_cpu_compiles_only_if_asked_to(model, monkeypatch, wish, frames, is_compiled):
    networks = []
    monkeypatch.setattr(
        tlbvfi_method, "compile_blocks", lambda network, _: networks.append(network)
    )
    method = TlbvfiMethod(model, compile=wish)
    for _ in range(2):
        method.expect(frames)
    assert networks == [model] * is_compiled


@pytest.mark.parametrize(
    ("capability", "has_triton", "is_compiled"),
    [((8, 6), True, True), ((8, 6), False, False), ((6, 1), True, False)],
)
def test_a_long_job_compiles_by_itself_where_pytorch_can(
    model, monkeypatch, capability, has_triton, is_compiled
):
    networks = []
    monkeypatch.setattr(
        tlbvfi_method, "compile_blocks", lambda network, _: networks.append(network)
    )
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(compiled, "has_triton", lambda device: has_triton)
    monkeypatch.setattr(TlbvfiMethod, "device", torch.device("cuda"))
    method = TlbvfiMethod(model, compile="auto")
    method.expect(10**6)
    assert networks == [model] * is_compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # raised by PyTorch while compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_compiled_blocks_give_the_same_frames(model, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    compiled = TlbvfiMethod(copy.deepcopy(model), SamplingOptions(steps=1), compile="on")
    plain = TlbvfiMethod(model, SamplingOptions(steps=1))
    compiled.expect(1)
    frames = []
    for method in (plain, compiled):
        features = [method.prepare(picture(n)) for n in (1, 2)]
        frames += method.between(*features, [HALF], KEY)
    assert (frames[0] - frames[1]).abs().max() < 2e-4
    assert any(tmp_path.iterdir())


@pytest.fixture
def batching(method, monkeypatch):
    """A method that computes three pairs at once, as on a GPU."""
    monkeypatch.setattr(method, "pairs_at_once", lambda height, width: 3)
    return method


def requests_of(method, times_of_pairs, first=0):
    features = [method.prepare(picture(n)) for n in range(first, first + len(times_of_pairs) + 1)]
    return [
        Request(features0=a, features1=b, times=times, key=PairKey(3, first + n))
        for n, (a, b, times) in enumerate(
            zip(features[:-1], features[1:], times_of_pairs, strict=True)
        )
    ]


def test_frames_do_not_depend_on_the_pairs_that_are_computed_with_them(batching):
    requests = requests_of(batching, [[HALF], [3 * QUARTER], [], [QUARTER, HALF], [HALF]])
    together = list(batching.between_many(requests))
    backward = [list(batching.between_many([request])) for request in reversed(requests)]
    apart = [frame for frames in reversed(backward) for frame in frames]
    for frame, other in zip(together, apart, strict=True):
        assert torch.equal(frame, other)


def test_several_pairs_at_once_equal_single_pairs(batching):
    requests = requests_of(batching, [[HALF], [QUARTER, HALF], [], [HALF], [3 * QUARTER]])
    singly = [
        frame
        for r in requests
        for frame in batching.between(r.features0, r.features1, r.times, r.key)
    ]
    for frame, other in zip(batching.between_many(requests), singly, strict=True):
        assert (frame - other).abs().max() < 2e-5


def test_features_of_frames_are_stacked_as_those_of_a_batch(model):
    geometry = SamplingOptions().geometry(64, 48)
    frames = [picture(n)[None] for n in (1, 2)]
    wanted = model.encode(torch.cat(frames), geometry)
    first, second = (model.encode(frame, geometry) for frame in frames)
    stacked = model.stack([first, second])
    less = model.encode(frames[1], geometry, replace(WHOLE, keeps_flow_features=False))
    mixed = model.stack([first, less])
    assert mixed.flow is None
    for found in (stacked, mixed):
        assert found.geometry == geometry
        assert torch.equal(found.frame, wanted.frame)
        for maps in zip(found.levels, wanted.levels, strict=True):
            torch.testing.assert_close(*maps, atol=1e-4, rtol=0)
    assert torch.equal(stacked.flow.canvas, wanted.flow.canvas)
    for maps in zip(stacked.flow.features, wanted.flow.features, strict=True):
        torch.testing.assert_close(*maps, atol=1e-4, rtol=0)


def test_numbers_too_large_for_the_precision_are_an_error(model):
    """On the smallest possible canvas, because float16 takes CPUs ten times as long."""
    network = copy.deepcopy(model).to_compute_dtype(torch.float16)
    network.vqgan.decoder.conv_out.weight *= 1e5
    method = TlbvfiMethod(network, SamplingOptions(steps=1, padding="tight", flow_scale=0.125))
    frames = [SourceFrame(index=i, time=Fraction(i), image=picture(i), picture=i) for i in range(2)]
    shown = interpolate(frames, method, Bisection(times=1))
    assert next(shown).is_source
    with pytest.raises(FrameError, match=r"pixels in float16: set precision to float32\."):
        next(shown)


def test_a_cpu_does_one_pair_at_a_time(method):
    assert isinstance(method, Batching)
    assert method.pairs_at_once(16, 16) == 1
