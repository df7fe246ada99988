"""The pack as users see it: ComfyUI's page in a real browser, workflows, saved graphs, help."""

import json
import re
import urllib.request
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.comfyui

HERE = Path(__file__).parent
WORKFLOWS = sorted(path.stem for path in (HERE.parent.parent / "workflows").glob("*.json"))
SAVED_GRAPHS = sorted(path.stem for path in (HERE / "saved_graphs").glob("*.json"))
VIDEOS = {  # workflow: (node that shows the file, frames, rate, has sound)
    "batch": ("SaveVideo", 39, 50, True),
    "film_or_rife": ("TLBVFI_ChunkProcessor", 39, 50, True),
    "generated_frames": ("TLBVFI_VideoConcatenator", 39, 32, False),
    "manual_chunks": ("TLBVFI_VideoConcatenator", 4, 50, False),
    "whole_video": ("TLBVFI_ChunkProcessor", 39, 50, True),
}


@pytest.fixture(scope="module")
def example_clip(clip):
    """A small clip with the name that the workflows use."""
    clip("big_buck_bunny.mp4", frames=20, width=128, height=96, rate=25, sound=True)


def check_file(path: Path, frames: int, rate: int, has_sound: bool) -> None:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert sum(1 for _ in container.decode(stream)) == frames
        assert stream.average_rate == Fraction(rate)
        assert bool(container.streams.audio) == has_sound
        assert {"prompt"} <= container.metadata.keys()


def check_result(comfyui, name: str, prompt: dict, outputs: dict) -> None:
    if name == "one_pair":
        (shown,) = outputs.values()
        assert len(shown["images"]) == 3
        return
    class_type, *expected = VIDEOS[name]
    node_id = next(i for i, node in prompt.items() if node["class_type"] == class_type)
    check_file(comfyui.saved(outputs[node_id]), *expected)


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.usefixtures("example_clip", "film_model")
def test_a_workflow_loads_runs_and_its_result_is_right(comfyui, page, root, name):
    graph = json.loads((root / "workflows" / f"{name}.json").read_text(encoding="utf-8"))
    prompt = page.prompt_of(graph)
    assert all(node["class_type"] for node in prompt.values())
    assert not page.js("return app.graph.nodes.filter(n => n.has_errors).map(n => n.type)")
    check_result(comfyui, name, prompt, comfyui.run(prompt, timeout=300))


