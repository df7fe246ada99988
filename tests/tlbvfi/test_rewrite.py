"""Workflows that end in a video are rewritten to save frames or to end in this pack's nodes."""

import copy
import json
import os
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import pytest
from comfyui_tlbvfi.tlbvfi import workflow as workflow_module
from comfyui_tlbvfi.tlbvfi.errors import WorkflowError
from comfyui_tlbvfi.tlbvfi.rewrite import KeptFrames, rewrite
from comfyui_tlbvfi.tlbvfi.workflow import api_nodes, is_api_format, read_workflow
from hypothesis import given, settings
from hypothesis import strategies as st


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


@pytest.fixture
def create_and_save():
    """API format: frames -> CreateVideo with sound -> SaveVideo."""
    return {
        "1": node("EmptyImage", width=64, height=64, batch_size=4, color=0),
        "2": node("LoadAudio", audio="a.flac"),
        "3": node("CreateVideo", images=["1", 0], fps=16, audio=["2", 0]),
        "4": node("SaveVideo", video=["3", 0], filename_prefix="video/Wan", format="auto"),
    }


@pytest.fixture
def vhs():
    """API format: frames -> VHS_VideoCombine."""
    return {
        "7": node("EmptyImage", width=64, height=64, batch_size=4, color=0),
        "9": node(
            "VHS_VideoCombine",
            images=["7", 0],
            frame_rate=23.976,
            loop_count=0,
            filename_prefix="AnimateDiff",
            format="video/h264-mp4",
            pingpong=False,
            save_output=True,
        ),
    }


@pytest.fixture
def page():
    return page_graph()


def page_graph():
    """UI format of the same chain as `create_and_save`, with a reroute before the saver."""
    return {
        "last_node_id": 12,
        "last_link_id": 30,
        "nodes": [
            ui_node(1, "EmptyImage", outputs=[("IMAGE", "IMAGE", [20])], values=[64, 64, 4, 0]),
            ui_node(2, "LoadAudio", outputs=[("AUDIO", "AUDIO", [21])], values=["a.flac"]),
            ui_node(
                3,
                "CreateVideo",
                inputs=[("images", "IMAGE", 20), ("audio", "AUDIO", 21)],
                outputs=[("VIDEO", "VIDEO", [22])],
                values=[16],
            ),
            ui_node(
                5, "Reroute", inputs=[("", "*", 22)], outputs=[("", "VIDEO", [23])], values=None
            ),
            ui_node(
                12,
                "SaveVideo",
                inputs=[("video", "VIDEO", 23)],
                values=["video/%date:yyyy-MM-dd%/Wan", "auto", "auto"],
            ),
        ],
        "links": [
            [20, 1, 0, 3, 0, "IMAGE"],
            [21, 2, 0, 3, 1, "AUDIO"],
            [22, 3, 0, 5, 0, "VIDEO"],
            [23, 5, 0, 12, 0, "VIDEO"],
        ],
        "version": 0.4,
    }


def ui_node(number, kind, *, inputs=(), outputs=(), values=(), mode=0):
    return {
        "id": number,
        "type": kind,
        "pos": [100.0 * number, 50],
        "mode": mode,
        "inputs": [{"name": n, "type": t, "link": link} for n, t, link in inputs],
        "outputs": [{"name": n, "type": t, "links": links} for n, t, links in outputs],
        "widgets_values": values if values is None else list(values),
    }


