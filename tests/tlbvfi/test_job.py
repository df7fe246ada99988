"""From file to file: counts, times, untouched source frames, resuming, refusals."""

import json
import os
import threading
from fractions import Fraction
from functools import partialmethod
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import av
import cv2
import numpy as np
import pytest
from comfyui_tlbvfi.encoding.errors import (
    EncoderError,
    OutputError,
    SessionError,
    SessionMismatch,
    SourceError,
    VerificationError,
)
from comfyui_tlbvfi.encoding.profiles import EncoderSettings
from comfyui_tlbvfi.encoding.reader import VideoSource
from comfyui_tlbvfi.encoding.session import Session
from comfyui_tlbvfi.tlbvfi.config import ChunkLength
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from comfyui_tlbvfi.tlbvfi.join import verify_joined
from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod
from comfyui_tlbvfi.tlbvfi.progress import ChunkDone, Encoding, FrameDone, Joining, Notice, Started

SHORT = ChunkLength(frames=8)
NTSC = Fraction(24000, 1001)


@pytest.mark.parametrize("times_", [1, 2, 3])
@pytest.mark.parametrize("rate", [NTSC, Fraction(25), Fraction(16)])
def test_n_frames_become_n_minus_1_times_2_to_the_k_plus_1(
    clip, run, times, tmp_path, rate, times_
):
    source = clip(tmp_path / "in.mp4", 9, rate=rate)
    result = run(source, "out.mp4", times=times_, chunk=SHORT)
    assert result.frames == 8 * 2**times_ + 1
    assert times(result.output) == [i / (rate * 2**times_) for i in range(result.frames)]


def test_a_variable_rate_keeps_source_times_and_halves_the_gaps(clip, run, times, tmp_path):
    shown = [Fraction(t, 90000) for t in (0, 3000, 4500, 12000, 13001, 20000, 30007)]
    source = clip(tmp_path / "in.mp4", times=shown)
    result = run(source, "out.mp4", times=1, chunk=ChunkLength(frames=4))
    mids = [(a + b) / 2 for a, b in pairwise(shown)]
    assert times(result.output) == sorted(shown + mids)


def test_the_method_goes_on_while_a_chunk_is_finished(clip, run, tmp_path, monkeypatch):
    went_on, made = threading.Event(), []

    class Watched(BlendMethod):
        def between(self, features0, features1, times, key):
            made.append(key.pair)
            if len(made) == 20 + 8:  # pairs of the first chunk, and of the next one
                went_on.set()
            return super().between(features0, features1, times, key)

    def on_step(step):
        if step == "before close":
            assert went_on.wait(20)

    monkeypatch.setattr(Session, "new_chunk", partialmethod(Session.new_chunk, on_step=on_step))
    source = clip(tmp_path / "in.mp4", 61, rate=Fraction(25))
    run(source, "out.mp4", method=Watched(), chunk=ChunkLength(frames=40))


@pytest.mark.parametrize(("codec", "name"), [("ffv1", "out.mkv"), ("h264-lossless", "out.mp4")])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv420p10le"])
def test_source_frames_come_out_bit_for_bit(clip, run, pictures, tmp_path, codec, name, pix_fmt):
    source = clip(tmp_path / "in.mp4", 9, pix_fmt=pix_fmt)
    result = run(source, name, codec=codec, chunk=SHORT)
    assert pictures(result.output)[::2] == pictures(source)


def test_a_job_cut_into_other_chunks_gives_the_same_pictures(clip, run, pictures, tmp_path):
    source = clip(tmp_path / "in.mp4", 14)
    lengths = [ChunkLength(frames=2), ChunkLength(frames=9), ChunkLength(bytes=9000), ChunkLength()]
    outputs = [
        run(source, f"{i}.mkv", method="flow", chunk=length).output
        for i, length in enumerate(lengths)
    ]
    first, *others = map(pictures, outputs)
    assert all(other == first for other in others)


def test_any_rate_is_exact(clip, run, times, tmp_path):
    source = clip(tmp_path / "in.mp4", 13, rate=NTSC)
    result = run(source, "out.mp4", fps=Fraction(60))
    assert times(result.output) == [Fraction(i, 60) for i in range(result.frames)]
    assert result.frames == int(12 / NTSC * 60) + 1


