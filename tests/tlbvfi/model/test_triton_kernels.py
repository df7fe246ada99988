"""The Triton kernels against plain arithmetic; without a GPU in Triton's interpreter."""

from importlib.util import find_spec

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model import (
    activation,
    correlation_kernel,
    fused_unet,
    kernels,
    nearest,
    norm,
    norm_kernel,
    split,
)

needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton comes with PyTorch's CUDA builds only"
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(flow, channels=64, rows=None, dtype=torch.float32):
    batch, _, height, width = flow.shape
    start, stop = rows or (0, height)
    layout = {"memory_format": torch.channels_last}
    return {
        "blend": drawn(batch, channels, stop - start, width, seed=1).contiguous(**layout),
        "features": drawn(batch, channels, height, width, seed=2).to(dtype).contiguous(**layout),
        "flow": flow,
        "start": start,
        "stop": stop,
    }


def special():
    """A flow to whole pixels, to the image's borders exactly, and slightly beyond them."""
    flow = torch.zeros(1, 2, 7, 8)
    flow[:, 0] = torch.tensor([-1.0, 0, 1, 1 - 2**-24, -(2**-24), 8, -8])[:, None]
    flow[:, 1] = torch.tensor([0.0, 1, -1, 6, -7, 2**-20, 0.5, 1 - 2**-20])
    return flow


CASES = {
    "small": case(drawn(1, 2, 6, 9)),
    "two images of a batch": case(3 * drawn(2, 2, 5, 7)),
    "128 channels": case(2 * drawn(1, 2, 4, 6), channels=128),
    "some rows": case(2 * drawn(1, 2, 9, 5), rows=(3, 7)),
    "far out": case(1e4 * drawn(1, 2, 5, 6)),
    "beyond every integer": case(1e30 * drawn(1, 2, 4, 4)),
    "whole pixels and borders": case(special()),
    "one half of a flow of four channels": case(drawn(2, 4, 5, 6).split(2, dim=1)[1]),
    "smallest image": case(drawn(1, 2, 2, 2)),
    "bfloat16 features": case(2 * drawn(1, 2, 4, 6), dtype=torch.bfloat16),
    "zero features": case(drawn(1, 2, 4, 4)) | {"features": torch.zeros(1, 64, 4, 4)},
}


CONVOLUTIONS = {
    "3x3": ((2, 64, 9, 11), (64, 64, 3, 3), {"padding": (1, 1)}),
    "3x3 of a band": ((1, 64, 6, 7), (128, 64, 3, 3), {"padding": (0, 1)}),
    "stride 2": ((1, 128, 9, 13), (64, 128, 3, 3), {"stride": 2}),
    "2x2 phases": ((1, 32, 5, 6), (256, 32, 2, 2), {}),
    "1x1": ((1, 96, 12, 13), (64, 96, 1, 1), {}),
}


def convolution(shape, kernel, options):
    """Arguments of PyTorch's convolution."""
    channels_last = {"memory_format": torch.channels_last}
    scale = (kernel[1] * kernel[2] * kernel[3]) ** -0.5
    return {
        "input": drawn(*shape, seed=3).contiguous(**channels_last),
        "weight": scale * drawn(*kernel, seed=4).contiguous(**channels_last),
        "bias": None if kernel[2] == 1 else drawn(kernel[0], seed=5),
        **options,
    }


def split_convolution(name):
    asked = convolution(*CONVOLUTIONS[name])
    size = tuple(torch.nn.functional.conv2d(**asked).shape[2:])
    return {"x": asked.pop("input"), "size": size, **asked}


UNEVEN = (2, 64, 8, 6), (64, 64, 3, 3), {"stride": 2}
"""With zeros only below and on the right, and rows of a larger map to add."""
UNEVEN_MORE = drawn(2, 64, 7, 3, seed=23).contiguous(memory_format=torch.channels_last)[:, :, 2:6]


def uneven_convolution():
    asked = convolution(*UNEVEN)
    return {"x": asked.pop("input"), "size": (4, 3), "plus": UNEVEN_MORE, **asked}


ATTENTIONS = {"256 channels": (1, 40, 256), "two batches, two blocks": (2, 70, 64)}


def tokens(name):
    """Queries, some of which attend almost only to one key."""
    shape = ATTENTIONS[name]
    return {
        "q": 3 * drawn(*shape, seed=24),
        "k": drawn(*shape, seed=25),
        "v": drawn(*shape, seed=26),
    }