def assert_consistent(graph):
    """Nodes and links of a UI graph agree."""
    nodes = {n["id"]: n for n in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"])
    wires = {}
    for link in graph["links"]:
        if isinstance(link, dict):
            names = ("id", "origin_id", "origin_slot", "target_id", "target_slot")
            link = [link[name] for name in names]
        number, origin, origin_slot, target, target_slot = link[:5]
        assert number not in wires
        wires[number] = (origin, origin_slot, target, target_slot)
        if origin in nodes:
            assert number in nodes[origin]["outputs"][origin_slot]["links"]
        if target in nodes:
            assert nodes[target]["inputs"][target_slot]["link"] == number
    for content in nodes.values():
        for slot, socket in enumerate(content.get("inputs") or []):
            if socket["link"] is not None:
                assert wires[socket["link"]][2:] == (content["id"], slot)
        for slot, socket in enumerate(content.get("outputs") or []):
            for number in socket["links"] or []:
                assert wires[number][:2] == (content["id"], slot)


def by_kind(workflow):
    """{node type: node}, for graphs that have one of each."""
    nodes = workflow["nodes"] if "nodes" in workflow else workflow.values()
    return {n.get("type", n.get("class_type")): n for n in nodes}


def test_a_video_made_from_images_keeps_the_images_and_the_sound(create_and_save):
    result = rewrite(create_and_save, to="saveimage")
    assert set(by_kind(result.workflow)) == {"EmptyImage", "LoadAudio", "SaveImage", "SaveAudio"}
    kept = result.frames[0]
    assert kept.rate == 16
    assert result.workflow[kept.node]["inputs"]["images"] == ["1", 0]
    assert result.workflow[kept.sound]["inputs"]["audio"] == ["2", 0]
    assert result.changes == (
        "+ node 5 SaveImage saves every frame of node 4 SaveVideo",
        "+ node 6 SaveAudio saves its sound",
        "- node 4 SaveVideo removed",
        "- node 3 CreateVideo removed",
        "the frames of node 5 SaveImage play at --input-fps 16",
    )


def test_frames_of_two_savers_and_two_runs_go_to_different_folders(create_and_save):
    create_and_save["8"] = copy.deepcopy(create_and_save["4"])
    result = rewrite(create_and_save, to="saveimage")
    prefixes = [result.workflow[kept.node]["inputs"]["filename_prefix"] for kept in result.frames]
    assert len(set(prefixes)) == 2
    for prefix in prefixes:
        assert prefix.startswith("tlbvfi_frames/Wan_")
        assert "%hour%%minute%%second%" in prefix


def test_a_video_ends_in_our_nodes_with_its_own_rate_and_sound(create_and_save):
    result = rewrite(create_and_save, to="tlbvfi", model_name="vimeo_unet.pth")
    nodes = by_kind(result.workflow)
    assert nodes["TLBVFI_ChunkProcessor"]["inputs"] == {
        "images": ["3", 0],
        "model_name": "vimeo_unet.pth",
        "times_to_interpolate": 1,
        "fps": 0.0,
        "codec": "auto",
        "bitrate": "",
        "gpu_id": 0,
    }
    assert nodes["TLBVFI_VideoConcatenator"]["inputs"] == {
        "session_id": ["5", 0],
        "output_dir": "",
        "output_filename": "Wan.mp4",
    }
    assert "CreateVideo" in nodes
    assert "SaveVideo" not in nodes


def test_a_silent_video_is_handed_on_as_a_video(create_and_save):
    del create_and_save["3"]["inputs"]["audio"]
    chunks = by_kind(rewrite(create_and_save, to="tlbvfi").workflow)["TLBVFI_ChunkProcessor"]
    assert (chunks["inputs"]["images"], chunks["inputs"]["fps"]) == (["3", 0], 0)


def test_images_with_a_written_rate_are_interpolated_to_twice_the_rate(vhs):
    nodes = by_kind(rewrite(vhs, to="tlbvfi").workflow)
    chunks = nodes["TLBVFI_ChunkProcessor"]["inputs"]
    assert chunks["images"] == ["7", 0]
    assert chunks["fps"] == pytest.approx(47.952)
    assert "CreateVideo" not in nodes


def test_images_with_sound_travel_in_a_video(vhs):
    vhs["8"] = node("LoadAudio", audio="a.flac")
    vhs["9"]["inputs"]["audio"] = ["8", 0]
    result = rewrite(vhs, to="tlbvfi").workflow
    nodes = by_kind(json.loads(json.dumps(result)))
    assert nodes["CreateVideo"]["inputs"] == {
        "images": ["7", 0],
        "fps": pytest.approx(23.976),
        "audio": ["8", 0],
    }
    assert nodes["TLBVFI_ChunkProcessor"]["inputs"]["fps"] == 0


def test_a_rate_that_another_node_decides_stays_linked(vhs):
    vhs["8"] = node("SomeMath")
    vhs["9"]["inputs"]["frame_rate"] = ["8", 1]
    assert by_kind(rewrite(vhs, to="tlbvfi").workflow)["CreateVideo"]["inputs"]["fps"] == ["8", 1]
    assert rewrite(vhs, to="saveimage").frames[0].rate is None


def test_a_rate_typed_into_a_primitive_is_known(vhs):
    vhs["8"] = node("PrimitiveFloat", value=12.5)
    vhs["9"]["inputs"]["frame_rate"] = ["8", 0]
    assert rewrite(vhs, to="saveimage").frames[0].rate == Fraction(25, 2)


def test_the_rate_is_exact(vhs):
    assert rewrite(vhs, to="saveimage").frames[0].rate == Fraction(23976, 1000)


def test_latents_are_decoded_first(vhs):
    vhs["8"] = node("VAELoader", vae_name="v")
    vhs["9"]["inputs"]["vae"] = ["8", 0]
    result = rewrite(vhs, to="saveimage").workflow
    assert by_kind(result)["VAEDecode"]["inputs"] == {"samples": ["7", 0], "vae": ["8", 0]}
    decoder = next(n for n, content in result.items() if content["class_type"] == "VAEDecode")
    assert by_kind(result)["SaveImage"]["inputs"]["images"] == [decoder, 0]


def test_a_video_from_elsewhere_is_taken_apart():
    workflow = {
        "1:2": node("SomeVideoApi"),
        "5": node("SaveVideo", video=["1:2", 0], filename_prefix="x"),
    }
    result = rewrite(workflow, to="saveimage")
    nodes = by_kind(result.workflow)
    assert nodes["GetVideoComponents"]["inputs"] == {"video": ["1:2", 0]}
    assert nodes["SaveImage"]["inputs"]["images"] == ["6", 0]
    assert result.frames == (KeptFrames(node="7", rate=None, sound=None),)


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("SaveWEBM", {"fps": 24.0}),
        ("SaveAnimatedWEBP", {"fps": 6}),
        ("SaveAnimatedPNG", {"fps": 12.5}),
    ],
)
def test_every_other_saver_of_the_core_is_known(kind, names):
    workflow = {"1": node("X"), "2": node(kind, images=["1", 0], filename_prefix="p", **names)}
    workflow["3"] = node("PreviewImage", images=["2", 0])
    result = rewrite(workflow, to="saveimage")
    assert result.frames[0].rate == Fraction(str(names["fps"]))
    assert result.workflow["3"]["inputs"]["images"] == ["1", 0]
    assert not [change for change in result.changes if "loses" in change]


