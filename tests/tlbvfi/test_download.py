"""Downloads from a server on this machine that behaves like the real one, or badly."""

import hashlib
import json
import os
import random
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.error import HTTPError

import pytest
from comfyui_tlbvfi.encoding import durable
from comfyui_tlbvfi.encoding.errors import OutputError
from comfyui_tlbvfi.tlbvfi.download import download
from comfyui_tlbvfi.tlbvfi.errors import DownloadError, SettingsError
from comfyui_tlbvfi.tlbvfi.remote_file import RemoteFile
from filelock import FileLock

CONTENT = random.Random(1).randbytes(900_000)
OTHER = random.Random(2).randbytes(900_000)
PATH = "/ucfzl/TLBVFI/resolve/main/vimeo_unet.pth"


@dataclass
class Server:
    """A hub that states size and checksum and redirects to a storage host, which has the bytes."""

    content: bytes = CONTENT
    size: int | None = len(CONTENT)
    sha256: str | None = hashlib.sha256(CONTENT).hexdigest()
    etag: str | None = '"v1"'
    """Of the storage host."""
    length: int | None = None
    """A false Content-Length to claim, if any."""
    states_length: bool = True
    is_mirror: bool = False
    """Whether the hub has the bytes itself, and knows no checksum."""
    breaks: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off."""
    is_silent: bool = False
    """Whether it keeps the connection open after it breaks off."""
    stopped: threading.Event = field(default_factory=threading.Event)
    knows_ranges: bool = True
    checks_if_range: bool = True
    status: int = 200
    """Of the hub."""
    storage_status: list[int] = field(default_factory=list)
    """Of the next answers of the storage host, if not 200 or 206."""
    content_type: str = "application/octet-stream"
    location: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """(host, method, Range) of every request."""
    base_url: str = ""
    storage_url: str = ""

    def ranges(self) -> list[str | None]:
        """Range headers of the requests to the storage host."""
        return [part for host, _, part in self.requests if host == "storage"]


def handler(server: Server, host: str):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format, *args):
            pass

        def answer(self, status: int, headers: dict[str, str | int | None], body: bytes = b""):
            self.send_response(status)
            for name, value in headers.items():
                if value is not None:
                    self.send_header(name, str(value))
            self.end_headers()
            with suppress(ConnectionError):  # in some tests, the client stops early
                self.wfile.write(body)

        def do_HEAD(self):
            server.requests.append((host, "HEAD", None))
            if host == "storage":
                self.answer(403, {})  # URLs signed for GET refuse HEAD
            elif server.is_mirror:
                kind, length = server.content_type, len(server.content)
                facts = {"Content-Type": kind, "Content-Length": length, "ETag": server.etag}
                self.answer(200, facts)
            else:
                self.redirect()

        def redirect(self):
            if server.status != 200:
                self.answer(server.status, {})
                return
            linked = server.sha256 and f'"{server.sha256}"'
            headers = {"X-Linked-Size": server.size, "X-Linked-Etag": linked}
            location = server.location or f"{server.storage_url}/blob"
            self.answer(302, {"Location": location, **headers})

        def do_GET(self):
            server.requests.append((host, "GET", self.headers.get("Range")))
            if host == "hub" and not server.is_mirror:
                self.redirect()
            elif server.storage_status:
                self.answer(server.storage_status.pop(0), {})
            else:
                self.send_content()

        def send_content(self):
            start = self.start()
            body = server.content[start:]
            headers = {
                "Content-Type": server.content_type,
                "Content-Length": (server.length or len(body)) if server.states_length else None,
                "ETag": server.etag,
            }
            if start:
                total = len(server.content)
                headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
            breaks = bool(server.breaks)
            if breaks:
                body = body[: server.breaks.pop(0)]
            self.answer(206 if start else 200, headers, body)
            if breaks and server.is_silent:
                self.wfile.flush()
                server.stopped.wait(10)

        def start(self) -> int:
            match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            condition = self.headers.get("If-Range")
            changed = condition and condition != server.etag and server.checks_if_range
            return int(match[1]) if match and server.knows_ranges and not changed else 0

    return Handler


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    state = Server()
    running = []
    for host in ("hub", "storage"):
        http = ThreadingHTTPServer(("127.0.0.1", 0), handler(state, host))
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        running.append((http, thread))
    state.base_url, state.storage_url = (f"http://127.0.0.1:{s.server_port}" for s, _ in running)
    yield state
    state.stopped.set()
    for http, thread in running:
        http.shutdown()
        thread.join()
        http.server_close()


@pytest.fixture
def fetch(server, tmp_path):
    """Download the TLB-VFI model from the server to a folder, without waiting between attempts."""

    def fetch(**options) -> Path:
        settings = {"base_url": server.base_url, "waits": (), "timeout_seconds": 5.0, **options}
        return download("tlbvfi", tmp_path / "models", **settings)

    return fetch


@pytest.fixture
def broken_off(server, fetch):
    """A download that broke off after 300,000 bytes in an earlier run."""
    server.breaks = [300_000, 0]
    with pytest.raises(DownloadError, match="run the same command again"):
        fetch()
    server.requests.clear()


def files(tmp_path) -> set[str]:
    return {p.name for p in (tmp_path / "models").iterdir() if not p.name.endswith(".lock")}


def test_file_arrives_whole_with_progress_and_nothing_beside_it(fetch, tmp_path):
    seen = []
    path = fetch(on_progress=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "models" / "vimeo_unet.pth"
    assert path.read_bytes() == CONTENT
    assert seen[0] == (0, len(CONTENT))
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert files(tmp_path) == {"vimeo_unet.pth"}


def test_film_comes_under_its_own_name(server, tmp_path):
    path = download("film", tmp_path, base_url=server.base_url)
    assert path == tmp_path / "film_net_fp16.safetensors"
    assert path.read_bytes() == CONTENT


def test_storage_host_is_never_asked_for_headers_alone(server, fetch):
    fetch()
    assert [(host, method) for host, method, _ in server.requests] == [
        ("hub", "HEAD"),
        ("hub", "GET"),
        ("storage", "GET"),
    ]


def test_connection_that_breaks_again_and_again_is_continued(server, fetch):
    server.breaks = [100_000, 200_000, 1, 300_000]
    assert fetch().read_bytes() == CONTENT
    offsets = [None, "bytes=100000-", "bytes=300000-", "bytes=300001-", "bytes=600001-"]
    assert server.ranges() == offsets


def test_broken_download_is_continued_by_the_next_run(server, fetch, broken_off, tmp_path):
    assert files(tmp_path) == {"vimeo_unet.pth.part", "vimeo_unet.pth.part.json"}
    assert fetch().read_bytes() == CONTENT
    assert server.ranges() == ["bytes=300000-"]
    assert files(tmp_path) == {"vimeo_unet.pth"}


def test_message_of_a_broken_download_says_how_far_it_came(server, fetch):
    server.breaks = [300_000, 0]
    with pytest.raises(DownloadError, match=r"broke off after 0\.3 of 0\.9 MB"):
        fetch()


def test_stop_by_the_caller_keeps_what_has_arrived(server, fetch):
    class StopError(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done > 500_000:
            raise StopError

    with pytest.raises(StopError):
        fetch(on_progress=stop)
    server.requests.clear()
    assert fetch().read_bytes() == CONTENT
    assert server.ranges() == ["bytes=524288-"]


def test_complete_part_is_published_without_another_request(server, fetch, broken_off, tmp_path):
    (tmp_path / "models" / "vimeo_unet.pth.part").write_bytes(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.ranges() == []


def test_server_without_ranges_sends_everything_again(server, fetch, broken_off):
    server.knows_ranges = False
    assert fetch().read_bytes() == CONTENT
    assert server.ranges() == ["bytes=300000-"]


def test_file_changed_on_the_hub_is_not_glued(server, fetch, broken_off):
    server.content, server.sha256 = OTHER, hashlib.sha256(OTHER).hexdigest()
    server.etag = '"v2"'
    assert fetch().read_bytes() == OTHER
    assert server.ranges() == [None]


@pytest.mark.parametrize("checks_if_range", [True, False])
def test_file_changed_on_the_storage_host_is_not_glued(
    server, fetch, broken_off, tmp_path, checks_if_range
):
    note = tmp_path / "models" / "vimeo_unet.pth.part.json"
    server.content, server.sha256 = OTHER, hashlib.sha256(OTHER).hexdigest()
    server.etag, server.checks_if_range = '"v2"', checks_if_range
    note.write_text(json.dumps({"version": server.sha256, "etag": '"v1"'}))
    assert fetch().read_bytes() == OTHER
    assert server.ranges() == ["bytes=300000-", None][: 1 if checks_if_range else 2]


def test_without_checksum_a_part_of_unknown_version_is_not_continued(server, fetch):
    server.sha256 = server.etag = None
    server.breaks = [300_000, 0]
    with pytest.raises(DownloadError):
        fetch()
    server.requests.clear()
    assert fetch().read_bytes() == CONTENT
    assert server.ranges() == [None]


@pytest.mark.parametrize(
    ("has_checksum", "etag", "then"),
    [
        (True, None, "bytes=300000-"),
        (False, '"v1"', "bytes=300000-"),
        (False, 'W/"v1"', None),
        (False, None, None),
    ],
)
def test_what_can_be_checked_is_continued(server, fetch, has_checksum, etag, then):
    server.sha256 = server.sha256 if has_checksum else None
    server.etag, server.breaks = etag, [300_000]
    assert fetch(waits=(0,)).read_bytes() == CONTENT
    assert server.ranges() == [None, then]


def test_a_part_of_a_file_without_a_checksum_is_continued_while_it_is_the_same_version(
    server, fetch
):
    for version, then in (("v7", "bytes=300000-"), ("v8", None)):
        server.sha256, server.breaks = "v7", [300_000, 0]
        with pytest.raises(DownloadError):
            fetch()
        server.requests.clear()
        server.sha256 = version
        path = fetch()
        assert path.read_bytes() == CONTENT
        assert server.ranges() == [then]
        path.unlink()


def test_a_mirror_that_has_the_file_itself_is_enough(server, fetch):
    server.is_mirror, server.breaks = True, [300_000, 0]
    with pytest.raises(DownloadError, match=r"broke off after 0\.3 of 0\.9 MB"):
        fetch()
    server.requests.clear()
    assert fetch().read_bytes() == CONTENT
    assert server.requests == [("hub", "HEAD", None), ("hub", "GET", "bytes=300000-")]


def test_a_page_in_place_of_a_mirror_s_file_is_not_asked_for(server, fetch):
    server.is_mirror, server.content_type = True, "text/html"
    with pytest.raises(DownloadError, match="web page"):
        fetch()
    assert server.requests == [("hub", "HEAD", None)]


@pytest.mark.parametrize("status", [400, 403, 404])
def test_a_storage_host_that_refuses_is_told(server, fetch, status):
    server.storage_status = [status]
    with pytest.raises(DownloadError, match=rf"The server does not provide .* \(HTTP {status}"):
        fetch()


def test_a_file_of_unknown_size_is_refused(server, fetch):
    server.size, server.states_length = None, False
    with pytest.raises(DownloadError, match="has no stated size and cannot be checked"):
        fetch()


def test_a_server_that_refuses_even_the_whole_file_is_told(server, fetch):
    server.storage_status = [416, 416]
    with pytest.raises(DownloadError, match=r"The server does not provide .* 416"):
        fetch()


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot open a folder")
def test_a_model_is_on_the_disk_before_it_has_its_name_and_then_so_is_the_name(fetch, monkeypatch):
    safe, fsync, replace = set(), os.fsync, Path.replace

    def note_fsync(descriptor):
        fsync(descriptor)
        safe.add(os.fstat(descriptor).st_ino)

    def check_rename(source, target):
        assert source.stat().st_ino in safe
        safe.clear()
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", check_rename)
    assert fetch().parent.stat().st_ino in safe


@pytest.mark.parametrize("note", ["", "[]", "{}", '{"version": null, "etag": null}'])
def test_damaged_note_starts_anew(server, fetch, broken_off, tmp_path, note):
    (tmp_path / "models" / "vimeo_unet.pth.part.json").write_text(note)
    assert fetch().read_bytes() == CONTENT
    assert server.ranges() == [None]


def test_what_arrives_is_not_written_through_a_link(server, fetch, broken_off, tmp_path):
    part, mine = tmp_path / "models" / "vimeo_unet.pth.part", tmp_path / "mine"
    mine.write_bytes(part.read_bytes())
    part.unlink()
    part.symlink_to(mine)
    assert fetch().read_bytes() == CONTENT
    assert not fetch().is_symlink()
    assert mine.read_bytes() == CONTENT[: mine.stat().st_size]
    assert mine.stat().st_size < len(CONTENT)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("name", ["vimeo_unet.pth.part", "vimeo_unet.pth.part.json"])
def test_a_pipe_in_the_place_of_a_part_is_not_waited_for(server, fetch, tmp_path, name):
    (tmp_path / "models").mkdir()
    os.mkfifo(tmp_path / "models" / name)
    assert fetch().read_bytes() == CONTENT


def test_part_longer_than_the_file_is_fetched_anew(server, fetch, broken_off, tmp_path):
    (tmp_path / "models" / "vimeo_unet.pth.part").write_bytes(OTHER + OTHER)
    server.storage_status = [416]
    assert fetch().read_bytes() == CONTENT


def test_missing_checksum_is_told(server, fetch, caplog):
    server.sha256 = None
    assert fetch().read_bytes() == CONTENT
    assert "states no checksum for vimeo_unet.pth" in caplog.text


@pytest.mark.parametrize("size", [len(CONTENT) - 1, len(CONTENT) + 1])
def test_lie_about_the_size_is_refused(server, fetch, tmp_path, size):
    server.size = size
    with pytest.raises(DownloadError, match=f"900000 bytes long, but the server promised {size}"):
        fetch()
    assert files(tmp_path) == set()


def test_length_beyond_the_end_is_a_broken_connection(server, fetch):
    server.size = server.length = len(CONTENT) + 10
    with pytest.raises(DownloadError, match="900000 bytes long, but the server promised 900010"):
        fetch()
    assert server.ranges() == [None, "bytes=900000-"]


def test_wrong_content_is_refused_and_deleted(server, fetch, tmp_path):
    server.content = OTHER
    with pytest.raises(DownloadError, match=r"arrived with SHA-256 .* was deleted"):
        fetch()
    assert files(tmp_path) == set()


@pytest.mark.parametrize("content_type", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page_is_recognized(server, fetch, tmp_path, content_type):
    server.content = b"\n<!DOCTYPE html><html><body>Please log in</body></html>"
    server.size, server.sha256, server.content_type = None, None, content_type
    with pytest.raises(DownloadError, match="A web page came instead of"):
        fetch()
    assert files(tmp_path) == set()


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refusal_says_where_to_get_the_file_and_where_to_put_it(server, fetch, tmp_path, status):
    server.status = status
    with pytest.raises(DownloadError) as caught:
        fetch()
    text = str(caught.value)
    assert f"HTTP {status}" in text
    assert f"{server.base_url}/ucfzl/TLBVFI with a browser" in text
    assert str(tmp_path / "models") in text


def test_overloaded_server_is_asked_again(server, fetch):
    server.storage_status = [503, 429]
    assert fetch(waits=(0.0, 0.0)).read_bytes() == CONTENT


def test_overloaded_server_is_given_up_in_the_end(server, fetch):
    server.storage_status = [503, 503]
    with pytest.raises(DownloadError, match="HTTP 503"):
        fetch(waits=(0.0,))


def test_silent_server_counts_as_broken(server, fetch):
    server.breaks, server.is_silent = [300_000, 0], True
    with pytest.raises(DownloadError, match=r"broke off after 0\.3 of 0\.9 MB \(timed out\)"):
        fetch(timeout_seconds=0.2)


def test_offline_says_where_to_get_the_file_and_where_to_put_it(tmp_path):
    with pytest.raises(DownloadError) as caught:
        download("tlbvfi", tmp_path, base_url="https://127.0.0.1:9", timeout_seconds=1.0)
    text = str(caught.value)
    assert text.startswith("127.0.0.1 cannot be reached")
    assert "get vimeo_unet.pth from https://127.0.0.1:9/ucfzl/TLBVFI" in text
    assert f"put it into {tmp_path}" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "address", ["http://example.com", "file:///etc", "ftp://example.com", "example.com"]
)
def test_only_https_leaves_this_machine(tmp_path, address):
    with pytest.raises(DownloadError, match="not a safe address"):
        download("tlbvfi", tmp_path, base_url=address)


@pytest.mark.parametrize("location", ["http://example.com/blob", "file:///etc/passwd"])
def test_redirect_to_an_unsafe_address_is_refused(server, fetch, location):
    server.location = location
    with pytest.raises(DownloadError, match="not a safe address"):
        fetch()


@pytest.mark.parametrize("here", ["https://127.0.0.1/blob", "https://localhost:8188/blob"])
def test_no_other_machine_leads_to_this_one(monkeypatch, here):
    redirect = Message()
    redirect["Location"] = here
    asked = []

    def send(self, method, url, headers):
        asked.append(url)
        return 302, HTTPError(url, 302, "Found", redirect, BytesIO())  # as urllib returns it

    monkeypatch.setattr(RemoteFile, "_send", send)
    remote = RemoteFile("https://example.com/a", otherwise="use a browser", timeout_seconds=1)
    with pytest.raises(DownloadError, match=f"{here} is not a safe address"):
        remote.get({})
    assert asked == ["https://example.com/a"]


def test_redirects_in_a_circle_end(server, fetch):
    server.location = PATH
    with pytest.raises(DownloadError, match="redirects too often"):
        fetch()


def test_full_disk_is_told_before_anything_is_sent(server, fetch, monkeypatch):
    monkeypatch.setattr(durable, "free_bytes", lambda folder: 500_000)
    with pytest.raises(OutputError, match=r"has 500 kB free and 900 kB are needed"):
        fetch()


def test_file_that_is_already_there_is_checked_and_kept(server, fetch):
    note = fetch().with_name("vimeo_unet.pth.part.json")
    note.write_text("{}")  # as left by a run that was killed as the file got its name
    server.requests.clear()
    assert fetch().read_bytes() == CONTENT
    assert server.ranges() == []
    assert not note.exists()


@pytest.mark.parametrize("content", [OTHER, b"short"])
def test_another_file_of_that_name_is_never_touched(fetch, tmp_path, content):
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "vimeo_unet.pth"
    path.write_bytes(content)
    with pytest.raises(DownloadError, match="already there but is not the file"):
        fetch()
    assert path.read_bytes() == content


def test_second_download_of_the_same_file_is_kept_out(fetch, tmp_path):
    (tmp_path / "models").mkdir()
    with (
        FileLock(tmp_path / "models" / ".vimeo_unet.pth.lock"),
        pytest.raises(DownloadError, match="already being downloaded"),
    ):
        fetch()


def test_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises((OutputError, DownloadError), match="file"):
        download("tlbvfi", tmp_path / "file" / "models", base_url=server.base_url)


def test_method_without_model_is_refused(tmp_path):
    with pytest.raises(SettingsError, match="flow has no model file"):
        download("flow", tmp_path)


@pytest.mark.parametrize(
    "location", ["http://[", "\xe9", "http://127.0.0.1:port/", "file:///etc/x"]
)
def test_a_redirect_to_nonsense_is_one_sentence(server, fetch, location):
    server.location = location
    with pytest.raises(DownloadError):
        fetch()


def test_a_size_of_thousands_of_digits_is_none(server, fetch):
    server.size = "9" * 5000
    assert fetch().read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_not_gone_on_with(server, fetch, broken_off, tmp_path):
    with (tmp_path / "models" / "vimeo_unet.pth.part").open("ab") as part:
        part.write(CONTENT)
    assert fetch().read_bytes() == CONTENT
    assert server.ranges() == [None]


def test_a_password_in_an_address_is_neither_sent_nor_told(fetch):
    with pytest.raises(DownloadError) as caught:
        fetch(base_url="https://me:secret@127.0.0.1:1")
    assert "secret" not in str(caught.value)
    assert "leave it out" in str(caught.value)
