"""The whole-clip node in a real ComfyUI: streaming, resuming, canceling, and what it refuses."""

import hashlib
import json
import re
import shutil
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

pytestmark = pytest.mark.comfyui

DEFAULTS = {
    "model_name": "blend",
    "times_to_interpolate": 1,
    "fps": 0.0,
    "codec": "libx264",
    "bitrate": "",
    "gpu_id": 0,
}


@pytest.fixture
def processor(node):
    """Prompt nodes that send a video through the chunk processor, node "c"."""

    def build(name: str, **inputs) -> dict:
        chunks = node("TLBVFI_ChunkProcessor", images=["l", 0], **(DEFAULTS | inputs))
        return {"l": node("LoadVideo", file=name), "c": chunks}

    return build


def facts(path):
    """(frames, rate, pix_fmt, size) of a video."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        return frames, stream.average_rate, stream.pix_fmt, (stream.width, stream.height)


def packets(path, kind: str) -> list[bytes]:
    with av.open(str(path)) as container:
        streams = [s for s in container.streams if s.type == kind]
        return [bytes(p) for p in container.demux(streams) if p.size]


def sounds(path) -> list[tuple[int, int]]:
    """(channels, sample rate) of each audio stream of a video."""
    with av.open(str(path)) as container:
        return [(s.channels, s.rate) for s in container.streams.audio]


def test_a_video_becomes_twice_as_smooth_at_its_exact_rate_with_its_sound(comfyui, clip, processor):
    name = clip("ntsc.mp4", frames=13, rate=Fraction(24000, 1001), sound=True)
    outputs = comfyui.run(processor(name))
    result = comfyui.saved(outputs["c"])
    assert facts(result) == (25, Fraction(48000, 1001), "yuv420p", (64, 48))
    assert packets(result, "audio") == packets(comfyui.base / "input" / name, "audio")


@pytest.mark.parametrize(
    ("width", "height"),
    [(512, 512), (640, 360), (854, 480), (1280, 720), (256, 448), (448, 256), (320, 180), (66, 50)],
)
def test_sizes_older_packs_failed_on_go_through(comfyui, clip, processor, width, height):
    name = clip(f"{width}x{height}.mp4", frames=2, width=width, height=height)
    result = comfyui.saved(comfyui.run(processor(name, model_name="flow"))["c"])
    assert facts(result) == (3, 48, "yuv420p", (width, height))


def test_a_second_of_60_fps_lasts_a_second_after_joining(comfyui, clip, processor):
    name = clip("thirty.mp4", frames=31, rate=30)
    result = comfyui.saved(comfyui.run(processor(name))["c"])
    with av.open(str(result)) as container:
        stream = container.streams.video[0]
        times = sorted(p.pts * stream.time_base for p in container.demux(stream) if p.size)
    assert times == [Fraction(n, 60) for n in range(61)]


def test_the_trim_window_of_a_video_is_honored(comfyui, clip, processor, node):
    name = clip("trim.mp4", frames=48, sound=True)
    prompt = processor(name)
    prompt["t"] = node("Video Slice", video=["l", 0], start_time=0.5, duration=1.0)
    prompt["t"]["inputs"]["strict_duration"] = False
    prompt["c"]["inputs"]["images"] = ["t", 0]
    result = comfyui.saved(comfyui.run(prompt)["c"])
    assert facts(result)[0] == (24 - 1) * 2 + 1


def test_a_batch_of_images_is_compressed_once_and_plays_in_browsers(comfyui, processor, gray_batch):
    nodes, batch = gray_batch(5)
    nodes["c"] = processor("")["c"]
    nodes["c"]["inputs"] |= {"images": batch, "fps": 32.0}
    result = comfyui.saved(comfyui.run(nodes)["c"])
    assert facts(result) == (9, 32, "yuv420p", (64, 48))


def test_a_batch_of_odd_size_is_stored_whole(comfyui, processor, gray_batch):
    nodes, batch = gray_batch(3, 63, 47)
    nodes["c"] = processor("")["c"]
    nodes["c"]["inputs"] |= {"images": batch, "fps": 32.0}
    assert facts(comfyui.saved(comfyui.run(nodes)["c"])) == (5, 32, "yuv444p", (63, 47))


def test_all_256_levels_of_a_picture_come_back(comfyui, processor, node):
    ramp = np.tile(np.arange(256, dtype=np.uint8), (16, 1))
    cv2.imwrite(str(comfyui.base / "input" / "ramp.png"), cv2.merge([ramp, ramp, ramp]))
    nodes = {"i": node("LoadImage", image="ramp.png"), "c": processor("")["c"]}
    nodes["b"] = node("ImageBatch", image1=["i", 0], image2=["i", 0])
    nodes["c"]["inputs"] |= {"images": ["b", 0], "fps": 24.0, "codec": "ffv1"}
    with av.open(str(comfyui.saved(comfyui.run(nodes)["c"]))) as container:
        for frame in container.decode(video=0):
            assert frame.format.name == "gbrp16le"
            assert (frame.to_ndarray() == 257 * ramp[..., None].astype(int)).all()


def test_a_batch_without_a_rate_says_what_to_give(comfyui, processor, gray_batch):
    nodes, batch = gray_batch(2)
    nodes["c"] = processor("")["c"]
    nodes["c"]["inputs"]["images"] = batch
    assert "fps 0 means the rate of the video" in comfyui.error(nodes)


def test_a_video_made_of_images_keeps_rate_and_sound(comfyui, clip, processor, node):
    name = clip("parts.mp4", frames=12, sound=True)
    prompt = processor(name)
    prompt["g"] = node("GetVideoComponents", video=["l", 0])
    prompt["v"] = node("CreateVideo", images=["g", 0], audio=["g", 1], fps=24.0)
    prompt["c"]["inputs"]["images"] = ["v", 0]
    result = comfyui.saved(comfyui.run(prompt)["c"])
    assert facts(result)[:2] == (23, 48)
    assert packets(result, "audio")


@pytest.mark.parametrize("joined_by", ["c", "j"])
def test_a_video_in_memory_keeps_its_sound(comfyui, clip, processor, node, joined_by):
    name = clip("in-memory.mp4", sound=True)
    prompt = processor(name, session_id=f"in-memory-{joined_by}")
    prompt["l"] = node("OddVideo", file=name)
    if joined_by == "j":
        prompt["j"] = node("TLBVFI_VideoConcatenator", session_id=["c", 0])
    result = comfyui.saved(comfyui.run(prompt)[joined_by])
    assert packets(result, "audio") == packets(comfyui.base / "input" / name, "audio")


def copies(comfyui) -> list[Path]:
    """Copies in ComfyUI's temp folder of what exists only in memory."""
    return list((comfyui.base / "temp").glob("tlbvfi_*"))


