import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from weakref import WeakSet

import pytest
from comfyui_tlbvfi.encoding import durable, stored
from comfyui_tlbvfi.encoding.errors import (
    EncoderError,
    OutputError,
    SessionError,
    SessionMismatch,
    VerificationError,
)
from comfyui_tlbvfi.encoding.manifest import manifest_from_json, manifest_to_json
from comfyui_tlbvfi.encoding.names import check_id
from comfyui_tlbvfi.encoding.progress import read_progress
from comfyui_tlbvfi.encoding.session import FOLDER, FinalFile, Session, list_sessions
from comfyui_tlbvfi.encoding.verify import expected_output, verify_session
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

SMOOTH = FinalFile(output=Path("smooth.mp4"), bytes=7, shift=Fraction(0))
STEPS = [
    *("before close", "after close", "after fsync", "after rename"),
    *("before line", "in line", "after line"),
]
KILLED = """
import os, sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
root, checkout, wanted, fatal = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
spec = spec_from_file_location("pack", checkout / "__init__.py", submodule_search_locations=[str(checkout)])
sys.modules["pack"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
import av
from pack.encoding.session import Session

def on_step(step):
    if step == wanted:
        os.kill(os.getpid(), int(fatal))

session = Session.open(root, "job")
with session.locked(), session.new_chunk(1, on_step=on_step) as chunk:
    for number in (3, 4, 5):
        chunk.write(av.VideoFrame(64, 48, "yuv420p"), number)
    chunk.commit(pairs=(3, 6), first_frame=3)
"""


def commit(session, index, paint, *, frames=3, is_last=False, **options):
    first = index * 3
    with session.new_chunk(index, **options) as chunk:
        for number in range(first, first + frames):
            chunk.write(paint(number), number)
        return chunk.commit(pairs=(first, first + frames), first_frame=first, is_last=is_last)


def test_a_session_knows_itself_after_opening_again(tmp_path, filled, decoded, samples, paint):
    made = filled(frames=7, per_chunk=3)
    session = Session.open(tmp_path, "job")
    assert session.manifest == made.manifest
    assert [(r.index, r.pairs, r.first_frame, r.frames) for r in session.done(thorough=True)] == [
        (0, (0, 3), 0, 3),
        (1, (3, 6), 3, 3),
        (2, (6, 7), 6, 1),
    ]
    assert session.missing() == ""
    assert decoded(session.chunk_path(2)) == [samples(paint(6))]
    assert session.folder == tmp_path / FOLDER / "job"


@given(
    st.fractions(min_value=0, max_value=10**6),
    st.one_of(st.none(), st.fractions(Fraction(1, 99), 99, max_denominator=10**6)),
    st.booleans(),
)
def test_manifest_survives_json(encoder, stream, start, aspect, is_vfr):
    from comfyui_tlbvfi.encoding.manifest import Manifest

    manifest = Manifest(
        source={"size": 3},
        settings={"seed": 7, "cuts": [1, 2]},
        encoder=encoder("ffv1"),
        stream=stream(sample_aspect_ratio=aspect),
        start=start,
        is_vfr=is_vfr,
    )
    text = json.dumps(manifest_to_json(manifest))
    assert manifest_from_json(json.loads(text)) == manifest


def test_a_time_base_that_cannot_count_the_rate_is_refused(manifest, stream):
    with pytest.raises(SessionError, match="cannot be counted"):
        manifest(stream=stream(rate=Fraction(24000, 1001), time_base=Fraction(1, 1000)))


def test_the_same_job_resumes_and_another_is_refused_by_field(tmp_path, filled, manifest, encoder):
    filled()
    same = Session.start(tmp_path, "job", manifest())
    assert len(same.done()) == 3
    other = manifest(settings={"times": 2}, encoder=encoder("ffv1", preset=None))
    with pytest.raises(SessionMismatch) as caught:
        Session.start(tmp_path, "job", other)
    message = str(caught.value)
    assert "settings.times was 1 and is now 2" in message
    assert "--overwrite" in message
    assert len(Session.start(tmp_path, "job", other, overwrite=True).records()) == 0
    assert len(Session.start(tmp_path, "new", other, overwrite=True).records()) == 0


def test_a_setting_that_is_new_or_gone_makes_another_job(tmp_path, filled, manifest):
    filled()
    with pytest.raises(SessionMismatch, match=r"settings\.sound was None and is now 'b'"):
        Session.start(tmp_path, "job", manifest(settings={"times": 1, "sound": "b"}))
    with pytest.raises(SessionMismatch, match=r"settings\.times was 1 and is now None"):
        Session.start(tmp_path, "job", manifest(settings={}))