MAPS = {
    "64 channels": (2, 64, 3, 5),
    "32 channels": (1, 32, 4, 3),
    "three blocks of pixels and a rest": (1, 128, 2, 200),
    "rows of a larger map": (2, 64, 9, 70),
    "float16": (2, 64, 3, 150),
    "not channels_last": (2, 32, 4, 7),
    "far from zero": (1, 64, 2, 130),
}


def a_map(name):
    """Rows [B, C, h, W], and the number of rows before them."""
    x = drawn(*MAPS[name], seed=10) + (100 if name == "far from zero" else 0)
    if name == "not channels_last":
        return x, 0
    x = x.contiguous(memory_format=torch.channels_last)
    if name == "rows of a larger map":
        return x[:, :, 2:5], 2
    return (x.half() if name == "float16" else x), 0


def gathering(name):
    x, start = a_map(name)
    batch, channels, height, _ = MAPS[name]
    means, squares = torch.full((2, batch, height, channels), -1.0).unbind()
    return {"x": x, "means": means, "squares": squares, "start": start}


def scaling(name, activation):
    shape = MAPS[name][:2]
    factor, offset = drawn(*shape, seed=11), drawn(*shape, seed=12)
    return {"x": a_map(name)[0], "factor": factor, "offset": offset, "activation": activation}


ROWS = {
    "one row": ((1, 1, 64), 4, False),
    "more rows than a block": ((2, 300, 32), 8, True),
    "groups of four": ((1, 7, 64), 16, True),
}


def rows_of_maps(name):
    shape, _, _ = ROWS[name]
    return {"means": drawn(*shape, seed=14) + 50, "squares": drawn(*shape).square(), "width": 9}


def moments_of_maps(name):
    (batch, _, channels), groups, is_added = ROWS[name]
    layer = torch.nn.GroupNorm(groups, channels, eps=1e-6).requires_grad_(False)
    layer.weight.copy_(drawn(channels, seed=6))
    layer.bias.copy_(drawn(channels, seed=7))
    return {
        "norm": layer,
        "mean": drawn(batch, channels, seed=15).double(),
        "squares": 40 * drawn(batch, channels, seed=16).double().square(),
        "count": 40,
        "added": drawn(channels, seed=17) if is_added else None,
    }


def prelu(channels):
    slopes = torch.nn.PReLU(channels).requires_grad_(False)
    slopes.weight.copy_(drawn(channels, seed=18))
    return slopes


def activating(name, function):
    x = a_map(name)[0].clone(memory_format=torch.preserve_format)
    return {"x": x, "bias": drawn(x.shape[1], seed=19).to(x.dtype), "activation": function}


def summing(name, *, has_bias):
    asked = activating(name, None)
    del asked["activation"]
    other = drawn(*a_map(name)[0].shape, seed=22).to(asked["x"].dtype)
    return {**asked, "bias": asked["bias"] if has_bias else None, "other": other}


CODES = {
    "vectors": torch.cat([drawn(70, 3, seed=20), torch.zeros(1, 3)]),
    "codebook": torch.cat([drawn(1022, 3, seed=21), torch.ones(2, 3) * 1e-9]),
}


def calls():
    """(module, function, arguments) of every call of kernels, by name."""
    asked = {}
    for name, example in CASES.items():
        along = {key: example[key] for key in ("features", "flow", "start")}
        seen = along | {"stop": example["stop"]}
        related = along | {"blend": example["blend"]}
        asked["warped", name] = "correlation_kernel", "warped", seen
        asked["correlation", name] = "correlation_kernel", "correlation", related
    for name in CONVOLUTIONS:
        asked["convolution", name] = "split", "conv2d", split_convolution(name)
    asked["convolution", "uneven"] = "split", "conv2d", uneven_convolution()
    for name in ATTENTIONS:
        asked["attention", name] = "split", "attention", tokens(name)
    for name in ROWS:
        asked["merged", name] = "norm_kernel", "merged", rows_of_maps(name)
        asked["factors", name] = "norm_kernel", "factor_and_offset", moments_of_maps(name)
    for name in MAPS:
        asked["gelu", name] = "activation", "activated", activating(name, torch.nn.functional.gelu)
        asked["prelu", name] = "activation", "activated", activating(name, prelu(MAPS[name][1]))
        for has_bias in (True, False):
            asked["sum", name, has_bias] = "activation", "summed", summing(name, has_bias=has_bias)
    asked["nearest", ""] = "nearest", "nearest_in_kernel", CODES
    for name in MAPS:
        asked["moments", name] = "norm_kernel", "row_moments", gathering(name)
        for function in ("silu", "relu"):
            asked[function, name] = "norm_kernel", "scaled", scaling(name, function)
    return asked


