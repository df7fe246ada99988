"""TLB-VFI itself in a real ComfyUI, with stand-in weights laid out as the official checkpoint."""

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from comfyui_tlbvfi.tlbvfi.bench.stand_in import stand_in_weights
from comfyui_tlbvfi.tlbvfi.checkpoint import load_checkpoint
from comfyui_tlbvfi.tlbvfi.method import PairKey
from comfyui_tlbvfi.tlbvfi.methods.tlbvfi import TlbvfiMethod
from comfyui_tlbvfi.tlbvfi.model import SamplingOptions

pytestmark = [pytest.mark.comfyui, pytest.mark.slow]

SAVED_GRAPHS = sorted((Path(__file__).parent / "saved_graphs").glob("*.json"))


@pytest.fixture(scope="module")
def checkpoint(comfyui, root):
    """`vimeo_unet.pth` in ComfyUI's model folder, while these tests run."""
    rows = map(str.split, (root / "tests/data/tlbvfi_keys.txt").read_text().splitlines())
    weights = stand_in_weights({name: tuple(map(int, sides)) for name, *sides in rows})
    target = comfyui.base / "models" / "interpolation" / "vimeo_unet.pth"
    torch.save({"model": weights}, target)
    yield target
    target.unlink()


@pytest.fixture(scope="module")
def two_frames(comfyui):
    """Names of two 448x256 images in ComfyUI's input folder."""
    rows, columns = np.mgrid[:256, :448]
    names = []
    for n in range(2):
        waves = [127 + 100 * np.sin((columns + 6 * n) / (9 + 4 * c) + rows / 17) for c in range(3)]
        names.append(f"wave{n}.png")
        image = np.stack(waves, axis=-1).round().astype(np.uint8)
        cv2.imwrite(str(comfyui.base / "input" / names[-1]), image)
    return names


def read_image(path: Path) -> np.ndarray:
    return cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)


@pytest.fixture
def mid_frame(comfyui, node, two_frames):
    """The mid frame that a prompt makes from the two images, uint8."""

    def run(extra: dict | None = None, **inputs) -> np.ndarray:
        nodes = {
            "a": node("LoadImage", image=two_frames[0]),
            "b": node("LoadImage", image=two_frames[1]),
            "x": node("TLBVFI_Interpolator_V2", prev_frame=["a", 0], next_frame=["b", 0], **inputs),
            "save": node("SaveImage", images=["x", 0], filename_prefix="mid"),
        }
        (saved,) = comfyui.run(nodes | (extra or {}), timeout=300)["save"]["images"]
        return read_image(comfyui.base / "output" / saved["filename"])

    return run


@pytest.mark.parametrize("steps", [1, 2])
def test_the_node_gives_the_library_s_frame(comfyui, checkpoint, two_frames, mid_frame, steps):
    made = mid_frame(model_name="vimeo_unet.pth", sample_steps=steps, padding="tight", seed=7)
    method = TlbvfiMethod(
        load_checkpoint(checkpoint), SamplingOptions(steps=steps, padding="tight")
    )
    images = [read_image(comfyui.base / "input" / name) for name in two_frames]
    features = [
        method.prepare(torch.from_numpy(image).movedim(-1, 0).float() / 255) for image in images
    ]
    (frame,) = method.between(*features, [Fraction(1, 2)], PairKey(7, 0))
    expected = frame.movedim(0, -1).numpy() * 255
    assert np.abs(made - expected).max() < 1.01  # core's Save Image truncates


@pytest.mark.parametrize(("width", "height"), [(512, 512), (640, 360), (854, 480), (1280, 720)])
@pytest.mark.usefixtures("checkpoint")
def test_sizes_older_packs_failed_on_go_through(comfyui, node, width, height):
    nodes = {
        "e": node("EmptyImage", width=width, height=height, batch_size=2, color=0x336699),
        "x": node(
            "TLBVFI_BatchInterpolator_V2",
            images=["e", 0],
            model_name="vimeo_unet.pth",
            sample_steps=10,
            padding="tight",
        ),
        "p": node("PreviewAny", source=["x", 1]),
    }
    assert comfyui.run(nodes, timeout=600)["p"]["text"] == ["3"]


@pytest.mark.usefixtures("checkpoint")
def test_a_connected_model_gives_the_same_frame_and_is_read_once(comfyui, node, mid_frame):
    load = {"m": node("TLBVFI_LoadModel", model_name="vimeo_unet.pth")}
    before = comfyui.text().count("vimeo_unet.pth:")
    by_name = mid_frame(model_name="vimeo_unet.pth", sample_steps=2, padding="tight")
    by_link = mid_frame(load, model_name="blend", model=["m", 0], sample_steps=2, padding="tight")
    assert (by_name == by_link).all()
    assert comfyui.text().count("vimeo_unet.pth:") - before <= 1


def test_a_checkpoint_replaced_under_its_name_is_read_anew_and_another_time_not(
    comfyui, checkpoint, node
):
    nodes = {
        "m": node("TLBVFI_LoadModel", model_name=checkpoint.name),
        "a": node("EmptyImage", width=64, height=64, batch_size=2, color=0x336699),
        "x": node(
            "TLBVFI_BatchInterpolator_V2",
            images=["a", 0],
            model_name=checkpoint.name,
            sample_steps=10,
            padding="tight",
        ),
        "p": node("PreviewAny", source=["x", 1]),
        "q": node("PreviewAny", source=["m", 0]),
    }

    def cached() -> set[str]:
        entry = comfyui.wait(comfyui.queue(nodes), timeout=300)
        return set(dict(entry["status"]["messages"])["execution_cached"]["nodes"])

    cached()
    assert {"m", "x"} <= cached()
    replaced = checkpoint.stat().st_mtime_ns + 10**9
    os.utime(checkpoint, ns=(replaced, replaced))
    assert not {"m", "x"} & cached()
    assert {"m", "x"} <= cached()


@pytest.mark.usefixtures("checkpoint")
def test_a_tile_size_of_an_older_graph_does_not_change_a_pixel(mid_frame):
    options = {"model_name": "vimeo_unet.pth", "sample_steps": 2, "padding": "tight"}
    assert (mid_frame(**options) == mid_frame(**options, tile_size=128)).all()


@pytest.mark.usefixtures("checkpoint")
def test_a_video_goes_through_and_on_after_a_restart_of_the_server(comfyui, clip, node):
    name = clip("model.mp4", frames=4, width=448, height=256)
    nodes = {
        "l": node("LoadVideo", file=name),
        "c": node(
            "TLBVFI_ChunkProcessor",
            images=["l", 0],
            model_name="vimeo_unet.pth",
            times_to_interpolate=1,
            fps=0.0,
            codec="libx264",
            bitrate="",
            gpu_id=0,
            sample_steps=2,
            padding="tight",
            session_id="model",
        ),
    }
    comfyui.queue(nodes)
    comfyui.stop()
    comfyui.start()
    result = comfyui.saved(comfyui.run(nodes, timeout=300)["c"])
    with av.open(str(result)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 7


@pytest.mark.parametrize("path", SAVED_GRAPHS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("checkpoint")
def test_a_saved_graph_runs_with_the_model_it_names(comfyui, page, clip, path):
    clip("clip.mp4", frames=4, width=128, height=96)
    for n, name in enumerate(("frame_prev.png", "frame_next.png")):
        image = np.full((64, 96, 3), 60 + 80 * n, np.uint8)
        cv2.imwrite(str(comfyui.base / "input" / name), image)
    assert comfyui.run(page.prompt_of(json.loads(path.read_text())), timeout=600)
