"""The ComfyUI client against a real ComfyUI: generate, fetch, interpolate, encode once."""

import json
import threading
import time
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from comfyui_tlbvfi.tlbvfi.cli import main
from comfyui_tlbvfi.tlbvfi.client import NodeProgress
from comfyui_tlbvfi.tlbvfi.comfy_http import Server, cancel, queue_position
from comfyui_tlbvfi.tlbvfi.errors import ClientError
from comfyui_tlbvfi.tlbvfi.generation import collect, frames_node
from comfyui_tlbvfi.tlbvfi.rewrite import rewrite

pytestmark = pytest.mark.comfyui

FRAMES = 6


@pytest.fixture
def server(comfyui):
    return Server(url=comfyui.url, lost_seconds=5.0)


@pytest.fixture
def fetch(server, tmp_path):
    """Collects the frames of a prompt; keeps the events."""

    def run(prompt, folder="frames", on_event=None, **options):
        node = frames_node(prompt)
        told = run.events.append if on_event is None else on_event
        return collect(server, prompt, tmp_path / folder, node=node, on_event=told, **options)

    run.events = []
    return run


@pytest.fixture
def slow(gray_batch, node):
    """A prompt that takes some seconds, with a frame saver at the end."""
    nodes, link = gray_batch(2)
    for i in range(5):
        nodes[f"s{i}"] = node(
            "ImageScale",
            image=link,
            width=3000 + i,
            height=3000,
            upscale_method="lanczos",
            crop="disabled",
        )
        link = [f"s{i}", 0]
    nodes["small"] = node(
        "ImageScale", image=link, width=64, height=48, upscale_method="area", crop="disabled"
    )
    return {**nodes, "9": node("SaveImage", images=["small", 0], filename_prefix="slow")}


def levels(generation):
    return [int(cv2.imread(str(path))[0, 0, 0]) for path in sorted(generation.folder.iterdir())]


