"""The nodes that turn images into images, in a real ComfyUI."""

import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.comfyui


@pytest.fixture
def model_file(comfyui):
    """Make a file in ComfyUI's model folder, return its name. Removed after the test."""
    folder = comfyui.base / "models" / "interpolation"
    names = []

    def make(name: str, content: bytes) -> str:
        (folder / name).write_bytes(content)
        names.append(name)
        return name

    yield make
    for name in names:
        (folder / name).unlink()


@pytest.fixture
def levels(comfyui):
    """Gray level of the first pixel of each image that a prompt's node "save" saves."""

    def read(nodes: dict) -> list[int]:
        images = comfyui.run(nodes)["save"]["images"]
        paths = [comfyui.base / "output" / image["filename"] for image in images]
        return [int(cv2.imread(str(path))[0, 0, 0]) for path in paths]

    return read


@pytest.fixture
def batch(node, gray_batch):
    """A prompt that sends gray images through node "x" and saves them in node "save"."""

    def build(class_type: str, count: int, **inputs) -> dict:
        nodes, link = gray_batch(count)
        name = "frame_pair" if class_type == "TLBVFI_Interpolator" else "images"
        nodes["x"] = node(class_type, **{name: link, "model_name": "blend"}, **inputs)
        nodes["save"] = node("SaveImage", images=["x", 0], filename_prefix="level")
        return nodes

    return build


@pytest.mark.parametrize(
    ("scene_cuts", "gray"), [("ignore", [0, 63, 127, 191, 255]), ("hold", [0, 0, 127, 127, 255])]
)
def test_a_batch_becomes_the_whole_sequence(batch, levels, scene_cuts, gray):
    inputs = {"times_to_interpolate": 1, "scene_cuts": scene_cuts}
    assert levels(batch("TLBVFI_BatchInterpolator_V2", 3, **inputs)) == gray


def test_a_video_can_take_the_place_of_a_batch(comfyui, clip, node):
    nodes = {
        "l": node("LoadVideo", file=clip("batch.mp4", frames=5)),
        "x": node("TLBVFI_BatchInterpolator_V2", images=["l", 0], model_name="blend"),
        "p": node("PreviewAny", source=["x", 1]),
    }
    assert comfyui.run(nodes)["p"]["text"] == ["9"]


@pytest.mark.parametrize("loader", ["LoadVideo", "OddVideo"])
def test_a_file_that_is_no_video_is_named_in_a_sentence(comfyui, node, loader):
    (comfyui.base / "input" / "broken.mp4").write_bytes(b"no video at all" * 99)
    nodes = {
        "l": node(loader, file="broken.mp4"),
        "x": node("TLBVFI_BatchInterpolator_V2", images=["l", 0], model_name="blend"),
        "p": node("PreviewAny", source=["x", 1]),
    }
    assert "is not a video, or is too damaged to be opened" in comfyui.error(nodes)


def test_without_source_frames_only_the_new_ones_come(batch, levels):
    inputs = {"times_to_interpolate": 1, "scene_cuts": "ignore", "include_source_frames": False}
    assert levels(batch("TLBVFI_BatchInterpolator_V2", 3, **inputs)) == [63, 191]


def test_a_pair_that_is_not_the_last_leaves_out_its_end(batch, levels):
    inputs = {"times_to_interpolate": 1, "gpu_id": 0}
    assert levels(batch("TLBVFI_Interpolator", 2, **inputs)) == [0, 127]
    assert levels(batch("TLBVFI_Interpolator", 2, is_last_pair=True, **inputs)) == [0, 127, 255]


def test_of_a_batch_in_the_place_of_a_pair_the_first_two_frames_are_taken(batch, levels):
    inputs = {"times_to_interpolate": 1, "gpu_id": 0, "is_last_pair": True}
    assert levels(batch("TLBVFI_Interpolator", 3, **inputs)) == [0, 63, 127]


def test_two_frames_are_a_pair_however_they_differ(batch, levels):
    inputs = {"times_to_interpolate": 1, "scene_cuts": "hold"}
    assert levels(batch("TLBVFI_BatchInterpolator_V2", 2, **inputs)) == [0, 127, 255]


