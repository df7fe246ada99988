import json
import struct
import tracemalloc
import wave
import zlib
from fractions import Fraction
from hashlib import sha256
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui_tlbvfi.encoding import verify
from comfyui_tlbvfi.encoding.concat import join
from comfyui_tlbvfi.encoding.container import decode
from comfyui_tlbvfi.encoding.errors import VerificationError
from comfyui_tlbvfi.encoding.packets import PacketScan, scan_packets
from comfyui_tlbvfi.encoding.timetable import Timetable
from comfyui_tlbvfi.encoding.verify import expected_output, verify_file, verify_session


def failed(report):
    return [check.name for check in report.checks if not check.ok]


@pytest.mark.parametrize("codec", ["h264", "ffv1", "prores", "utvideo", "vp9"])
def test_whole_sessions_and_files_are_good(tmp_path, filled, codec):
    session = filled(codec)
    told = []
    report = verify_session(session, deep=True, on_progress=lambda *counts: told.append(counts))
    assert told[-1] == (7, 7)
    assert len(told) == len(session.records())
    assert report.ok, report.text
    assert report.text.startswith("session job: good\nok   plan: 3 chunks, 7 frames")
    output = tmp_path / f"out{session.manifest.encoder.suffix}"
    join(session, output)
    report = verify_file(output, expected_output(session), deep=True)
    assert report.ok, report.text
    assert verify_file(output).ok


@pytest.mark.parametrize("codec", ["h264", "ffv1"])
def test_variable_rate_sessions_are_good(filled, codec):
    session = filled(codec, pts=[0, 7, 9, 40, 41], is_vfr=True, per_chunk=2)
    assert verify_session(session).ok


def test_each_damage_is_found_by_its_check(filled):
    session = filled("ffv1", frames=12)
    paths = [session.chunk_path(index) for index in range(4)]
    paths[0].unlink()
    paths[1].write_bytes(paths[1].read_bytes()[:-9])
    content = bytearray(paths[2].read_bytes())
    content[-40] ^= 0x10
    paths[2].write_bytes(content)
    report = verify_session(session)
    assert failed(report) == ["size and checksum"]
    assert "chunk_000000.mkv is missing" in report.text
    assert "chunk_000001.mkv has" in report.text
    assert "chunk_000002.mkv does not have the recorded checksum" in report.text
    with pytest.raises(VerificationError, match="chunk_000002"):
        report.require("do it again")


def test_a_chunk_of_another_length_is_found_inside(filled, paint, tmp_path):
    session = filled("ffv1", frames=9)
    progress = session.folder / "progress.jsonl"
    lines = [json.loads(line) for line in progress.read_text().splitlines()]
    lines[1] |= {"bytes": lines[2]["bytes"], "sha256": lines[2]["sha256"], "frames": 2}
    lines[2]["first_frame"] = 5
    session.chunk_path(1).write_bytes(session.chunk_path(2).read_bytes())
    progress.write_text("".join(json.dumps(line) + "\n" for line in lines))
    from comfyui_tlbvfi.encoding.session import Session

    report = verify_session(Session.open(tmp_path, "job"))
    assert failed(report) == ["packets and times"]
    assert "chunk_000001.mkv holds 3 frames instead of 2" in report.text


@pytest.fixture
def replaced(tmp_path):
    """Factory for a session whose chunk 1 is another file, recorded as if it were right."""

    def make(session, content):
        from comfyui_tlbvfi.encoding.session import Session

        session.chunk_path(1).write_bytes(content)
        progress = session.folder / "progress.jsonl"
        lines = [json.loads(line) for line in progress.read_text().splitlines()]
        lines[1] |= {"bytes": len(content), "sha256": sha256(content).hexdigest()}
        progress.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return Session.open(tmp_path, session.id)

    return make


def test_a_chunk_that_was_no_video_from_the_first_is_found_inside(filled, replaced):
    report = verify_session(replaced(filled("ffv1"), b"nothing of the kind"))
    assert failed(report) == ["packets and times"]
    assert "chunk_000001.mkv cannot be read" in report.text