@pytest.mark.parametrize("joined_by", ["c", "j"])
@pytest.mark.parametrize("loader", ["OddVideo", "OddEdit"])
def test_a_video_that_was_joined_leaves_no_copy_of_its_source(
    comfyui, clip, processor, node, loader, joined_by
):
    name = clip(f"no-copy-{loader}-{joined_by}.mp4", sound=True)
    prompt = processor(name) | {"l": node(loader, file=name)}
    if joined_by == "j":
        prompt["j"] = node("TLBVFI_VideoConcatenator", session_id=["c", 0])
    for _ in range(2):  # the second time it is already joined
        before = copies(comfyui)
        comfyui.run(prompt)
        assert copies(comfyui) == before
        comfyui.post("/free", {"free_memory": True})


def test_two_sessions_of_one_video_in_memory_both_have_its_sound(comfyui, clip, processor, node):
    prompt = processor("") | {"l": node("OddVideo", file=clip("two-of-one.mp4", sound=True))}
    prompt["d"] = processor("", times_to_interpolate=2)["c"]
    for chunks in ("c", "d"):
        prompt[f"j{chunks}"] = node("TLBVFI_VideoConcatenator", session_id=[chunks, 0])
    before = copies(comfyui)
    outputs = comfyui.run(prompt)
    assert all(packets(comfyui.saved(outputs[each]), "audio") for each in ("jc", "jd"))
    assert copies(comfyui) == before


def test_the_sound_of_a_file_that_a_prompt_may_not_name_reaches_a_concatenator(
    comfyui, clip, processor, node
):
    name = clip("elsewhere.mp4", sound=True)
    elsewhere = comfyui.base / "elsewhere.mp4"
    shutil.move(comfyui.base / "input" / name, elsewhere)
    prompt = processor("", session_id="elsewhere")
    prompt["l"] = node("OddVideo", file=str(elsewhere), in_memory=False)
    prompt["j"] = node("TLBVFI_VideoConcatenator", session_id=["c", 0], output_filename="heard")
    outputs = comfyui.run(prompt)["j"]
    assert outputs["text"] == ["heard.mp4"]
    assert packets(comfyui.saved(outputs), "audio") == packets(elsewhere, "audio")


