"""Cuts and repeated frames through a whole job, however it is cut into chunks."""

from fractions import Fraction
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest
from comfyui_tlbvfi.encoding.session import Session
from comfyui_tlbvfi.tlbvfi.config import ChunkLength

SIZE = (160, 96)


def scene(seed, count, *, each=1):
    """Frames of a textured scene that pans two pixels a frame; each is shown `each` times."""
    noise = np.random.default_rng(seed).uniform(0, 255, (14, 40, 3)).astype(np.float32)
    wide = cv2.resize(noise, (560, 96), interpolation=cv2.INTER_CUBIC).clip(0, 255)
    wide = wide.astype(np.uint8)
    return [wide[:, 2 * (i // each) : 2 * (i // each) + SIZE[0]] for i in range(count)]


@pytest.fixture
def film(tmp_path):
    """Factory for lossless clips of RGB frames."""

    def make(frames, name="in.mkv"):
        with av.open(str(tmp_path / name), "w") as out:
            stream = out.add_stream("ffv1", rate=24)
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            for number, rgb in enumerate(frames):
                rgb = np.ascontiguousarray(rgb)
                picture = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
                picture.pts = number
                out.mux(stream.encode(picture))
            out.mux(stream.encode(None))
        return tmp_path / name

    return make


@pytest.mark.parametrize(("rule", "shown"), [("hold", (-1, -1, -1)), ("nearest", (-1, -1, 0))])
def test_no_blended_frame_lies_across_a_cut_and_the_manifest_reports_it(
    run, film, pictures, rule, shown, tmp_path
):
    source = film([*scene(1, 9), *scene(2, 7), *scene(3, 8)])
    result = run(source, times=2, cuts=rule, destination={"session_id": "cuts"})
    given, made = pictures(source), pictures(result.output)
    assert result.cuts == 2
    for cut in (9, 16):
        between = made[4 * cut - 3 : 4 * cut]
        assert between == [given[cut + offset] for offset in shown]
    records = Session.open(tmp_path / "output", "cuts").records()
    assert [pair for r in records.values() for pair in r.notes.get("cuts", ())] == [8, 15]


def test_a_blend_across_a_cut_is_made_where_it_is_asked_for(run, film, pictures):
    source = film([*scene(1, 9), *scene(2, 7)])
    made = pictures(run(source, cuts="ignore").output)
    assert made[17] not in (made[16], made[18])


def test_cuts_and_retimed_frames_do_not_depend_on_chunks(run, film, pictures, tmp_path):
    source = film([*scene(1, 10, each=2), *scene(2, 9, each=3), *scene(3, 7)])
    options = {"method": "flow", "retime": True}
    whole = run(source, "whole.mkv", destination={"root": tmp_path / "other"}, **options)
    wanted = pictures(whole.output)
    assert whole.cuts == 2
    assert whole.retimed > 10
    for frames in (2, 5, 16):
        options["chunk"] = ChunkLength(frames=frames)
        options["destination"] = {"keep_chunks": True}
        parts = run(source, f"by_{frames}.mkv", **options)
        assert (parts.cuts, parts.retimed) == (whole.cuts, whole.retimed)
        assert pictures(parts.output) == wanted, parts.output
        # A chunk lost from the middle is made again from its neighborhood alone.
        for chunk in sorted(parts.session_folder.glob("chunk_*"))[1:3]:
            chunk.unlink()
        parts.output.unlink()
        again = run(source, parts.output.name, **options)
        assert 0 < again.frames_made < again.frames
        assert pictures(again.output) == wanted, again.output


def test_a_flash_is_no_cut_in_a_chunk_that_is_made_again_either(run, film, pictures):
    frames = scene(1, 16)
    frames[8] = scene(2, 1)[0]  # seen from one chunk, the other side is not the same scene
    options = {"chunk": ChunkLength(frames=8), "destination": {"keep_chunks": True}}
    source = film(frames)
    first = run(source, **options)
    wanted = pictures(first.output)
    assert first.cuts == 0
    for chunk in sorted(first.session_folder.glob("chunk_*"))[1:3]:
        chunk.unlink()
        first.output.unlink()
        assert run(source, **options).frames_made == 8
        assert pictures(first.output) == wanted


def test_animation_on_twos_becomes_motion(run, film, pictures):
    source = film(scene(5, 20, each=2))
    as_shot = pictures(run(source, "as_shot.mkv", method="flow").output)
    retimed = pictures(run(source, "retimed.mkv", method="flow", retime=True).output)
    repeats = [a == b for a, b in pairwise(as_shot[::2])]
    assert sum(repeats) >= 9
    assert not any(a == b for a, b in pairwise(retimed[:36]))


def test_a_whole_rate_of_60_lands_on_exact_times_across_cuts(run, film, times):
    source = film([*scene(1, 13), *scene(2, 12)])
    result = run(source, "out.mp4", fps=Fraction(60))
    assert times(result.output) == [Fraction(i, 60) for i in range(result.frames)]