@pytest.mark.parametrize("saver", ["SaveImage", "PreviewImage", "SaveImageWebsocket"])
def test_every_way_of_keeping_frames_gives_the_same_frames(comfyui, fetch, gray_batch, node, saver):
    if saver not in comfyui.get("/object_info"):
        pytest.skip(f"this ComfyUI has no {saver}")
    nodes, link = gray_batch(FRAMES)
    prefix = {"filename_prefix": "frames/x"} if saver == "SaveImage" else {}
    generation = fetch({**nodes, "9": node(saver, images=link, **prefix)})
    assert levels(generation) == [255 * i // (FRAMES - 1) for i in range(FRAMES)]


def test_frames_are_linked_from_the_output_folder(comfyui, fetch, gray_batch, node):
    nodes, link = gray_batch(FRAMES)
    prompt = {**nodes, "9": node("SaveImage", images=link, filename_prefix="linked/x")}
    generation = fetch(prompt, output_folder=comfyui.base / "output")
    assert len(levels(generation)) == FRAMES
    assert all(path.stat().st_nlink == 2 for path in generation.folder.iterdir())


def test_one_command_makes_a_smooth_video_of_a_prompt_that_saves_one(
    comfyui, gray_batch, node, tmp_path, capfd
):
    nodes, link = gray_batch(FRAMES)
    nodes["8"] = node("CreateVideo", images=link, fps=16)
    nodes["9"] = node("SaveVideo", video=["8", 0], filename_prefix="v", format="auto", codec="auto")
    prompt, output = tmp_path / "prompt.json", tmp_path / "smooth.mp4"
    prompt.write_text(json.dumps(nodes))
    words = ["comfy", "run", str(prompt), "--server", comfyui.url, "-o", str(output)]
    assert main([*words, "--interpolate", "blend", "--crf", "10"]) == 0, capfd.readouterr().err
    with av.open(str(output)) as container:
        stream = container.streams.video[0]
        shown = [frame.to_ndarray(format="gray")[0, 0] for frame in container.decode(stream)]
        assert stream.average_rate == 32
        assert "SaveImage" in container.metadata["prompt"]
    assert len(shown) == 2 * FRAMES - 1
    assert all(a < b for a, b in pairwise(shown))
    ours = sorted(path.name for path in comfyui.base.glob("output/tlbvfi_frames/*/*.png"))
    assert len(ours) == FRAMES
    assert not list(comfyui.base.glob("output/v_*.mp4"))


def test_a_workflow_rewritten_to_our_nodes_runs(comfyui, gray_batch, node):
    nodes, link = gray_batch(FRAMES)
    nodes["8"] = node("CreateVideo", images=link, fps=24)
    nodes["9"] = node("SaveVideo", video=["8", 0], filename_prefix="video/Wan", format="auto")
    workflow = rewrite(nodes, to="tlbvfi").workflow
    outputs = comfyui.run(workflow)
    joiner = next(n for n, c in workflow.items() if c["class_type"] == "TLBVFI_VideoConcatenator")
    with av.open(str(comfyui.saved(outputs[joiner]))) as container:
        stream = container.streams.video[0]
        assert sum(1 for _ in container.decode(stream)) == 2 * FRAMES - 1
        assert stream.average_rate == 48


def test_a_rewritten_video_combine_runs_and_keeps_its_frames(comfyui, fetch, gray_batch, node):
    if "VHS_VideoCombine" not in comfyui.get("/object_info"):
        pytest.skip("this ComfyUI has no VideoHelperSuite")
    nodes, link = gray_batch(FRAMES)
    nodes["9"] = node(
        "VHS_VideoCombine",
        images=link,
        frame_rate=16,
        loop_count=0,
        filename_prefix="v",
        format="video/h264-mp4",
        pingpong=False,
        save_output=True,
    )
    result = rewrite(nodes, to="saveimage")
    assert len(levels(fetch(result.workflow))) == FRAMES
    assert result.frames[0].rate == 16


def test_sound_is_kept_beside_the_frames(comfyui, fetch, gray_batch, node):
    nodes, link = gray_batch(FRAMES)
    nodes["a"] = node("EmptyAudio", duration=0.5, sample_rate=44100, channels=2)
    nodes["8"] = node("CreateVideo", images=link, fps=16, audio=["a", 0])
    nodes["9"] = node("SaveVideo", video=["8", 0], filename_prefix="v", format="auto")
    generation = fetch(rewrite(nodes, to="saveimage").workflow)
    with av.open(str(generation.sound)) as container:
        assert container.streams.audio[0].duration * container.streams.audio[0].time_base == 0.5


def test_a_client_that_is_killed_finds_the_finished_generation(comfyui, fetch, slow):
    def killed(event):
        if isinstance(event, NodeProgress):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(slow, on_event=killed)
    before = len(comfyui.get("/history"))
    assert len(levels(fetch(slow))) == 2
    assert len(comfyui.get("/history")) == before + 1


def test_an_interrupted_generation_is_said(comfyui, server, fetch, slow):
    slow["9"]["inputs"]["filename_prefix"] = "interrupted"  # a different prompt from the last one
    slow["s0"]["inputs"]["width"] += 100

    def stop_it():
        while not (running := comfyui.get("/queue")["queue_running"]):
            time.sleep(0.02)
        assert queue_position(server, running[0][1]) == 0
        cancel(server, running[0][1])

    thread = threading.Thread(target=stop_it)
    thread.start()
    with pytest.raises(ClientError, match="was interrupted on the server, in node s"):
        fetch(slow)
    thread.join()


def test_a_refused_prompt_names_the_node(fetch, gray_batch, node):
    nodes, link = gray_batch(1)
    nodes["g0"]["inputs"]["width"] = -5
    prompt = {**nodes, "9": node("SaveImage", images=link, filename_prefix="x")}
    with pytest.raises(ClientError, match="node g0 EmptyImage: Value -5 smaller than min"):
        fetch(prompt)


def test_an_unknown_node_is_named(fetch, gray_batch, node):
    nodes, link = gray_batch(1)
    nodes["x"] = node("NoSuchNode", image=link)
    prompt = {**nodes, "9": node("SaveImage", images=["x", 0], filename_prefix="x")}
    with pytest.raises(ClientError, match="NoSuchNode"):
        fetch(prompt)


def test_a_node_that_fails_is_named(comfyui, fetch, node):
    (comfyui.base / "input" / "broken.png").write_bytes(b"no image")
    nodes = {
        "5": node("LoadImage", image="broken.png"),
        "9": node("SaveImage", images=["5", 0], filename_prefix="x"),
    }
    with pytest.raises(ClientError, match="node 5 LoadImage failed on the server: "):
        fetch(nodes)


def test_a_server_that_dies_is_given_up_and_found_again_when_it_is_back(comfyui, fetch, slow):
    slow["s0"]["inputs"]["width"] += 200
    died = []

    def kill(event):
        if isinstance(event, NodeProgress) and not died:
            died.append(event)
            comfyui.kill()
            comfyui.start()

    with pytest.raises(ClientError, match="no longer knows the prompt"):
        fetch(slow, on_event=kill)
    assert len(levels(fetch(slow))) == 2


def test_frames_arrive_as_the_server_made_them(comfyui, fetch, node):
    noise = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    cv2.imwrite(str(comfyui.base / "input" / "noise.png"), noise)
    prompt = {
        "1": node("LoadImage", image="noise.png"),
        "2": node("RepeatImageBatch", image=["1", 0], amount=2),
        "9": node("SaveImage", images=["2", 0], filename_prefix="noise"),
    }
    generation = fetch(prompt)
    for path in generation.folder.iterdir():
        np.testing.assert_array_equal(cv2.imread(str(path)), noise)


def saved_graph():
    """UI format: a batch of images -> CreateVideo -> SaveVideo."""

    def socket(name, kind, link):
        return {"name": name, "type": kind, "link": link}

    def output(kind, links):
        return {"name": kind, "type": kind, "links": links}

    def place(number, kind, inputs, outputs, values):
        return {
            "id": number,
            "type": kind,
            "pos": [400 * number, 100],
            "size": [300, 150],
            "flags": {},
            "order": number,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            "properties": {},
            "widgets_values": values,
        }

    video = [socket("images", "IMAGE", 1), socket("audio", "AUDIO", None)]
    prefix = "video/Wan"
    return {
        "last_node_id": 3,
        "last_link_id": 2,
        "nodes": [
            place(1, "EmptyImage", [], [output("IMAGE", [1])], [64, 48, FRAMES, 8421504]),
            place(2, "CreateVideo", video, [output("VIDEO", [2])], [16]),
            place(3, "SaveVideo", [socket("video", "VIDEO", 2)], [], [prefix, "auto", "auto"]),
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"], [2, 2, 0, 3, 0, "VIDEO"]],
        "groups": [],
        "config": {},
        "extra": {},
        "version": 0.4,
    }


def test_a_rewritten_graph_opens_in_the_page_and_keeps_its_frames(page, fetch):
    prompt = page.prompt_of(rewrite(saved_graph(), to="saveimage").workflow)
    assert {n["class_type"] for n in prompt.values()} == {"EmptyImage", "SaveImage"}
    assert len(levels(fetch(prompt))) == FRAMES


def test_a_graph_rewritten_to_our_nodes_opens_in_the_page_and_runs(comfyui, page):
    prompt = page.prompt_of(rewrite(saved_graph(), to="tlbvfi").workflow)
    by_kind = {n["class_type"]: (number, n["inputs"]) for number, n in prompt.items()}
    chunks, joiner = by_kind["TLBVFI_ChunkProcessor"], by_kind["TLBVFI_VideoConcatenator"]
    assert (chunks[1]["model_name"], chunks[1]["fps"], chunks[1]["bitrate"]) == ("flow", 0, "")
    assert joiner[1]["session_id"] == [chunks[0], 0]
    assert joiner[1]["output_filename"] == "Wan.mp4"
    with av.open(str(comfyui.saved(comfyui.run(prompt)[joiner[0]]))) as container:
        assert container.streams.video[0].average_rate == 32
