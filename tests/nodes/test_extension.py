"""The pack as ComfyUI loads it: how long that takes, and what happens beside a pack of the same ids."""

import re

import pytest

pytestmark = pytest.mark.comfyui

OTHER_PACK = """
class Vfi:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES, FUNCTION, CATEGORY = (), "run", "other"
    def run(self):
        return ()

NODE_CLASS_MAPPINGS = {"TLBVFI_VFI": Vfi}
"""


def test_loading_takes_under_half_a_second(comfyui):
    seconds = re.findall(r"([\d.]+) seconds: \S*ComfyUI-TLBVFI", comfyui.text())
    assert float(seconds[0]) < 0.5


def test_nothing_goes_wrong_without_models_and_gpu(comfyui):
    started = comfyui.text().split("got prompt")[
        0
    ]  # the other tests' prompts are meant to go wrong
    assert not re.findall(r"IMPORT FAILED.*TLBVFI", started)
    assert not re.findall(r"WARNING.*TLBVFI", started)


def test_another_pack_with_the_same_ids_is_named_in_the_log(fresh_comfyui, comfyui):
    server = fresh_comfyui(OTHER_PACK)
    assert re.search(r"TLBVFI_VFI is also a node of \S*other-pack", server.text()), server.text()
