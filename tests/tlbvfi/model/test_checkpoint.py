"""Weights files: what is read, what is refused, and what each refusal says."""

import os
import pickle
import struct
import zipfile
import zlib

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.checkpoint import convert, load_checkpoint, read_weights, weights_hash
from comfyui_tlbvfi.tlbvfi.errors import CheckpointError, ModelMissingError, SettingsError
from safetensors.torch import load_file, save_file
from torch import nn


class Attack:
    """Makes a folder if it is unpickled."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.fixture(scope="session")
def official(stand_in_state, tmp_path_factory):
    """A file laid out as the official one: duplicates, schedule, training state."""
    state = dict(stand_in_state)
    state |= {f"cond_stage_model.{n[6:]}": t for n, t in state.items() if n.startswith("vqgan.")}
    names = ("m_t", "m_tminus", "variance_t", "variance_tminus", "variance_t_tminus")
    state |= {name: torch.zeros(1000) for name in (*names, "posterior_variance_t")}
    state["num_timesteps"] = 1000  # not a tensor
    path = tmp_path_factory.mktemp("weights") / "vimeo_unet.pth"
    torch.save({"step": 7, "epoch": 1, "ema": {"a": torch.zeros(3)}, "model": state}, path)
    return path


@pytest.fixture(scope="session")
def converted(official):
    path = official.with_name("tlbvfi.safetensors")
    convert(official, path)
    return path


def test_the_official_file_gives_the_model(official, model):
    loaded = load_checkpoint(official)
    state, wanted = loaded.state_dict(), model.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())


def test_the_model_outlives_its_file(converted, tmp_path):
    path = tmp_path / "copy.safetensors"
    path.write_bytes(converted.read_bytes())
    loaded = load_checkpoint(path)
    path.write_bytes(b"\0" * 1000)
    assert all(torch.isfinite(p).all() for p in loaded.parameters())


def test_a_bare_state_dict_is_read(stand_in_state, tmp_path):
    torch.save(stand_in_state, tmp_path / "bare.pth")
    assert len(read_weights(tmp_path / "bare.pth")) > 800


def test_conversion_keeps_every_bit_that_is_used_and_nothing_else(official, converted):
    stored, wanted = load_file(converted), read_weights(official)
    assert stored.keys() == wanted.keys()
    assert all(torch.equal(stored[name], wanted[name]) for name in wanted)
    assert converted.stat().st_size < official.stat().st_size


def identity(path):
    return weights_hash(read_weights(path))


def test_a_file_and_its_conversion_have_one_identity(official, converted, tmp_path):
    assert identity(official) == identity(converted)
    state = load_file(converted)
    state["vqgan.quant_conv.bias"] = state["vqgan.quant_conv.bias"] + 1e-6
    save_file(state, tmp_path / "other.safetensors")
    assert identity(tmp_path / "other.safetensors") != identity(converted)


def test_half_precision_files_are_smaller_and_load(converted, tmp_path):
    path = tmp_path / "half.safetensors"
    convert(converted, path, dtype=torch.float16)
    assert path.stat().st_size < 0.51 * converted.stat().st_size
    assert all(p.dtype == torch.float32 for p in load_checkpoint(path).parameters())


def test_a_lower_compute_dtype_leaves_encoder_and_flow_in_float32(converted):
    model = load_checkpoint(converted, dtype=torch.bfloat16)
    assert model.vqgan.decoder.up[0].block[0].conv1.weight.dtype == torch.bfloat16
    for part in (model.denoise_fn, model.vqgan.quantize, model.vqgan.encoder):
        assert all(p.dtype == torch.float32 for p in part.parameters())
    for part in (model.vqgan.decoder.flownet, model.vqgan.decoder.refinenet):
        assert all(p.dtype == torch.float32 for p in part.parameters())


def test_layers_are_built_from_the_operations_given(converted):
    built = []

    class Operations:
        def __getattr__(self, name):
            built.append(name)
            return getattr(nn, name)

    load_checkpoint(converted, operations=Operations())
    assert {"Conv2d", "Conv3d", "Linear", "GroupNorm", "LayerNorm"} <= set(built)


def refused(path, *words):
    with pytest.raises(CheckpointError) as raised:
        load_checkpoint(path)
    text = str(raised.value)
    assert path.name in text
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ModelMissingError, match=r"no\.pth"):
        load_checkpoint(tmp_path / "no.pth")


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html><title>Sign in</title>", "web page"),
        (b"\n<html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS"),
        (b"PK\x03\x04" + b"\0" * 600, "cut off"),
        (b"GIF89a", "neither"),
        (b"\x10\0\0\0\0\0\0\0{not json at all", "safetensors"),
    ],
)
def test_other_files_are_recognized(tmp_path, content, word):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    refused(path, word)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_truncated_file_is_refused(official, converted, tmp_path, suffix):
    whole = official if suffix == "pth" else converted
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    refused(path, "download it again")


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # some set it for other programs
    target = tmp_path / "made by the attack"
    torch.save({"model": Attack(target)}, tmp_path / "zip.pth")
    with (tmp_path / "bare.pth").open("wb") as file:
        pickle.dump({"model": Attack(target)}, file)
    refused(tmp_path / "zip.pth", "code")
    refused(tmp_path / "bare.pth", "code")
    assert not target.exists()


@pytest.mark.parametrize(("member", "word"), [("x/constants.pkl", "TorchScript"), ("x/a", "zip")])
def test_other_archives_are_recognized(tmp_path, member, word):
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, b"")
    refused(path, word)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x02K\x01a.", b"\x80\x02h\x05.", b"\x80\x02]b."]
)
def test_a_broken_table_of_weights_is_damage(tmp_path, content):
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        for member, data in (("data.pkl", content), ("version", b"3\n"), ("byteorder", b"little")):
            archive.writestr(f"model/{member}", data)
    refused(tmp_path / "model.pth", "model.pth")


@pytest.mark.parametrize(
    ("mark", "at", "change"),
    [
        (b"PK\x01\x02", 0, b"XXXX"),
        pytest.param(b"PK\x01\x02", 6, b"\xff\xff", id="version"),
        pytest.param(b"PK\x01\x02", 8, b"\x00\x08", id="names-in-UTF-8"),
        pytest.param(b"PK\x06\x07", 16, b"\x09", id="disks"),
    ],
)
def test_a_broken_archive_is_damage(tmp_path, mark, at, change):
    path = tmp_path / "model.pth"
    torch.save({"model": {"a": torch.zeros(9)}}, path)
    content = bytearray(path.read_bytes().replace(b"/data.pkl", b"/dat\xff.pkl"))
    at += content.index(mark)
    content[at : at + len(change)] = change
    path.write_bytes(content)
    refused(path, "damaged")


def test_numbers_beyond_all_memory_are_damage(tmp_path):
    calls_bytearray = b"\x80\x02cbuiltins\nbytearray\n(\x8a\x0a" + b"\xff" * 9 + b"\x01tR."
    with zipfile.ZipFile(tmp_path / "model.pth", "w") as archive:
        for member, data in (("data.pkl", calls_bytearray), ("version", b"3\n")):
            archive.writestr(f"model/{member}", data)
    refused(tmp_path / "model.pth", "damaged")


def test_a_pth_by_another_name_is_read_or_its_name_refused(official, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(official.read_bytes())
    try:
        assert read_weights(path).keys() == read_weights(official).keys()
    except CheckpointError as error:
        assert "rename it to model.pth" in str(error)  # noqa: PT017 - depends on torch's version


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("extract.extract_sublevels.convs.0.0.conv.weight", "FILM"),
        ("block0.conv0.0.0.weight", "RIFE"),
        ("something.else", "something.else"),
    ],
)
def test_other_networks_are_named(tmp_path, name, word):
    save_file({name: torch.zeros(3)}, tmp_path / "other.safetensors")
    refused(tmp_path / "other.safetensors", word, "TLB-VFI")


def test_a_checkpoint_without_weights_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "no table")
    torch.save({"model": {}}, tmp_path / "empty.pth")
    refused(tmp_path / "empty.pth", "no tensors")


def test_tensors_that_do_not_fit_are_named(converted, tmp_path):
    state = load_file(converted)
    del state["denoise_fn.out.2.bias"]
    state["vqgan.quant_conv.weight"] = torch.zeros(3, 4, 1, 1)
    state["vqgan.extra"] = torch.zeros(1)
    path = tmp_path / "odd.safetensors"
    save_file(state, path)
    refused(
        path,
        "denoise_fn.out.2.bias is missing",
        "vqgan.quant_conv.weight is [3, 4, 1, 1] instead of [3, 3, 1, 1]",
        "vqgan.extra is unexpected",
    )


def test_other_types_and_names_are_refused(converted, tmp_path):
    with pytest.raises(SettingsError, match="float64"):
        load_checkpoint(converted, dtype=torch.float64)
    with pytest.raises(SettingsError, match="float64"):
        convert(converted, tmp_path / "a.safetensors", dtype=torch.float64)
    with pytest.raises(SettingsError, match=r"\.safetensors"):
        convert(converted, tmp_path / "a.pth")


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + b"N0" * 1_000_000)
    refused(path, "is compressed")


PROGRAM = {b"x/data.pkl": b"\x80\x02}.", b"x/constants.pkl": b"\x80\x02).", b"x/version": b"3\n"}


def member(name, data, place):
    """A file in an archive, and its entry in the directory."""
    common = struct.pack(
        "<5H3I2H", 20, 0, 0, 0, 0, zlib.crc32(data), *[len(data)] * 2, len(name), 0
    )
    entry = b"PK\1\2" + struct.pack("<H", 20) + common + struct.pack("<3H2I", 0, 0, 0, 0, place)
    return b"PK\3\4" + common + name + data, entry + name


def two_directories(real, shown, *, is_long):
    """An archive with one directory where its records say, and another one right before them."""
    content, directories = b"", []
    for members in (real, shown):
        directories.append(b"")
        for name, data in members.items():
            stored, entry = member(name, data, len(content))
            directories[-1] += entry
            content += stored
    count, size = len(real), len(directories[0])
    stated = len(content)
    if not is_long:
        end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, count, count, size, stated, 0)
        return content + directories[0] + directories[1] + end
    ends = []
    for directory, members in zip(directories, (real, shown), strict=True):
        facts = (44, 45, 45, 0, 0, len(members), len(members), len(directory), len(content))
        content += directory
        ends.append(len(content))
        content += struct.pack("<4sQ2H2I4Q", b"PK\6\6", *facts)
    place = struct.pack("<4sIQI", b"PK\6\7", 0, ends[0], 1)
    return (
        content
        + place
        + struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *[2**16 - 1] * 2, *[2**32 - 1] * 2, 0)
    )


@pytest.mark.parametrize("is_long", [False, True])
def test_a_program_behind_a_second_directory_is_refused(tmp_path, is_long):
    path = tmp_path / "model.pth"
    shown = {b"x/data.pkl": b"", b"x/just_data.pkl": b"", b"x/version": b"3"}
    path.write_bytes(two_directories(PROGRAM, shown, is_long=is_long))
    assert "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    refused(path, "damaged")
    content = path.read_bytes()
    comment = struct.pack("<12x2IH", 0, len(content), 0)  # in the place of an end
    path.write_bytes(content[:-2] + struct.pack("<H", len(comment)) + comment)
    refused(path, "damaged")


@pytest.mark.parametrize(
    ("folder", "more"), [("x", "\0.txt"), ("x" * 497, "ish"), ("é" * 248 + "x", "ish")]
)
def test_a_program_under_a_name_that_torch_cuts_off_is_refused(tmp_path, folder, more):
    path = tmp_path / "model.pth"
    disguised = zipfile.ZipInfo("a")
    disguised.filename = f"{folder}/constants.pkl{more}"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{folder}/data.pkl", b"")
        archive.writestr(disguised, b"")
        archive.writestr(f"{folder}/version", b"3")
    assert "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    refused(path, "model.pth")


@pytest.mark.filterwarnings("ignore:Validating sparse tensor:UserWarning")  # PyTorch 2.15
@pytest.mark.parametrize(
    "change",
    [
        lambda tensor: tensor.to(torch.complex64),
        lambda tensor: tensor.to_sparse(),
        lambda tensor: tensor.to("meta"),
        lambda tensor: tensor.to(torch.int32),
    ],
)
def test_weights_that_are_no_plain_numbers_are_refused(stand_in_state, tmp_path, change):
    name = next(iter(stand_in_state))
    path = tmp_path / "odd.pth"
    torch.save({**stand_in_state, name: change(stand_in_state[name])}, path)
    refused(path, name, "no plain numbers")