def test_what_is_lost_is_said(vhs):
    vhs["9"]["inputs"]["pingpong"] = True
    vhs["10"] = node("ShowNames", names=["9", 0])
    result = rewrite(vhs, to="saveimage")
    assert "node 10 ShowNames loses its input from node 9 VHS_VideoCombine" in result.changes
    assert any("back and forth" in change for change in result.changes)
    assert result.workflow["10"]["inputs"] == {}


def test_a_batch_manager_is_refused_by_name(vhs):
    vhs["9"]["inputs"]["meta_batch"] = ["3", 0]
    with pytest.raises(WorkflowError, match="node 9 VHS_VideoCombine belongs to a VHS Meta"):
        rewrite(vhs, to="tlbvfi")


def test_a_posted_prompt_keeps_its_wrapping(create_and_save):
    result = rewrite({"prompt": create_and_save, "client_id": "c"}, to="saveimage").workflow
    assert result["client_id"] == "c"
    assert "SaveImage" in by_kind(api_nodes(result))


def test_the_page_format_keeps_images_and_sound_through_a_reroute(page):
    result = rewrite(page, to="saveimage")
    assert_consistent(result.workflow)
    nodes = by_kind(result.workflow)
    assert set(nodes) == {"EmptyImage", "LoadAudio", "SaveImage", "SaveAudio"}
    assert result.frames == (KeptFrames(node=13, rate=Fraction(16), sound=14),)
    assert nodes["SaveImage"]["widgets_values"][0].startswith("tlbvfi_frames/Wan_12_%year%")
    assert result.workflow["last_node_id"] == 14
    assert result.workflow["last_link_id"] >= max(link[0] for link in result.workflow["links"])
    places = [tuple(n["pos"]) for n in result.workflow["nodes"]]
    assert len(set(places)) == len(places)


