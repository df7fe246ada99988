"""--hwaccel: the user chooses what decodes, and the choice is not part of a session's identity."""

import pytest
from av.codec.hwaccel import hwdevices_available

BLEND = ("--method", "blend", "--codec", "ffv1")


@pytest.fixture
def source(clip, tmp_path):
    return clip(tmp_path / "in.mp4", 12)


def test_software_and_whatever_auto_finds_give_the_same_file_in_the_same_session(
    tlbvfi, source, pictures, tmp_path
):
    made = []
    for hwaccel in ("none", "auto"):
        options = ("--hwaccel", hwaccel, "--overwrite", "--keep-chunks")
        code, _, _ = tlbvfi("interpolate", source, "out.mkv", *BLEND, *options)
        assert code == 0
        made.append(pictures(tmp_path / "out.mkv"))
    assert made[0] == made[1]
    assert len(list((tmp_path / "output" / "tlbvfi_chunks").iterdir())) == 1


def test_a_job_begun_with_one_decoder_is_done_with_another(tlbvfi, source):
    tlbvfi("interpolate", source, "out.mkv", *BLEND, "--hwaccel", "none")
    code, _, err = tlbvfi("interpolate", source, "out.mkv", *BLEND)
    assert code == 0
    assert "already there and verified" in err


@pytest.mark.parametrize("device", ["drm", "teapot"])
def test_a_device_that_cannot_decode_it_is_refused_in_one_sentence(tlbvfi, source, device):
    code, out, err = tlbvfi("interpolate", source, "out.mkv", *BLEND, "--hwaccel", device)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert device in err
    assert "auto" in err
    assert "none" in err


def test_cuda_is_used_or_refused_in_one_sentence(tlbvfi, source):
    if "cuda" not in hwdevices_available():
        pytest.skip("this build of FFmpeg knows no cuda")
    code, _, err = tlbvfi("interpolate", source, "out.mkv", *BLEND, "--hwaccel", "cuda")
    if code == 0:
        assert "in.mp4 is decoded by cuda." in err
    else:
        assert err.startswith("tlbvfi: in.mp4 cannot be decoded by cuda here: ")
        assert err.endswith("choose hwaccel auto or none.\n")
        assert err.count("\n") == 1