def test_unknown_session_names_some_of_the_known_ones(tmp_path, filled):
    session = filled()
    with pytest.raises(SessionError, match=r"no session other .* there are job\.$"):
        Session.open(tmp_path, "other")
    for number in range(6):
        shutil.copytree(session.folder, session.folder.with_name(f"a{number}"))
    with pytest.raises(SessionError, match=r" there are a0, a1, a2, a3, a4 and 2 more\.$"):
        Session.open(tmp_path, "other")


def test_an_unknown_session_is_told_without_reading_the_known_ones(tmp_path, filled, caplog):
    """There may be thousands."""
    session = filled()
    for name in ("damaged", "no id"):
        shutil.copytree(session.folder, session.folder.with_name(name))
        session.folder.with_name(name).joinpath("manifest.json").write_text("{")
    with pytest.raises(SessionError, match=r" there are damaged, job\.$"):
        Session.open(tmp_path, "other")
    assert not caplog.records


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../x", "a/b", "a\\b", ".x", "x.", "a b", "a" * 65, "CON", "nul.txt", "ä"]
)
def test_unsafe_ids_are_refused(tmp_path, id):
    with pytest.raises(SessionError, match="is not a session id"):
        Session.find(tmp_path, id)


@given(st.text(max_size=70))
@settings(max_examples=50)
def test_an_accepted_id_is_one_plain_folder_name(id):
    try:
        check_id(id)
    except SessionError:
        return
    assert 1 <= len(id) <= 64
    assert id.isascii()
    assert os.path.normpath(id) == id
    assert not set(id) & set('/\\:*?"<>| \n')


def test_links_are_refused(tmp_path, filled):
    filled()
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / FOLDER / "trap").symlink_to(outside)
    with pytest.raises(SessionError, match="is a link"):
        Session.find(tmp_path, "trap")
    progress = tmp_path / FOLDER / "job" / "progress.jsonl"
    progress.rename(outside / "p")
    progress.symlink_to(outside / "p")
    with pytest.raises(SessionError, match="is a link"):
        Session.open(tmp_path, "job")


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(tmp_path, filled, paint):
    session = filled()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (session.folder / ".chunk_000001.part.mkv").symlink_to(victim)
    with session.locked():
        commit(session, 1, paint)
    assert victim.read_text() == "precious"


def test_a_file_in_the_place_of_a_session_is_refused(tmp_path, manifest):
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "job").write_text("mine")
    with pytest.raises(SessionError, match="is not a folder"):
        Session.start(tmp_path, "job", manifest())
    assert (tmp_path / FOLDER / "job").read_text() == "mine"


def test_a_session_is_not_created_over_another_or_what_is_left_of_one(tmp_path, filled, manifest):
    Session.create(tmp_path, "new", manifest())
    (filled().folder / "manifest.json").unlink()
    with pytest.raises(SessionError, match="Session new exists in"):
        Session.create(tmp_path, "new", manifest(settings={"times": 2}))
    with pytest.raises(
        SessionError, match=r"has lost its manifest\.json and .*: delete the folder"
    ):
        Session.create(tmp_path, "job", manifest(settings={"times": 2}))
    assert Session.open(tmp_path, "new").manifest == manifest()
    assert len(list((tmp_path / FOLDER / "job").glob("chunk_*"))) == 3


def test_two_workers_cannot_share_a_session(tmp_path, filled):
    session = filled()
    with (
        session.locked(),
        pytest.raises(SessionError, match=f"in use by process {os.getpid()} on "),
        Session.open(tmp_path, "job").locked(),
    ):
        pass
    with Session.open(tmp_path, "job").locked():
        pass


def test_of_two_jobs_that_begin_one_session_at_once_the_second_is_refused(
    tmp_path, manifest, monkeypatch
):
    make_folder = durable.make_folder

    def after_the_other(folder):
        monkeypatch.undo()
        Session.create(tmp_path, "job", manifest())
        make_folder(folder)

    monkeypatch.setattr("comfyui_tlbvfi.encoding.session.make_folder", after_the_other)
    with pytest.raises(SessionError, match="Session job exists"):
        Session.start(tmp_path, "job", manifest(settings={"times": 2}))
    assert Session.open(tmp_path, "job").manifest == manifest()


def test_who_holds_a_session_for_a_moment_keeps_nobody_from_it(tmp_path, filled):
    session, other, is_held = filled(), Session.open(tmp_path, "job"), Event()

    def look():
        with other.locked():
            is_held.set()
            time.sleep(0.1)

    looking = Thread(target=look)
    looking.start()
    is_held.wait()
    with session.locked():
        assert len(session.done()) == 3
    looking.join()