def test_an_edited_video_finds_its_session_when_it_is_edited_again(comfyui, clip, processor, node):
    prompt = processor("") | {"l": node("OddEdit", file=clip("edited.mp4", sound=True))}
    first = comfyui.saved(comfyui.run(prompt)["c"])
    assert facts(first)[0] == 23
    assert packets(first, "audio")
    comfyui.post("/free", {"free_memory": True})  # ComfyUI then makes every result anew
    assert comfyui.saved(comfyui.run(prompt)["c"]) == first


@pytest.fixture
def created(processor, node):
    """Prompt nodes that send images, with a node's sound if given, as a video to the processor."""

    def build(*, fps: float = 24.0, sound: dict | None = None, **inputs) -> dict:
        prompt = {"c": processor("", **inputs)["c"]}
        prompt["i"] = node("OddImages", levels="0 0.5 1", height=48, width=64, channels=3)
        prompt["v"] = node("CreateVideo", images=["i", 0], fps=fps)
        if sound is not None:
            prompt["a"] = node("OddSound", **sound)
            prompt["v"]["inputs"]["audio"] = ["a", 0]
        prompt["c"]["inputs"]["images"] = ["v", 0]
        return prompt

    return build


def test_a_video_made_of_images_at_23_976_plays_at_the_ntsc_rate(comfyui, created):
    result = comfyui.saved(comfyui.run(created(fps=23.976))["c"])
    assert facts(result)[:2] == (5, Fraction(48000, 1001))


def test_the_same_images_with_another_sound_are_another_video(comfyui, created):
    wanted = [
        None,
        {"channels": 1, "samples": 6000, "rate": 48000},
        {"channels": 2, "samples": 3000, "rate": 48000},
        {"channels": 1, "samples": 6000, "rate": 24000},
    ]
    heard = [sounds(comfyui.saved(comfyui.run(created(sound=sound))["c"])) for sound in wanted]
    assert heard == [[], [(1, 48000)], [(2, 48000)], [(1, 24000)]]


@pytest.mark.parametrize("decibels", [0, 20])
def test_the_sound_of_a_video_in_memory_is_heard_as_it_was(comfyui, created, node, decibels):
    """What is louder than files can store is cut off, not wrapped around."""
    prompt = created(sound={"channels": 2, "samples": 4800, "rate": 48000})
    prompt["louder"] = node("AudioAdjustVolume", audio=["a", 0], volume=decibels)
    prompt["v"]["inputs"]["audio"] = ["louder", 0]
    with av.open(str(comfyui.saved(comfyui.run(prompt)["c"]))) as container:
        heard = np.hstack([frame.to_ndarray() for frame in container.decode(audio=0)])[:, :4800]
    tone = 0.3 * np.sin(np.arange(4800) * 0.05) * 10 ** (decibels / 20)
    assert np.abs(heard - tone.clip(-1, 1)).mean() < 0.05


@pytest.mark.parametrize(
    "sound",
    [
        {"channels": 1, "samples": 0, "rate": 48000},
        {"channels": 1, "samples": 9, "rate": 48000, "batch": 0},
    ],
)
def test_a_sound_without_samples_is_no_sound(comfyui, created, sound):
    assert not sounds(comfyui.saved(comfyui.run(created(sound=sound))["c"]))


@pytest.mark.parametrize(
    "sound",
    [
        {"channels": 9, "samples": 9, "rate": 48000},
        {"channels": 70000, "samples": 9, "rate": 48000},
        {"channels": 2, "samples": 9, "rate": 0},
        {"channels": 2, "samples": 9, "rate": 2 * 10**9},
    ],
)
def test_a_sound_that_no_encoder_knows_is_refused(comfyui, created, sound):
    words = f"the sound has {sound['channels']} channels at {sound['rate']} Hz, which encoders do not know"
    assert words in comfyui.error(created(sound=sound))


def test_a_failed_run_leaves_no_copy_of_its_sound(comfyui, created):
    prompt = created(sound={"channels": 1, "samples": 5000, "rate": 44100})
    prompt["i"]["inputs"]["levels"] = "0 nan 1"
    before = copies(comfyui)
    assert "NaN" in comfyui.error(prompt)
    assert copies(comfyui) == before


