"""Chunks saved one by one and joined: the saver and the concatenator in a real ComfyUI."""

import json
import os
import re
import shutil
import sys
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

pytestmark = pytest.mark.comfyui


@pytest.fixture
def chain(comfyui, clip, node):
    """Prompt nodes that save a video's pairs as chunks of a session in the given order."""

    def build(session_id: str, pairs: list[int], *, frames: int = 5, **saver) -> dict:
        name = clip(f"{session_id}.mp4", frames=frames, rate=Fraction(24000, 1001), sound=True)
        settings = {"fps": 0, "source_video_path": name, "codec": "libx264", "quality": 10} | saver
        nodes = {
            "l": node("LoadVideo", file=name),
            "g": node("GetVideoComponents", video=["l", 0]),
        }
        link = session_id
        for n in pairs:
            nodes[f"s{n}"] = node("TLBVFI_FramePairSlicer", images=["g", 0], pair_index=n)
            nodes[f"i{n}"] = node(
                "TLBVFI_Interpolator",
                frame_pair=[f"s{n}", 0],
                model_name="blend",
                times_to_interpolate=1,
                gpu_id=0,
                is_last_pair=[f"s{n}", 3],
            )
            nodes[f"c{n}"] = node(
                "TLBVFI_ChunkVideoSaver",
                frames=[f"i{n}", 0],
                chunk_id=[f"s{n}", 1],
                session_id=link,
                **settings,
            )
            link = [f"c{n}", 0]
        nodes["last"] = {"link": link}
        return nodes

    return build


def joined(nodes: dict, node, **inputs) -> dict:
    """The same nodes and a concatenator "j" after the last saver."""
    link = nodes.pop("last")["link"]
    return nodes | {"j": node("TLBVFI_VideoConcatenator", session_id=link, **inputs)}


