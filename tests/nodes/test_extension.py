"""The pack as ComfyUI loads it: its imports, and loading it beside a pack with the same ids."""

import json
import os
import re
import subprocess
import sys

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


# Runs in ComfyUI's Python and folder: lists what a pack imports besides itself and the stdlib.
LOAD = """
import asyncio, json, sys, time
from comfy.cli_args import args
args.cpu = True
import nodes, server

async def load(pack, other):
    server.PromptServer(asyncio.get_running_loop())
    assert await nodes.load_custom_node(other)  # for what ComfyUI needs to load any
    known, begun = set(sys.modules), time.process_time()
    assert await nodes.load_custom_node(pack)
    seconds = time.process_time() - begun
    new = {name for name in sys.modules.keys() - known if not name.startswith(pack)}
    others = sorted(n for n in new if n.split(".")[0] not in sys.stdlib_module_names)
    print(json.dumps({"seconds": seconds, "others": others}))

asyncio.run(load(*sys.argv[1:]))
"""
LIGHT = {"av", "cv2", "filelock", "safetensors"}


def test_loading_brings_in_nothing_heavy_and_computes_nothing(root, tmp_path):
    code = os.environ.get("COMFYUI_DIR")
    if not code:
        pytest.skip("COMFYUI_DIR does not name a ComfyUI checkout")
    pack, other = tmp_path / "pack", tmp_path / "other"
    pack.symlink_to(root)
    other.mkdir()
    (other / "__init__.py").write_text(OTHER_PACK)
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, "-c", LOAD, str(pack), str(other)]
    done = subprocess.run(command, cwd=code, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert {name.split(".")[0] for name in found["others"]} <= LIGHT
    assert found["seconds"] < 1  # CPU seconds; its imports take a third of one


def test_nothing_goes_wrong_without_models_and_gpu(comfyui):
    started = comfyui.text().split("got prompt")[0]  # other tests' prompts are meant to fail
    assert not re.findall(r"IMPORT FAILED.*TLBVFI", started)
    assert not re.findall(r"WARNING.*TLBVFI", started)


def test_another_pack_with_the_same_ids_is_named_in_the_log(fresh_comfyui, comfyui):
    server = fresh_comfyui(OTHER_PACK)
    assert re.search(r"TLBVFI_VFI is also a node of \S*other-pack", server.text()), server.text()
