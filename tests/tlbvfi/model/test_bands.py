"""Maps computed in bands equal maps computed whole; rewritten operations equal the originals."""

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.model import bands
from comfyui_tlbvfi.tlbvfi.model.bands import Bands, Kernel, stored
from comfyui_tlbvfi.tlbvfi.model.layers import (
    MaxViTBlock,
    ResBlock2d,
    conv3d_by,
    convolve_by_frame,
)
from comfyui_tlbvfi.tlbvfi.model.lookup import look_up, taps_along, tokens_of
from comfyui_tlbvfi.tlbvfi.model.norm import factor_and_offset
from comfyui_tlbvfi.tlbvfi.model.warp import warp
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.profiler import profile

WHOLE = Bands()


def channels_last(*shape, seed=0):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return values.contiguous(memory_format=torch.channels_last)


def moments(x):
    return bands.gather(stored(x), WHOLE)


def kernel(out, channels, size, groups=1):
    return Kernel(channels_last(out, channels, size, size, seed=1), torch.arange(out) * 0.1, groups)


def close(a, b, tolerance=1e-5):
    assert a.shape == b.shape
    assert (a - b).abs().max() < tolerance * max(1, b.abs().max())


@given(st.integers(1, 40), st.integers(1, 200), st.integers(1, 500))
def test_bands_cover_every_row_once(height, per_row, values):
    ranges = list(Bands(values=values).cut(height, per_row))
    assert [row for start, stop in ranges for row in range(start, stop)] == list(range(height))
    heights = {stop - start for start, stop in ranges}
    assert max(heights) - min(heights) <= 1
    assert max(heights) == 1 or max(heights) * per_row <= values