def facts(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [frame.pts * stream.time_base for frame in container.decode(stream)]
        return times, stream.codec_context.name, stream.pix_fmt, len(container.streams.audio)


def test_chunks_saved_out_of_order_join_in_order_at_the_exact_rate(comfyui, chain, node):
    outputs = comfyui.run(joined(chain("disorder", [2, 0, 3, 1]), node, output_filename="film"))
    times, codec, pix_fmt, sounds = facts(comfyui.saved(outputs["j"]))
    assert times == [Fraction(1001 * n, 48000) for n in range(9)]
    assert (codec, pix_fmt, sounds) == ("h264", "yuv420p", 1)
    assert not list(comfyui.session("disorder").glob("chunk_*"))


def test_the_same_graph_queued_again_shows_the_same_file(comfyui, chain, node):
    nodes = joined(chain("twice", [0, 1, 2, 3]), node, output_filename="twice")
    first = comfyui.saved(comfyui.run(nodes)["j"])
    content = first.read_bytes()
    assert comfyui.saved(comfyui.run(nodes)["j"]) == first
    assert first.read_bytes() == content
    assert not list(first.parent.glob("twice_*"))


def test_a_pair_that_is_changed_after_the_join_changes_the_same_file(
    comfyui, chain, node, pictures
):
    nodes = joined(chain("changed", [0, 1, 2, 3]), node, output_filename="changed")
    first = comfyui.saved(comfyui.run(nodes)["j"])
    before = pictures(first)
    os.utime(first, (2**31, 2**31))  # as if the clock had been set back since
    nodes["i1"]["inputs"]["model_name"] = "flow"
    assert comfyui.saved(comfyui.run(nodes)["j"]) == first
    assert [n for n in range(9) if (pictures(first)[n] != before[n]).any()] == [3]
    nodes["i1"]["inputs"]["times_to_interpolate"] = 2
    assert comfyui.saved(comfyui.run(nodes)["j"]) == first
    assert len(pictures(first)) == 11


def test_a_video_that_was_deleted_is_made_again(comfyui, chain, node):
    nodes = joined(chain("deleted", [0, 1]), node, output_filename="deleted")
    first = comfyui.saved(comfyui.run(nodes)["j"])
    first.unlink()
    assert comfyui.saved(comfyui.run(nodes)["j"]) == first
    assert first.is_file()


def test_a_new_round_after_cleaning_up_replaces_the_video_of_the_round_before(comfyui, chain, node):
    comfyui.run(joined(chain("rounds", [0, 1, 2, 3]), node, output_filename="rounds"))
    nodes = joined(chain("rounds", [0, 1], quality=20), node, output_filename="rounds")
    path = comfyui.saved(comfyui.run(nodes)["j"])
    assert path.name == "rounds.mp4"
    assert len(facts(path)[0]) == 4


def test_chunks_that_an_earlier_run_left_are_told_when_they_are_joined(comfyui, chain, node):
    nodes = joined(
        chain("left", [0, 1, 2, 3], source_video_path="", fps=24), node, cleanup_chunks=False
    )
    assert comfyui.run(nodes)["j"]["text"] == ["left.mp4"]
    assert comfyui.run(nodes)["j"]["text"] == ["left.mp4"]
    shorter = joined(chain("left", [0, 1], source_video_path="", fps=24), node)
    assert comfyui.run(shorter)["j"]["text"] == [
        "left.mp4\n2 of the 4 chunks of session left (numbers 2 to 3) are from an earlier run: if "
        "they show another clip, use another session_id."
    ]


def test_chunks_that_each_have_a_run_of_their_own_join_without_a_word(comfyui, chain, node):
    nodes = chain("single", [0, 1, 2, 3])
    nodes.pop("last")
    for n in (2, 0, 1, 3):
        mine = {key: each for key, each in nodes.items() if key in ("l", "g", f"s{n}", f"i{n}")}
        saver = node(
            "TLBVFI_ChunkVideoSaver", **nodes[f"c{n}"]["inputs"] | {"session_id": "single"}
        )
        comfyui.run(mine | {"c": saver})
    outputs = comfyui.run({"j": node("TLBVFI_VideoConcatenator", session_id="single")})["j"]
    assert outputs["text"] == ["single.mp4"]
    assert len(facts(comfyui.saved(outputs))[0]) == 9


def test_chunks_of_another_source_are_refused(comfyui, chain, clip):
    nodes = chain("sources", [0, 1])
    nodes.pop("last")
    comfyui.run(nodes)
    nodes["c1"]["inputs"]["source_video_path"] = clip("another.mp4", frames=9)
    message = comfyui.error(nodes)
    assert "Session sources belongs to another job (source.video." in message
    assert "choose another session id or none" in message


def test_an_incomplete_session_is_not_joined_and_says_which_chunk_is_missing(comfyui, chain, node):
    nodes = joined(chain("holes", [0, 2, 3]), node)
    message = comfyui.error(nodes)
    assert "session holes is not complete (chunk 1 is not made yet): queue the graph" in message
    assert "leave cleanup_chunks off" in message
    assert len(list(comfyui.session("holes").glob("chunk_*"))) == 3


def test_a_truncated_chunk_is_not_joined_and_nothing_is_removed(comfyui, chain, node):
    nodes = chain("cut", [0, 1, 2, 3])
    nodes.pop("last")
    comfyui.run(nodes)
    chunk = comfyui.session("cut") / "chunk_000002.mp4"
    chunk.write_bytes(chunk.read_bytes()[:-100])
    message = comfyui.error({"j": node("TLBVFI_VideoConcatenator", session_id="cut")})
    assert "chunk_000002.mp4 has" in message
    assert len(list(comfyui.session("cut").glob("chunk_*"))) == 4


def test_lossless_chunks_are_encoded_once_at_the_join(comfyui, chain, node):
    nodes = joined(chain("lossless", [0, 1, 2, 3], codec="ffv1"), node, codec="libx264", crf=12)
    path = comfyui.saved(comfyui.run(nodes)["j"])
    times, codec, pix_fmt, sounds = facts(path)
    assert (len(times), codec, pix_fmt, sounds) == (9, "h264", "yuv420p", 1)
    assert path.suffix == ".mp4"


def test_encoders_that_are_not_there_give_way_to_their_twins(comfyui, chain, node):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine may have NVENC")
    saved = chain("twins", [0, 1], codec="h264_nvenc")
    outputs = comfyui.run(joined(saved, node, codec="hevc_nvenc"))
    assert "h264_nvenc cannot run here: h264 is used instead." in outputs["c0"]["text"][0]
    assert "hevc_nvenc cannot run here: hevc is used instead." in outputs["j"]["text"][0]
    assert facts(comfyui.saved(outputs["j"]))[1] == "hevc"


def test_kept_chunks_can_be_joined_again_under_another_name(comfyui, chain, node):
    nodes = joined(
        chain("kept", [0, 1, 2, 3]), node, cleanup_chunks=False, output_filename="kept-1"
    )
    first = comfyui.saved(comfyui.run(nodes)["j"])
    nodes["j"]["inputs"]["output_filename"] = "kept-2.mkv"
    second = comfyui.saved(comfyui.run(nodes)["j"])
    assert (first.name, second.name) == ("kept-1.mp4", "kept-2.mkv")
    assert first.exists()


def test_chunks_that_were_kept_are_removed_once_that_is_asked(comfyui, chain, node):
    nodes = chain("tidied", [0, 1])
    comfyui.run({key: each for key, each in nodes.items() if key != "last"})
    join = node("TLBVFI_VideoConcatenator", session_id="tidied", cleanup_chunks=False)
    first = comfyui.saved(comfyui.run({"j": join})["j"])
    assert len(list(comfyui.session("tidied").glob("chunk_*"))) == 2
    made = first.stat().st_mtime_ns
    join["inputs"]["cleanup_chunks"] = True
    assert comfyui.saved(comfyui.run({"j": join})["j"]) == first
    assert first.stat().st_mtime_ns == made
    assert not list(comfyui.session("tidied").glob("chunk_*"))


def test_two_files_of_one_session_keep_their_names_however_often_it_is_queued(comfyui, chain, node):
    nodes = chain("both", [0, 1])
    link = nodes.pop("last")["link"]
    nodes |= {
        name: node(
            "TLBVFI_VideoConcatenator",
            session_id=link,
            output_filename=f"both-{name}",
            cleanup_chunks=False,
            codec=codec,
        )
        for name, codec in (("copy", "copy"), ("small", "libx265"))
    }
    for _ in range(3):
        comfyui.run(nodes)
    files = (comfyui.base / "output").glob("both-*")
    assert sorted(path.name for path in files) == ["both-copy.mp4", "both-small.mp4"]
    for path, codec in (("both-copy.mp4", "h264"), ("both-small.mp4", "hevc")):
        assert facts(comfyui.base / "output" / path)[1] == codec


def test_a_video_of_a_typed_session_that_was_deleted_is_made_again(comfyui, chain, node):
    nodes = chain("typed", [0, 1])
    nodes.pop("last")
    comfyui.run(nodes)
    join = node("TLBVFI_VideoConcatenator", session_id="typed", output_dir="", cleanup_chunks=False)
    paths = []
    for _ in range(3):
        paths.append(comfyui.saved(comfyui.run({"j": join})["j"]))
        paths[-1].unlink()
    assert {path.name for path in paths} == {"typed.mp4"}


@pytest.mark.parametrize(
    ("wish", "form"),
    [
        ({"codec": "libx265"}, "form.mp4 (encoded as hevc with crf 18)"),
        ({"codec": "h264-lossless"}, "form.mp4 (encoded as h264-lossless)"),
        ({"output_filename": "form.mkv"}, "form.mkv (chunks joined as they are)"),
    ],
)
def test_another_form_is_refused_once_the_chunks_are_removed(comfyui, chain, node, wish, form):
    nodes = chain("form", [0, 1])
    first = comfyui.saved(comfyui.run(joined(nodes, node, output_filename="form"))["j"])
    join = node("TLBVFI_VideoConcatenator", session_id="form", output_filename="form")
    join["inputs"] |= wish
    message = comfyui.error({"j": join})
    assert "session form was joined into form.mp4 (chunks joined as they are)" in message
    assert f"its chunks were removed, so it cannot become {form}" in message
    assert "delete form.mp4 and queue the graph again, or use another session_id" in message
    assert first.is_file()


@pytest.mark.parametrize("inputs", [{"output_filename": "two"}, {"output_dir": "two"}])
def test_another_name_or_folder_is_given_to_the_same_file_as_well(comfyui, chain, node, inputs):
    nodes = joined(chain("named", [0, 1]), node, output_filename="one")
    first = comfyui.saved(comfyui.run(nodes)["j"])
    another = node("TLBVFI_VideoConcatenator", session_id="named", **inputs)
    for _ in range(2):
        second = comfyui.saved(comfyui.run({"j": another})["j"])
        assert "two" in (second.stem, second.parent.name)
        assert second.samefile(first)
    same = node("TLBVFI_VideoConcatenator", session_id="named", output_filename="one")
    assert comfyui.saved(comfyui.run({"j": same})["j"]) == first


def test_without_a_name_the_file_that_is_there_is_shown(comfyui, chain, node):
    comfyui.run(joined(chain("unnamed", [0, 1]), node, output_filename="a-name"))
    outputs = comfyui.run({"j": node("TLBVFI_VideoConcatenator", session_id="unnamed")})["j"]
    assert comfyui.saved(outputs).name == "a-name.mp4"
    assert "session unnamed was already joined into a-name.mp4." in outputs["text"][0]


def test_a_file_of_something_else_is_left_alone(comfyui, chain, node):
    other = comfyui.base / "output" / "mine.mp4"
    other.write_bytes(b"not ours")
    nodes = joined(chain("numbered", [0, 1, 2, 3]), node, output_filename="mine.mp4")
    assert comfyui.saved(comfyui.run(nodes)["j"]).name == "mine_00002.mp4"
    assert other.read_bytes() == b"not ours"


def test_colors_of_a_720p_batch_are_written_as_bt709(comfyui, node):
    nodes = {
        "e": node("EmptyImage", width=1280, height=720, batch_size=2, color=0xC04020),
        "c": node("TLBVFI_ChunkVideoSaver", frames=["e", 0], chunk_id=0, fps=24, session_id="hd"),
        "j": node("TLBVFI_VideoConcatenator", session_id=["c", 0]),
    }
    with av.open(str(comfyui.saved(comfyui.run(nodes)["j"]))) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)
        red, green, blue = next(container.decode(video=0)).to_ndarray(format="rgb24")[300, 300]
    assert abs(int(red) - 0xC0) + abs(int(green) - 0x40) + abs(int(blue) - 0x20) <= 6


