"""The nodes that only take frames out of a batch, in a real ComfyUI."""

import cv2
import pytest

pytestmark = pytest.mark.comfyui


@pytest.fixture
def shown(comfyui, node):
    """Run a prompt and return these outputs of node "x" as text."""

    def run(nodes: dict, outputs: tuple[int, ...]) -> list[str]:
        previews = {f"p{i}": node("PreviewAny", source=["x", i]) for i in outputs}
        result = comfyui.run(nodes | previews)
        return [result[f"p{i}"]["text"][0] for i in outputs]

    return run


def saved_levels(comfyui, result: dict) -> list[int]:
    """Gray level of the first pixel of each saved image."""
    folder = comfyui.base / "output"
    paths = [folder / image["filename"] for image in result["save"]["images"]]
    return [int(cv2.imread(str(path))[0, 0, 0]) for path in paths]


def test_slicer_gives_the_pair_and_says_where_it_lies(comfyui, node, gray_batch, shown):
    nodes, batch = gray_batch(4)
    nodes["x"] = node("TLBVFI_FramePairSlicer", images=batch, pair_index=2)
    assert shown(nodes, (1, 2, 3)) == ["2", "3", "True"]
    nodes["save"] = node("SaveImage", images=["x", 0], filename_prefix="pair")
    assert saved_levels(comfyui, comfyui.run(nodes)) == [170, 255]


def test_slicer_takes_a_linked_pair_index(node, gray_batch, shown):
    nodes, batch = gray_batch(4)
    nodes["i"] = node("PrimitiveInt", value=1)
    nodes["x"] = node("TLBVFI_FramePairSlicer", images=batch, pair_index=["i", 0])
    assert shown(nodes, (1, 3)) == ["1", "False"]


def test_slicer_without_an_index_gives_the_first_pair(node, gray_batch, shown):
    nodes, batch = gray_batch(3)
    nodes["x"] = node("TLBVFI_FramePairSlicer", images=batch)
    assert shown(nodes, (1, 2, 3)) == ["0", "2", "False"]


@pytest.mark.parametrize("index", [3, -1, -2])
def test_a_pair_index_outside_the_batch_says_what_there_is(comfyui, node, gray_batch, index):
    nodes, batch = gray_batch(4)
    nodes["i"] = node("PrimitiveInt", value=index)
    nodes["x"] = node("TLBVFI_FramePairSlicer", images=batch, pair_index=["i", 0])
    nodes["p"] = node("PreviewAny", source=["x", 1])
    assert comfyui.error(nodes).strip() == (
        f"pair_index {index} is not in the batch: 4 frames have pairs 0 to 2."
    )


def test_a_frame_below_0_is_refused(comfyui, node, gray_batch):
    nodes, batch = gray_batch(3)
    nodes["i"] = node("PrimitiveInt", value=-1)
    nodes["x"] = node("TLBVFI_FrameFromBatch", images=batch, index=["i", 0])
    nodes["p"] = node("PreviewAny", source=["x", 0])
    assert "index -1 is below 0" in comfyui.error(nodes)


def test_a_batch_of_one_frame_has_no_pair(comfyui, node, gray_batch):
    nodes, batch = gray_batch(1)
    nodes["x"] = node("TLBVFI_FramePairSlicer", images=batch)
    nodes["p"] = node("PreviewAny", source=["x", 1])
    assert "needs at least 2 frames, this batch has 1" in comfyui.error(nodes)


@pytest.mark.parametrize(("index", "level"), [(0, 0), (1, 127), (9, 255)])
def test_frame_from_batch_gives_one_frame_and_clamps(comfyui, node, gray_batch, index, level):
    nodes, batch = gray_batch(3)
    nodes["x"] = node("TLBVFI_FrameFromBatch", images=batch, index=index)
    nodes["save"] = node("SaveImage", images=["x", 0], filename_prefix="frame")
    assert saved_levels(comfyui, comfyui.run(nodes)) == [level]


@pytest.mark.parametrize(("inputs", "level"), [({}, 0), ({"index": 2, "clamp_index": False}, 255)])
def test_frame_from_batch_takes_what_the_batch_has(comfyui, node, gray_batch, inputs, level):
    nodes, batch = gray_batch(3)
    nodes["x"] = node("TLBVFI_FrameFromBatch", images=batch, **inputs)
    nodes["save"] = node("SaveImage", images=["x", 0], filename_prefix="frame")
    assert saved_levels(comfyui, comfyui.run(nodes)) == [level]


def test_frame_from_batch_without_clamping_refuses_an_index_beyond_the_end(
    comfyui, node, gray_batch
):
    nodes, batch = gray_batch(3)
    nodes["x"] = node("TLBVFI_FrameFromBatch", images=batch, index=3, clamp_index=False)
    nodes["p"] = node("PreviewImage", images=["x", 0])
    assert "index 3 is beyond the batch, which has frames 0 to 2" in comfyui.error(nodes)


def test_frame_from_batch_of_no_frames_says_so(comfyui, node):
    nodes = {
        "i": node("OddImages", levels="", height=48, width=64, channels=3),
        "x": node("TLBVFI_FrameFromBatch", images=["i", 0]),
        "p": node("PreviewImage", images=["x", 0]),
    }
    assert "the batch is empty" in comfyui.error(nodes)


def test_a_negative_index_is_refused_before_anything_runs(comfyui, node, gray_batch):
    nodes, batch = gray_batch(2)
    nodes["x"] = node("TLBVFI_FrameFromBatch", images=batch, index=-1)
    nodes["p"] = node("PreviewImage", images=["x", 0])
    assert [e["type"] for e in comfyui.refusal(nodes)] == ["value_smaller_than_min"]