def test_slow_motion_keeps_the_rate(clip, run, times, tmp_path):
    source = clip(tmp_path / "in.mp4", 7, rate=Fraction(25), sound=True)
    result = run(source, "out.mp4", slowmo=Fraction(3))
    assert times(result.output) == [Fraction(i, 25) for i in range(19)]


def test_a_window_is_half_open_and_cut_at_source_frames(clip, run, pictures, times, tmp_path):
    source = clip(tmp_path / "in.mp4", 25, rate=Fraction(25))
    result = run(source, start=Fraction("0.2"), end=Fraction("0.4"), chunk=SHORT)
    assert pictures(result.output)[::2] == pictures(source)[5:10]
    assert times(result.output)[0] == 0


@pytest.mark.parametrize(
    ("name", "codec", "step"),
    [("out.mp4", "h264", Joining), ("out/f_%04d.png", "auto", Encoding)],
)
def test_a_second_run_leaves_the_first_alone_to_its_last_step(
    clip, run, tmp_path, name, codec, step
):
    source = clip(tmp_path / "in.mp4", 9)
    refused = []

    def start_another(event):
        if isinstance(event, step) and not refused:
            with pytest.raises(SessionError, match="is in use by process") as error:
                run(source, name, codec=codec, chunk=SHORT)
            refused.append(error)

    result = run(source, name, codec=codec, chunk=SHORT, on_event=start_another)
    assert refused
    assert result.frames == 17
    assert run(source, name, codec=codec, chunk=SHORT).was_done


def test_a_second_run_that_is_refused_does_not_change_what_the_first_embeds(clip, run, tmp_path):
    source = clip(tmp_path / "in.mp4", 9)

    def start_another(event):
        if isinstance(event, Started):
            with pytest.raises(SessionError, match="is in use by process"):
                run(source, destination={"metadata": {"title": "second"}})

    titled = {"metadata": {"title": "first"}}
    result = run(source, on_event=start_another, destination=titled)
    with av.open(str(result.output)) as container:
        assert container.metadata["title"] == "first"


@pytest.mark.parametrize(
    ("name", "codec", "step"),
    [
        ("out.mp4", "h264", FrameDone),
        ("out.mp4", "h264", Joining),
        ("out/f_%04d.png", "auto", Encoding),
    ],
)
def test_another_job_for_the_same_output_is_refused_and_harms_nothing(
    clip, run, pictures, tmp_path, name, codec, step
):
    source, other = clip(tmp_path / "in.mp4", 9), clip(tmp_path / "other.mp4", 15)
    refused = []

    def start_another(event):
        if isinstance(event, step) and not refused:
            with pytest.raises(OutputError, match="is being made by another job: wait") as error:
                run(other, name, codec=codec, chunk=SHORT, destination={"overwrite": True})
            refused.append(error)
            assert len(list((tmp_path / "output" / "tlbvfi_chunks").iterdir())) == 1

    result = run(source, name, codec=codec, chunk=SHORT, on_event=start_another)
    assert refused
    folder = result.output.parent
    if step is Encoding:
        assert {path.name for path in folder.iterdir()} == {
            f"f_{n:04}.png" for n in range(1, result.frames + 1)
        }
    else:
        assert len(pictures(result.output)) == 17
        assert {path.name for path in folder.iterdir()} == {
            *("in.mp4", "other.mp4", "out.mp4", "output")
        }
    again = run(other, name, codec=codec, chunk=SHORT, destination={"overwrite": True})
    assert again.frames == 29


@pytest.fixture
def stop_after():
    """Factory for event callbacks that raise after `frames` output frames."""

    def make(frames):
        def on_event(event):
            if isinstance(event, FrameDone) and event.frames_done >= frames:
                raise KeyboardInterrupt

        return on_event

    return make