def test_chunks_follow_the_codec_and_the_colors_of_their_source(comfyui, node):
    source = comfyui.base / "input" / "followed.mkv"
    with av.open(str(source), "w") as container:
        stream = container.add_stream("libx265", rate=24, options={"x265-params": "log-level=none"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        # BT.470 BG in full range; images alone become BT.709 in limited range
        stream.codec_context.colorspace, stream.codec_context.color_range = 5, 2
        for n in range(3):
            gray = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 128, np.uint8))
            picture = gray.reformat(format="yuv420p")
            picture.pts, picture.time_base = n, Fraction(1, 24)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    nodes = {
        "e": node("EmptyImage", width=64, height=48, batch_size=2, color=0xC04020),
        "c": node(
            "TLBVFI_ChunkVideoSaver",
            frames=["e", 0],
            chunk_id=0,
            fps=24,
            session_id="followed",
            source_video_path=source.name,
        ),
        "j": node("TLBVFI_VideoConcatenator", session_id=["c", 0]),
    }
    with av.open(str(comfyui.saved(comfyui.run(nodes)["j"]))) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.colorspace, context.color_range) == ("hevc", 5, 2)
        red, green, blue = next(container.decode(video=0)).to_ndarray(format="rgb24")[24, 32]
    assert abs(int(red) - 0xC0) + abs(int(green) - 0x40) + abs(int(blue) - 0x20) <= 6


