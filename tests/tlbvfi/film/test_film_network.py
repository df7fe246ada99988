"""What callers and loaders of FILM can rely on."""

from fractions import Fraction

import pytest
import torch
from comfyui_tlbvfi.tlbvfi import load_film
from comfyui_tlbvfi.tlbvfi.errors import (
    CheckpointError,
    FrameError,
    ModelMissingError,
    SettingsError,
)
from comfyui_tlbvfi.tlbvfi.film import FilmNet, predict_peak_memory, weights_hash
from safetensors.torch import save_file


def test_parameters_are_those_of_the_published_file(film, film_tensors):
    found = {name: tuple(tensor.shape) for name, tensor in film.state_dict().items()}
    assert found == film_tensors
    assert sum(parameter.numel() for parameter in film.parameters()) == 34_436_667


def test_kept_features_and_flows_give_the_very_same_frames(film, frames):
    frame0, frame1 = frames(64, 80)
    times = [Fraction(1, 3), Fraction(2, 3)]
    features0, features1 = film.features(frame0), film.features(frame1)
    flows = film.flows(features0, features1)
    kept = [film.frame(features0, features1, flows, t) for t in times]
    again = film.flows(features0, features1)  # the kept values were not overwritten
    assert all(torch.equal(a, b) for a, b in zip(flows.forward, again.forward, strict=True))
    for found, wanted in zip(film(frame0, frame1, times), kept, strict=True):
        assert torch.equal(found, wanted)


def test_pairs_of_a_batch_do_not_meet(film, frames):
    pairs = [frames(64, 70), tuple(reversed(frames(64, 70)))]
    batch = [torch.cat(side) for side in zip(*pairs, strict=True)]
    (together,) = film(*batch, [Fraction(1, 4)])
    for index, pair in enumerate(pairs):
        (alone,) = film(*pair, [Fraction(1, 4)])
        assert (together[index] - alone[0]).abs().max() < 2e-5


def test_frames_of_the_caller_are_left_alone(film, frames):
    frame0, frame1 = frames(64, 64)
    before = frame0.clone()
    film(frame0, frame1, [0.5])[0].add_(1)  # the result is an ordinary tensor
    assert torch.equal(frame0, before)


@pytest.mark.parametrize(("height", "width"), [(40, 70), (1, 1)])
def test_small_frames_are_padded_by_replication_and_cropped(film, frames, height, width):
    frame0, frame1 = frames(height, width)
    (found,) = film(frame0, frame1, [0.5])
    assert found.shape == frame0.shape
    index = [torch.arange(max(64, side)).clamp(max=side - 1) for side in (height, width)]
    padded = [frame[:, :, index[0]][..., index[1]] for frame in (frame0, frame1)]
    (wanted,) = film(*padded, [0.5])
    assert torch.equal(found, wanted[..., :height, :width])


@pytest.mark.parametrize(
    "frame",
    [
        torch.zeros(3, 64, 64),
        torch.zeros(1, 4, 64, 64),
        torch.zeros(1, 1, 64, 64),
        torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
    ],
    ids=["no batch", "RGBA", "gray", "bytes"],
)
def test_frames_of_another_kind_are_refused(film, frame):
    with pytest.raises(FrameError, match=r"FILM takes float frames of shape \[B, 3, H, W\]"):
        film(frame, frame, [0.5])


@pytest.mark.parametrize("shape", [(64, 80), (40, 64)])
def test_frames_of_two_sizes_are_refused(film, shape):
    # 40 x 64 is padded to 64 x 64, but must be refused all the same.
    with pytest.raises(FrameError, match="must have the same size"):
        film(torch.zeros(1, 3, 64, 64), torch.zeros(1, 3, *shape), [0.5])


@pytest.mark.parametrize("t", [-0.1, Fraction(5, 4), float("nan")])
def test_times_outside_the_pair_are_refused(film, frames, t):
    with pytest.raises(SettingsError, match="between 0"):
        film(*frames(64, 64), [t])


def test_weights_of_either_precision_load_in_either(film, film_weights, tmp_path):
    path = tmp_path / "film_net_fp32.safetensors"
    save_file({name: tensor.float() for name, tensor in film_weights.items()}, path)
    loaded = load_film(path)
    assert loaded.fuse.output_conv.weight.dtype == torch.float32
    assert weights_hash(loaded) == weights_hash(film)
    half = load_film(path, dtype=torch.float16)
    assert half.fuse.output_conv.weight.dtype == torch.float16
    assert weights_hash(half) == weights_hash(film)
    assert not any(parameter.requires_grad for parameter in half.parameters())


def test_hash_tells_weights_apart(film, film_file):
    other = load_film(film_file)
    other.fuse.output_conv.bias[0] += 1
    assert weights_hash(other) != weights_hash(film)


def test_bfloat16_is_refused(film_file):
    with pytest.raises(SettingsError, match=r"float32 or float16, got torch\.bfloat16"):
        load_film(film_file, dtype=torch.bfloat16)


BIAS = "fuse.output_conv.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop(BIAS), f"{BIAS} is missing"),
        (lambda w: w.update(extra=torch.zeros(1)), "extra is unexpected"),
        (lambda w: w.update({BIAS: torch.zeros(4)}), rf"{BIAS} is \[4\] instead of \[3\]"),
        (lambda w: w.update({BIAS: torch.zeros(3).int()}), rf"{BIAS} holds no .*torch\.int32"),
        (lambda w: [w.pop(name) for name in list(w)[1:]], "and 76 more"),
    ],
)
def test_a_file_that_does_not_fit_names_the_tensors(film_weights, tmp_path, change, message):
    weights = dict(film_weights)
    change(weights)
    path = tmp_path / "other.safetensors"
    save_file(weights, path)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_film(path)
    assert "other.safetensors does not hold the FILM network" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a complete safetensors file"),
        (b"\n<!DOCTYPE html><html>", "is a web page, not weights"),
        (b"PK\x03\x04constants.pkl", "is a PyTorch archive"),
        (b"\x80\x02}q\x00.", "is a PyTorch archive"),
    ],
)
def test_a_file_that_is_something_else_is_recognized(tmp_path, content, message):
    path = tmp_path / "film_net_fp16.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_film(path)


def test_a_file_that_was_cut_off_is_recognized(film_file, tmp_path):
    path = tmp_path / "film_net_fp16.safetensors"
    path.write_bytes(film_file.read_bytes()[:1_000_000])
    with pytest.raises(
        CheckpointError, match="is not a complete safetensors file: download it again"
    ):
        load_film(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ModelMissingError, match=r"no FILM model at .*nothing\.safetensors"):
        load_film(tmp_path / "nothing.safetensors")


def test_predicted_memory_grows_with_the_picture_and_halves_with_the_type():
    weights = sum(parameter.numel() for parameter in FilmNet().parameters())
    small, large = (predict_peak_memory(side, side) - 4.4 * weights for side in (512, 1024))
    assert large == pytest.approx(4 * small)
    half = predict_peak_memory(512, 512, dtype=torch.float16) - 2.2 * weights
    assert 0.5 * small < half < 0.6 * small
    assert predict_peak_memory(10, 10) == predict_peak_memory(64, 64)
    # ComfyUI's own FILM reserves 1700 values per pixel.
    assert small < 0.4 * 1700 * 512 * 512 * 4