def test_a_session_that_another_job_begins_anew_is_not_continued(tmp_path, manifest):
    session = Session.start(tmp_path, "job", manifest())
    Session.start(tmp_path, "job", manifest(settings={"times": 2}), overwrite=True)
    with pytest.raises(SessionError, match="removed or begun anew"), session.locked():
        pass
    with pytest.raises(SessionError, match="removed or begun anew"):
        session.note_origin({"command": ["interpolate"]})
    anew = Session.open(tmp_path, "job")
    assert anew.manifest == manifest(settings={"times": 2})
    assert not anew.origin()


def test_a_session_that_was_removed_is_not_made_again_by_who_had_found_it(tmp_path, filled):
    session, other = filled(), Session.open(tmp_path, "job")
    other.remove()
    for use in (session.remove, session.drop_chunks, session.locked().__enter__):
        with pytest.raises(SessionError, match="removed or begun anew"):
            use()
    assert not session.folder.exists()


def test_a_session_is_removed_from_a_full_disk(filled, monkeypatch):
    session, write_text = filled(), Path.write_text

    def refuse(path, *arguments, **options):
        if path.name == "owner.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", refuse)
    session.remove()
    assert not session.folder.exists()


def test_a_worker_may_lock_its_session_twice_and_holds_it_to_the_end(tmp_path, filled, paint):
    session = filled(frames=6)
    with session.locked():
        with session.locked():
            pass
        commit(session, 2, paint, frames=1, is_last=True)
        with pytest.raises(SessionError, match="in use"), Session.open(tmp_path, "job").locked():
            pass
    assert len(Session.open(tmp_path, "job").records()) == 3


def test_a_session_on_a_disk_that_became_read_only_is_told(filled, monkeypatch):
    session = filled()

    def refuse(lock, timeout):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(lock.lock_file))

    monkeypatch.setattr("filelock.BaseFileLock.acquire", refuse)
    with pytest.raises(OutputError, match="cannot be written"), session.locked():
        pass


def test_chunks_are_made_under_the_lock_only(filled):
    session = filled()
    with pytest.raises(SessionError, match="is not locked"):
        session.new_chunk(3)


def test_uncommitted_chunks_leave_nothing(filled, paint):
    session = filled()
    before = sorted(path.name for path in session.folder.iterdir())
    with session.locked(), session.new_chunk(3) as chunk:
        chunk.write(paint(9), 9)
    with session.locked(), pytest.raises(EncoderError):
        commit(session, 3, lambda number: paint(number, width=32))
    assert sorted(path.name for path in session.folder.iterdir()) == before


def test_damaged_chunks_are_found_and_only_they(filled, caplog):
    session = filled(frames=12, per_chunk=3)
    cut, flipped, gone = (session.chunk_path(index) for index in (0, 1, 3))
    os.truncate(cut, cut.stat().st_size - 1)
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    gone.unlink()
    assert [record.index for record in session.done(thorough=True)] == [2]
    assert [record.index for record in session.done()] == [1, 2]
    assert "chunk_000000.mkv has" in caplog.text
    assert "chunk_000001.mkv does not have the recorded checksum" in caplog.text
    assert "chunk_000003.mkv is missing" in caplog.text


def test_a_chunk_made_again_replaces_the_first(filled, paint):
    session = filled()
    with session.locked():
        again = commit(session, 1, paint)
    assert session.records()[1] == again
    assert len(session.done(thorough=True)) == 3
    assert len((session.folder / "progress.jsonl").read_text().splitlines()) == 4


def test_a_session_that_is_made_again_and_again_stays_small(tmp_path, filled, paint):
    """Every run reads all of its lines."""
    session = filled()
    progress = session.folder / "progress.jsonl"
    progress.write_bytes(40 * progress.read_bytes() + b"torn")
    again = Session.open(tmp_path, "job")
    with again.locked():
        assert len(progress.read_bytes().splitlines()) == 3
        made = commit(again, 1, paint)
    assert again.records() == session.records() | {1: made}
    assert Session.open(tmp_path, "job").records() == again.records()


def test_a_crash_while_a_session_is_made_small_costs_nothing(tmp_path, filled):
    session = filled()
    progress = session.folder / "progress.jsonl"
    kept = progress.read_bytes()
    progress.write_bytes(40 * kept)
    progress.with_name(".progress.part.jsonl").write_bytes(kept[:50])
    again = Session.open(tmp_path, "job")
    with again.locked():
        assert progress.read_bytes() == kept
    assert len(again.done(thorough=True)) == 3
    progress.with_name(".progress.part.jsonl").write_bytes(kept[:50])
    with again.locked():
        assert not list(session.folder.glob(".*"))