def test_chunks_of_another_size_are_refused(comfyui, node):
    def save(width: int, chunk_id: int) -> dict:
        frames = node("EmptyImage", width=width, height=48, batch_size=2, color=0)
        chunk = node(
            "TLBVFI_ChunkVideoSaver",
            frames=["e", 0],
            chunk_id=chunk_id,
            fps=24,
            session_id="mixed",
        )
        return {"e": frames, "c": chunk}

    comfyui.run(save(64, 0))
    message = comfyui.error(save(96, 1))
    assert "Session mixed belongs to another job (stream.width was 64 and is now 96)" in message


@pytest.mark.parametrize(
    ("number", "rate"), [("49.00000000000001", 49), ("16.666666666666668", Fraction(50, 3))]
)
def test_a_computed_rate_over_a_link_is_the_one_it_means(comfyui, chain, node, number, rate):
    nodes = chain(f"computed-{float(rate):.0f}", [0], fps=["f", 0])
    nodes = joined(nodes, node) | {"f": node("OddFloat", number=number)}
    assert facts(comfyui.saved(comfyui.run(nodes)["j"]))[0][1] == 1 / Fraction(rate)


def test_a_rate_that_no_file_stores_is_refused_over_a_link(comfyui, chain, node):
    nodes = chain("no-rate", [0], fps=["f", 0]) | {"f": node("OddFloat", number="5e9")}
    nodes.pop("last")
    assert "ticks of 1/5000000000 s, finer than video files can store" in comfyui.error(nodes)