def test_a_stopped_job_goes_on_where_it_was(clip, run, pictures, times, tmp_path, stop_after):
    source = clip(tmp_path / "in.mp4", 30)
    whole = run(source, "whole.mp4", chunk=SHORT, destination={"root": tmp_path / "other"})
    with pytest.raises(KeyboardInterrupt):
        run(source, "out.mp4", chunk=SHORT, on_event=stop_after(30))
    events = []
    result = run(source, "out.mp4", chunk=SHORT, on_event=events.append)
    started = next(event for event in events if isinstance(event, Started))
    assert started.frames_done in (8, 16, 24)
    assert result.frames_made == 59 - started.frames_done
    assert pictures(result.output) == pictures(whole.output)
    assert times(result.output) == times(whole.output)


def test_the_reading_of_kept_chunks_is_told_and_may_be_stopped(clip, run, tmp_path, stop_after):
    source, told = clip(tmp_path / "in.mp4", 30), []

    def stop_reading(event):
        told.append(event)
        raise KeyboardInterrupt

    for on_event in (stop_after(30), stop_reading):
        with pytest.raises(KeyboardInterrupt):
            run(source, chunk=SHORT, on_event=on_event)
    assert [(event.what, event.done) for event in told] == [("chunk", 1)]


@pytest.fixture
def change_after():
    """Factory for event callbacks that put other content into a file after some output frames."""

    def make(path, content, frames, *, is_renamed):
        def on_event(event):
            if isinstance(event, FrameDone) and event.frames_done == frames:
                if is_renamed:
                    path.with_name("new").write_bytes(content)
                    path.with_name("new").replace(path)
                else:
                    path.write_bytes(content)

        return on_event

    return make