def test_a_torn_line_is_not_done_and_does_not_spoil_the_next(tmp_path, filled, paint):
    session = filled()
    progress = session.folder / "progress.jsonl"
    content = progress.read_bytes()
    for length in (1, 40, len(content.splitlines()[-1])):
        progress.write_bytes(content[: content[:-1].rfind(b"\n") + 1 + length])
        torn = Session.open(tmp_path, "job")
        assert sorted(torn.records()) == [0, 1]
        with torn.locked():
            commit(torn, 2, paint, frames=1, is_last=True)
        assert Session.open(tmp_path, "job").missing() == ""


def test_a_damaged_line_costs_only_its_chunk(tmp_path, filled):
    session = filled()
    progress = session.folder / "progress.jsonl"
    lines = progress.read_bytes().splitlines(keepends=True)
    progress.write_bytes(lines[0] + b"\0" * 30 + b"\n" + lines[2])
    again = Session.open(tmp_path, "job")
    assert sorted(again.records()) == [0, 2]
    assert again.missing() == "chunk 1 is not made yet"


def test_a_full_disk_at_the_progress_line_commits_nothing(tmp_path, filled, paint, monkeypatch):
    from comfyui_tlbvfi.encoding import progress

    session = filled()

    def full(file, data):
        os.write(file, data[:20])
        raise OSError(28, "No space left on device")

    with session.locked():
        monkeypatch.setattr(progress, "_write_all", full)
        with pytest.raises(
            OutputError, match="committed chunks are kept, and running the same job"
        ):
            commit(session, 3, paint)
        monkeypatch.undo()
        commit(session, 3, paint)
    assert sorted(Session.open(tmp_path, "job").records()) == [0, 1, 2, 3]


def test_a_disk_that_fails_or_is_gone_is_told_in_a_sentence(filled, paint, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))  # it names no file

    session = filled()
    with session.locked():
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OutputError, match=r"chunk_000003.*cannot be written \(.*\): choose"):
            commit(session, 3, paint)
        monkeypatch.undo()
        commit(session, 3, paint)


def test_a_file_over_the_limit_of_its_file_system_is_told_in_a_sentence(filled, paint):
    resource = pytest.importorskip("resource")
    session = filled()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with session.locked():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OutputError, match=r"cannot be written \(File too large\): choose"):
                commit(session, 3, paint)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_drive_without_locks_is_told_in_a_sentence(filled, monkeypatch):
    def refuse(lock, timeout):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    session = filled()
    monkeypatch.setattr(FileLock, "acquire", refuse)
    with pytest.raises(OutputError, match=r"cannot be written \(.*\): choose"), session.locked():
        pass


@pytest.mark.skipif(os.name == "nt", reason="Windows always has locks")
@pytest.mark.skipif(
    tuple(map(int, version("filelock").split(".")[:2])) < (4, 2),
    reason="earlier ones remove the lock of another process where there is no flock",
)
@pytest.mark.filterwarnings("ignore:flock not supported")
def test_where_locks_are_only_files_one_that_another_machine_left_is_named(
    tmp_path, filled, monkeypatch
):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    session, output = filled(), tmp_path / "out.mp4"
    for lock, use in (
        (session.folder / "lock", Session.open(tmp_path, "job").locked),
        (tmp_path / ".out.mp4.lock", lambda: durable.sole_writer(output)),
    ):
        with use():
            pass
        lock.write_text("5\nnode17\n")
        with (
            pytest.raises((OutputError, SessionError), match=f"process is gone, remove {lock}"),
            use(),
        ):
            pass


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot remove a lock that is held")
def test_an_output_that_one_job_lets_go_is_held_by_one_other(tmp_path, monkeypatch):
    output, release = tmp_path / "out.mp4", FileLock.release
    with ExitStack() as second:

        def meanwhile(lock):
            monkeypatch.undo()
            second.enter_context(durable.sole_writer(output))
            release(lock)

        with durable.sole_writer(output):
            monkeypatch.setattr(FileLock, "release", meanwhile)
        with pytest.raises(OutputError, match="by another job"), durable.sole_writer(output):
            pass


@pytest.mark.skipif(os.name == "nt", reason="Windows does not open folders")
def test_folders_without_fsync_are_no_obstacle(filled, monkeypatch):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert verify_session(filled()).ok