@pytest.mark.parametrize("times", [-1, 9])
def test_a_depth_that_no_sequence_has_is_refused_over_a_link(comfyui, chain, node, times):
    nodes = chain("depth", [0], times_to_interpolate=["d", 0])
    nodes |= {"d": node("PrimitiveInt", value=times)}
    nodes.pop("last")
    assert f"times must be between 0 and 8 (2 to 256 times the frames), got {times}" in (
        comfyui.error(nodes)
    )


@pytest.fixture
def big_chunk(node):
    """Prompt nodes that save one chunk of many frames, under a session id."""

    def build(session_id: str, frames: int) -> dict:
        levels = " ".join(str(n / frames) for n in range(frames))
        images = node("OddImages", levels=levels, height=720, width=1280, channels=3)
        saver = {"frames": ["i", 0], "chunk_id": 0, "fps": 24.0, "session_id": session_id}
        return {"i": images, "c": node("TLBVFI_ChunkVideoSaver", **saver)}

    return build


def test_cancel_stops_a_chunk_within_a_frame_and_it_is_not_saved(comfyui, big_chunk):
    prompt_id = comfyui.queue(big_chunk("long-chunk", 1000))
    while not comfyui.session("long-chunk").exists():
        time.sleep(0.01)
    comfyui.post("/interrupt", {"prompt_id": prompt_id})
    entry = comfyui.wait(prompt_id)
    assert "execution_interrupted" in dict(entry["status"]["messages"])
    assert not comfyui.committed("long-chunk")
    assert not list(comfyui.session("long-chunk").glob("*chunk_*"))


def test_a_chunk_shows_a_bar_a_line_of_text_and_its_frames(big_chunk, watch):
    kinds, texts = watch(big_chunk("seen", 60))
    assert {3, 4, "progress_state"} <= kinds  # 3: text, 4: preview
    assert any("/60 frames" in text and "left" in text for text in texts)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"session_id": "../../x"}, "is not a session id"),
        ({"session_id": ""}, "session_id is empty: connect"),
        ({"output_filename": "../x.mp4"}, "is not a plain file name"),
        ({"output_filename": "a/b.mp4"}, "is not a plain file name"),
    ],
)
def test_names_of_nothing_are_refused_before_anything_runs(comfyui, node, inputs, sentence):
    nodes = {"j": node("TLBVFI_VideoConcatenator", **({"session_id": "x"} | inputs))}
    assert any(sentence in problem["details"] for problem in comfyui.refusal(nodes))


def saver_of(node, **inputs) -> dict:
    """Prompt nodes that save two gray frames as a chunk."""
    images = node("OddImages", levels="0 1", height=48, width=64, channels=3)
    saver = {"frames": ["i", 0], "chunk_id": 0, "fps": 24.0, "session_id": "values"} | inputs
    return {"i": images, "c": node("TLBVFI_ChunkVideoSaver", **saver)}


def test_a_rate_may_be_text_as_scripts_write_it(comfyui, node):
    comfyui.run(saver_of(node, fps="24"))
    manifest = json.loads((comfyui.session("values") / "manifest.json").read_text())
    assert manifest["stream"]["rate"] == "24"


@pytest.mark.parametrize(
    ("fps", "sentence"),
    [
        ("fast", "fps must be a number, got 'fast': set it, or connect another output."),
        ({"a": 1}, "fps must be a number, got dict:"),
    ],
)
def test_a_rate_that_is_no_number_is_refused_before_anything_runs(comfyui, node, fps, sentence):
    assert any(sentence in each["details"] for each in comfyui.refusal(saver_of(node, fps=fps)))


