from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from comfyui_tlbvfi.encoding import mezzanine, sequence
from comfyui_tlbvfi.encoding.concat import join
from comfyui_tlbvfi.encoding.delivery import MEZZANINE_CRF, deliver, final_of, plan_route
from comfyui_tlbvfi.encoding.errors import (
    EncoderError,
    OutputError,
    SessionError,
    VerificationError,
)
from comfyui_tlbvfi.encoding.frame import ColorTags
from comfyui_tlbvfi.encoding.image_encoder import image_format
from comfyui_tlbvfi.encoding.mezzanine import (
    decoded_frames,
    decoded_picture,
    encode_session,
    remove_encode,
)
from comfyui_tlbvfi.encoding.profiles import EncoderSettings, resolve_encoder
from comfyui_tlbvfi.encoding.sequence import write_images

TICK = Fraction(1001, 48000)


def final_encoder(session, codec="h264", **settings):
    wish = EncoderSettings(codec=codec, **settings)
    return resolve_encoder(wish, decoded_picture(session), container=".mp4")


@pytest.mark.parametrize("start", [0, 1, 3, 4, 6])
def test_frames_of_all_chunks_come_in_order_from_any_start(filled, paint, samples, start):
    session = filled("ffv1", frames=7, per_chunk=3)
    found = [samples(picture) for picture in decoded_frames(session, start)]
    assert found == [samples(paint(n)) for n in range(start, 7)]


def test_one_lossy_encode_equals_encoding_the_frames_directly(
    tmp_path, filled, paint, stream, decoded
):
    from comfyui_tlbvfi.encoding.writer import VideoWriter

    session = filled("ffv1", frames=9, per_chunk=2)
    encoder = final_encoder(session, crf=30)
    final = encode_session(session, encoder)
    assert [record.frames for record in final.done()] == [9]
    output = tmp_path / "out.mp4"
    join(final, output)
    direct = tmp_path / "direct.mp4"
    with VideoWriter(direct, encoder, stream()) as writer:
        for number in range(9):
            writer.write(paint(number), number)
    assert decoded(output) == decoded(direct)


def test_times_of_a_variable_rate_and_the_start_are_kept(tmp_path, filled):
    pts = [0, 3, 10, 11, 30]
    session = filled("ffv1", pts=pts, is_vfr=True, per_chunk=2, start=Fraction(1, 2))
    output = tmp_path / "out.mp4"
    join(encode_session(session, final_encoder(session)), output)
    with av.open(str(output)) as container:
        found = sorted(p.pts * p.time_base for p in container.demux(video=0) if p.size)
    assert found == [Fraction(1, 2) + tick * TICK for tick in pts]


def test_an_interrupted_encode_goes_on_and_makes_the_same_file(
    tmp_path, filled, decoded, monkeypatch
):
    monkeypatch.setattr(mezzanine, "FRAMES_PER_CHUNK", 4)
    session = filled("ffv1", frames=10, per_chunk=3)
    encoder = final_encoder(session)

    def stop(done, total):
        assert total == 10
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_session(session, encoder, on_progress=stop)
    told = []
    final = encode_session(session, encoder, on_progress=lambda done, total: told.append(done))
    assert told == [4, 8, 9, 10]
    lines = (final.folder / "progress.jsonl").read_text().splitlines()
    assert len(lines) == 3
    join(final, tmp_path / "out.mp4")
    assert len(decoded(tmp_path / "out.mp4")) == 10


@pytest.fixture
def opened(monkeypatch):
    """The names of the chunks that were opened to read their frames or packets."""
    names = []
    for module in (mezzanine, sequence):
        original = module.open_whole
        monkeypatch.setattr(
            module,
            "open_whole",
            lambda session, record, *rest, original=original: (
                names.append(session.chunk_path(record.index).stem)
                or original(session, record, *rest)
            ),
        )
    return names


def test_an_encode_reads_every_chunk_once(filled, monkeypatch, opened):
    monkeypatch.setattr(mezzanine, "FRAMES_PER_CHUNK", 4)
    session = filled("ffv1", frames=12, per_chunk=3)
    encode_session(session, final_encoder(session))
    assert opened == [f"chunk_{index:06d}" for index in range(4)]


def test_missing_images_are_read_from_their_own_chunk_on(tmp_path, filled, opened):
    session = filled("exr-half", frames=7, per_chunk=3)
    form = image_format(".exr", decoded_picture(session), depth="half")
    pattern = tmp_path / "frames" / "%d.exr"
    write_images(session, pattern, form)
    expected = [path.read_bytes() for path in sorted(pattern.parent.iterdir())]
    for number in (6, 7):
        (pattern.parent / f"{number}.exr").unlink()
    opened.clear()
    write_images(session, pattern, form)
    assert opened == ["chunk_000001", "chunk_000002"]
    assert [path.read_bytes() for path in sorted(pattern.parent.iterdir())] == expected


def test_another_final_encoder_replaces_what_an_earlier_one_left(tmp_path, filled):
    session = filled("ffv1")
    former = encode_session(session, final_encoder(session, crf=40))
    again = encode_session(session, final_encoder(session, crf=10))
    assert again.folder == former.folder
    assert again.manifest.encoder.options["crf"] == "10"
    assert len(again.records()) == 1


