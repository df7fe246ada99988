"""Devices: chosen, refused if they are not there or do not compute in a precision."""

from contextlib import nullcontext

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.device import choose_device, device_type, require_dtype
from comfyui_tlbvfi.tlbvfi.errors import MemoryBudgetError, SettingsError


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "hpu", "meta"])
def test_device_that_is_not_there_is_named_with_the_reason(name):
    with pytest.raises(
        SettingsError, match=rf"The device {name} cannot be used here \(.+\): choose"
    ):
        choose_device(name)


@pytest.fixture
def gpu_that_fails(monkeypatch):
    """A GPU on which every kernel fails with the given text, while memory can be allocated."""

    def fail(text):
        def kernel(*size, device):
            raise RuntimeError(text)

        monkeypatch.setattr(torch, "ones", kernel)
        monkeypatch.setattr(torch, "empty", lambda *size, device: torch.tensor([0.0]))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GeForce GTX 1080")

    return fail


@pytest.mark.parametrize("name", ["auto", "cuda:0"])
@pytest.mark.parametrize(
    "fault",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "HIP error: invalid device function",
    ],
)
def test_a_gpu_that_pytorch_was_not_built_for_is_refused_with_what_to_do(
    gpu_that_fails, name, fault
):
    gpu_that_fails(f"{fault}\nKernel errors might be reported at some other call.")
    with pytest.raises(SettingsError) as refused:
        choose_device(name)
    assert str(refused.value) == (
        f"This PyTorch was not built for GeForce GTX 1080 ({fault}): install one that was, see "
        "https://pytorch.org/get-started/locally, or choose the device cpu."
    )


def test_a_gpu_whose_memory_others_have_filled_is_not_taken_for_a_missing_one(gpu_that_fails):
    gpu_that_fails("CUDA error: out of memory")
    with pytest.raises(MemoryBudgetError, match="The memory of cuda is full: close the programs"):
        choose_device("auto")


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (12, 0)])
def test_bfloat16_is_refused_where_a_gpu_has_none(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    gpu = torch.device("cuda")
    require_dtype(torch.bfloat16, torch.device("cpu"))
    require_dtype(torch.float16, gpu)
    refused = pytest.raises(SettingsError, match="T4 does not compute in bfloat16: set precision")
    with refused if capability < (8, 0) else nullcontext():
        require_dtype(torch.bfloat16, gpu)


def test_the_type_of_a_device_is_known_without_it(gpu_that_fails):
    gpu_that_fails("CUDA error: out of memory")
    types = [device_type(name) for name in ("auto", "cuda:1", "cpu", "xpu:0")]
    assert types == ["cuda", "cuda", "cpu", "xpu"]


def test_device_is_chosen_by_itself():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")
