"""What nodes remember between runs; needs no ComfyUI."""

import os

import pytest
from comfyui_tlbvfi.nodes.kept import KeptResults


@pytest.fixture
def video(tmp_path):
    path = tmp_path / "video.mp4"
    path.write_bytes(b"video")
    return path


@pytest.fixture
def results(video):
    """After a run of node "5" that made a video."""
    results = KeptResults()
    results.token("5")
    results.keep("5", video)
    return results


def test_a_result_holds_as_long_as_its_file_is_unchanged(results, video):
    token = results.token("5")
    assert results.token("5") == token
    os.utime(video, ns=(1, 1))
    assert results.token("5") != token


def test_a_result_whose_file_came_back_is_void(results, video):
    token, content = results.token("5"), video.read_bytes()
    video.unlink()
    again = results.token("5")
    video.write_bytes(content)
    assert len({token, again, results.token("5")}) == 3


def test_the_files_of_earlier_results_count_as_well(results, video, tmp_path):
    token = results.token("5")
    (tmp_path / "other.mp4").write_bytes(b"other")
    results.keep("5", tmp_path / "other.mp4")
    assert results.token("5") == token
    video.unlink()
    assert results.token("5") != token


def test_a_run_without_a_result_is_never_the_same(results):
    assert results.token("6") != results.token("6")
    token = results.token("5")
    results.void("5")
    results.keep("5")
    assert results.token("5") != token


def test_nodes_do_not_share_results(results, video):
    assert results.token("5") != results.token("6")