def test_the_page_format_ends_in_our_nodes(page):
    result = rewrite(page, to="tlbvfi").workflow
    assert_consistent(result)
    nodes = by_kind(result)
    chunks, concat = nodes["TLBVFI_ChunkProcessor"], nodes["TLBVFI_VideoConcatenator"]
    assert chunks["widgets_values"] == ["flow", 1, 0.0, "auto", "", 0]
    assert chunks["inputs"][0]["link"] == 31
    assert concat["inputs"][0]["widget"] == {"name": "session_id"}
    assert concat["widgets_values"] == ["", "", "Wan.mp4"]
    assert {"CreateVideo", "Reroute"} <= nodes.keys()


def test_values_saved_by_name_are_read(page):
    page["nodes"] = [
        page["nodes"][0],
        ui_node(12, "VHS_VideoCombine", inputs=[("images", "IMAGE", 20)], values=None),
    ]
    page["nodes"][1]["widgets_values"] = {"frame_rate": 8, "filename_prefix": "a", "pingpong": True}
    page["links"] = [[20, 1, 0, 12, 0, "IMAGE"]]
    result = rewrite(page, to="saveimage")
    assert_consistent(result.workflow)
    assert result.frames[0].rate == 8
    assert any("back and forth" in change for change in result.changes)


@pytest.mark.parametrize("mode", [2, 4])
def test_muted_and_bypassed_savers_stay_as_they_are(page, mode):
    page["nodes"][-1]["mode"] = mode
    with pytest.raises(WorkflowError, match="No active node of the workflow saves a video"):
        rewrite(page, to="saveimage")


def test_a_saver_inside_a_subgraph_is_found(page):
    inner = {
        "id": "a-b",
        "state": {"lastNodeId": 12, "lastLinkId": 23},
        "inputs": [{"name": "clip", "type": "VIDEO", "linkIds": [23]}],
        "outputs": [],
        "nodes": [ui_node(12, "SaveVideo", inputs=[("video", "VIDEO", 23)], values=["v"])],
        "links": [
            {
                "id": 23,
                "origin_id": -10,
                "origin_slot": 0,
                "target_id": 12,
                "target_slot": 0,
                "type": "VIDEO",
            }
        ],
    }
    outer = {**page, "nodes": page["nodes"][:1], "links": [], "definitions": {"subgraphs": [inner]}}
    outer["nodes"][0]["outputs"][0]["links"] = []
    result = rewrite(outer, to="tlbvfi").workflow["definitions"]["subgraphs"][0]
    assert_consistent(result)
    chunks = by_kind(result)["TLBVFI_ChunkProcessor"]
    assert result["inputs"][0]["linkIds"] == [chunks["inputs"][0]["link"]]
    assert result["state"]["lastNodeId"] == max(n["id"] for n in result["nodes"])


@pytest.mark.parametrize(("kind", "passes_on"), [("SaveWEBM", True), ("VHS_VideoCombine", False)])
def test_what_used_a_saver_in_the_page_format_gets_its_images_or_nothing(kind, passes_on):
    wires = [(20, 1, 12), (21, 12, 13), (22, 12, -20)]
    ends = [{"id": n, "origin_id": a, "target_id": b, "type": "IMAGE"} for n, a, b in wires]
    saver = ui_node(12, kind, inputs=[("images", "IMAGE", 20)], outputs=[("a", "IMAGE", [21, 22])])
    saver["widgets_values"] = {"fps": 8, "frame_rate": 8, "filename_prefix": "a"}
    inner = {
        "outputs": [{"name": "out", "type": "IMAGE", "linkIds": [22]}],
        "nodes": [
            ui_node(1, "EmptyImage", outputs=[("IMAGE", "IMAGE", [20])]),
            *(saver, ui_node(13, "ShowAny", inputs=[("any", "*", 21)])),
        ],
        "links": [{**each, "origin_slot": 0, "target_slot": 0} for each in ends],
    }
    outer = {"nodes": [], "links": [], "definitions": {"subgraphs": [inner]}}
    result = rewrite(outer, to="saveimage")
    (graph,) = result.workflow["definitions"]["subgraphs"]
    assert_consistent(graph)
    nodes = by_kind(graph)
    users = {(link["origin_id"], link["target_id"]) for link in graph["links"]}
    saved = {(1, nodes["SaveImage"]["id"])}
    assert users == (saved | {(1, 13), (1, -20)} if passes_on else saved)
    assert graph["outputs"][0]["linkIds"] == ([22] if passes_on else [])
    assert any("13 ShowAny loses its input" in text for text in result.changes) != passes_on