def test_rgb_mezzanine_becomes_tagged_yuv(tmp_path, filled, encoder, shape, stream, ffprobe):
    from comfyui_tlbvfi.encoding.color import stream_tags, to_rgb
    from comfyui_tlbvfi.encoding.frame import ColorTags

    tags = ColorTags(primaries=1, transfer=1, matrix=1, range=1)
    rgb = encoder("ffv1", shape(pix_fmt="rgb24"))
    session = filled("ffv1", encoder=rgb, stream=stream(color=stream_tags(tags, rgb.pix_fmt)))
    assert decoded_picture(session).pix_fmt == "bgr0"
    output = tmp_path / "out.mp4"
    join(encode_session(session, final_encoder(session, "h264-lossless")), output)
    found = ffprobe(output)["streams"][0]
    assert (found["pix_fmt"], found["color_space"], found["color_range"]) == (
        *("yuv444p", "bt709", "tv"),
    )
    with av.open(str(output)) as container:
        ours = to_rgb(next(container.decode(video=0)), tags)
    theirs = to_rgb(next(decoded_frames(session)), session.manifest.stream.color)
    assert np.abs(ours - theirs).max() < 2.5 / 255


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], r" has \d+ bytes"),
        (lambda data: data[:-1] + b"?", " does not have"),
    ],
)
@pytest.mark.parametrize("codec", ["ffv1", "exr-half"])
def test_a_damaged_mezzanine_is_refused(tmp_path, filled, codec, damage, words):
    session = filled(codec)
    path = session.chunk_path(1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(
        VerificationError, match=rf"chunk_000001\.m..{words}.*make that chunk again"
    ):
        encode_session(session, final_encoder(session))
    form = image_format(".exr", decoded_picture(session), depth="half")
    with pytest.raises(VerificationError, match=rf"chunk_000001\.m..{words}"):
        write_images(session, tmp_path / "frames" / "%d.exr", form)


def test_another_job_s_session_that_is_called_like_an_encode_is_left_alone(filled):
    other, session = filled(id="job.final"), filled()
    with pytest.raises(
        SessionError, match=r"job\.final belongs to another job.* rename the folder"
    ):
        encode_session(session, final_encoder(session))
    remove_encode(session)
    assert len(other.done(thorough=True)) == 3


def test_an_encode_is_removed_with_its_session_s_chunks(filled):
    session = filled()
    final = encode_session(session, final_encoder(session))
    remove_encode(session)
    assert not final.folder.exists()


@pytest.mark.parametrize(
    ("codec", "is_told"), [("h264", True), ("h264-lossless", False), ("prores", False)]
)
def test_only_pictures_that_lost_something_are_said_to_lose_again(filled, caplog, codec, is_told):
    session = filled(codec)
    final = final_of(session, Path("out.mp4"), EncoderSettings(codec="h264", crf=30))
    assert final.options["crf"] == "30"
    assert ("compressed a second time" in caplog.text) == is_told


def test_mastering_metadata_that_another_encode_cannot_store_is_told(filled, stream, caplog):
    session = filled("ffv1", stream=stream(mastering={"max-cll": "1000,400"}))
    final_of(session, Path("out.mp4"), EncoderSettings(codec="h264"))
    assert "h264 drops the HDR10 mastering metadata." in caplog.messages


def test_images_made_of_a_session_are_as_deep_as_wanted(filled):
    session = filled("ffv1")
    wanted = [None, EncoderSettings(codec="png16")]
    found = [final_of(session, Path("f_%d.png"), each).pix_fmt for each in wanted]
    assert found == ["rgb24", "rgb48be"]


def test_an_output_that_is_there_is_refused_before_anything_is_encoded_for_it(tmp_path, filled):
    session, output = filled("ffv1"), tmp_path / "out.mp4"
    output.write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        deliver(session, output, final_encoder(session), on_encode=lambda *_: pytest.fail("made"))


@pytest.mark.parametrize("name", ["out.mp4", "f_%d.png"])
def test_the_second_encode_tells_how_far_it_is(tmp_path, filled, stream, name):
    tags = ColorTags(primaries=1, transfer=1, matrix=1, range=1)
    session, told = filled("ffv1", stream=stream(color=tags)), []
    final = final_of(session, tmp_path / name, EncoderSettings())
    deliver(session, tmp_path / name, final, on_encode=lambda *done: told.append(done))
    assert told[-1] == (7, 7)


@pytest.mark.parametrize(
    ("crf", "quality"), [(None, "its usual quality"), (MEZZANINE_CRF + 1, "crf 11")]
)
def test_only_an_encode_that_loses_next_to_nothing_is_a_mezzanine(shape, crf, quality):
    wanted = EncoderSettings(codec="hevc")
    good = EncoderSettings(codec="h264", crf=MEZZANINE_CRF)
    assert plan_route(".mp4", wanted, shape(), mezzanine=good).chunks.name == "libx264"
    with pytest.raises(EncoderError, match=f"h264 at {quality} is not a mezzanine"):
        plan_route(".mp4", wanted, shape(), mezzanine=replace(good, crf=crf))