@pytest.mark.parametrize("values", [1, 200, 700, 10**6])
@pytest.mark.parametrize("size", [1, 3])
def test_convolution_in_bands_equals_the_whole(values, size):
    x = channels_last(2, 4, 10, 8)
    k = kernel(6, 4, size)
    wanted = F.conv2d(x, k.weight, k.bias, padding=size // 2)
    close(bands.keep(bands.convolved(k, stored(x)), Bands(values=values)), wanted)


@pytest.mark.parametrize("values", [1, 200, 10**6])
def test_a_bias_may_be_a_channel_of_ones(values):
    x = channels_last(2, 4, 10, 8)
    k = kernel(6, 4, 3)
    unbiased, more = bands.with_bias_as_channel(k, x)
    assert unbiased.bias is None
    assert more.is_contiguous(memory_format=torch.channels_last)
    found = bands.keep(bands.convolved(unbiased, stored(more)), Bands(values=values))
    close(found, F.conv2d(x, k.weight, k.bias, padding=1))


@pytest.mark.parametrize(
    ("device", "room", "walks"), [("cuda", None, 1), ("cuda", 10**9, 2), ("cpu", None, 2)]
)
def test_a_cheap_map_is_computed_once_only_on_a_gpu_with_room_for_all(device, room, walks):
    x, computed = channels_last(1, 4, 10, 8), []
    source = bands.mapped(lambda rows: computed.append(rows) or rows + 1, stored(x))
    plan = Bands(values=64, room=room)
    found, gathered = bands.settle_if_all_fits(source, plan, torch.device(device))
    assert torch.equal(bands.keep(found, plan), x + 1)
    close(gathered.mean, (x + 1).double().mean(dim=(2, 3)))
    assert len(computed) == walks * len(list(plan.cut(10, source.widest)))


def test_two_convolutions_in_a_row_see_zeros_outside_not_each_others_halo():
    x = channels_last(1, 4, 9, 8)
    k = kernel(4, 4, 3)
    wanted = F.conv2d(F.conv2d(x, k.weight, k.bias, padding=1), k.weight, k.bias, padding=1)
    close(bands.keep(bands.convolved(k, bands.convolved(k, stored(x))), Bands(values=70)), wanted)


@pytest.mark.parametrize("values", [1, 150, 10**6])
def test_depthwise_convolution_in_bands_equals_the_whole(values):
    x = channels_last(1, 6, 10, 8)
    k = kernel(6, 1, 3, groups=6)
    wanted = F.conv2d(x, k.weight, k.bias, padding=1, groups=6)
    close(bands.keep(bands.convolved(k, stored(x)), Bands(values=values)), wanted)


@pytest.mark.parametrize("values", [1, 100, 10**6])
def test_downsampling_pads_below_and_right_only(values):
    x = channels_last(1, 4, 12, 8)
    k = kernel(5, 4, 3)
    wanted = F.conv2d(F.pad(x, (0, 1, 0, 1)), k.weight, k.bias, stride=2)
    close(bands.keep(bands.strided(k, stored(x), 2, before=0), Bands(values=values)), wanted)


@pytest.mark.parametrize("values", [1, 90, 150, 10**6])
def test_upsampling_on_the_small_map_equals_nearest_and_convolution(values):
    x = channels_last(2, 4, 6, 5)
    k = kernel(3, 4, 3)
    wanted = F.conv2d(F.interpolate(x, scale_factor=2), k.weight, k.bias, padding=1)
    close(bands.keep(bands.upsampled(k, stored(x)), Bands(values=values)), wanted)


@pytest.mark.parametrize("values", [1 << 17, 1 << 20])
def test_upsampling_in_bands_has_the_bits_of_the_whole(values):
    x, k = channels_last(1, 64, 256, 384), kernel(64, 64, 3)
    whole, banded = (
        bands.keep(bands.upsampled(k, stored(x)), b) for b in (WHOLE, Bands(values=values))
    )
    assert torch.equal(banded, whole)


def test_group_norm_keeps_its_accuracy_where_the_mean_is_far_from_zero():
    x = channels_last(2, 8, 64, 64) * 0.01 + 3
    norm = nn.GroupNorm(4, 8, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    normed = bands.keep(bands.normed(norm, stored(x), moments(x), "relu"), WHOLE)
    close(normed, F.relu(norm.double()(x.double())).float(), 1e-4)


def test_moments_of_pieces_merge_to_those_of_the_whole():
    x = channels_last(2, 8, 31, 16)
    pieces = bands.gather(stored(x), Bands(values=300))
    norm = nn.GroupNorm(2, 8)
    for a, b in zip(
        factor_and_offset(norm, pieces), factor_and_offset(norm, moments(x)), strict=True
    ):
        close(a, b, 1e-6)
    close(pieces.squares / pieces.count, x.double().var(dim=(2, 3), correction=0), 1e-6)


@pytest.mark.parametrize(
    ("size", "padding"), [(3, 1), (3, (0, 1, 1)), ((3, 1, 1), 0), (1, 0)], ids=str
)
def test_a_clip_is_convolved_as_one_map_of_all_its_frames(size, padding):
    conv = nn.Conv3d(4, 5, size, padding=padding).requires_grad_(False)
    clip = torch.randn(2, 4, 3, 6, 7, generator=torch.Generator().manual_seed(4))
    found, wanted = convolve_by_frame(conv, clip), conv(clip)
    close(found, wanted)
    assert found.stride() == wanted.stride()


@pytest.mark.parametrize("is_enabled", [True, False])
@pytest.mark.parametrize(("size", "padding"), [((3, 3, 3), 1), ((3, 3, 3), (0, 1, 1)), (1, 0)])
def test_a_clip_is_convolved_with_and_without_onednn(monkeypatch, size, padding, is_enabled):
    conv = nn.Conv3d(4, 5, size, padding=padding).requires_grad_(False)
    clip = torch.randn(1, 4, 3, 6, 7, generator=torch.Generator().manual_seed(4))
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", is_enabled)
    with profile() as profiled:
        found = conv3d_by(conv, clip)
    took = {event.key for event in profiled.key_averages()}
    assert ("aten::mkldnn_convolution" in took) == (is_enabled and size != 1)
    close(found.double(), conv.double()(clip.double()))


def test_residual_block_in_bands_equals_the_formula():
    torch.manual_seed(0)
    block = ResBlock2d(nn, 4, 8).eval()
    x = channels_last(1, 4, 12, 8)
    h = block.conv1(F.silu(block.norm1(x)))
    wanted = block.conv2(F.silu(block.norm2(h))) + block.nin_shortcut(x)
    for size in (Bands(values=100), WHOLE):
        close(bands.keep(block(stored(x), moments(x), size), size), wanted)


def test_attention_in_bands_of_windows_equals_the_whole():
    torch.manual_seed(0)
    block = MaxViTBlock(nn, 8).eval()
    x, context = torch.randn(2, 32, 16, 8), torch.randn(2, 32, 16, 8)
    banded, at_once = x.clone(), x.clone()
    block(banded, context, Bands(values=1))
    block(at_once, context, WHOLE)
    close(banded, at_once)
    assert (at_once - x).abs().max() > 0.1


@pytest.mark.parametrize("reach", [0.3, 4.0, 100.0])
def test_lookup_equals_the_warp(reach):
    image = channels_last(2, 5, 7, 9)
    flow = channels_last(2, 2, 7, 9, seed=3) * reach
    seen = look_up(tokens_of(image), (7, 9), *taps_along(flow, 2, 6))
    close(seen, warp(image, flow)[:, :, 2:6])


def test_lookup_in_a_map_of_lower_precision_weighs_in_float32():
    image = channels_last(1, 5, 7, 9)
    flow = channels_last(1, 2, 7, 9, seed=3)
    low = image.to(torch.bfloat16)
    seen = look_up(tokens_of(low), (7, 9), *taps_along(flow, 0, 7))
    close(seen, warp(low.float(), flow), 1e-6)


@pytest.mark.parametrize(("dy", "dx"), [(-1, -1), (0, 1), (1, 0)])
def test_lookup_of_a_neighbor_equals_the_warp_of_the_shifted_map(dy, dx):
    image = channels_last(1, 5, 7, 9)
    flow = channels_last(1, 2, 7, 9, seed=3) * 6
    shifted = F.pad(image, (1, 1, 1, 1))[:, :, 1 + dy : 8 + dy, 1 + dx : 10 + dx]
    down, across = taps_along(flow, 0, 7)
    seen = look_up(tokens_of(image), (7, 9), down.moved(dy, 7), across.moved(dx, 9))
    close(seen, warp(shifted, flow))