@pytest.mark.parametrize("name", WORKFLOWS)
@pytest.mark.usefixtures("example_clip", "film_model")
def test_an_api_prompt_runs_by_http_alone(comfyui, root, name):
    body = json.loads((root / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    _, answer = comfyui.post("/prompt", body)
    assert answer.get("node_errors") == {}, answer
    entry = comfyui.wait(answer["prompt_id"], timeout=300)
    assert entry["status"]["status_str"] == "success", comfyui.message(entry)
    check_result(comfyui, name, body["prompt"], entry["outputs"])


def test_every_workflow_has_its_prompt_and_thumbnail_and_is_listed(comfyui, root):
    assert set(WORKFLOWS) == {*VIDEOS, "one_pair"}
    for name in WORKFLOWS:
        assert (root / "workflows" / "api" / f"{name}.json").is_file()
        assert cv2.imread(str(root / "workflows" / f"{name}.jpg")) is not None
    listed = comfyui.get("/workflow_templates")["ComfyUI-TLBVFI"]
    assert set(listed) >= set(WORKFLOWS)


@pytest.fixture(scope="module")
def saved_graph(comfyui):
    """A graph as older packs saved it; with `runnable`, its model needs no download."""
    has_video_helper_suite = "VHS_LoadVideo" in comfyui.get("/object_info")

    def read(name: str, *, runnable: bool = False) -> dict:
        text = (HERE / "saved_graphs" / f"{name}.json").read_text()
        if "VHS_" in text and not has_video_helper_suite:
            pytest.skip("this ComfyUI has no VideoHelperSuite")
        return json.loads(text.replace("vimeo_unet.pth", "flow") if runnable else text)

    return read


@pytest.fixture(scope="module")
def saved_inputs(comfyui, clip):
    """The input files that the saved graphs name."""
    clip("clip.mp4", frames=6, width=128, height=96)
    for n, name in enumerate(("frame_prev.png", "frame_next.png")):
        cv2.imwrite(str(comfyui.base / "input" / name), np.full((64, 96, 3), 60 + 80 * n, np.uint8))


def by_class(prompt: dict, class_type: str) -> list[dict]:
    return [node["inputs"] for node in prompt.values() if node["class_type"] == class_type]


@pytest.mark.parametrize("name", SAVED_GRAPHS)
@pytest.mark.usefixtures("saved_inputs")
def test_a_saved_graph_keeps_every_value_it_was_saved_with(page, saved_graph, name):
    graph = saved_graph(name)
    prompt = page.prompt_of(graph)
    assert all(node["class_type"] for node in prompt.values())
    for node in graph["nodes"]:
        saved = node.get("widgets_values")
        if "Concatenator" not in node["type"] and not node["type"].startswith("TLBVFI_"):
            continue
        inputs = prompt[str(node["id"])]["inputs"]
        assert not [key for key, value in inputs.items() if value is None]
        if isinstance(saved, dict):
            linked = {slot["name"] for slot in node["inputs"] if slot["link"]}
            kept = {key: value for key, value in saved.items() if key not in linked}
            assert {key: inputs[key] for key in kept} == kept


def test_seven_values_of_the_first_release_take_their_own_places(page, saved_graph):
    (inputs,) = by_class(page.prompt_of(saved_graph("simple_v2_test")), "TLBVFI_Interpolator_V2")
    assert inputs["tile_size"] == 0
    assert inputs["cpu_offload"] is True
    assert inputs["gpu_id"] == 0


def test_a_saved_crf_decides_the_quality(page, saved_graph):
    (inputs,) = by_class(
        page.prompt_of(saved_graph("03_chunk_processor_example")), "TLBVFI_ChunkProcessor"
    )
    assert (inputs["bitrate"], inputs["crf"]) == ("", 23)


@pytest.mark.parametrize("name", SAVED_GRAPHS)
@pytest.mark.usefixtures("saved_inputs")
def test_a_saved_graph_runs_without_a_gpu(comfyui, page, saved_graph, name):
    prompt = page.prompt_of(saved_graph(name, runnable=True))
    outputs = comfyui.run(prompt)
    assert outputs
    for node_id, node in prompt.items():
        if node["class_type"] == "TLBVFI_VideoConcatenator":
            assert comfyui.saved(outputs[node_id]).stat().st_size > 1000


def test_nodes_dragged_from_the_menu_and_wired_by_hand_make_a_graph_that_runs(comfyui, page, clip):
    name = clip("dragged.mp4", frames=9)
    prompt_id = page.js(
        f"""
        app.graph.clear();
        const add = (type, x) => {{
          const node = LiteGraph.createNode(type); node.pos = [x, 100]; app.graph.add(node); return node;
        }};
        const [load, chunks, join] = [add("LoadVideo", 0), add("TLBVFI_ChunkProcessor", 400),
                                      add("TLBVFI_VideoConcatenator", 900)];
        load.widgets[0].value = "{name}";
        load.connect(0, chunks, chunks.inputs.findIndex(i => i.name === "images"));
        chunks.connect(0, join, join.inputs.findIndex(i => i.name === "session_id"));
        const queued = new Promise(done => app.api.addEventListener("promptQueued", done, {{once: true}}));
        window.ended = new Promise(done => app.api.addEventListener("execution_success", e => done(e.detail.prompt_id), {{once: true}}));
        await app.queuePrompt(0, 1);
        return await window.ended;
        """
    )
    (outputs,) = [v for v in comfyui.wait(prompt_id)["outputs"].values() if "images" in v]
    with av.open(str(comfyui.saved(outputs))) as container:
        assert sum(1 for _ in container.decode(video=0)) == 11  # 30 fps, the widget's default
    assert page.js(
        """
        for (let i = 0; i < 100 && !document.querySelector("video"); i++)
          await new Promise(r => setTimeout(r, 100));
        return document.querySelectorAll("video").length"""
    )


def test_placeholders_in_names_of_files_are_replaced_as_in_core_s_nodes(page):
    """And the graph, which is embedded in the file, keeps them."""
    sent, kept = page.js(
        """
        app.graph.clear();
        const types = ["SaveImage", "TLBVFI_VideoConcatenator", "TLBVFI_ChunkVideoSaver"];
        const nodes = types.map((type) => LiteGraph.createNode(type));
        for (const node of nodes) {
          app.graph.add(node);
          for (const widget of node.widgets)
            if (["filename_prefix", "output_filename", "output_dir"].includes(widget.name))
              widget.value = "made_%date:yyyy-MM%_%Save Image.filename_prefix%_%other%";
        }
        nodes[0].widgets[0].value = "made_%date:yyyy-MM%";
        const { output, workflow } = await app.graphToPrompt();
        return [Object.values(output).map(({ inputs }) => inputs), workflow.nodes.map((n) => n.widgets_values)];
        """
    )
    core, *ours = sent
    assert re.fullmatch(r"made_\d{4}-\d\d", core["filename_prefix"])
    expected = f"{core['filename_prefix']}_made_%date_yyyy-MM%_%other%"
    assert [ours[0]["output_filename"], ours[0]["output_dir"]] == [expected] * 2
    assert ours[1]["output_dir"] == expected
    assert all(any("%date:yyyy-MM%" in str(value) for value in values) for values in kept)


def test_a_graph_that_shows_its_video_is_not_run_again(comfyui, page):
    page.js(
        """
        app.graph.clear();
        const images = LiteGraph.createNode("OddImages"), chunks = LiteGraph.createNode("TLBVFI_ChunkProcessor");
        app.graph.add(images); app.graph.add(chunks);
        const values = {levels: "0 0.5 1", height: 48, width: 64, channels: 3};
        for (const widget of images.widgets) widget.value = values[widget.name];
        chunks.widgets.find(w => w.name === "model_name").value = "blend";
        images.connect(0, chunks, 0);
        """
    )
    for _ in range(2):
        prompt_id = page.js(
            """
            const ended = new Promise(done => app.api.addEventListener("execution_success", e => done(e.detail.prompt_id), {once: true}));
            await app.queuePrompt(0, 1);
            const id = await ended;
            for (let i = 0; i < 50 && !app.graph.nodes[1].widgets.some(w => w.name === "video-preview"); i++)
              await new Promise(r => setTimeout(r, 100));
            return id;
            """
        )
    assert page.js("return app.graph.nodes[1].widgets.some(w => w.name === 'video-preview')")
    messages = dict(comfyui.wait(prompt_id)["status"]["messages"])
    assert len(messages["execution_cached"]["nodes"]) == 2


def test_the_final_file_dropped_on_the_page_brings_its_graph_back(comfyui, page, clip):
    name = clip("dropped.mp4")
    prompt_id = page.js(
        f"""
        app.graph.clear();
        const load = LiteGraph.createNode("LoadVideo"), chunks = LiteGraph.createNode("TLBVFI_ChunkProcessor");
        app.graph.add(load); app.graph.add(chunks);
        load.widgets[0].value = "{name}";
        chunks.widgets.find(w => w.name === "codec").value = "libx265";
        chunks.widgets.find(w => w.name === "fps").value = 0;
        load.connect(0, chunks, 0);
        const ended = new Promise(done => app.api.addEventListener("execution_success", e => done(e.detail.prompt_id), {{once: true}}));
        await app.queuePrompt(0, 1);
        return await ended;
        """
    )
    (outputs,) = [v for v in comfyui.wait(prompt_id)["outputs"].values() if "images" in v]
    page.js("app.graph.clear()")
    page.drop(comfyui.saved(outputs), "video/mp4")
    kept = page.js(
        """
        for (let i = 0; i < 50 && app.graph.nodes.length < 2; i++) await new Promise(r => setTimeout(r, 100));
        return app.graph.nodes.map(n => [n.type, n.widgets.find(w => w.name === "codec")?.value])"""
    )
    assert sorted(kept) == [["LoadVideo", None], ["TLBVFI_ChunkProcessor", "libx265"]]


def test_every_node_has_a_help_page_whose_picture_is_there(comfyui, node_ids):
    base = f"{comfyui.url}/extensions/ComfyUI-TLBVFI/docs"
    for node_id in node_ids:
        with urllib.request.urlopen(f"{base}/{node_id}.md", timeout=20) as answer:
            text = answer.read().decode()
        picture = f"{node_id}.png"
        assert picture in text
        with urllib.request.urlopen(f"{base}/{picture}", timeout=20) as answer:
            assert answer.read(4)[1:] == b"PNG"


def test_every_node_and_input_is_translated(comfyui, node_ids):
    words = comfyui.get("/i18n")["ko"]["nodeDefs"]
    known = comfyui.get("/object_info")
    for node_id in node_ids:
        inputs = known[node_id]["input"]
        names = {name for group in ("required", "optional") for name in inputs.get(group, {})}
        assert words[node_id]["display_name"]
        assert words[node_id]["description"]
        assert set(words[node_id].get("inputs", {})) == names
        assert all(words[node_id]["inputs"][name]["tooltip"] for name in names)


@pytest.fixture(scope="module")
def node_ids(comfyui) -> list[str]:
    """The pack's nodes."""
    found = [node_id for node_id in comfyui.get("/object_info") if node_id.startswith("TLBVFI_")]
    assert len(found) == 12
    return found


def test_every_node_and_input_has_its_words(comfyui, node_ids):
    known = comfyui.get("/object_info")
    for node_id in node_ids:
        assert known[node_id]["display_name"] != node_id
        assert known[node_id]["description"]
        for group in ("required", "optional"):
            for name, spec in known[node_id]["input"].get(group, {}).items():
                assert spec[1].get("tooltip"), f"{node_id}.{name}"