def test_the_nodes_of_both_packs_do_what_they_did(batch, levels):
    tf32 = batch("TLBVFI_VFI_TF32", 2, times_to_interpolate=2, gpu_id=0)
    assert levels(tf32) == [0, 63, 127, 191, 255]
    other = {"diffusion_steps": 10, "batch_size": 2, "flow_scale": 0.5}
    assert levels(batch("TLBVFI_VFI", 2, times_to_interpolate=1, **other)) == [0, 127, 255]


def pair(node, width: int = 64, **inputs) -> dict:
    nodes = {
        "a": node("EmptyImage", width=64, height=48, batch_size=1, color=0),
        "b": node("EmptyImage", width=width, height=48, batch_size=1, color=0xFFFFFF),
    }
    mid = node(
        "TLBVFI_Interpolator_V2",
        prev_frame=["a", 0],
        next_frame=["b", 0],
        **({"model_name": "blend"} | inputs),
    )
    save = node("SaveImage", images=["x", 0], filename_prefix="level")
    return nodes | {"x": mid, "save": save}


def test_0_times_gives_the_mid_frame_alone_and_is_the_default(node, levels):
    assert levels(pair(node)) == [127]
    assert levels(pair(node, times_to_interpolate=0)) == [127]
    assert levels(pair(node, times_to_interpolate=1)) == [0, 127, 255]


@pytest.mark.parametrize("steps", [1, 2, 50])
def test_few_and_many_steps_are_taken(node, levels, steps):
    assert levels(pair(node, sample_steps=steps)) == [127]


def test_frames_of_two_sizes_are_refused_with_both(comfyui, node):
    message = comfyui.error(pair(node, width=96))
    assert "64x48 with 3 channels and 96x48 with 3 channels" in message


@pytest.fixture
def refusal_of(comfyui, node):
    """The error of each node that takes images, for a batch, by node id."""

    def run(**batch) -> dict[str, str]:
        common = {"model_name": "blend", "times_to_interpolate": 1, "gpu_id": 0}
        last = {"codec": "auto", "bitrate": "", "fps": 30.0}
        nodes = {
            "TLBVFI_BatchInterpolator_V2": {"images": ["i", 0], **common},
            "TLBVFI_Interpolator": {"frame_pair": ["i", 0], **common},
            "TLBVFI_Interpolator_V2": {"prev_frame": ["i", 0], "next_frame": ["i", 0], **common},
            "TLBVFI_ChunkVideoSaver": {"frames": ["i", 0], "chunk_id": 0, "fps": 30},
            "TLBVFI_ChunkProcessor": {"images": ["i", 0], **common, **last},
        }
        size = {"height": 48, "width": 64, "channels": 3}
        images = node("OddImages", **({"levels": "0 1"} | size | batch))
        shown = node("PreviewAny", source=["x", 0])
        return {
            name: comfyui.error({"i": images, "x": node(name, **inputs), "p": shown})
            for name, inputs in nodes.items()
        }

    return run


def test_a_frame_with_broken_pixels_is_refused_with_its_number(refusal_of):
    messages = refusal_of(levels="0 nan")
    del messages["TLBVFI_Interpolator_V2"]  # uses only the first frame
    for name, message in messages.items():
        assert message.lower().startswith("frame 1 "), (name, message)
        assert "holds NaN or infinite pixels" in message


def test_images_of_one_channel_are_refused(refusal_of):
    messages = refusal_of(channels=1)
    del messages["TLBVFI_ChunkProcessor"]  # stores them as gray
    for name, message in messages.items():
        assert "this one has 2 of 64x48 with 1 channels" in message, (name, message)


def test_no_images_are_refused(refusal_of):
    for name, message in refusal_of(levels="").items():
        assert "at least 2 frames" in message or "this one has 0 of 64x48" in message, (
            name,
            message,
        )