@pytest.mark.skipif(sys.platform != "linux", reason="names open files as Linux does")
def test_every_step_of_a_commit_is_on_the_disk_before_the_next(
    tmp_path, manifest, paint, monkeypatch
):
    told, fsync = [], os.fsync

    def note(descriptor):
        told.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    session = Session.create(tmp_path / "a" / "b", "job", manifest())
    folders = told[: told.index(".manifest.part.json")]
    assert sorted(folders) == sorted([tmp_path.name, "a", "b", FOLDER])
    assert told[len(folders) :] == [".manifest.part.json", "job"]
    told.clear()
    with session.locked():
        assert told == ["job"]  # the folder in which `progress.jsonl` is new
        told.clear()
        commit(session, 0, paint, on_step=told.append)
    assert told == [
        *("before close", "after close", ".chunk_000000.part.mkv", "after fsync"),
        *("after rename", "job", "before line", "in line", "progress.jsonl", "after line"),
    ]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no fcntl")
@pytest.mark.parametrize("knows_it", [True, False])
def test_macos_empties_the_drives_cache_too(tmp_path, monkeypatch, knows_it):
    import fcntl

    told = []

    def ask(descriptor, command):
        told.append(command)
        if not knows_it:
            raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", "full", raising=False)
    monkeypatch.setattr(fcntl, "fcntl", ask)
    monkeypatch.setattr(os, "fsync", lambda descriptor: told.append("plain"))
    (tmp_path / "file").touch()
    durable.fsync_file(tmp_path / "file")
    assert told == (["full"] if knows_it else ["full", "plain"])


@pytest.mark.parametrize("step", STEPS)
def test_kill_at_every_step_of_a_commit_keeps_what_was_committed(
    tmp_path, root, filled, paint, decoded, step, kill_signal, killed
):
    session = filled(frames=3, per_chunk=3)
    before = session.records()[0]
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(root), step, str(kill_signal)]
    assert subprocess.run(command, timeout=60).returncode == killed
    again = Session.open(tmp_path, "job")
    (again.folder / ".result.part.json").write_text("{")
    with again.locked():
        assert not [path for path in again.folder.iterdir() if ".part" in path.name]
    is_committed = step == "after line"
    assert [record.index for record in again.done(thorough=True)] == [0, 1][: 1 + is_committed]
    assert again.records()[0] == before
    with again.locked():
        if not is_committed:
            commit(again, 1, paint)
        commit(again, 2, paint, is_last=True)
    assert again.missing() == ""
    assert len(again.done(thorough=True)) == 3
    assert not [path for path in again.folder.iterdir() if ".part" in path.name]


def test_pts_off_the_constant_rate_are_refused(filled, paint):
    session = filled()
    with session.locked(), session.new_chunk(3) as chunk:
        chunk.write(paint(0), 9)
        chunk.write(paint(1), 11)
        with pytest.raises(SessionError, match="does not follow a constant rate"):
            chunk.commit(pairs=(0, 2), first_frame=9)


def test_variable_rate_records_every_pts(tmp_path, filled):
    times = [0, 3, 10, 11, 30]
    filled(pts=times, is_vfr=True, per_chunk=2)
    records = Session.open(tmp_path, "job").done()
    assert [record.pts for record in records] == [(0, 3), (10, 11), (30,)]
    assert (records[1].first_pts, records[1].last_pts) == (10, 11)


def test_what_is_missing_is_named(tmp_path, manifest, paint):
    session = Session.create(tmp_path, "job", manifest())
    assert session.missing() == "no chunk is made yet"
    with session.locked():
        commit(session, 1, paint)
        assert session.missing() == "chunk 0 is not made yet"
        commit(session, 0, paint)
        assert session.missing() == "the chunks after number 1 are not made yet"
        commit(session, 2, paint, is_last=True)
    assert session.missing() == ""
    with session.locked(), session.new_chunk(1) as chunk:
        chunk.write(paint(4), 4)
        chunk.commit(pairs=(4, 5), first_frame=4)
    assert session.missing() == "chunk 1 begins at frame 4 instead of 3"