def test_a_chunk_of_other_times_is_found_inside(filled, replaced, stream):
    other = filled("h264", id="other", stream=stream(rate=Fraction(50)))
    report = verify_session(replaced(filled("h264"), other.chunk_path(1).read_bytes()))
    assert failed(report) == ["packets and times"]
    assert "chunk_000001.mp4: frame 1 is shown at 0.020000 s instead of 0.020854 s" in report.text


def test_damaged_pictures_of_a_chunk_are_found_by_decoding_only(filled, replaced):
    session = filled("h264")
    content = bytearray(session.chunk_path(1).read_bytes())
    with av.open(str(session.chunk_path(1))) as container:
        first = next(container.demux(video=0))
    content[first.pos + first.size // 2 : first.pos + first.size] = bytes(-(-first.size // 2))
    damaged = replaced(session, content)
    assert verify_session(damaged).ok
    report = verify_session(damaged, deep=True)
    assert failed(report) == ["pictures"]
    assert "chunk_000001.mp4" in report.text


def test_an_unfinished_session_is_not_good(tmp_path, manifest):
    from comfyui_tlbvfi.encoding.session import Session

    report = verify_session(Session.create(tmp_path, "job", manifest()))
    assert failed(report) == ["plan"]
    assert "no chunk is made yet" in report.text


def test_a_file_that_is_no_video_is_told(tmp_path):
    path = tmp_path / "out.mp4"
    path.write_bytes(b"nothing of the kind")
    assert "cannot be read" in verify_file(path).text
    assert not verify_file(tmp_path / "gone.mp4").ok


def test_a_shortened_file_is_found_by_count_and_by_decoding(tmp_path, filled):
    session = filled("h264", frames=12)
    output = tmp_path / "out.mkv"
    join(session, output)
    content = output.read_bytes()
    output.write_bytes(content[: len(content) * 2 // 3])
    report = verify_file(output, expected_output(session))
    assert not report.ok
    assert "instead of 12" in report.text


def test_damaged_pictures_are_found_by_decoding_only(tmp_path, filled):
    session = filled("h264", frames=12)
    output = tmp_path / "out.mp4"
    join(session, output)
    content = bytearray(output.read_bytes())
    begin = content.find(b"mdat") + 900
    content[begin : begin + 3000] = bytes(3000)
    output.write_bytes(content)
    assert verify_file(output, expected_output(session)).ok
    assert failed(verify_file(output, expected_output(session), deep=True)) == ["pictures"]


def test_a_profile_that_inflates_to_anything_is_not_inflated(clip, monkeypatch):
    path = clip("a.apng", frames=3, codec="apng", pix_fmt="rgb24", options={})
    plain = path.read_bytes()
    data = b"iCCP" + b"profile\0\0" + zlib.compress(bytes(1 << 20))
    chunk = struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    path.write_bytes(plain[:33] + chunk + plain[33:])
    profiles = []

    def watched(*given):
        for picture in decode(*given):
            profiles.append(len(picture.side_data))
            yield picture

    monkeypatch.setattr(verify, "decode", watched)
    assert verify_file(path, deep=True).ok
    assert profiles == [0, 0, 0]


def test_pictures_in_an_unknown_codec_are_told(clip):
    path = clip("a.mp4", frames=3)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz").replace(b"avcC", b"zzzC"))
    report = verify_file(path, deep=True)
    assert not report.ok
    assert "a.mp4 uses a video codec that no decoder here supports" in report.text


def test_pictures_that_decode_with_their_damage_concealed_are_found(tmp_path, filled):
    output = tmp_path / "out.mp4"
    join(filled("h264", frames=12), output)
    with av.open(str(output)) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content, told = output.read_bytes(), []
    for begin, size in places:
        middle = begin + size // 2
        damaged = content[:middle] + bytes(size // 4) + content[middle + size // 4 :]
        output.write_bytes(damaged)
        told += [check.what for check in verify_file(output, deep=True).checks if not check.ok]
    assert any("out.mp4 is damaged in frame" in what for what in told), told


@pytest.mark.parametrize("params", ["open-gop=1:keyint=9", "intra-refresh=1:keyint=12"])
def test_whole_files_of_any_kind_of_gop_have_good_pictures(clip, params):
    options = {"preset": "ultrafast", "bf": "3", "x264-params": params}
    assert verify_file(clip("a.mp4", frames=40, options=options), deep=True).ok


@pytest.mark.parametrize(
    ("suffix", "told"),
    [
        (".mp4", "frame 1 is shown at 0.020854 s instead of 0.020000 s"),
        (".mkv", "frame 2 is shown at 0.042000 s instead of 0.040000 s"),
    ],
)
def test_times_off_the_plan_are_told_with_the_frame(tmp_path, filled, stream, suffix, told):
    output = tmp_path / f"out{suffix}"
    join(filled("h264"), output)
    other = filled("h264", id="other", stream=stream(rate=Fraction(50)))
    report = verify_file(output, expected_output(other))
    assert failed(report) == ["times"]
    assert told in report.text


@pytest.mark.parametrize(("suffix", "is_good"), [(".mp4", False), (".mkv", True)])
def test_only_matroska_may_shift_all_times(tmp_path, filled, suffix, is_good):
    output = tmp_path / f"out{suffix}"
    join(filled("h264"), output)
    late = filled("h264", id="late", start=Fraction(1, 2))
    assert failed(verify_file(output, expected_output(late))) == ([] if is_good else ["times"])


def test_comparing_the_times_of_many_frames_takes_little_memory():
    pts = np.arange(150_000, dtype=np.int64) * 1001
    times = Timetable(time_base=Fraction(1, 60000), pts=pts, last_duration=1001)
    scan = PacketScan(time_base=Fraction(1, 120_000), pts=2 * pts, dts=2 * pts, other=())
    tracemalloc.start()
    try:
        assert verify._off_plan(Path("out.mp4"), scan, times) == ""
        scan.pts[-1] += 1
        assert "frame 149999 is shown at" in verify._off_plan(Path("out.mp4"), scan, times)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * pts.nbytes


def test_scanning_many_packets_takes_little_memory(tmp_path, clip):
    path, count = tmp_path / "long.mp4", 10_000
    with av.open(str(clip("a.mp4"))) as source, av.open(str(path), "w") as out:
        target = out.add_stream_from_template(source.streams.video[0])
        picture = bytes(next(source.demux(video=0)))
        for number in range(count):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = target, Fraction(1, 25)
            packet.pts = packet.dts = number
            out.mux(packet)
    tracemalloc.start()
    try:
        assert len(scan_packets(path).pts) == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 50 * count


def test_sound_that_is_missing_is_counted(tmp_path, filled):
    from dataclasses import replace

    session = filled("h264")
    output = tmp_path / "out.mp4"
    join(session, output)
    expected = replace(expected_output(session), other=(44,))
    assert failed(verify_file(output, expected)) == ["other streams"]


def test_repeated_times_are_found(tmp_path, paint):
    path = tmp_path / "out.mkv"
    with av.open(str(path), "w") as out:
        video = out.add_stream("ffv1", rate=3000)
        video.width, video.height = 64, 48
        for number in range(9):
            picture = paint(number)
            picture.pts, picture.time_base = number, Fraction(1, 3000)
            out.mux(video.encode(picture))
        out.mux(video.encode(None))
    report = verify_file(path)
    assert failed(report) == ["order"]
    assert "pts 0 occurs more than once" in report.text


def test_a_file_without_pictures_is_not_good(tmp_path):
    path = tmp_path / "out.mkv"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(1600))
    report = verify_file(path)
    assert failed(report) == ["file"]
    assert "has no video stream" in report.text


def test_frames_without_times_are_found(clip):
    report = verify_file(clip("a.h264"))
    assert failed(report) == ["order"]
    assert "some frames have no pts" in report.text


def test_times_of_decoding_that_go_backward_are_found(tmp_path, clip):
    early, later, path = clip("early.ts", frames=9), tmp_path / "later.ts", tmp_path / "b.ts"
    with av.open(str(early)) as given, av.open(str(later), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.size:
                packet.pts, packet.dts = packet.pts + 90000, packet.dts + 90000
                packet.stream = stream
                output.mux(packet)
    path.write_bytes(later.read_bytes() + early.read_bytes())
    assert "dts goes backwards after packet 8" in verify_file(path).text