@pytest.mark.parametrize("is_renamed", [False, True])
@pytest.mark.parametrize("content", ["other", "longer", "shorter", "none"])
def test_a_source_that_changes_stops_the_job_and_spoils_no_chunk(
    clip, run, pictures, tmp_path, change_after, content, is_renamed
):
    source = clip(tmp_path / "in.mp4", 60)
    whole = run(source, "whole.mp4", chunk=SHORT, destination={"root": tmp_path / "other"})
    original, facts = source.read_bytes(), source.stat()
    changed = {
        "other": clip(tmp_path / "other.mp4", 60, size=(48, 64)).read_bytes(),
        "longer": original + original,
        "shorter": original[: len(original) // 2],
        "none": b"",
    }[content]
    change = change_after(source, changed, 30, is_renamed=is_renamed)
    with pytest.raises(SourceError, match=r"^in\.mp4 changed while it was read: "):
        run(source, "out.mp4", chunk=SHORT, on_event=change)
    assert not (tmp_path / "out.mp4").exists()
    source.write_bytes(original)
    os.utime(source, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    result = run(source, "out.mp4", chunk=SHORT)
    assert 0 < result.frames_made < 119
    assert pictures(result.output) == pictures(whole.output)


def test_images_that_change_before_they_are_read_stop_the_job(run, tmp_path, change_after):
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(30):
        cv2.imwrite(str(folder / f"{number:03}.png"), np.full((48, 64, 3), 5 * number, np.uint8))
    change = change_after(folder / "029.png", b"", 10, is_renamed=False)
    with pytest.raises(SourceError, match=r"^029\.png changed while it was read: "):
        run(folder, input_rate=Fraction(24), on_event=change)
    assert not (tmp_path / "out.mkv").exists()


@pytest.mark.parametrize("mezzanine", [None, EncoderSettings(codec="ffv1")])
def test_sound_that_changes_before_it_is_joined_stops_the_job(clip, run, tmp_path, mezzanine):
    source = clip(tmp_path / "in.mp4", sound=True)

    def on_event(event):
        if isinstance(event, FrameDone) and event.frames_done == 23:
            source.write_bytes(clip(tmp_path / "other.mp4", 24, sound=True).read_bytes())

    with pytest.raises(SourceError, match=r"^in\.mp4 changed while it was read: "):
        run(source, "out.mp4", mezzanine=mezzanine, on_event=on_event)
    assert not (tmp_path / "out.mp4").exists()


def test_a_method_is_told_how_long_the_whole_job_is(clip, run, tmp_path, stop_after):
    class Expecting(BlendMethod):
        told: ClassVar[list[int]] = []

        def expect(self, frames):
            self.told.append(frames)

    source = clip(tmp_path / "in.mp4", 30)
    with pytest.raises(KeyboardInterrupt):
        run(source, method=Expecting(), chunk=SHORT, on_event=stop_after(30))
    run(source, method=Expecting(), chunk=SHORT)
    assert Expecting.told == [59, 59]


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_only_a_damaged_chunk_is_made_anew(clip, run, pictures, tmp_path, damage, stop_after):
    source = clip(tmp_path / "in.mp4", 30)
    keep = {"keep_chunks": True}
    expected = run(source, "whole.mkv", chunk=SHORT, destination={"root": tmp_path / "other"})
    first = run(source, "out.mkv", chunk=SHORT, destination=keep)
    chunk = first.session_folder / "chunk_000002.mkv"
    content = chunk.read_bytes()
    if damage == "truncate":
        chunk.write_bytes(content[:-50])
    elif damage == "flip":
        chunk.write_bytes(content[:500] + bytes([content[500] ^ 1]) + content[501:])
    else:
        chunk.unlink()
    first.output.unlink()
    events = []
    again = run(source, "out.mkv", chunk=SHORT, destination=keep, on_event=events.append)
    assert again.frames_made == 8
    assert pictures(again.output) == pictures(expected.output)
    (done,) = [event for event in events if isinstance(event, ChunkDone)]
    sizes = [path.stat().st_size for path in first.session_folder.glob("chunk_*")]
    assert done == ChunkDone(
        chunks_done=len(sizes), bytes_written=sum(sizes), bytes_predicted=sum(sizes)
    )


def test_what_a_session_was_joined_into_is_verified_by_it(clip, run, tmp_path):
    made = run(clip(tmp_path / "in.mp4", 6), "out.mp4", destination={"keep_chunks": True})
    session = Session.open(made.session_folder.parent.parent, made.session_id)
    content = made.output.read_bytes()
    assert verify_joined(session, made.output, deep=True).ok
    with av.open(str(made.output)) as container:
        first = next(container.demux(video=0))
    begin, end = first.pos + first.size // 2, first.pos + first.size
    made.output.write_bytes(content[:begin] + bytes(end - begin) + content[end:])
    assert verify_joined(session, made.output).ok
    assert not verify_joined(session, made.output, deep=True).ok
    made.output.write_bytes(content[:-1])
    assert f"{len(content) - 1} bytes of {len(content)}" in verify_joined(session).text
    made.output.unlink()
    assert "FAIL file: is missing" in verify_joined(session).text
    with pytest.raises(SessionError, match=r"was not joined into .*other\.mp4 yet"):
        verify_joined(session, tmp_path / "other.mp4")


@pytest.mark.parametrize("length", [SHORT, ChunkLength(bytes=9000)])
def test_neighboring_chunks_are_made_anew_in_one_go_with_their_old_ends(
    clip, run, tmp_path, monkeypatch, length
):
    source = clip(tmp_path / "in.mp4", 60)
    keep = {"keep_chunks": True}
    first = run(source, "out.mkv", chunk=length, destination=keep)

    def records():
        lines = (first.session_folder / "progress.jsonl").read_text().splitlines()
        return [{**json.loads(line), "sha256": "", "bytes": 0} for line in lines]

    made, lost = records(), [1, 2, 3, 5]
    assert len(made) > 6
    for index in lost:
        (first.session_folder / f"chunk_{index:06d}.mkv").unlink()
    first.output.unlink()
    read, decoded = [], VideoSource.frames
    monkeypatch.setattr(
        VideoSource,
        "frames",
        lambda self, start=0, stop=None: read.append(start) or decoded(self, start, stop),
    )
    run(source, "out.mkv", chunk=length, destination=keep)
    assert len(read) == 2
    assert records() == [*made, *(made[index] for index in lost)]


def test_a_lost_chunk_of_frames_that_come_only_once_is_made_anew(run, pictures, tmp_path):
    def source():
        return (np.full((48, 64, 3), 9 * number, np.uint8) for number in range(20))

    keep = {"keep_chunks": True, "session_id": "once"}
    first = run(source(), chunk=SHORT, input_rate=Fraction(25), destination=keep)
    expected = pictures(first.output)
    assert len(expected) == 39
    first.output.unlink()
    (first.session_folder / "chunk_000001.mkv").unlink()
    again = run(source(), chunk=SHORT, input_rate=Fraction(25), destination=keep)
    assert again.frames_made == 8
    assert pictures(again.output) == expected


@pytest.mark.parametrize("length", [SHORT, ChunkLength(bytes=9000)])
def test_chunks_whose_lines_are_lost_are_made_anew(clip, run, pictures, tmp_path, length):
    source = clip(tmp_path / "in.mp4", 40)
    keep = {"keep_chunks": True}
    first = run(source, "out.mkv", chunk=length, destination=keep)
    expected = pictures(first.output)
    first.output.unlink()
    progress = first.session_folder / "progress.jsonl"
    lines = progress.read_text().splitlines(keepends=True)
    assert len(lines) > 4
    progress.write_text("".join([lines[0], *lines[3:]]))
    again = run(source, "out.mkv", chunk=length, destination=keep)
    assert again.frames_made == sum(json.loads(line)["frames"] for line in lines[1:3])
    assert pictures(again.output) == expected


@pytest.mark.parametrize("pairs", [[4, 6], [10**15, 10**15 + 2]])
def test_a_record_of_a_chunk_that_cannot_be_does_not_make_planning_endless(
    clip, run, pictures, tmp_path, pairs
):
    source = clip(tmp_path / "in.mp4", 9)
    first = run(source, chunk=SHORT, destination={"keep_chunks": True})
    expected = pictures(first.output)
    first.output.unlink()
    progress = first.session_folder / "progress.jsonl"
    *lines, last = progress.read_text().splitlines(keepends=True)
    claim = json.dumps({**json.loads(last), "index": 10**15, "pairs": pairs})
    progress.write_text("".join([*lines, f"{claim}\n"]))
    if pairs[0] < 10**15:  # a damaged line, like any other
        assert pictures(run(source, chunk=SHORT).output) == expected
        return
    with pytest.raises(SessionError, match=r"records are damaged: they name a chunk 10+ and \d in"):
        run(source, chunk=SHORT)


def test_the_same_job_after_success_says_so_and_makes_nothing(clip, run, tmp_path):
    source = clip(tmp_path / "in.mp4")
    first = run(source)
    stamp = first.output.stat().st_mtime_ns
    again = run(source)
    assert again.was_done
    assert (again.frames, again.frames_made) == (first.frames, 0)
    assert again.output.stat().st_mtime_ns == stamp
    anew = run(source, destination={"overwrite": True})
    assert not anew.was_done
    assert anew.frames_made == first.frames


def test_a_lost_final_file_is_made_again_without_a_word_on_every_chunk(clip, run, tmp_path, caplog):
    source = clip(tmp_path / "in.mp4")
    first = run(source)
    first.output.unlink()
    again = run(source)
    assert again.frames_made == first.frames
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_chunks_are_kept_until_the_final_file_is_verified_and_then_removed(clip, run, tmp_path):
    source = clip(tmp_path / "in.mp4")
    kept = run(source, "kept.mkv", destination={"keep_chunks": True})
    assert list(kept.session_folder.glob("chunk_*"))
    dropped = run(source, "dropped.mkv", times=2)
    assert not list(dropped.session_folder.glob("chunk_*"))
    lock = tmp_path / ".kept.mkv.lock"
    lock.touch()
    assert run(source, "kept.mkv").was_done  # as after a run that ended before it removed them
    assert not list(kept.session_folder.glob("chunk_*"))
    assert not lock.exists()


@pytest.mark.parametrize("is_named", [False, True])
def test_a_job_stopped_as_its_file_gets_its_name_knows_that_file(
    clip, run, tmp_path, monkeypatch, is_named
):
    source, output = clip(tmp_path / "in.mp4"), tmp_path / "out.mkv"
    replace = Path.replace

    def stop(path, target):
        if target != output or is_named:
            replace(path, target)
        if target == output:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            run(source)
    assert output.exists() == is_named
    if not is_named:
        output.write_text("precious")
        with pytest.raises(OutputError, match="not made by this job"):
            run(source)
        output.unlink()
    again = run(source)
    assert (again.was_done, again.frames_made) == (is_named, 0)


def test_an_output_made_by_something_else_is_not_touched(clip, run, tmp_path):
    source = clip(tmp_path / "in.mp4")
    (tmp_path / "out.mkv").write_text("precious")
    with pytest.raises(OutputError, match="not made by this job"):
        run(source)
    assert (tmp_path / "out.mkv").read_text() == "precious"


def test_a_file_that_something_else_makes_meanwhile_is_not_replaced(clip, run, tmp_path):
    source, output = clip(tmp_path / "in.mp4", 9), tmp_path / "out.mp4"

    def make_another(event):
        if isinstance(event, Joining):
            output.write_text("precious")

    with pytest.raises(OutputError, match=r"out\.mp4 exists: choose another name"):
        run(source, "out.mp4", on_event=make_another)
    assert output.read_text() == "precious"
    output.unlink()
    result = run(source, "out.mp4")
    assert (result.frames, result.frames_made) == (17, 0)


def test_a_chunk_that_is_removed_under_a_running_job_is_made_by_the_next_run(clip, run, tmp_path):
    source = clip(tmp_path / "in.mp4", 9)

    def remove(event):
        if isinstance(event, ChunkDone):
            for chunk in (tmp_path / "output").rglob("chunk_000000.mp4"):
                chunk.unlink()

    with pytest.raises(
        VerificationError, match=r"chunk_000000\.mp4 is missing.*make that chunk again"
    ):
        run(source, "out.mp4", chunk=SHORT, on_event=remove)
    assert run(source, "out.mp4", chunk=SHORT).frames == 17


def test_a_session_of_other_settings_is_refused_naming_the_field(clip, run, tmp_path, stop_after):
    source = clip(tmp_path / "in.mp4", 30)
    named = {"session_id": "mine"}
    with pytest.raises(KeyboardInterrupt):
        run(source, chunk=SHORT, destination=named, on_event=stop_after(20))
    with pytest.raises(
        SessionMismatch, match=r"settings\.times was None and is now 2.*--overwrite"
    ):
        run(source, chunk=SHORT, times=2, destination=named)
    other = clip(tmp_path / "other.mp4", 31)
    with pytest.raises(SessionMismatch, match=r"source\."):
        run(other, chunk=SHORT, destination=named)


def test_sound_is_copied_packet_for_packet(clip, run, tmp_path):
    import av

    def packets(path):
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            base = Fraction(stream.time_base)
            return [(p.pts * base, bytes(p)) for p in container.demux(stream) if p.size]

    source = clip(tmp_path / "in.mp4", 50, rate=Fraction(25), sound=True)
    result = run(source, "out.mp4")
    assert packets(result.output) == packets(source)


@pytest.mark.parametrize("frames", [1])
def test_a_clip_of_one_frame_is_refused(clip, run, tmp_path, frames):
    with pytest.raises(SourceError, match="only one frame"):
        run(clip(tmp_path / "in.mp4", frames))


def test_an_empty_window_is_refused(clip, run, tmp_path):
    source = clip(tmp_path / "in.mp4", 25, rate=Fraction(25))
    with pytest.raises(SettingsError, match=r"ends 0\.960 s after"):
        run(source, start=Fraction(2))
    with pytest.raises(SettingsError, match=r"to end \(0\.220 s\) has 1 of the source's frames"):
        run(source, start=Fraction("0.2"), end=Fraction("0.22"))
    with pytest.raises(SettingsError, match=r"to end \(that of the source\) has 1 of"):
        run(source, start=Fraction("0.95"))


@pytest.mark.parametrize("mezzanine", [None, EncoderSettings(codec="ffv1")])
def test_a_rate_that_the_encoder_does_not_take_is_refused_before_work(
    clip, run, tmp_path, mezzanine
):
    source = clip(tmp_path / "in.mp4", 3, rate=Fraction(60))
    options = {"codec": "av1", "preset": "12", "mezzanine": mezzanine}
    with pytest.raises(EncoderError, match=r"av1 takes at most 240 frames per second.* have 480:"):
        run(source, "out.mp4", times=3, **options)
    assert not (tmp_path / "output").exists()
    assert run(source, "out.mp4", times=2, **options).frames == 9


@pytest.mark.parametrize("mezzanine", [None, EncoderSettings(codec="ffv1")])
def test_ticks_that_the_encoder_does_not_count_are_refused_before_work(
    clip, run, tmp_path, mezzanine
):
    fine = Fraction(1, 10**9)
    shown = [Fraction(n, 25) + n % 3 * 10**6 * fine for n in range(4)]
    source = clip(tmp_path / "in.mp4", times=shown, base=fine)
    options = {"codec": "vp9", "preset": "8", "mezzanine": mezzanine}
    with pytest.raises(EncoderError, match=r"vp9 counts at most 10+ ticks .* need 20+: choose"):
        run(source, "out.mp4", times=1, **options)
    assert not (tmp_path / "output").exists()
    assert run(source, "out.mp4", fps=Fraction(50), **options).frames == 7


def test_a_truncated_source_gives_what_decodes_and_tells_the_loss(clip, run, tmp_path):
    source = clip(tmp_path / "in.mkv", 60)
    content = source.read_bytes()
    source.write_bytes(content[: len(content) * 2 // 3])
    events = []
    result = run(source, on_event=events.append)
    assert 20 < result.frames < 119
    assert result.frames % 2 == 1
    assert [event for event in events if isinstance(event, Notice)]


def test_a_lack_of_memory_is_told_before_it_ends_the_job(clip, run, tmp_path, monkeypatch):
    monkeypatch.setattr(BlendMethod, "memory_needed", lambda self, height, width: 10**18)
    events = []
    run(clip(tmp_path / "in.mp4", 3), on_event=events.append)
    (notice,) = [event for event in events if isinstance(event, Notice)]
    assert "blend needs about 1000000000.0 GB of memory at 64x48" in notice.text
    assert events.index(notice) < min(
        index for index, event in enumerate(events) if isinstance(event, FrameDone)
    )


def test_progress_counts_every_frame_and_knows_the_total(clip, run, tmp_path):
    events = []
    run(clip(tmp_path / "in.mp4", 20), chunk=SHORT, on_event=events.append)
    frames = [event for event in events if isinstance(event, FrameDone)]
    assert [event.frames_done for event in frames] == list(range(1, 40))
    assert {event.frames_total for event in frames} == {39}
    assert frames[-1].seconds_left == 0


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_before_zero_are_in_the_output(clip, run, pictures, times, tmp_path, suffix):
    path = tmp_path / "early.mkv"
    whole = clip(tmp_path / "in.mp4", 50, rate=Fraction(25), sound=True)
    with (
        av.open(str(whole)) as source,
        av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as output,
    ):
        streams = [output.add_stream_from_template(stream) for stream in source.streams]
        for packet in source.demux():
            if packet.size:
                packet.pts -= round(1 / packet.time_base)
                packet.dts -= round(1 / packet.time_base)
                packet.stream = streams[packet.stream_index]
                output.mux(packet)
    result = run(path, f"out{suffix}", times=1, codec="h264-lossless")
    assert pictures(result.output)[::2] == pictures(whole)
    assert times(result.output)[0] == 0
    with av.open(str(result.output)) as container:
        heard = [p.pts * p.time_base for p in container.demux(audio=0) if p.size]
    assert abs(heard[0]) < Fraction(1, 40)
    assert heard[-1] == pytest.approx(2, abs=0.05)
    assert run(path, f"out{suffix}", times=1, codec="h264-lossless").was_done


@pytest.mark.parametrize("wish", [{"fps": Fraction(60)}, {"slowmo": Fraction(4)}])
def test_pauses_at_a_constant_rate_are_not_filled_either(run, tmp_path, wish):
    frames = np.zeros((3, 48, 64, 3), np.uint8)
    with pytest.raises(SourceError, match=r"frame 0 of the source is shown for 27\.8 hours"):
        run(frames, input_rate=Fraction(1, 100_000), **wish)
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(("seconds", "is_fine"), [(11_800, True), (12_000, False)])
def test_a_pause_of_more_ticks_than_mp4_counts_is_refused_before_work(
    clip, run, times, tmp_path, seconds, is_fine
):
    shown = [Fraction(n, 25) + (seconds if n > 3 else 0) for n in range(8)]
    source = clip(tmp_path / "in.nut", times=shown, codec="ffv1")
    if is_fine:  # at 1/180000 s, twice the pause's share of a frame is just below 2**31 ticks
        mids = [(a + b) / 2 for a, b in pairwise(shown)]
        assert times(run(source, "out.mp4", times=1).output) == sorted(shown + mids)
        return
    with pytest.raises(
        SourceError, match=r"frame 3 of the source is shown for 12000\.0 s, too long"
    ):
        run(source, "out.mp4", times=1)
    assert not (tmp_path / "output").exists()
    assert run(source, "out.mkv", times=1).frames == 15


def test_a_pause_that_is_not_refused_suits_the_most_b_frames(clip, run, tmp_path):
    """x264 at its slowest shows frames up to 18 later than they are decoded."""
    for seconds in range(4_700, 1_000, -1_000):
        shown = [Fraction(n, 25) + (seconds if n > 3 else 0) for n in range(8)]
        source = clip(tmp_path / f"{seconds}.nut", times=shown, codec="ffv1")
        try:
            result = run(source, f"{seconds}.mp4", times=3, codec="h264", preset="placebo")
        except SourceError:
            continue
        assert result.frames == 57
        break
    else:
        pytest.fail("every pause is refused")


def test_a_pause_of_days_is_not_filled_with_frames(clip, run, tmp_path):
    shown = [Fraction(n, 25) + (86_400 if n > 3 else 0) for n in range(8)]
    source = clip(tmp_path / "in.mkv", times=shown)
    with pytest.raises(SourceError, match=r"frame 3 of the source is shown for 24\.0 hours"):
        run(source, fps=Fraction(60))
    assert not (tmp_path / "output").exists()
    assert run(source, fps=Fraction(60), end=Fraction(1, 10)).frames == 5
    assert run(source, "all.mkv", times=1).frames == 15


def test_times_that_matroska_cannot_tell_apart_are_refused_before_the_first_frame(
    clip, run, tmp_path
):
    steady = clip(tmp_path / "steady.mp4", 6, rate=Fraction(240))
    shown = [Fraction(t, 90000) for t in (0, 3000, 6000, 6150, 9000)]
    varied = clip(tmp_path / "varied.mp4", times=shown)
    for source, times_, apart in ((steady, 3, r"0\.521"), (varied, 1, r"0\.833")):
        with pytest.raises(
            OutputError, match=rf"1000 frames .*{apart} ms apart: choose \.mp4 or \.nut"
        ):
            run(source, "out.mkv", times=times_)
    assert not (tmp_path / "output").exists()
    assert run(steady, "out.mp4", times=3).frames == 41
    assert run(steady, "rougher.mkv", times=2).frames == 21
    assert run(varied, "window.mkv", times=1, end=Fraction(6100, 90000)).frames == 5
    assert run(varied, "rate.mkv", fps=Fraction(1000)).frames == 101


def test_a_rate_that_avi_cannot_hold_is_refused_before_the_first_frame(clip, run, tmp_path):
    source = clip(tmp_path / "in.mp4", times=[Fraction(t, 100) for t in (0, 3, 7, 9, 20)])
    with pytest.raises(OutputError, match=r"variable frame rate: choose \.nut"):
        run(source, "out.avi", codec="utvideo", times=1)
    with pytest.raises(OutputError, match=r"\.avi cannot hold more than 1000 frames per second"):
        run(clip(tmp_path / "fast.mp4", 6, rate=Fraction(600)), "out.avi", codec="utvideo")
    assert not (tmp_path / "output").exists()
    assert run(source, "out.avi", codec="utvideo", fps=Fraction(50)).frames == 11