@pytest.mark.parametrize("loader", ["CreateVideo", "OddVideo", "OddEdit"])
def test_a_temp_folder_that_takes_no_copy_is_named(comfyui, clip, created, processor, node, loader):
    if loader == "CreateVideo":
        prompt = created(sound={"channels": 1, "samples": 4000, "rate": 8000})
    else:
        prompt = processor("") | {"l": node(loader, file=clip(f"no-temp-{loader}.mp4", sound=True))}
    temp = comfyui.base / "temp"
    temp.rename(temp.with_name("aside"))
    temp.touch()
    try:
        told = comfyui.error(prompt)
    finally:
        temp.unlink()
        temp.with_name("aside").rename(temp)
    assert re.fullmatch(rf"{temp}/tlbvfi_\w+[.\w]* cannot be written \(.+\): choose .+\.\n", told)


def test_a_sound_that_no_player_takes_is_converted_and_told(comfyui, created):
    sound = {"channels": 16, "samples": 24000, "rate": 192000}
    outputs = comfyui.run(created(sound=sound))["c"]
    assert sounds(comfyui.saved(outputs)) == [(2, 96000)]
    assert "it becomes aac in stereo at 96000 Hz" in outputs["text"][0]


def test_an_output_folder_that_is_a_link_gets_the_video(comfyui, clip, processor, node):
    assert (comfyui.base / "output").is_symlink()
    prompt = processor(clip("linked.mp4"), session_id="linked")
    prompt["j"] = node("TLBVFI_VideoConcatenator", session_id=["c", 0], output_dir="below")
    prompt["v"] = node("SaveVideo", video=["c", 1], filename_prefix="saved")
    prompt["v"]["inputs"] |= {"format": "auto", "codec": "auto"}
    outputs = comfyui.run(prompt)
    assert comfyui.saved(outputs["c"]).name == "linked.mp4"
    assert outputs["j"]["images"][0]["subfolder"] == "below"
    assert comfyui.saved(outputs["j"]).is_file()


def test_another_rate_than_the_doubled_one_is_made_exactly_and_told(comfyui, clip, processor):
    name = clip("to30.mp4", frames=25, rate=24)
    outputs = comfyui.run(processor(name, fps=30.0))["c"]
    assert facts(comfyui.saved(outputs))[:2] == (31, 30)
    assert "set fps to 0 for 48" in outputs["text"][0]


def test_a_depth_that_no_job_has_is_refused_over_a_link(comfyui, clip, processor, node):
    prompt = processor(clip("deep.mp4"), fps=30.0) | {"i": node("PrimitiveInt", value=20_000)}
    prompt["c"]["inputs"]["times_to_interpolate"] = ["i", 0]
    assert "times must be between 0 and 8 (2 to 256 times the frames), got 20000" in comfyui.error(
        prompt
    )


def test_an_encoder_that_is_not_there_gives_way_to_its_twin_and_says_so(comfyui, clip, processor):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine may have NVENC")
    outputs = comfyui.run(processor(clip("nvenc.mp4"), codec="hevc_nvenc", crf=23))["c"]
    assert "hevc_nvenc cannot run here: hevc is used instead." in outputs["text"][0]
    assert packets(comfyui.saved(outputs), "video")
    with av.open(str(comfyui.saved(outputs))) as container:
        assert container.streams.video[0].codec_context.name == "hevc"


@pytest.mark.parametrize(
    ("codec", "suffix", "pix_fmt"),
    [("libvpx-vp9", ".webm", "yuv420p"), ("ffv1", ".mkv", "yuv420p"), ("prores", ".mov", None)],
)
def test_codecs_pick_their_container(comfyui, clip, processor, codec, suffix, pix_fmt):
    result = comfyui.saved(comfyui.run(processor(clip("codecs.mp4"), codec=codec))["c"])
    assert result.suffix == suffix
    assert facts(result)[2] == (pix_fmt or "yuv422p10le")


def test_the_graph_is_in_the_file(comfyui, clip, processor):
    prompt = processor(clip("meta.mp4"))
    body = {"prompt": prompt, "extra_data": {"extra_pnginfo": {"workflow": {"nodes": [1]}}}}
    _, answer = comfyui.post("/prompt", body)
    entry = comfyui.wait(answer["prompt_id"])
    with av.open(str(comfyui.saved(entry["outputs"]["c"]))) as container:
        embedded = json.loads(container.metadata["prompt"])
        assert {key: value["inputs"] for key, value in embedded.items()} == {
            key: value["inputs"] for key, value in prompt.items()
        }
        assert json.loads(container.metadata["workflow"]) == {"nodes": [1]}


