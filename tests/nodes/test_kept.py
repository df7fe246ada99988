"""What nodes remember between runs; needs no ComfyUI."""

import os

import pytest
from comfyui_tlbvfi.nodes.kept import MOST_KEPT, KeptResults, SessionSounds


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


def test_results_with_very_many_files_are_void(results, video):
    """Each is looked at whenever the node runs: a node that runs for weeks would take ever longer."""
    token = results.token("5")
    results.keep("5", *(video.with_name(f"{n}.mp4") for n in range(MOST_KEPT - 1)))
    assert results.token("5") == token
    results.keep("5", video.with_name("one more.mp4"))
    assert results.token("5") != token


def test_results_are_kept_of_a_bounded_number_of_nodes(results, video):
    token = results.token("5")
    for n in range(MOST_KEPT - 1):
        results.token(f"other {n}")
    assert results.token("5") == token
    results.token("one more")
    assert results.token("5") != token


@pytest.fixture
def sounds(tmp_path, video):
    """After a session "a" was made, whose sound is a copy."""
    sounds = SessionSounds()
    sounds.keep(tmp_path / "a", video, is_copy=True)
    return sounds


def test_a_copy_is_removed_with_the_last_session_that_needs_it(sounds, video, tmp_path):
    sounds.keep(tmp_path / "b", video, is_copy=True)
    sounds.forget(tmp_path / "a")
    assert sounds.of(tmp_path / "a") is None
    assert sounds.of(tmp_path / "b") == video
    assert video.exists()
    sounds.forget(tmp_path / "b")
    assert not video.exists()


def test_a_failed_run_does_not_remove_a_copy_that_a_session_needs(sounds, video, tmp_path):
    sounds.discard(video)
    assert video.exists()
    other = tmp_path / "other.wav"
    other.write_bytes(b"sound")
    sounds.discard(other)
    assert not other.exists()


def test_a_file_that_is_no_copy_stays(video, tmp_path):
    sounds = SessionSounds()
    sounds.keep(tmp_path / "a", video, is_copy=False)
    sounds.forget(tmp_path / "a")
    assert sounds.of(tmp_path / "a") is None
    assert video.exists()