def test_the_given_workflow_is_not_changed(page, create_and_save):
    for workflow in (page, create_and_save):
        before = copy.deepcopy(workflow)
        rewrite(workflow, to="saveimage")
        assert workflow == before


@pytest.mark.parametrize("workflow", [{}, {"a": 1}, {"1": {"inputs": {}}}, {"nodes": [3]}])
def test_something_else_is_refused(workflow):
    with pytest.raises(WorkflowError, match="not a ComfyUI workflow"):
        is_api_format(workflow)


def test_a_saver_without_a_link_is_refused(create_and_save):
    del create_and_save["4"]["inputs"]["video"]
    with pytest.raises(WorkflowError, match="node 4 SaveVideo is linked to nothing"):
        rewrite(create_and_save, to="saveimage")


def test_files_that_are_no_workflow_are_refused_in_one_sentence(tmp_path):
    path = tmp_path / "w.json"
    for content, said in (
        (b"\xff\xfe", "not JSON"),
        (b"[" * 10**6, "not JSON"),
        (b"[1]", "not a JSON object"),
    ):
        path.write_bytes(content)
        with pytest.raises(WorkflowError, match=said):
            read_workflow(path)
    with pytest.raises(WorkflowError, match="cannot be read"):
        read_workflow(tmp_path / "missing.json")


def test_a_workflow_saved_by_an_editor_on_windows_is_read(tmp_path):
    (tmp_path / "w.json").write_text('{"last_node_id": 7}', encoding="utf-8-sig")
    assert read_workflow(tmp_path / "w.json") == {"last_node_id": 7}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no /dev/zero")
def test_a_file_without_an_end_is_not_read_for_ever(monkeypatch):
    monkeypatch.setattr(workflow_module, "MAX_BYTES", 2**20)
    with pytest.raises(WorkflowError, match="/dev/zero is larger than any workflow"):
        read_workflow(Path("/dev/zero"))


def test_reroutes_in_a_circle_do_not_hang(page):
    page["links"][2] = [22, 5, 0, 5, 0, "VIDEO"]
    assert len(rewrite(page, to="saveimage").frames) == 1


def test_a_reroute_that_nothing_leads_to_is_no_crash(page):
    page["nodes"][3]["inputs"][0]["link"] = None
    page["links"].remove([22, 3, 0, 5, 0, "VIDEO"])
    page["nodes"][2]["outputs"][0]["links"] = []
    assert rewrite(page, to="saveimage").frames[0].rate is None


@settings(max_examples=200, deadline=None)
@given(data=st.data(), to=st.sampled_from(["saveimage", "tlbvfi"]))
def test_a_damaged_graph_is_rewritten_or_refused_never_a_crash(data, to):
    graph = page_graph()
    place, key = data.draw(st.sampled_from(places(graph)))
    damage = data.draw(st.sampled_from(["remove", None, 7, "x", [], {}]))
    if damage == "remove":
        del place[key]
    else:
        place[key] = damage
    with suppress(WorkflowError):
        rewrite(graph, to=to)


def places(value):
    """(container, key) of every value nested in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


@pytest.mark.parametrize("to", ["saveimage", "tlbvfi"])
@pytest.mark.parametrize("rate", [10**400, 1e308, float("inf"), float("nan"), "1e9", [], -1])
def test_an_absurd_rate_is_rewritten_or_refused(vhs, rate, to):
    vhs["9"]["inputs"]["frame_rate"] = rate
    with suppress(WorkflowError):
        rewrite(vhs, to=to)


def test_a_workflow_nested_too_deep_is_refused(vhs):
    inputs = vhs["7"]["inputs"]
    for _ in range(5000):
        inputs = inputs.setdefault("a", {})
    with pytest.raises(WorkflowError, match="contradicts itself"):
        rewrite(vhs, to="saveimage")


@pytest.mark.parametrize("far", [1e300, float("inf")])
def test_nodes_placed_absurdly_far_do_not_hang(page, far):
    for each in page["nodes"]:
        each["pos"] = [far, 0]
    assert rewrite(page, to="tlbvfi").changes