@pytest.fixture
def made_by_comfyui(comfyui, clip):
    """Make a video that holds the graph it was made by, return its name."""

    def make(suffix: str) -> str:
        source = comfyui.base / "input" / clip("plain.mp4")
        made = source.with_name(f"made-by-comfyui{suffix}")
        with (
            av.open(str(source)) as given,
            av.open(str(made), "w", options={"movflags": "use_metadata_tags"}) as out,
        ):
            out.metadata.update(title="A film", workflow='{"nodes": ["old"]}', prompt='{"old": 1}')
            stream = out.add_stream_from_template(given.streams.video[0])
            for packet in given.demux(given.streams.video[0]):
                packet.stream = stream
                if packet.size:
                    out.mux(packet)
        return made.name

    return make


def tags(path: Path) -> dict[str, str]:
    with av.open(str(path)) as container:
        return {key.lower(): text for key, text in container.metadata.items()}


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_the_graph_of_the_source_is_not_in_the_file(comfyui, made_by_comfyui, processor, suffix):
    outputs = comfyui.run(processor(made_by_comfyui(suffix)))
    texts = tags(comfyui.saved(outputs["c"]))
    assert texts["title"] == "A film"
    assert "workflow" not in texts
    assert "TLBVFI_ChunkProcessor" in texts["prompt"]


def test_a_server_without_metadata_writes_no_graph_not_even_the_source_s(
    comfyui, fresh_comfyui, made_by_comfyui, processor
):
    name = made_by_comfyui(".mp4")
    server = fresh_comfyui(flags=("--disable-metadata",))
    shutil.copy(comfyui.base / "input" / name, server.base / "input")
    texts = tags(server.saved(server.run(processor(name))["c"]))
    assert texts["title"] == "A film"
    assert not {"workflow", "prompt"} & texts.keys()


def test_with_a_concatenator_there_is_one_file_under_its_name(comfyui, clip, processor, node):
    prompt = processor(clip("joined.mp4", sound=True), session_id="one-file")
    prompt["j"] = node(
        "TLBVFI_VideoConcatenator", session_id=["c", 0], output_dir="films", output_filename="one"
    )
    outputs = comfyui.run(prompt)
    result = comfyui.saved(outputs["j"])
    assert result == comfyui.base / "output" / "films" / "one.mp4"
    assert packets(result, "audio")
    assert "images" not in outputs["c"]
    assert outputs["c"]["text"] == ["chunks ready for the concatenator: 1"]
    assert not list((comfyui.base / "output").glob("one-file*"))
    assert not list(comfyui.session("one-file").glob("chunk_*"))


def test_a_processor_whose_video_goes_into_another_joins_it_and_tidies_up(
    comfyui, clip, processor, node
):
    prompt = processor(clip("cascade.mp4"), session_id="cascade-1")
    prompt["d"] = processor("", session_id="cascade-2")["c"]
    prompt["d"]["inputs"]["images"] = ["c", 1]
    prompt["j"] = node("TLBVFI_VideoConcatenator", session_id=["d", 0])
    outputs = comfyui.run(prompt)
    assert comfyui.saved(outputs["c"]).name == "cascade-1.mp4"
    assert comfyui.saved(outputs["j"]).name == "cascade-2.mp4"
    for session_id in ("cascade-1", "cascade-2"):
        assert not list(comfyui.session(session_id).glob("chunk_*"))


def test_in_a_loop_as_well_there_is_one_file_under_its_name(comfyui, clip, node):
    chunks = DEFAULTS | {"file": clip("looped.mp4"), "session_id": "looped"}
    loop = node(
        "OddLoop",
        processor=json.dumps(chunks),
        concatenator=json.dumps({"output_filename": "one-of-a-loop"}),
    )
    comfyui.run({"x": loop, "p": node("PreviewAny", source=["x", 0])})
    files = (comfyui.base / "output").glob("*loop*.mp4")
    assert [path.name for path in files] == ["one-of-a-loop.mp4"]


def test_the_video_output_can_be_saved_by_comfyui(comfyui, clip, processor, node, pictures):
    prompt = processor(clip("saved.mp4"))
    prompt["s"] = node(
        "SaveVideo", video=["c", 1], filename_prefix="again", format="auto", codec="auto"
    )
    outputs = comfyui.run(prompt)
    ours, theirs = (pictures(comfyui.saved(outputs[n])) for n in ("c", "s"))
    assert (ours == theirs).all()


@pytest.fixture
def long_job(clip, processor):
    """A job of many chunks that takes some seconds, under a session id."""

    def build(session_id: str) -> dict:
        name = clip("long.mp4", frames=400, width=640, height=360)
        return processor(name, session_id=session_id)

    return build