def test_a_rate_of_null_is_refused(comfyui, node):
    assert "fps must be a number, got None:" in comfyui.error(saver_of(node, fps=None))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("chunk_id", "1.5", "chunk_id must be a whole number, got 1.5:"),
        ("codec", "3", "There is no codec '3'"),
        ("codec", "null", "codec must be a text, got None:"),
        ("output_dir", "null", "output_dir must be a text, got None:"),
        ("frames", '{"samples": 1}', "frames must be a batch of images"),
    ],
)
def test_a_value_of_another_type_over_a_link_is_named(comfyui, node, name, text, sentence):
    nodes = saver_of(node, **{name: ["v", 0]}) | {"v": node("OddAny", text=text)}
    assert sentence in comfyui.error(nodes)


def test_a_mask_is_no_batch_of_images(comfyui, node):
    nodes = saver_of(node, frames=["v", 0])
    nodes["m"] = node("SolidMask", value=0.5, width=64, height=48)
    nodes["v"] = node("OddAny", value=["m", 0])
    assert "got a tensor [1, 48, 64]" in comfyui.error(nodes)


@pytest.mark.parametrize("number", [-1, 10**6])
def test_a_chunk_outside_of_the_numbers_there_are_is_refused(comfyui, node, gray_batch, number):
    nodes, batch = gray_batch(2)
    nodes["i"] = node("PrimitiveInt", value=number)
    chunk = {"frames": batch, "chunk_id": ["i", 0], "fps": 30.0, "session_id": "numbers"}
    nodes["c"] = node("TLBVFI_ChunkVideoSaver", **chunk)
    assert f"chunk_id {number} is out of range: use 0 to 999999" in comfyui.error(nodes)
    assert not comfyui.session("numbers").exists()


@pytest.mark.parametrize("output_dir", ["../../x", "/tmp/x", "a/../../b"])
def test_an_output_dir_elsewhere_is_refused(comfyui, node, output_dir):
    nodes = {"j": node("TLBVFI_VideoConcatenator", session_id="x", output_dir=output_dir)}
    assert "is outside ComfyUI's output folder" in comfyui.error(nodes)


@pytest.mark.parametrize("path", ["/etc/passwd", "../outside.mp4"])
def test_a_source_elsewhere_is_refused(comfyui, node, path):
    nodes = {
        "e": node("EmptyImage", width=64, height=48, batch_size=2, color=0),
        "c": node(
            "TLBVFI_ChunkVideoSaver", frames=["e", 0], chunk_id=0, fps=24, source_video_path=path
        ),
    }
    assert "is outside ComfyUI's input, output and temp folders" in comfyui.error(nodes)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text")
def test_a_damaged_file_with_an_undecodable_name_does_not_stop_the_server(comfyui, node):
    name = os.fsdecode(b"dam\xffaged.mp4")
    (comfyui.base / "input" / name).write_bytes(b"no video")
    frames = node("EmptyImage", width=64, height=48, batch_size=2, color=0)
    chunk = node(
        "TLBVFI_ChunkVideoSaver", frames=["e", 0], chunk_id=0, fps=24, source_video_path=name
    )
    for _ in range(2):  # the worker that runs prompts is still there
        assert r"dam\udcffaged.mp4 is not a video" in comfyui.error({"e": frames, "c": chunk})


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text")
def test_a_notice_with_an_undecodable_name_is_logged(comfyui, clip, node):
    name = clip(os.fsdecode(b"gone\xff.mp4"), sound=True)
    frames = node("EmptyImage", width=64, height=48, batch_size=2, color=0)
    settings = {"chunk_id": 0, "fps": 24, "session_id": "gone", "source_video_path": name}
    comfyui.run({"e": frames, "c": node("TLBVFI_ChunkVideoSaver", frames=["e", 0], **settings)})
    (comfyui.base / "input" / name).unlink()
    failures = comfyui.text().count("Logging error")
    outputs = comfyui.run({"j": node("TLBVFI_VideoConcatenator", session_id="gone")})
    assert r"gone\udcff.mp4 no longer exists" in outputs["j"]["text"][0]
    assert comfyui.text().count("Logging error") == failures


