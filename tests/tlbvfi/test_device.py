"""Devices: chosen, refused if they are not there or do not compute in a precision."""

from contextlib import nullcontext

import pytest
import torch
from comfyui_tlbvfi.tlbvfi.device import choose_device, require_dtype
from comfyui_tlbvfi.tlbvfi.errors import SettingsError


@pytest.mark.parametrize("name", ["cuda:99", "nonsense", "hpu", "meta"])
def test_device_that_is_not_there_is_named(name):
    with pytest.raises(SettingsError, match=f"The device {name} cannot be used here"):
        choose_device(name)


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


def test_device_is_chosen_by_itself():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == torch.device("cpu")