@pytest.fixture(scope="module")
def undisturbed(comfyui):
    """SHA-256 of the video of an uninterrupted job, made once."""
    known = {}

    def run(prompt: dict) -> str:
        key = "long"
        if key not in known:
            outputs = comfyui.run(prompt)["c"]
            known[key] = hashlib.sha256(b"".join(packets(comfyui.saved(outputs), "video"))).digest()
        return known[key]

    return run


def digest(comfyui, outputs) -> bytes:
    return hashlib.sha256(b"".join(packets(comfyui.saved(outputs), "video"))).digest()


def test_cancel_stops_at_once_and_the_same_prompt_goes_on(comfyui, long_job, undisturbed):
    whole = undisturbed(long_job("whole"))
    prompt = long_job("canceled")
    prompt_id = comfyui.queue(prompt)
    comfyui.wait_for_chunks("canceled", 1)
    comfyui.post("/interrupt", {"prompt_id": prompt_id})
    at_cancel = len(comfyui.committed("canceled"))
    entry = comfyui.wait(prompt_id)
    assert "execution_interrupted" in dict(entry["status"]["messages"])
    before = comfyui.committed("canceled")
    assert len(before) <= at_cancel + 1  # one may have been on its way to the disk
    assert 1 <= len(before) < len(comfyui.committed("whole"))
    outputs = comfyui.run(prompt)
    assert comfyui.committed("canceled")[: len(before)] == before
    assert digest(comfyui, outputs["c"]) == whole


@pytest.mark.parametrize("as_video", [False, True])
def test_cancel_stops_the_reading_of_a_clip_in_memory(comfyui, processor, node, watch, as_video):
    prompt = {"c": processor("", fps=0.0 if as_video else 24.0)["c"]}
    levels = " ".join(str(n / 600) for n in range(600))
    prompt["i"] = node("OddImages", levels=levels, height=720, width=1280, channels=3)
    prompt["v"] = node("CreateVideo", images=["i", 0], fps=24.0)
    prompt["c"]["inputs"] |= {"images": ["v" if as_video else "i", 0]}
    _, texts = watch(prompt, until="reading frame")
    assert any(re.search(r"reading frame \d+/600", text) for text in texts)
    assert not any("frames/s" in text for text in texts)
    assert re.search(r"stopped at \d+/600$", texts[-1])


def test_a_canceled_job_shows_where_it_stopped_and_how_to_go_on(long_job, watch):
    _, texts = watch(long_job("stopped"), until="frames/s")
    assert re.search(r"stopped at \d+/799: queue it again to resume$", texts[-1])


def test_kill_9_costs_at_most_a_chunk(comfyui, long_job, undisturbed):
    whole = undisturbed(long_job("whole"))
    prompt = long_job("killed")
    comfyui.queue(prompt)
    comfyui.wait_for_chunks("killed", 1)
    comfyui.kill()
    before = comfyui.committed("killed")
    comfyui.start()
    outputs = comfyui.run(prompt)
    assert comfyui.committed("killed")[: len(before)] == before
    assert digest(comfyui, outputs["c"]) == whole


def test_a_damaged_chunk_is_made_again_and_never_joined(comfyui, long_job, undisturbed):
    whole = undisturbed(long_job("whole"))
    prompt = long_job("damaged")
    prompt_id = comfyui.queue(prompt)
    comfyui.wait_for_chunks("damaged", 1)
    comfyui.post("/interrupt", {"prompt_id": prompt_id})
    comfyui.wait(prompt_id)
    chunk = comfyui.session("damaged") / "chunk_000000.mp4"
    chunk.write_bytes(chunk.read_bytes()[:-1000])
    assert digest(comfyui, comfyui.run(prompt)["c"]) == whole


def test_a_chunk_of_a_small_picture_is_four_seconds_long(comfyui, long_job, undisturbed):
    undisturbed(long_job("whole"))
    frames = [json.loads(line)["frames"] for line in comfyui.committed("whole")]
    assert frames == [4 * 48, 4 * 48, 4 * 48, 4 * 48, 2 * 399 + 1 - 16 * 48]


def test_debug_writes_the_job_s_events_to_the_log(comfyui, clip, processor):
    name = clip("debugged.mp4", frames=3)
    comfyui.run(processor(name, session_id="silent"))
    assert "session_id='silent'" not in comfyui.text()
    comfyui.run(processor(name, session_id="debugged", debug=True))
    assert "session_id='debugged'" in comfyui.text()