@pytest.fixture(scope="module")
def computed(run_kernels):
    return run_kernels(calls())


def plain(blend, features, flow, start, stop):
    """(correlation, warped) as the model is described, in float64."""
    features, flow = features.double(), flow.double()[:, :, start:stop]
    height, width = features.shape[-2:]
    column, x = parted(flow[:, 0] + torch.arange(width), width)
    row, y = parted(flow[:, 1] + torch.arange(start, stop)[:, None], height)
    padded = torch.nn.functional.pad(features, (1, 1, 1, 1))

    def at(down, right):
        rows, columns = row + 1 + down, column + 1 + right
        return torch.stack([p[:, r, c] for p, r, c in zip(padded, rows, columns, strict=True)])

    def seen(dy, dx):
        above = torch.lerp(at(dy, dx), at(dy, dx + 1), x)
        return torch.lerp(above, torch.lerp(at(dy + 1, dx), at(dy + 1, dx + 1), x), y)

    neighbors = [seen(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    unit = normed(blend.double())
    return torch.stack([(normed(n) * unit).sum(dim=1) for n in neighbors], dim=1), neighbors[4]


def parted(position, size):
    """The pixel before a position clamped to the image, and the fraction [B, 1, h, W] beyond it."""
    position = position.clamp(0, size - 1)
    before = position.floor().clamp(max=size - 2)
    return before.long(), (position - before)[:, None]


def normed(x):
    return x / (x.square().sum(dim=1, keepdim=True) + 1e-12).sqrt()


@needs_triton
@pytest.mark.parametrize("name", CASES)
def test_warp_and_correlation_equal_plain_arithmetic(computed, name):
    wanted, seen = plain(**CASES[name])
    cosines, found = computed["correlation", name], computed["warped", name]
    assert cosines.shape == wanted.shape
    assert (cosines - wanted).abs().max() < 1e-6
    assert found.dtype == CASES[name]["features"].dtype
    assert torch.isfinite(found).all()
    exactness = 2e-6 if found.dtype == torch.float32 else 2e-2
    assert (found.float() - seen).abs().max() < exactness


@needs_triton
def test_whole_pixels_are_moved_exactly(computed):
    name = "whole pixels and borders"
    wanted = plain(**CASES[name])[1]
    exact = (CASES[name]["flow"].frac() == 0).all(dim=1)[:, None].expand_as(wanted)
    assert exact.any()
    assert torch.equal(computed["warped", name][exact], wanted[exact].float())


@needs_triton
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_split_convolution_equals_a_convolution(computed, name):
    wanted = torch.nn.functional.conv2d(**exact(convolution(*CONVOLUTIONS[name])))
    found = computed["convolution", name]
    assert found.shape == wanted.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found - wanted).abs().max() < 3e-6


@needs_triton
def test_the_split_convolution_adds_zeros_where_they_lack_and_another_map(computed):
    asked = exact(convolution(*UNEVEN))
    asked["input"] = torch.nn.functional.pad(asked["input"], (0, 1, 0, 1))
    wanted = torch.nn.functional.conv2d(**asked) + UNEVEN_MORE
    assert (computed["convolution", "uneven"] - wanted).abs().max() < 3e-6


@needs_triton
@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_split_attention_equals_attention(computed, name):
    wanted = torch.nn.functional.scaled_dot_product_attention(*exact(tokens(name)).values())
    assert (computed["attention", name] - wanted).abs().max() < 1e-5  # float32 itself: 3e-6


def exact(asked):
    return {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in asked.items()}


@needs_triton
@pytest.mark.parametrize("name", MAPS)
def test_moments_are_those_of_each_row(computed, name):
    (x, start), found = a_map(name), computed["moments", name]
    rows = slice(start, start + x.shape[2])
    variance, mean = torch.var_mean(x.double(), dim=3, correction=0)
    wanted = {"means": mean, "squares": variance * x.shape[3]}
    for key, values in wanted.items():
        values = values.transpose(1, 2)
        assert torch.allclose(found[key][:, rows].double(), values, rtol=1e-5, atol=1e-6)
        found[key][:, rows] = -1
        assert (found[key] == -1).all()


@needs_triton
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("activation", ["silu", "relu"])
def test_maps_are_scaled_and_activated(computed, name, activation):
    asked, found = scaling(name, activation), computed[activation, name]
    factor, offset = (asked[key].double()[:, :, None, None] for key in ("factor", "offset"))
    wanted = getattr(torch.nn.functional, activation)(asked["x"].double() * factor + offset)
    assert found.dtype == asked["x"].dtype
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(
        found.double(), wanted, rtol=5e-4 if name == "float16" else 1e-6, atol=1e-5
    )


@needs_triton
@pytest.mark.parametrize("name", ROWS)
def test_moments_of_rows_are_merged_to_those_of_the_map(computed, name):
    asked, found = rows_of_maps(name), computed["merged", name]
    means, squares = asked["means"].double(), asked["squares"].double()
    mean = means.mean(dim=1)
    apart = 9 * (means - mean[:, None]).square().sum(dim=1)
    assert torch.allclose(found[0], mean, rtol=1e-14)
    assert torch.allclose(found[1], squares.sum(dim=1) + apart, rtol=1e-12)


@needs_triton
@pytest.mark.parametrize("name", ROWS)
def test_factors_of_a_norm_are_those_computed_without_kernels(computed, name):
    asked = moments_of_maps(name)
    moments = norm.Moments(asked["count"], asked["mean"], asked["squares"])
    wanted = norm.factor_and_offset(asked["norm"], moments, asked["added"])
    for ours, theirs in zip(computed["factors", name], wanted, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6)


@needs_triton
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("function", ["gelu", "prelu"])
def test_bias_and_activation_are_one(computed, name, function):
    x, bias, apply = activating(
        name, prelu(MAPS[name][1]) if function == "prelu" else torch.nn.functional.gelu
    ).values()
    found = computed[function, name]
    apply = apply.double() if function == "prelu" else apply
    wanted = apply(x.double() + bias.double()[:, None, None])
    assert found.dtype == x.dtype
    assert torch.allclose(
        found.double(), wanted, rtol=5e-4 if name == "float16" else 2e-6, atol=1e-5
    )


@needs_triton
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_map_and_a_bias_are_added_at_once(computed, name, has_bias):
    x, bias, other = summing(name, has_bias=has_bias).values()
    found = computed["sum", name, has_bias]
    wanted = x.double() + other.double()
    wanted += bias.double()[:, None, None] if has_bias else 0
    assert found.dtype == x.dtype
    exactness = 5e-4 if name == "float16" else 1e-6
    assert torch.allclose(found.double(), wanted, rtol=exactness, atol=exactness)


@needs_triton
def test_the_nearest_code_is_found_the_first_of_equals(computed):
    distances = torch.cdist(CODES["vectors"].double(), CODES["codebook"].double())
    assert torch.equal(computed["nearest", ""], distances.argmin(dim=1))
    assert computed["nearest", ""][-1] == 1022


def test_only_whole_blocks_of_channels_fit_the_norm_of_maps():
    assert norm_kernel.fits_map(torch.empty(1, 32, 2, 2))
    assert not norm_kernel.fits_map(torch.empty(1, 21, 2, 2))


def test_only_whole_blocks_of_float32_channels_fit_the_split_convolution():
    def fits(weight, dtype=torch.float32, groups=1):
        x, w = torch.empty(1, weight[1], 4, 4, dtype=dtype), torch.empty(weight, dtype=dtype)
        return split.fits(x, w, groups)

    assert fits((64, 64, 3, 3))
    assert fits((128, 32, 1, 1))
    assert not fits((64, 3, 3, 3))
    assert not fits((4, 32, 3, 3))
    assert not fits((64, 64, 3, 3), torch.bfloat16)
    assert not fits((256, 32, 3, 3), groups=4)


MODULES = {
    "activation": activation,
    "correlation_kernel": correlation_kernel,
    "fused_unet": fused_unet,
    "nearest": nearest,
    "norm_kernel": norm_kernel,
    "split": split,
}
"""Of all kernels; each has examples by which they are accepted on a device."""


@needs_triton
@pytest.mark.parametrize("name", MODULES)
def test_kernels_compute_the_examples_by_which_they_are_accepted(run_kernels, device, name):
    smaller = {"latent": (4, 8)} if name == "fused_unet" and device == "cpu" else {}
    asked = {"examples": (name, "examples", {"device": torch.device(device), **smaller})}
    for found, wanted in run_kernels(asked)["examples"]:
        assert (found - wanted).abs().max() <= kernels.EXACTNESS * wanted.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", sorted({*MODULES} - {"split", "fused_unet"}))
def test_a_gpu_with_triton_uses_the_kernels(name):
    device = torch.device("cuda")
    assert MODULES[name].is_available(device) == kernels.has_triton(device)


@pytest.mark.parametrize("name", MODULES)
def test_there_are_no_kernels_for_a_cpu(name):
    assert not MODULES[name].is_available(torch.device("cpu"))


@pytest.fixture
def cuda(monkeypatch):
    """A device that seems to run Triton."""
    monkeypatch.setattr(kernels, "has_triton", lambda device: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    return torch.device("cuda")


def fail(device):
    raise RuntimeError("no such instruction\nLLVM ERROR")


REJECTED = {
    "wrong values": (lambda device: [(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0002]))], "off by 1.0e-04"),
    "one wrong of two": (lambda device: [(torch.ones(2), torch.ones(2)), (torch.zeros(2), torch.ones(2))], "off by 1.0e+00"),
    "no number": (lambda device: [(torch.tensor([float("nan")]), torch.ones(1))], "off by inf"),
    "an error": (fail, "(no such instruction)"),
}  # fmt: skip