def test_a_file_that_lost_frames_on_its_way_to_the_disk_is_not_committed(filled, paint):
    session = filled()

    def lose_some(step):
        if step == "after fsync":
            (temporary,) = session.folder.glob(".chunk_*")
            os.truncate(temporary, temporary.stat().st_size * 2 // 3)

    with (
        session.locked(),
        pytest.raises(VerificationError, match=r"holds \d+ frames instead of 30"),
    ):
        commit(session, 3, paint, frames=30, on_step=lose_some)
    assert sorted(session.records()) == [0, 1, 2]
    assert not list(session.folder.glob("*chunk_000003*"))


def test_removing_takes_only_what_is_ours(tmp_path, filled, caplog):
    session = filled()
    (session.folder / "notes.txt").write_text("mine")
    session.remove()
    assert [path.name for path in session.folder.iterdir()] == ["notes.txt"]
    assert "notes.txt" in caplog.text
    (session.folder / "notes.txt").unlink()
    other = filled(id="other")
    other.remove()
    assert not other.folder.exists()
    assert list(list_sessions(tmp_path)) == []


def test_the_content_of_a_session_changes_with_its_chunks_alone(tmp_path, filled, paint):
    session = filled()
    before = session.content()
    assert Session.open(tmp_path, "job").content() == before
    session.note_result(SMOOTH)
    assert session.content() == before
    with session.locked():
        commit(session, 1, lambda index: paint(index + 100))
    assert session.content() != before


def test_dropping_chunks_keeps_the_books(tmp_path, filled):
    session = filled()
    session.note_result(SMOOTH)
    session.drop_chunks()
    again = Session.open(tmp_path, "job")
    assert again.result() == SMOOTH
    assert len(again.records()) == 3
    assert again.done() == []


def test_a_chunk_that_cannot_be_removed_is_told_and_the_others_go(filled, monkeypatch, caplog):
    session, unlink = filled(), Path.unlink

    def refuse(path, **options):
        if path.name == "chunk_000001.mkv":  # open in a player, on Windows
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    monkeypatch.setattr(Path, "unlink", refuse)
    session.drop_chunks()
    assert [path.name for path in session.folder.glob("chunk_*")] == ["chunk_000001.mkv"]
    assert "chunk_000001.mkv in" in caplog.text
    assert "close what has them open" in caplog.text


def test_a_file_that_is_open_for_a_moment_is_renamed_after_it(tmp_path, monkeypatch):
    pauses, replace = [], Path.replace

    def refuse_twice(path, target):
        if len(pauses) < 2:
            raise PermissionError(13, "Permission denied", str(path))
        replace(path, target)

    monkeypatch.setattr(durable, "PAUSES", (0.1, 0.2, 0.4))
    monkeypatch.setattr(durable, "time", SimpleNamespace(sleep=pauses.append))
    monkeypatch.setattr(Path, "replace", refuse_twice)
    with durable.atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert pauses == [0.1, 0.2]
    assert (tmp_path / "a.txt").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_that_stays_open_is_left_as_it_was(tmp_path, monkeypatch):
    def refuse(path, target):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "a.txt").write_text("old")
    monkeypatch.setattr(durable, "PAUSES", (0.0,))
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError), durable.atomic_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_sessions_are_listed_and_broken_ones_told(tmp_path, filled, caplog):
    filled(id="b")
    filled(id="a")
    broken = tmp_path / FOLDER / "c"
    broken.mkdir()
    (broken / "manifest.json").write_text("{")
    (broken.parent / ".DS_Store").write_bytes(b"")
    assert [session.id for session in list_sessions(tmp_path)] == ["a", "b"]
    assert "not a usable manifest" in caplog.text
    assert ".DS_Store" not in caplog.text


def test_a_folder_of_sessions_that_may_not_be_read_is_not_called_empty(
    tmp_path, filled, monkeypatch
):
    filled()

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(SessionError, match=rf"{FOLDER} cannot be read \(Permission denied\)"):
        list(list_sessions(tmp_path))


def test_a_list_of_sessions_holds_one_at_a_time(tmp_path, filled):
    for index in range(4):
        filled(id=f"s{index}")
    alive, most = WeakSet[Session](), 0
    for session in list_sessions(tmp_path):
        session.records()
        alive.add(session)
        most = max(most, len(alive))
    assert most <= 2


def test_the_types_of_a_record_are_taken_apart_once_for_all(filled, monkeypatch):
    session, taken_apart = filled(), []
    path = session.folder / "progress.jsonl"
    read_progress(path)
    original = stored.get_args
    monkeypatch.setattr(stored, "get_args", lambda hint: taken_apart.append(hint) or original(hint))
    assert read_progress(path) == session.records()
    assert not taken_apart


def test_a_newer_schema_is_refused(tmp_path, filled):
    path = filled().folder / "manifest.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "schema": 99}))
    with pytest.raises(SessionError, match="has schema 99"):
        Session.open(tmp_path, "job")


def test_forecast_grows_from_what_the_chunks_took(filled):
    session = filled(frames=6, per_chunk=3)
    written = sum(record.bytes for record in session.records().values())
    assert session.forecast(12).needed_bytes == 3 * written
    assert session.forecast(12).fits