@pytest.mark.slow
def test_2000_frames_need_no_more_memory_than_200(comfyui, fresh_comfyui, clip, processor):
    peaks = []
    for frames in (200, 2000):
        name = clip(f"flat{frames}.mp4", frames=frames, width=640, height=360)
        server = fresh_comfyui()
        shutil.copy(comfyui.base / "input" / name, server.base / "input")
        server.run(processor(name), timeout=600)
        peaks.append(server.peak_memory())
    assert peaks[1] < 1.05 * peaks[0]


def test_the_same_prompt_after_success_makes_nothing_again(comfyui, clip, processor):
    prompt = processor(clip("again.mp4"), session_id="again")
    first = comfyui.saved(comfyui.run(prompt)["c"])
    made = first.stat().st_mtime_ns
    prompt["c"]["inputs"]["debug"] = True  # a new prompt to ComfyUI's cache, but the same job
    assert comfyui.saved(comfyui.run(prompt)["c"]) == first
    assert first.stat().st_mtime_ns == made


def test_a_video_that_was_deleted_is_made_again(comfyui, clip, processor, node):
    prompt = processor(clip("deleted.mp4"), session_id="deleted-c")
    first = comfyui.saved(comfyui.run(prompt)["c"])
    first.unlink()
    assert comfyui.saved(comfyui.run(prompt)["c"]) == first
    assert first.is_file()
    prompt["j"] = node("TLBVFI_VideoConcatenator", session_id=["c", 0], output_filename="gone")
    first.unlink()
    second = comfyui.saved(comfyui.run(prompt)["j"])
    second.unlink()
    assert comfyui.saved(comfyui.run(prompt)["j"]) == second
    assert second.is_file()


@pytest.fixture
def cached(comfyui):
    """Run a prompt that must succeed; (its outputs, nodes whose results were taken from the cache)."""

    def run(prompt: dict) -> tuple[dict, set[str]]:
        entry = comfyui.wait(comfyui.queue(prompt))
        messages = dict(entry["status"]["messages"])
        assert entry["status"]["status_str"] == "success", comfyui.message(entry)
        return entry["outputs"], set(messages["execution_cached"]["nodes"])

    return run


def saved_copy(node) -> dict:
    """A node after the processor: it writes another file whenever it runs."""
    inputs = {"filename_prefix": "copy", "format": "auto", "codec": "auto"}
    return {"v": node("SaveVideo", video=["c", 1], **inputs)}


def test_what_reads_the_video_is_not_run_again_while_nothing_has_changed(
    comfyui, clip, processor, node, cached
):
    prompt = processor(clip("reused.mp4"), session_id="reused") | saved_copy(node)
    first, _ = cached(prompt)
    for _ in range(2):
        again, nodes = cached(prompt)
        assert nodes == set(prompt)
        assert again == first


def test_what_reads_the_video_is_run_again_once_the_video_or_its_session_is_gone(
    comfyui, clip, processor, node, cached
):
    prompt = processor(clip("until.mp4"), session_id="until") | saved_copy(node)
    comfyui.saved(cached(prompt)[0]["c"]).unlink()
    outputs, nodes = cached(prompt)
    assert not {"c", "v"} & nodes
    assert comfyui.saved(outputs["c"]).is_file()
    shutil.rmtree(comfyui.session("until"))
    _, nodes = cached(prompt)
    assert not {"c", "v"} & nodes


def test_chunks_left_to_a_concatenator_are_no_video_for_the_next_graph(
    comfyui, clip, processor, node, cached
):
    cached(processor(clip("voided-1.mp4")))
    join = {"j": node("TLBVFI_VideoConcatenator", session_id=["c", 0])}
    prompt = processor(clip("voided-2.mp4")) | join
    cached(prompt)
    outputs, nodes = cached(prompt | saved_copy(node))
    assert "c" not in nodes
    assert facts(comfyui.saved(outputs["v"]))[0] == 23


def test_links_of_the_video_output_may_change_after_a_run(comfyui, clip, processor, node):
    prompt = processor(clip("relinked.mp4"), session_id="relinked")
    join = {"j": node("TLBVFI_VideoConcatenator", session_id=["c", 0], output_filename="joined")}
    save = {"v": node("SaveVideo", video=["c", 1], filename_prefix="relinked")}
    save["v"]["inputs"] |= {"format": "auto", "codec": "auto"}
    first = comfyui.saved(comfyui.run(prompt | join)["j"])
    outputs = comfyui.run(prompt | join | save)
    assert comfyui.saved(outputs["c"]) == comfyui.saved(outputs["j"]) == first
    assert facts(comfyui.saved(outputs["v"])) == facts(first)
    outputs = comfyui.run(prompt)
    assert comfyui.saved(outputs["c"]) == first
    assert "was already joined into joined.mp4" in outputs["c"]["text"][0]