def test_a_result_beyond_all_memory_is_refused_before_it_begins(comfyui, node):
    nodes = {
        "i": node("OddImages", levels="0 1", height=10**6, width=10**6, channels=3),
        "x": node("TLBVFI_BatchInterpolator_V2", images=["i", 0], model_name="blend"),
        "p": node("PreviewAny", source=["x", 1]),
    }
    message = comfyui.error(nodes)
    assert "3 frames of 1000000x1000000 need 36000.0 GB as one IMAGE batch and there are" in message
    assert "GB in all: use TLBVFI Chunk Processor" in message


@pytest.mark.parametrize("name", ["model", "interp_model"])
def test_a_text_in_the_place_of_a_model_is_refused(comfyui, node, name):
    assert f"{name} str " in comfyui.error(pair(node, **{name: "film"}))


@pytest.mark.parametrize("name", ["model", "interp_model"])
@pytest.mark.parametrize(
    "node_type",
    ["TLBVFI_Interpolator_V2", "TLBVFI_BatchInterpolator_V2", "TLBVFI_ChunkProcessor"],
)
def test_a_connected_model_makes_a_name_that_is_gone_unimportant(comfyui, node, node_type, name):
    nodes = pair(node)
    both = {"prev_frame": ["a", 0], "next_frame": ["b", 0], "images": ["b", 0]}
    more = {"times_to_interpolate": 1, "fps": 30.0, "codec": "auto", "bitrate": "", "gpu_id": 0}
    text = node("OddAny", text='"film"')
    model = {name: ["m", 0], "model_name": "gone.pth"}
    nodes |= {"m": text, "x": node(node_type, **both, **more, **model)}
    nodes["b"]["inputs"]["batch_size"] = 2
    nodes["save"] = node("PreviewAny", source=["x", 0])
    assert f"{name} str " in comfyui.error(nodes)


def test_the_name_of_a_checkpoint_may_come_over_a_link(comfyui, node, model_file):
    name = {"t": node("PrimitiveString", value=model_file("empty.pth", b""))}
    # its output may have any type
    name["s"] = node("ComfySwitchNode", switch=True, on_true=["t", 0], on_false=["t", 0])
    load = node("TLBVFI_LoadModel", model_name=["s", 0])
    assert "empty.pth is empty" in comfyui.error(name | pair(node, model=["m", 0]) | {"m": load})


def test_the_model_list_offers_checkpoints_and_the_official_one_first(comfyui, model_file):
    (comfyui.base / "models" / "interpolation" / "gimm-vfi").mkdir(exist_ok=True)
    for name in ("a.pth", "vimeo_unet.pth", "notes.txt", "gimm-vfi/gimmvfi_f.safetensors"):
        model_file(name, b"")
    known = comfyui.get("/object_info")
    choices = known["TLBVFI_ChunkProcessor"]["input"]["required"]["model_name"][1]
    assert choices["options"] == ["a.pth", "vimeo_unet.pth", "flow", "blend"]
    assert choices["default"] == "vimeo_unet.pth"
    choices = known["TLBVFI_LoadModel"]["input"]["required"]["model_name"][1]
    assert (choices["options"], choices["default"]) == (
        ["a.pth", "vimeo_unet.pth"],
        "vimeo_unet.pth",
    )


@pytest.mark.parametrize(
    ("gpu_id", "node_type", "images"),
    [
        (3, "TLBVFI_Interpolator", "frame_pair"),
        (4, "TLBVFI_VFI_TF32", "images"),
        (5, "TLBVFI_Interpolator_V2", "prev_frame"),
        (6, "TLBVFI_BatchInterpolator_V2", "images"),
        (7, "TLBVFI_ChunkProcessor", "images"),
    ],
)
def test_a_gpu_that_is_not_there_is_told(comfyui, node, model_file, gpu_id, node_type, images):
    options = {"model_name": model_file("empty.pth", b""), "gpu_id": gpu_id}
    more = {"times_to_interpolate": 1, "fps": 30.0, "codec": "auto", "bitrate": ""}
    nodes = pair(node)
    nodes["b"]["inputs"]["batch_size"] = 2
    inputs = {"next_frame": ["b", 0], images: ["b", 0]}
    nodes["x"] = node(node_type, **inputs, **options, **more)
    nodes["save"] = node("PreviewAny", source=["x", 0])
    assert "empty.pth is empty" in comfyui.error(nodes)
    assert f"gpu_id {gpu_id}: there is no such GPU" in comfyui.text()


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("precision", "precision must be auto, float32, bfloat16, float16, got 'half'."),
        ("model_name", "there is no model 'half' in models/interpolation"),
    ],
)
def test_a_choice_that_there_is_not_is_refused_over_a_link(
    comfyui, node, model_file, name, sentence
):
    nodes = pair(node, **{"model_name": model_file("empty.pth", b""), name: ["s", 0]})
    nodes["t"] = node("PrimitiveString", value="half")
    # its output may have any type
    nodes["s"] = node("ComfySwitchNode", switch=True, on_true=["t", 0], on_false=["t", 0])
    assert sentence in comfyui.error(nodes)