def test_every_output_of_a_session_is_remembered(tmp_path, filled, monkeypatch):
    session = filled()
    assert session.result() is None
    first, second = (
        FinalFile(output=tmp_path / name, bytes=size, shift=Fraction(1, 3), final=None, chunks="x")
        for name, size in (("a.mp4", 1), ("b.mp4", 2))
    )
    for made in (first, second):
        session.note_result(made)
    monkeypatch.chdir(tmp_path)
    again = Session.open(tmp_path, "job")
    assert [again.result(Path(name)) for name in ("a.mp4", "b.mp4", "c.mp4")] == [
        first,
        second,
        None,
    ]
    assert again.result() == second


def test_other_libraries_than_at_the_start_are_told(tmp_path, filled, manifest, caplog):
    path = filled().folder / "manifest.json"
    document = json.loads(path.read_text())
    document["versions"]["av"] = "1.0"
    path.write_text(json.dumps(document))
    Session.start(tmp_path, "job", manifest())
    assert "was started with PyAV 1.0" in caplog.text


DEEP = "[" * 100_000
BOOKS = ("manifest.json", "origin.json", "result.json", "progress.jsonl")
ODD = [None, True, -1, 10**30, 1.5, "x", "1/0", "1e9999999", "/../../x", [], {}, [[]], {"a": 1}]


@pytest.mark.parametrize("name", BOOKS)
@pytest.mark.parametrize(
    "content", ["", "[", "5", '"x"', DEEP, "[1, 2]", '{"a": 1, "command": 1}', "\0"]
)
def test_damaged_books_are_told_in_one_sentence(tmp_path, filled, caplog, name, content):
    folder = filled(per_chunk=3).folder
    (folder / name).write_text(f"{content}\n")
    if name == "progress.jsonl":
        assert Session.open(tmp_path, "job").records() == {}
        assert "line 1 is damaged and dropped: that chunk is redone" in caplog.text
    else:
        with pytest.raises(SessionError, match=f"{name} is (damaged|not a usable manifest)"):
            look_at(Session.open(tmp_path, "job"))


@pytest.mark.parametrize("name", BOOKS)
def test_a_book_larger_than_memory_is_told_and_the_other_sessions_are_listed(
    tmp_path, filled, caplog, name
):
    folder = filled().folder
    shutil.copytree(folder, folder.with_name("other"))
    (folder / name).touch()
    os.truncate(folder / name, stored.MOST_BYTES + 1)  # a hole takes no space
    with pytest.raises(SessionError, match=f"{name} is .*(damaged|usable|larger).*: remove"):
        look_at(Session.open(tmp_path, "job"))
    found = {session.id: session for session in list_sessions(tmp_path)}
    assert found["other"].records()
    assert ("job" in found) == (name != "manifest.json")


@pytest.mark.parametrize("nested", ["[]", '{"a":}'])
def test_a_manifest_nested_deeper_than_python_compares_is_refused(tmp_path, filled, nested):
    path = filled().folder / "manifest.json"
    document = json.loads(path.read_text())
    begin, end = nested[:-1], nested[-1]
    deep = f"{begin * 400}0{end * 400}"
    path.write_text(json.dumps({**document, "settings": {"x": "@"}}).replace('"@"', deep))
    with pytest.raises(SessionError, match="nested too deep"):
        Session.open(tmp_path, "job")


def test_frames_that_last_more_ticks_than_times_can_count_are_refused(tmp_path, filled):
    path = filled().folder / "manifest.json"
    document = json.loads(path.read_text())
    document["stream"] |= {"rate": f"1/{2**31 - 1}", "time_base": f"1/{2**31 - 1}"}
    path.write_text(json.dumps(document))
    with pytest.raises(SessionError, match=r"not a usable manifest.*a frame lasts"):
        Session.open(tmp_path, "job")


def test_a_backup_by_hard_links_stays_as_it_was(tmp_path, filled, paint):
    session = filled(frames=3, per_chunk=3)
    backup = tmp_path / "backup.jsonl"
    os.link(session.folder / "progress.jsonl", backup)
    before = backup.read_bytes()
    with session.locked():
        commit(session, 1, paint)
    assert backup.read_bytes() == before
    assert set(read_progress(session.folder / "progress.jsonl")) == {0, 1}


def test_lines_without_end_are_not_all_told(filled, caplog):
    session = filled()
    path = session.folder / "progress.jsonl"
    path.write_bytes(b"\n" * 1000 + path.read_bytes())
    assert read_progress(path) == session.records()
    assert len(caplog.records) < 10
    assert "1000 lines are damaged in all" in caplog.text