@pytest.mark.parametrize("name", REJECTED)
def test_kernels_that_are_wrong_are_named_and_done_without(name, cuda, caplog):
    examples, why = REJECTED[name]
    assert not kernels.are_right("group norms", examples, cuda)
    (record,) = caplog.records
    assert "kernels for group norms do not work on cuda" in record.message
    assert why in record.message


def test_kernels_that_are_off_by_rounding_are_accepted(cuda, caplog):
    values = drawn(100)
    near = values * (1 + 1e-6), values.double()
    assert kernels.are_right("group norms", lambda device: [near], cuda)
    assert not caplog.records


def test_a_lack_of_memory_says_nothing_about_kernels(cuda):
    def fill(device):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        kernels.are_right("group norms", fill, cuda)


@pytest.mark.parametrize("name", MODULES)
def test_kernels_that_fail_their_examples_are_not_available(monkeypatch, cuda, name):
    is_available = MODULES[name].is_available.__wrapped__
    for found, is_right in ((torch.zeros(1), False), (torch.ones(1), True)):
        examples = [(found, torch.ones(1))]
        monkeypatch.setattr(MODULES[name], "examples", lambda device, same=examples: same)
        assert is_available(cuda) == is_right


def test_a_compiler_that_would_abort_the_program_is_not_asked(monkeypatch, cuda, caplog):
    monkeypatch.setattr(split, "triton_version", lambda: (3, 1))
    assert not split.is_available.__wrapped__(cuda)
    assert "(Triton before 3.2 would abort this program)" in caplog.text


@needs_triton
def test_the_version_of_triton_is_known():
    assert (3, 0) <= kernels.triton_version() < (4, 0)


def test_only_float32_of_a_power_of_two_channels_fits_the_split_attention():
    assert split.fits_attention(torch.empty(1, 5, 256))
    assert not split.fits_attention(torch.empty(1, 5, 256, dtype=torch.float16))
    assert not split.fits_attention(torch.empty(1, 5, 96))
    assert not split.fits_attention(torch.empty(1, 5, 512))


def test_a_gpu_without_triton_is_told_what_to_install(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    monkeypatch.setattr(kernels, "PACKAGE", "triton-windows")
    assert not kernels.has_triton(torch.device("cuda", 98))
    assert "Triton is not installed" in caplog.text
    assert "on cuda:98, which is slower" in caplog.text
    assert "install triton-windows in a version that fits" in caplog.text


def test_a_gpu_that_runs_no_kernels_is_named_and_done_without(monkeypatch, caplog):
    monkeypatch.setattr(kernels, "find_spec", lambda name: name)
    assert not kernels.has_triton(torch.device("cuda", 99))
    assert "Triton does not work on cuda:99" in caplog.text