def test_no_model_at_all_says_what_to_download_and_where(comfyui, node):
    nodes = {
        "m": node("TLBVFI_LoadModel", model_name="vimeo_unet.pth"),
        **pair(node, model=["m", 0]),
    }
    (problem,) = comfyui.refusal(nodes)
    assert "put vimeo_unet.pth from https://huggingface.co/ucfzl/TLBVFI into" in problem["details"]
    assert str(comfyui.base / "models" / "interpolation") in problem["details"]


def test_a_broken_checkpoint_is_named(comfyui, node, model_file):
    nodes = pair(node, model_name=model_file("broken.pth", b"<html>"))
    assert "broken.pth is a web page, not weights" in comfyui.error(nodes)


def test_clearing_the_model_cache_runs_every_time(comfyui, node):
    nodes = {"k": node("TLBVFI_ClearModelCache")}
    for _ in range(2):
        entry = comfyui.wait(comfyui.queue(nodes))
        cached = dict(entry["status"]["messages"])["execution_cached"]["nodes"]
        assert cached == []


def test_a_pair_costs_under_10_ms(comfyui, node):
    """CPU time of a plain cross-fade at 256x448, including all of ComfyUI's own work."""
    count = 200
    mix = {"model_name": "blend", "scene_cuts": "ignore"}
    nodes = {
        "e": node("EmptyImage", width=448, height=256, batch_size=count, color=0x336699),
        "x": node("TLBVFI_BatchInterpolator_V2", images=["e", 0], **mix),
        "p": node("PreviewAny", source=["x", 1]),
    }
    comfyui.run(nodes)
    nodes["x"]["inputs"]["seed"] = 1
    before = comfyui.cpu_seconds()
    comfyui.run(nodes)
    assert (comfyui.cpu_seconds() - before) / (count - 1) < 0.01


def test_film_through_the_chunks_gives_comfyui_s_own_frames(
    comfyui, clip, node, film_model, pictures
):
    name = clip("film.mp4", frames=6, width=128, height=96)
    load = {
        "l": node("LoadVideo", file=name),
        "m": node("FrameInterpolationModelLoader", model_name=film_model),
    }
    ours = load | {
        "c": node(
            "TLBVFI_ChunkProcessor",
            images=["g", 0],
            model_name="blend",
            times_to_interpolate=2,
            fps=24.0,
            codec="ffv1",
            bitrate="",
            gpu_id=0,
            interp_model=["m", 0],
        ),
        "g": node("GetVideoComponents", video=["l", 0]),
    }
    theirs = load | {
        "g": node("GetVideoComponents", video=["l", 0]),
        "x": node("FrameInterpolate", interp_model=["m", 0], images=["g", 0], multiplier=4),
        "save": node("SaveImage", images=["x", 0], filename_prefix="theirs"),
    }
    frames = pictures(comfyui.saved(comfyui.run(ours, timeout=300)["c"]))
    images = comfyui.run(theirs, timeout=300)["save"]["images"]
    expected = np.stack(
        [
            cv2.cvtColor(
                cv2.imread(str(comfyui.base / "output" / i["filename"])), cv2.COLOR_BGR2RGB
            )
            for i in images
        ]
    )
    assert frames.shape == expected.shape
    # core's Save Image truncates, ffv1 keeps 16 bits: they differ by at most that one step
    assert np.abs(frames.astype(int) - expected).max() <= 1