def test_an_unknown_session_names_some_of_those_there_are(comfyui, node):
    frames = node("EmptyImage", width=64, height=48, batch_size=2, color=0)
    chunk = node("TLBVFI_ChunkVideoSaver", frames=["e", 0], chunk_id=0, fps=24, session_id="known")
    comfyui.run({"e": frames, "c": chunk})
    for n in range(6):
        shutil.copytree(comfyui.session("known"), comfyui.session(f"0-known-{n}"))
    nodes = {"j": node("TLBVFI_VideoConcatenator", session_id="never-made")}
    message = comfyui.error(nodes)
    assert "There is no session never-made in" in message
    assert re.search(r"there are 0-known-0, .*0-known-4 and \d+ more\.$", message.strip())


def test_sound_from_elsewhere_is_not_read_whatever_a_session_says(comfyui, chain, node):
    nodes = chain("deaf", [0, 1, 2, 3])
    comfyui.run({key: each for key, each in nodes.items() if key != "last"})
    origin = comfyui.session("deaf") / "origin.json"
    heard = Path(json.loads(origin.read_text())["sound"])
    elsewhere = comfyui.base / "elsewhere.mp4"
    shutil.copy(heard, elsewhere)
    join = node("TLBVFI_VideoConcatenator", session_id="deaf", cleanup_chunks=False)
    told = []
    for path in (elsewhere, elsewhere.with_name("not-there.mp4")):
        origin.write_text(json.dumps({"sound": str(path)}))
        outputs = comfyui.run(
            {"j": join | {"inputs": join["inputs"] | {"output_filename": path.stem}}}
        )
        told.append(outputs["j"]["text"][0].replace(path.name, "").replace(path.stem, ""))
        assert facts(comfyui.saved(outputs["j"]))[3] == 0
    assert "outside ComfyUI's input, output and temp folders" in told[0]
    assert told[0] == told[1]  # nobody learns whether there is such a file


def test_the_sound_of_another_clip_under_the_same_name_is_refused(comfyui, clip, chain, node):
    nodes = chain("replaced", [0, 1])
    comfyui.run({key: each for key, each in nodes.items() if key != "last"})
    source = comfyui.base / "input" / "replaced.mp4"
    own = source.read_bytes()
    clip(source.name, frames=48, sound=True)
    join = {"j": node("TLBVFI_VideoConcatenator", session_id="replaced")}
    message = comfyui.error(join)
    assert (
        "replaced.mp4 has been replaced since the chunks of session replaced were made" in message
    )
    assert "restore it, or rename it to join them without sound" in message
    source.write_bytes(own)
    assert facts(comfyui.saved(comfyui.run(join)["j"]))[3] == 1


def test_a_video_that_is_there_is_not_said_to_lack_the_sound_it_has(comfyui, chain, node):
    nodes = chain("kept-sound", [0, 1])
    comfyui.run({key: each for key, each in nodes.items() if key != "last"})
    join = {"j": node("TLBVFI_VideoConcatenator", session_id="kept-sound")}
    comfyui.run(join)
    (comfyui.base / "input" / "kept-sound.mp4").unlink()
    outputs = comfyui.run(join)
    assert outputs["j"]["text"] == ["kept-sound.mp4"]
    assert facts(comfyui.saved(outputs["j"]))[3] == 1


@pytest.mark.parametrize("name", ["gone.mp4", "x" * 5000, "\0", "\ud800"])
def test_names_of_no_file_in_a_session_s_records_are_told_or_passed_over(
    comfyui, chain, node, name
):
    nodes = chain("misnamed", [0, 1])
    comfyui.run({key: each for key, each in nodes.items() if key != "last"})
    folder = comfyui.session("misnamed")
    (folder / "origin.json").write_text(json.dumps({"sound": name}))
    result = {"output": str(comfyui.base / "disk" / name), "bytes": 1, "shift": "0"}
    (folder / "result.json").write_text(json.dumps([result]))
    outputs = comfyui.run({"j": node("TLBVFI_VideoConcatenator", session_id="misnamed")})
    assert re.search(r"no longer exists|is not a path", outputs["j"]["text"][0])
    assert len(facts(comfyui.saved(outputs["j"]))[0]) == 4