@pytest.mark.parametrize("name", BOOKS)
def test_books_that_cannot_be_read_are_not_called_damaged(tmp_path, filled, monkeypatch, name):
    session = filled(per_chunk=3)
    session.note_origin({"command": ["interpolate"]})
    session.note_result(FinalFile(output=tmp_path / "out.mkv", bytes=1, shift=Fraction(0)))
    read_bytes, read_text = Path.read_bytes, Path.read_text

    def failing(read):
        def run(path, *arguments, **options):
            if path.name == name:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
            return read(path, *arguments, **options)

        return run

    monkeypatch.setattr(Path, "read_bytes", failing(read_bytes))
    monkeypatch.setattr(Path, "read_text", failing(read_text))
    told = rf"{name} cannot be read \({os.strerror(errno.ESTALE)}\): check its permissions and"
    with pytest.raises(SessionError, match=told):
        look_at(Session.open(tmp_path, "job"))


def test_a_chunk_that_a_network_fails_to_show_is_not_called_missing(filled, monkeypatch):
    session = filled(per_chunk=3)
    stat = Path.stat

    def fail(path, **options):
        if path.name == session.chunk_path(1).name:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", fail)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        session.done()


@pytest.mark.parametrize("name", ["manifest.json", "progress.jsonl"])
@pytest.mark.parametrize("pts", [None, [0, 3, 10, 11, 30]])
def test_values_of_other_kinds_are_never_believed(tmp_path, filled, name, pts):
    path = filled(per_chunk=3, pts=pts, is_vfr=pts is not None).folder / name
    good = path.read_text()
    line, _, rest = good.partition("\n") if name.endswith("l") else (good, "", "")
    document = json.loads(line)
    for place in places(document):
        for value in ODD:
            path.write_text(json.dumps(replaced(document, place, value)) + "\n" + rest)
            with suppress(SessionError):
                look_at(Session.open(tmp_path, "job"))


@pytest.mark.parametrize(
    ("field", "value"),
    [("index", -1), ("frames", 0), ("frames", 10**9), ("pts", [0, 3]), ("sha256", 5)],
)
def test_a_record_that_cannot_be_true_is_dropped(tmp_path, filled, field, value):
    path = filled(per_chunk=3, pts=[0, 3, 10, 11, 30], is_vfr=True).folder / "progress.jsonl"
    line, _, rest = path.read_text().partition("\n")
    path.write_text(json.dumps(replaced(json.loads(line), [field], value)) + "\n" + rest)
    assert sorted(Session.open(tmp_path, "job").records()) == [1]


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["stream", "width"], 0),
        (["stream", "height"], 1 << 31),
        (["stream", "time_base"], "0"),
        (["stream", "sample_aspect_ratio"], f"1/{1 << 31}"),
        (["stream", "rate"], "0"),
        (["stream", "color", "matrix"], 256),
        (["stream", "color", "matrix"], "1"),
        (["encoder", "thread_count"], "1"),
        (["is_vfr"], "no"),
    ],
)
def test_a_manifest_that_cannot_be_true_is_refused(tmp_path, filled, place, value):
    path = filled().folder / "manifest.json"
    path.write_text(json.dumps(replaced(json.loads(path.read_text()), place, value)))
    with pytest.raises(SessionError, match="not a usable manifest"):
        Session.open(tmp_path, "job")


def look_at(session):
    """Read everything of a session that is read before its chunks."""
    session.results(), session.origin(), session.missing(), session.done(thorough=True)
    verify_session(session)
    expected_output(session)


def places(document, before=()):
    """The keys that lead to each value in a nested document."""
    items = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in items:
        yield (*before, key)
        if isinstance(value, dict | list):
            yield from places(value, (*before, key))


def replaced(document, place, value):
    copy = json.loads(json.dumps(document))
    inner = copy
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return copy


@pytest.mark.parametrize("name", ["chunk_suffix", "suffix"])
def test_a_suffix_cannot_lead_out_of_the_folder(tmp_path, filled, name):
    path = filled().folder / "manifest.json"
    place = ("encoder", name)
    path.write_text(json.dumps(replaced(json.loads(path.read_text()), place, "/../../x.mp4")))
    with pytest.raises(SessionError, match="a suffix is '/"):
        Session.open(tmp_path, "job")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("name", ["owner.json", "progress.jsonl"])
def test_a_pipe_among_the_books_is_refused_instead_of_waited_for(tmp_path, filled, name):
    path = filled().folder / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(SessionError, match="is not a file"):
        Session.open(tmp_path, "job")