def test_a_session_of_another_source_is_refused_with_what_differs(comfyui, clip, processor):
    comfyui.run(processor(clip("mine.mp4"), session_id="taken"))
    message = comfyui.error(processor(clip("other.mp4", frames=20), session_id="taken"))
    assert "Session taken belongs to another job (source." in message
    assert "choose another session id or none" in message


@pytest.mark.parametrize("session_id", ["../../x", "a/b", ".hidden", "C:\\x", "con", "x" * 65])
def test_a_session_id_with_a_path_is_refused_before_anything_runs(
    comfyui, clip, processor, session_id
):
    problems = comfyui.refusal(processor(clip("id.mp4"), session_id=session_id))
    assert any("is not a session id" in problem["details"] for problem in problems)


def test_an_unknown_model_is_refused_with_where_to_get_one(comfyui, clip, processor):
    problems = comfyui.refusal(processor(clip("model.mp4"), model_name="gone.pth"))
    details = problems[0]["details"]
    assert "there is no model 'gone.pth' in models/interpolation" in details
    assert "https://huggingface.co/ucfzl/TLBVFI" in details
    assert "flow or blend, which need no model" in details


def test_a_bitrate_that_is_none_is_refused(comfyui, clip, processor):
    problems = comfyui.refusal(processor(clip("rate.mp4"), bitrate="fast"))
    assert any("write it like 8M or 800k" in problem["details"] for problem in problems)


def test_an_input_that_older_packs_had_is_passed_over(comfyui, clip, processor):
    prompt = processor(clip("older.mp4"), shared_model=["l", 0], crf_mode="fast")
    assert comfyui.saved(comfyui.run(prompt)["c"]).is_file()


def test_one_frame_is_refused(comfyui, clip, processor, gray_batch):
    nodes, batch = gray_batch(1)
    nodes["c"] = processor("")["c"]
    nodes["c"]["inputs"] |= {"images": batch, "fps": 24.0}
    assert "at least 2 frames" in comfyui.error(nodes)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ({"height": 0, "width": 0, "channels": 3}, "this one has 2 of 0x0 with 3 channels"),
        ({"height": 48, "width": 64, "channels": 1}, "this one has 2 of 64x48 with 1 channels"),
        ({"height": 48, "width": 64, "channels": 5}, "this one has 2 of 64x48 with 5 channels"),
    ],
)
@pytest.mark.parametrize("as_video", [False, True])
def test_frames_that_are_no_color_pictures_are_refused(
    comfyui, processor, node, size, words, as_video
):
    prompt = {"i": node("OddImages", levels="0 1", **size), "c": processor("", fps=24.0)["c"]}
    prompt["v"] = node("CreateVideo", images=["i", 0], fps=12.0)
    prompt["c"]["inputs"]["images"] = ["v" if as_video else "i", 0]
    assert words in comfyui.error(prompt)


def test_rgba_images_go_through_and_say_where_alpha_would_stay(comfyui, processor, node):
    nodes = {"c": processor("")["c"]}
    for n in "01":
        nodes[n] = node("EmptyImage", width=64, height=48, batch_size=1, color=0x808080)
        nodes[f"m{n}"] = node("SolidMask", value=0.5, width=64, height=48)
        nodes[f"a{n}"] = node("JoinImageWithAlpha", image=[n, 0], alpha=[f"m{n}", 0])
    nodes["b"] = node("ImageBatch", image1=["a0", 0], image2=["a1", 0])
    nodes["c"]["inputs"] |= {"images": ["b", 0], "fps": 24.0}
    outputs = comfyui.run(nodes)["c"]
    assert facts(comfyui.saved(outputs))[0] == 3
    assert "has no alpha channel: choose prores_4444 or ffv1" in outputs["text"][0]


def test_a_running_job_shows_a_bar_a_line_of_text_and_previews(long_job, watch):
    kinds, texts = watch(long_job("watched"))
    assert {3, 4, "progress_state"} <= kinds  # 3: text, 4: preview
    assert any("frames/s" in text and "left" in text and "chunks safe" in text for text in texts)


def test_a_node_that_is_done_shows_its_file_and_what_there_was_to_say(clip, processor, watch):
    name = clip("said.mp4", frames=3)
    _, texts = watch(processor(name, session_id="said", fps=60.0))
    file, notice = texts[-1].splitlines()
    assert file.endswith("said.mp4")
    assert notice.startswith("fps 60 is not the video's own rate times 2")
