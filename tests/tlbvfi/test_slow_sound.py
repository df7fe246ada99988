"""The sound of a job in slow motion: dropped or stretched, and the same however it is made."""

import json
import shutil
import subprocess
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from comfyui_tlbvfi.encoding.errors import SessionMismatch
from comfyui_tlbvfi.tlbvfi.api import interpolate_video
from comfyui_tlbvfi.tlbvfi.cli import main
from comfyui_tlbvfi.tlbvfi.config import ChunkLength, JobConfig
from comfyui_tlbvfi.tlbvfi.errors import SettingsError
from comfyui_tlbvfi.tlbvfi.progress import FrameDone

RATE = Fraction(25)
STRETCH = {"slowmo_sound": "stretch"}
AUDIO_FRAME = 1024 / 48000


@pytest.fixture
def source(clip, tmp_path):
    """Two seconds of video with a tone of 440 Hz."""
    return clip(tmp_path / "in.mp4", 50, rate=RATE, sound=True)


@pytest.fixture
def streams():
    """ffprobe's report on a file: streams(path) -> {"video": {...}, "audio": {...}}."""
    if shutil.which("ffprobe") is None:
        pytest.skip("ffprobe is not installed")

    def ask(path):
        command = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", str(path)]
        found = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return {stream["codec_type"]: stream for stream in found["streams"]}

    return ask


def sound(file):
    """(time, content) of the audio packets; empty if there is no sound."""
    with av.open(file if isinstance(file, BytesIO) else str(file)) as container:
        packets = container.demux(container.streams.audio) if container.streams.audio else ()
        return [(p.pts * p.time_base, bytes(p)) for p in packets if p.size]


def pitch(path):
    with av.open(str(path)) as container:
        wave = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
    return np.argmax(spectrum) * 48000 / len(wave)


@pytest.mark.parametrize("factor", [Fraction(2), Fraction(4), Fraction(5, 2), Fraction(3, 2)])
def test_stretched_sound_is_longer_by_the_factor_at_the_same_pitch(
    source, run, streams, tmp_path, factor
):
    result = run(source, "out.mp4", slowmo=factor, **STRETCH)
    was, now = streams(source), streams(result.output)
    expected = float(was["audio"]["duration"]) * float(factor)
    assert float(now["audio"]["duration"]) == pytest.approx(expected, abs=AUDIO_FRAME)
    assert float(now["audio"]["start_time"]) == pytest.approx(0, abs=AUDIO_FRAME)
    assert float(now["video"]["start_time"]) == 0
    assert pitch(result.output) == pytest.approx(440, abs=1)


def test_a_window_takes_its_own_part_of_the_sound(source, run, streams):
    result = run(
        source, "out.mp4", slowmo=Fraction(2), start=Fraction("0.4"), end=Fraction("1.2"), **STRETCH
    )
    found = streams(result.output)["audio"]
    assert float(found["duration"]) == pytest.approx(1.6, abs=AUDIO_FRAME)
    assert float(found["start_time"]) == pytest.approx(0, abs=AUDIO_FRAME)


def test_a_picture_that_begins_late_takes_the_sound_from_there(clip, run, streams, times, tmp_path):
    source = clip(tmp_path / "in.mkv", 25, rate=RATE, start=Fraction("0.4"), sound=True)
    result = run(source, "out.mp4", slowmo=Fraction(2), **STRETCH)
    assert times(result.output)[0] == 0
    length = float(streams(result.output)["audio"]["duration"])
    assert length == pytest.approx(2 * (1 - 0.4), abs=3 * AUDIO_FRAME)  # of AAC of 47 frames


def test_sound_is_dropped_unless_asked_for_and_that_is_told(source, run, caplog):
    assert sound(run(source, "dropped.mp4", slowmo=Fraction(2)).output) == []
    assert "leaves out the source's sound, which --slowmo-sound stretch keeps" in caplog.text
    caplog.clear()
    silent = run(source, "silent.mp4", slowmo=Fraction(2), audio=False, **STRETCH)
    assert sound(silent.output) == []
    assert "leaves out" not in caplog.text


def test_without_slow_motion_sound_is_copied(source, run):
    assert sound(run(source, "out.mp4", **STRETCH).output) == sound(source)


def test_another_sound_is_another_job(source, run):
    mine = {"session_id": "mine"}
    run(source, "out.mkv", slowmo=Fraction(2), destination=mine)
    with pytest.raises(SessionMismatch, match=r"slowmo_sound was 'drop' and is now 'stretch'"):
        run(source, "out.mkv", slowmo=Fraction(2), destination=mine, **STRETCH)
    with pytest.raises(SettingsError, match="slowmo_sound must be drop or stretch, got 'bend'"):
        JobConfig(slowmo_sound="bend")  # type: ignore[arg-type]


def test_resumed_joined_again_and_in_one_go_it_is_the_same(source, run, tmp_path, monkeypatch):
    def stop(event):
        if isinstance(event, FrameDone) and event.frames_done >= 40:
            raise KeyboardInterrupt

    job = {"slowmo": Fraction(2), "chunk": ChunkLength(frames=16), **STRETCH}
    kept = {"session_id": "mine", "keep_chunks": True}
    with pytest.raises(KeyboardInterrupt):
        run(source, "out.mp4", **job, destination=kept, on_event=stop)
    resumed = run(source, "out.mp4", **job, destination=kept)
    whole = run(source, "whole.mp4", **job, destination={"root": tmp_path / "other"})
    expected = sound(whole.output)
    assert sound(resumed.output) == expected
    monkeypatch.chdir(tmp_path)
    assert main(["concat", "mine", "again.mp4"]) == 0
    assert sound(tmp_path / "again.mp4") == expected
    target = BytesIO()
    interpolate_video(source, target, method="blend", slowmo=2, codec="h264", **STRETCH)
    assert sound(BytesIO(target.getvalue())) == expected


def test_the_command_line_stretches(source, tmp_path, monkeypatch, streams):
    monkeypatch.chdir(tmp_path)
    words = ["interpolate", "in.mp4", "out.mp4", "--method", "blend", "--slowmo", "2"]
    assert main([*words, "--slowmo-sound", "stretch"]) == 0
    assert float(streams("out.mp4")["audio"]["duration"]) == pytest.approx(4.01, abs=0.04)
    assert main([*words, "--slowmo-sound", "stretch", "--no-audio", "--overwrite"]) == 0
    assert "audio" not in streams("out.mp4")
