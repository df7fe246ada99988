"""The ComfyUI client against a small server that fails in every way a real one can."""

import base64
import errno
import hashlib
import json
import math
import os
import struct
import sys
import threading
import time
from contextlib import suppress
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import av
import cv2
import numpy as np
import pytest
import websockets.sync.client
from comfyui_tlbvfi.encoding.durable import sole_writer
from comfyui_tlbvfi.encoding.errors import OutputError, SessionError
from comfyui_tlbvfi.tlbvfi import client, comfy_http
from comfyui_tlbvfi.tlbvfi.cli import main
from comfyui_tlbvfi.tlbvfi.client import ConnectionLost, NodeProgress, Queued, image_message
from comfyui_tlbvfi.tlbvfi.comfy_http import (
    FileRef,
    Server,
    check_outcome,
    download,
    output_files,
    server_url,
)
from comfyui_tlbvfi.tlbvfi.errors import (
    ClientError,
    ServerLostError,
    SettingsError,
    WorkflowError,
)
from comfyui_tlbvfi.tlbvfi.generation import collect, discard, frames_node, generation_folder
from comfyui_tlbvfi.tlbvfi.methods.blend import BlendMethod
from hypothesis import given
from hypothesis import strategies as st

FRAMES = 4


def png(number):
    """A PNG file with a number in it."""
    return cv2.imencode(".png", np.full((8, 8, 3), number, np.uint8))[1].tobytes()


class FakeComfy:
    """Enough of ComfyUI's HTTP and websocket interface, with a script for what a prompt does."""

    def __init__(self):
        self.files = {f"ComfyUI_{n:05}_.png": png(n) for n in range(FRAMES)}
        self.queued, self.history, self.running, self.pending = [], {}, [], []
        self.requests, self.deleted, self.interrupted = [], [], []
        self.answers = {}  # path: list of (status, body, headers) to answer first
        self.node_errors = {}
        self.is_busy = False
        self.run = lambda prompt_id: self.finish(prompt_id)
        self.sockets, self.flags = [], []
        self.writing = threading.RLock()  # to the sockets, and to the list of them
        self.connected = threading.Event()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                fake.get(self)

            def do_POST(self):
                fake.post(self)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def stop(self):
        if self.thread.is_alive():
            self.http.shutdown()
            self.thread.join()
        self.drop_sockets()
        self.http.server_close()

    def get(self, request):
        path = urlsplit(request.path).path
        self.requests.append(request.path)
        if self.scripted(request, path):
            return
        if path == "/ws":
            self.websocket(request)
        elif path == "/queue":
            item = lambda n, prompt_id: [n, prompt_id, {}, {}, []]  # noqa: E731
            running = [item(i, p) for i, p in enumerate(self.running)]
            pending = [item(-i, p) for i, p in enumerate(self.pending)]
            self.reply(request, 200, {"queue_running": running, "queue_pending": pending})
        elif path.startswith("/history/"):
            entry = self.history.get(path.rsplit("/", 1)[1])
            self.reply(request, 200, {} if entry is None else {path.rsplit("/", 1)[1]: entry})
        elif path == "/view":
            name = parse_qs(urlsplit(request.path).query)["filename"][0]
            found = self.files.get(name)
            self.reply(request, 404 if found is None else 200, found or b"")
        else:
            self.reply(request, 404, b"not here")

    def post(self, request):
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        self.requests.append(request.path)
        if self.scripted(request, request.path):
            return
        if request.path == "/prompt":
            prompt_id = body["prompt_id"]
            self.queued.append(body)
            (self.pending if self.is_busy else self.running).append(prompt_id)
            self.reply(
                request, 200, {"prompt_id": prompt_id, "number": 1, "node_errors": self.node_errors}
            )
            threading.Thread(target=self.run, args=(prompt_id,), daemon=True).start()
        elif request.path == "/queue":
            self.deleted += body["delete"]
            self.reply(request, 200, b"")
        elif request.path == "/interrupt":
            self.interrupted.append(body["prompt_id"])
            self.reply(request, 200, b"")

    def scripted(self, request, path):
        if not self.answers.get(path):
            return False
        status, body, headers = self.answers[path].pop(0)
        if status is None:
            request.close_connection = True
            return True
        self.reply(request, status, body, **headers)
        return True

    def reply(self, request, status, body, length=None, **headers):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        with suppress(ConnectionError):
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name, value)
            request.send_header("Content-Length", str(len(raw) if length is None else length))
            request.end_headers()
            request.wfile.write(raw)
        if length is not None:
            request.close_connection = True

    def websocket(self, request):
        magic = request.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        request.send_response(101)
        request.send_header("Upgrade", "websocket")
        request.send_header("Connection", "Upgrade")
        accept = base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode()
        request.send_header("Sec-WebSocket-Accept", accept)
        with self.writing:  # who has been greeted is told everything from then on
            request.end_headers()
            self.sockets.append(request.connection)
            self.connected.set()
        answers = {8: b"\x88", 9: b"\x8a"}  # to close and to ping
        with suppress(OSError):
            while start := request.rfile.read(2):
                masked = request.rfile.read(4 + start[1] % 128)  # our messages are short
                self.flags.append(start + masked)
                data = bytes(byte ^ masked[n % 4] for n, byte in enumerate(masked[4:]))
                if answer := answers.get(start[0] % 16):
                    with self.writing:
                        request.connection.sendall(answer + bytes([len(data)]) + data)
                if start[0] % 16 == 8:
                    break
        with self.writing, suppress(ValueError):  # dropped before
            self.sockets.remove(request.connection)
        request.close_connection = True

    def send(self, message, seconds=0.0):
        """Send a websocket message to everyone connected now; it is not repeated.

        It takes that many seconds on the way.
        """
        raw = message if isinstance(message, bytes) else json.dumps(message).encode()
        first = bytes([0x82 if isinstance(message, bytes) else 0x81])
        size = (
            bytes([len(raw)]) if len(raw) < 126 else b"\x7e" + struct.pack(">H", len(raw) % 2**16)
        )
        if len(raw) >= 2**16:
            size = b"\x7f" + struct.pack(">Q", len(raw))
        with self.writing:
            for socket in self.sockets:
                with suppress(OSError):
                    socket.sendall(first + size)
                    time.sleep(seconds)
                    socket.sendall(raw)

    def tell(self, event, **data):
        self.send({"type": event, "data": data})

    def drop_sockets(self):
        with self.writing:
            self.connected.clear()
            for socket in self.sockets:
                with suppress(OSError):
                    socket.shutdown(2)
            self.sockets.clear()

    def finish(self, prompt_id, *messages, outputs=None, status="success", told=True):
        images = [
            {"filename": name, "subfolder": "", "type": "output"} for name in sorted(self.files)
        ]
        self.history[prompt_id] = {
            "outputs": {"9": {"images": images}} if outputs is None else outputs,
            "status": {
                "status_str": status,
                "completed": status == "success",
                "messages": messages,
            },
        }
        self.running.remove(prompt_id)
        if told:
            self.tell("execution_success", prompt_id=prompt_id)


@pytest.fixture
def comfy(monkeypatch):
    monkeypatch.setattr(client, "POLL_SECONDS", 0.3)
    monkeypatch.setattr(client, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(client, "SETTLE_SECONDS", 0.1)
    server = FakeComfy()
    yield server
    server.stop()


@pytest.fixture
def prompt():
    return {
        "3": {"class_type": "KSampler", "inputs": {"seed": 7}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}},
    }


@pytest.fixture
def fetch(comfy, prompt, tmp_path):
    """Collects the frames of `prompt` from `comfy`; keeps the events."""

    def run(*, folder="frames", node="9", again=False, output_folder=None, on_event=None, **limits):
        server = Server(**{"url": comfy.url, "lost_seconds": 2.0, "answer_seconds": 2.0, **limits})
        return collect(
            server,
            prompt,
            tmp_path / folder,
            node=node,
            again=again,
            output_folder=output_folder,
            on_event=run.events.append if on_event is None else on_event,
        )

    run.events = []
    return run


def assert_fetched_in_time(fetch, quiet):
    """All frames come within 5 s, while a thread makes trouble until `quiet` is set."""
    limit = threading.Timer(5, quiet.set)
    limit.start()
    assert numbers(fetch()) == list(range(FRAMES))
    assert not quiet.is_set()
    limit.cancel()
    quiet.set()


def numbers(generation):
    """The numbers in the frames, in the order of their names."""
    return [int(cv2.imread(str(path))[0, 0, 0]) for path in sorted(generation.folder.iterdir())]


def test_saved_frames_are_fetched_in_order_under_names_of_our_own(fetch):
    generation = fetch()
    assert numbers(generation) == list(range(FRAMES))
    assert sorted(path.name for path in generation.folder.iterdir())[0] == "frame_000001.png"
    assert generation.frames == FRAMES
    assert generation.sound is None


def test_progress_names_the_node_and_its_steps(comfy, fetch):
    def run(prompt_id):
        comfy.tell("executing", node="3", prompt_id=prompt_id)
        comfy.tell("progress", node="3", value=5, max=20, prompt_id=prompt_id)
        comfy.tell("progress", node="3", value=6, max=20, prompt_id="somebody else's")
        comfy.tell(
            "progress_state",
            prompt_id=prompt_id,
            nodes={
                "3": {"state": "running", "value": 5.0, "max": 20.0},
                "9": {"state": "pending", "value": 0.0, "max": 1.0},
            },
        )
        running = {"3": {"state": "running", "value": 7.0, "max": 20.0}}
        comfy.tell("progress_state", prompt_id=prompt_id, nodes=running)
        comfy.finish(prompt_id)

    comfy.run = run
    fetch()
    assert [e for e in fetch.events if isinstance(e, NodeProgress)] == [
        NodeProgress("3", "node 3 KSampler", 0, 0),
        NodeProgress("3", "node 3 KSampler", 5, 20),
        NodeProgress("3", "node 3 KSampler", 7, 20),
    ]


def test_certificates_are_not_read_for_every_request(monkeypatch):
    server = Server(url="https://127.0.0.1")
    comfy_http._connection(server)
    monkeypatch.delattr("ssl.create_default_context")  # which reads them all
    comfy_http._connection(server)


def test_a_proxy_that_refuses_what_python_calls_itself_is_told_another_name(comfy, fetch):
    names, get = [], comfy.get

    def note(request):
        names.append(request.headers["User-Agent"])
        get(request)

    comfy.get = note
    fetch()
    assert set(names) == {"tlbvfi"}


def test_the_place_in_the_queue_is_told(comfy, fetch):
    def run(prompt_id):
        comfy.running.remove(prompt_id)
        comfy.pending += [prompt_id, "another"]  # the second one has the lower number
        time.sleep(0.5)
        comfy.pending.remove(prompt_id)
        comfy.running.append(prompt_id)
        comfy.finish(prompt_id)

    comfy.run = run
    fetch()
    assert Queued(2) in fetch.events


@pytest.mark.parametrize("with_node", [True, False])
def test_frames_sent_over_the_websocket_are_kept_and_previews_are_not(
    comfy, fetch, prompt, with_node
):
    prompt["9"]["class_type"] = "SaveImageWebsocket"

    def image(node, data):
        if not with_node:
            return struct.pack(">II", 1, 2) + data
        about = json.dumps({"node_id": node, "image_type": "image/png"}).encode()
        return struct.pack(">II", 4, len(about)) + about + data

    def run(prompt_id):
        comfy.tell("executing", node="3", prompt_id=prompt_id)
        comfy.tell("progress", node="3", value=1, max=1, prompt_id=prompt_id)
        comfy.send(image("3", png(99)))
        comfy.tell("executing", node="9", prompt_id=prompt_id)
        for n in range(FRAMES):
            named = {"node": "9"} if with_node else {}
            comfy.tell("progress", **named, value=n, max=FRAMES, prompt_id=prompt_id)
            comfy.send(image("9", png(n)))
        comfy.send(image("9", b"\xff\xd8\xff a preview of the same node"))
        comfy.finish(prompt_id, outputs={})

    comfy.run = run
    assert numbers(fetch()) == list(range(FRAMES))
    assert b"supports" not in b"".join(comfy.flags)  # masked, as the standard requires of clients
    assert comfy.flags


def test_frames_still_on_a_slow_connection_when_the_prompt_has_ended_are_waited_for(
    comfy, fetch, prompt
):
    prompt["9"]["class_type"] = "SaveImageWebsocket"

    def run(prompt_id):
        with comfy.writing:
            comfy.finish(prompt_id, outputs={}, told=False)
            comfy.tell("executing", node="9", prompt_id=prompt_id)
            for n in range(FRAMES):
                comfy.tell("progress", node="9", value=n, max=FRAMES, prompt_id=prompt_id)
                comfy.send(struct.pack(">II", 1, 2) + png(n), seconds=4 * client.SETTLE_SECONDS)
            comfy.tell("execution_success", prompt_id=prompt_id)

    comfy.run = run
    assert numbers(fetch()) == list(range(FRAMES))
    assert len(comfy.queued) == 1


def test_a_large_frame_comes_over_the_websocket(comfy, fetch, prompt):
    prompt["9"]["class_type"] = "SaveImageWebsocket"
    large = png(0) + bytes(2**21)

    def run(prompt_id):
        comfy.tell("executing", node="9", prompt_id=prompt_id)
        comfy.tell("progress", node="9", value=0, max=1, prompt_id=prompt_id)
        comfy.send(struct.pack(">II", 1, 2) + large)
        comfy.finish(prompt_id, outputs={})

    comfy.run = run
    (frame,) = fetch().folder.iterdir()
    assert frame.read_bytes() == large


def test_no_proxy_is_asked_for_a_server_nearby(fetch, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert fetch().frames == FRAMES


def test_frames_that_were_sent_while_the_connection_was_down_are_sent_again(
    comfy, fetch, prompt, caplog
):
    prompt["9"]["class_type"] = "SaveImageWebsocket"

    def run(prompt_id):
        is_first = len(comfy.queued) == 1
        comfy.tell("executing", node="9", prompt_id=prompt_id)
        for n in range(2 if is_first else FRAMES):
            comfy.tell("progress", node="9", value=n, max=FRAMES, prompt_id=prompt_id)
            comfy.send(struct.pack(">II", 1, 2) + png(n))
        if is_first:
            comfy.drop_sockets()  # the other two would reach nobody
            assert comfy.connected.wait(5)
        comfy.finish(prompt_id, outputs={})

    comfy.run = run
    assert numbers(fetch()) == list(range(FRAMES))
    assert len(comfy.queued) == 2
    assert comfy.queued[0]["prompt_id"] != comfy.queued[1]["prompt_id"]
    assert "Frames were lost on the way: the server sends them again." in caplog.text


def test_frames_that_never_come_are_an_error_that_names_the_cure(comfy, fetch, prompt):
    prompt["9"]["class_type"] = "SaveImageWebsocket"
    comfy.run = lambda prompt_id: comfy.finish(prompt_id, outputs={})
    with pytest.raises(ClientError, match=r"node 9 SaveImageWebsocket were lost .* Save Image"):
        fetch()


def test_a_lost_connection_is_taken_up_again_and_nothing_is_queued_twice(comfy, fetch):
    def run(prompt_id):
        comfy.drop_sockets()
        assert comfy.connected.wait(5)
        comfy.finish(prompt_id)

    comfy.run = run
    assert numbers(fetch()) == list(range(FRAMES))
    assert len(comfy.queued) == 1
    assert any(isinstance(event, ConnectionLost) for event in fetch.events)


def test_a_server_that_says_nothing_over_the_websocket_is_asked(comfy, fetch):
    comfy.run = lambda prompt_id: comfy.finish(prompt_id, told=False)
    assert fetch().frames == FRAMES


def test_a_websocket_that_never_stays_open_does_not_hold_up_a_finished_prompt(comfy, fetch):
    quiet = threading.Event()

    def closing():
        while not quiet.wait(0.005):
            comfy.drop_sockets()

    def run(prompt_id):
        threading.Thread(target=closing, daemon=True).start()
        comfy.finish(prompt_id, told=False)

    comfy.run = run
    assert_fetched_in_time(fetch, quiet)


def test_what_else_a_server_says_does_not_hold_up_a_finished_prompt(comfy, fetch):
    quiet = threading.Event()

    def chatter():
        while not quiet.wait(0.02):
            comfy.tell("monitor", load=7)

    threading.Thread(target=chatter, daemon=True).start()
    limit = threading.Timer(5, quiet.set)
    limit.start()
    comfy.run = lambda prompt_id: comfy.finish(prompt_id, told=False)
    assert fetch().frames == FRAMES
    assert not quiet.is_set()
    limit.cancel()
    quiet.set()


def test_an_answer_to_the_queueing_that_got_lost_does_not_queue_twice(comfy, fetch):
    """The request arrives, the answer does not: our own id finds the prompt again."""
    reply = comfy.reply

    def lose(request, status, body, **headers):
        if request.path == "/prompt" and len(comfy.queued) == 1:
            request.close_connection = True
        else:
            reply(request, status, body, **headers)

    comfy.reply = lose
    assert fetch().frames == FRAMES
    assert len(comfy.queued) == 1
    assert any(isinstance(event, ConnectionLost) for event in fetch.events)


@pytest.mark.parametrize("path", ["/ws", "/prompt", "/queue", "/view"])
@pytest.mark.parametrize("status", [429, 502, 521])
def test_what_a_busy_proxy_answers_is_asked_again(comfy, fetch, path, status):
    busy = (status, b"<html>", {})
    first = [(200, {}, {})] if path == "/queue" else []  # else it could be a wrong address
    comfy.answers[path] = [*first, busy, busy]
    assert numbers(fetch()) == list(range(FRAMES))
    assert len(comfy.queued) == 1


def test_whoever_is_killed_while_waiting_fetches_the_finished_generation_later(comfy, fetch):
    comfy.run = lambda prompt_id: comfy.tell("executing", node="3", prompt_id=prompt_id)

    def killed(event):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(on_event=killed)
    comfy.finish(comfy.running[0])
    generation = fetch()
    assert generation.frames == FRAMES
    assert not generation.was_there
    assert len(comfy.queued) == 1


def test_frames_that_are_all_there_need_no_server(comfy, fetch):
    (fetch().folder / "frame_notes.txt").write_text("mine")
    before = len(comfy.requests)
    generation = fetch()
    assert generation.was_there
    assert generation.frames == FRAMES
    assert len(comfy.requests) == before


def test_a_frame_that_was_removed_is_fetched_again_and_again_starts_anew(comfy, fetch):
    generation = fetch()
    (generation.folder / "frame_000002.png").unlink()
    assert numbers(fetch()) == list(range(FRAMES))
    (generation.folder / "frame_000002.png").rename(generation.folder / "frame_000009.png")
    assert numbers(fetch()) == list(range(FRAMES))
    comfy.files = dict.fromkeys(list(comfy.files)[:2], png(9))
    assert numbers(fetch(again=True)) == [9, 9]
    assert len(comfy.queued) == 4


def test_a_download_that_breaks_off_is_taken_up_again(comfy, fetch):
    short = (200, comfy.files["ComfyUI_00000_.png"][:20], {"length": 100})
    comfy.answers["/view"] = [short, (None, b"", {}), (503, b"", {})]
    assert numbers(fetch(lost_seconds=60.0)) == list(range(FRAMES))
    assert sum(isinstance(event, ConnectionLost) for event in fetch.events) == 3


def test_a_generation_that_failed_before_is_queued_anew(comfy, fetch):
    failure = ["execution_error", {"node_id": "3", "exception_message": "m", "exception_type": "E"}]
    comfy.run = lambda prompt_id: comfy.finish(prompt_id, failure, outputs={}, status="error")
    with pytest.raises(ClientError):
        fetch()
    comfy.run = comfy.finish
    assert fetch().frames == FRAMES


def test_a_refused_prompt_names_node_and_cause(comfy, fetch):
    error = {"message": "Value not in list", "details": "sampler_name: 'no' not in ['euler']"}
    body = {
        "error": {"type": "t", "message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {"3": {"errors": [error], "class_type": "KSampler"}},
    }
    comfy.answers["/prompt"] = [(400, body, {})]
    with pytest.raises(
        ClientError,
        match=r"refuses the prompt: node 3 KSampler: Value not in list: sampler_name: 'no'",
    ):
        fetch()


def test_a_server_that_takes_no_prompts_is_said(comfy, fetch):
    comfy.answers["/prompt"] = [(403, b"", {})]
    with pytest.raises(ClientError, match=f"{comfy.url}.* 403"):
        fetch()
    assert comfy.queued == []


def test_a_prompt_refused_as_a_whole_says_why(comfy, fetch):
    body = {"error": {"message": "Node 'X' not found", "details": "#4"}, "node_errors": {}}
    comfy.answers["/prompt"] = [(400, body, {})]
    with pytest.raises(ClientError, match="Node 'X' not found #4"):
        fetch()


@pytest.mark.parametrize("is_busy", [False, True])
def test_a_prompt_accepted_without_our_node_is_withdrawn(comfy, fetch, is_busy):
    comfy.run = lambda prompt_id: None
    comfy.is_busy = is_busy
    comfy.node_errors = {
        "3": {
            "errors": [{"message": "Too small", "details": "steps"}],
            "dependent_outputs": ["9"],
            "class_type": "KSampler",
        }
    }
    with pytest.raises(ClientError, match="node 3 KSampler: Too small: steps"):
        fetch()
    ours = [comfy.queued[0]["prompt_id"]]
    assert (comfy.interrupted, comfy.deleted) == (([], ours) if is_busy else (ours, []))


def test_what_else_is_wrong_with_a_prompt_is_told_and_the_rest_runs(comfy, fetch, caplog):
    comfy.node_errors = {
        "5": {"errors": [{"message": "Bad", "details": ""}], "dependent_outputs": ["6"]}
    }
    assert fetch().frames == FRAMES
    assert "node 5 None: Bad" in caplog.text


def test_a_node_that_fails_is_named_with_what_it_said_on_one_line(comfy, fetch):
    data = {
        "node_id": "3",
        "exception_type": "RuntimeError",
        "exception_message": "out of\nmemory\x1b[31m " + "x" * 5000,
    }
    failure = ["execution_error", data]
    comfy.run = lambda prompt_id: comfy.finish(prompt_id, failure, outputs={}, status="error")
    with pytest.raises(ClientError) as caught:
        fetch()
    text = str(caught.value)
    assert text.startswith(
        "node 3 KSampler failed on the server: RuntimeError: out of memory [31m x"
    )
    assert len(text) < 500
    assert text.isprintable()


def test_a_generation_that_failed_without_a_word_is_said(comfy, fetch):
    comfy.run = lambda prompt_id: comfy.finish(prompt_id, outputs={}, status="error")
    with pytest.raises(ClientError, match="failed on the server, which does not say why"):
        fetch()


def test_an_interrupted_generation_is_said(comfy, fetch):
    failure = ["execution_interrupted", {"node_id": "3"}]
    comfy.run = lambda prompt_id: comfy.finish(prompt_id, failure, outputs={}, status="error")
    with pytest.raises(ClientError, match="interrupted on the server, in node 3 KSampler"):
        fetch()


def test_a_restarted_server_is_said(comfy, fetch):
    comfy.run = lambda prompt_id: comfy.running.remove(prompt_id)
    with pytest.raises(ClientError, match=r"no longer knows the prompt .* same command"):
        fetch()


def test_no_server_is_said_at_once(comfy, fetch):
    comfy.stop()
    begun = time.monotonic()
    with pytest.raises(
        ServerLostError, match=rf"{comfy.url} cannot be reached \([^;]*\): start Comf"
    ):
        fetch(lost_seconds=60.0)  # nothing was queued, so nothing is said of a queue
    assert time.monotonic() - begun < 50  # it would wait 60 for a server that had answered


def test_a_server_that_stays_away_is_given_up_after_a_while(comfy, fetch):
    comfy.run = lambda prompt_id: comfy.stop()
    with pytest.raises(ServerLostError, match=r"for 1 s now; .* the same command fetches it"):
        fetch(lost_seconds=1.0)


def test_a_generation_that_takes_too_long_is_left_running(comfy, fetch):
    comfy.run = lambda prompt_id: None
    with pytest.raises(ClientError, match=r"longer than 0.2 s and continues"):
        fetch(total_seconds=0.2)
    assert comfy.interrupted == []


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, b"<html>", {}), "not a ComfyUI server: check the address"),
        ((200, b"[1]", {}), "not a ComfyUI server: check the address"),
        (
            (302, b"", {"Location": "http://127.0.0.1:1/"}),
            r"redirects to another address \(HTTP 302\)",
        ),
        ((403, b"", {}), r"refuses access \(HTTP 403\)"),
        ((404, b"", {}), "does not exist"),
        ((500, b"", {}), r"failed at /queue \(HTTP 500\): see its log"),
        ((400, b"", {}), r"does not answer at /queue \(HTTP 400\): .* settings of a proxy"),
        ((200, b"[" * 100_000, {}), "not a ComfyUI server"),
    ],
)
def test_answers_of_something_else_are_refused_in_one_sentence(comfy, fetch, answer, said):
    comfy.answers["/queue"] = [answer]
    with pytest.raises(ClientError, match=said):
        fetch()


@pytest.mark.parametrize("status", [200, 400, 404, 426])
def test_a_proxy_that_passes_no_websocket_on_is_said(comfy, fetch, status):
    comfy.answers["/ws"] = [(status, b"", {})]
    with pytest.raises(ClientError, match=rf"no websocket at /ws \(HTTP {status}\): let the proxy"):
        fetch()
    assert comfy.queued == []


def test_a_proxy_that_redirects_everything_to_https_is_said(comfy, fetch):
    for path in ("/queue", "/ws"):
        comfy.answers[path] = [(301, b"", {"Location": f"https://127.0.0.1:1{path}"})]
    with pytest.raises(ClientError, match=r"redirects to another address \(HTTP 301\)"):
        fetch()


def test_a_proxy_that_takes_no_prompt_of_this_size_is_said(comfy, fetch):
    comfy.answers["/prompt"] = [(413, b"<html>", {})]
    with pytest.raises(
        ClientError, match=r"prompt of this size \(HTTP 413\): .*client_max_body_size"
    ):
        fetch()


@pytest.mark.parametrize("status", [302, 401, 403, 500])
def test_a_frame_that_is_not_given_out_is_not_said_to_be_lost(comfy, fetch, status):
    comfy.answers["/view"] = [(status, b"<html>", {})]
    with pytest.raises(ClientError, match=rf"\(HTTP {status}\)") as caught:
        fetch()
    assert "--again" not in str(caught.value)
    assert fetch().frames == FRAMES
    assert len(comfy.queued) == 1


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("path", "begin", "bit"),
    [
        ("/queue", b"HTTP/1.1 200 OK\r\n", b"x"),
        ("/queue", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("/queue", HEAD + b"\r\n{", b" "),
        ("/view", HEAD + b"\r\n", b"x"),
        ("/view", CHUNKED + b"1\r\nx\r\n0\r\n", b"x"),
    ],
)
def test_an_answer_that_comes_bit_by_bit_for_ever_is_given_up(comfy, fetch, path, begin, bit):
    reply = comfy.reply

    def drip(request, status, body, **headers):
        if not request.path.startswith(path) or not comfy.queued:
            reply(request, status, body, **headers)
            return
        request.close_connection = True
        with suppress(OSError):
            request.wfile.write(begin)
            while True:
                request.wfile.write(bit)
                time.sleep(0.05)

    comfy.reply = drip
    with pytest.raises(ServerLostError, match=r"no answer in|too slowly"):
        fetch(answer_seconds=0.3, lost_seconds=0.5)


def test_a_network_that_goes_away_in_the_middle_of_a_frame_is_no_fault_of_the_disk(
    comfy, fetch, monkeypatch
):
    read1, lost = HTTPResponse.read1, []

    def fail_once(response, size):
        if not lost and comfy.history:
            lost.append(True)
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))
        return read1(response, size)

    monkeypatch.setattr(HTTPResponse, "read1", fail_once)
    assert numbers(fetch()) == list(range(FRAMES))
    assert lost
    assert any(isinstance(event, ConnectionLost) for event in fetch.events)


@pytest.mark.parametrize("with_node", [True, False])
def test_frames_of_another_prompt_are_neither_kept_nor_waited_for(comfy, fetch, prompt, with_node):
    """A prompt queued without a client tells everyone of its progress and sends them its images."""
    prompt["9"]["class_type"] = "SaveImageWebsocket"
    quiet = threading.Event()

    def image(prompt_id, data):
        about = json.dumps({"prompt_id": prompt_id, "node_id": "9"}).encode()
        return struct.pack(">II", 4, len(about)) + about + data

    def stranger():
        while not quiet.wait(0.02):
            comfy.tell("progress", node="9", value=1, max=8, prompt_id="stranger")
            comfy.send(
                image("stranger", png(99)) if with_node else struct.pack(">II", 1, 2) + png(99)
            )

    def run(prompt_id):
        comfy.tell("executing", node="9", prompt_id=prompt_id)
        for n in range(FRAMES):
            comfy.tell("progress", node="9", value=n, max=FRAMES, prompt_id=prompt_id)
            comfy.send(image(prompt_id, png(n)) if with_node else struct.pack(">II", 1, 2) + png(n))
        comfy.finish(prompt_id, outputs={}, told=False)
        threading.Thread(target=stranger, daemon=True).start()

    comfy.run = run
    assert_fetched_in_time(fetch, quiet)


def test_endless_patience_is_possible(comfy, fetch, monkeypatch):
    waits, connect = [], websockets.sync.client.connect

    def note(*args, ping_timeout, **options):
        waits.append(ping_timeout)
        return connect(*args, ping_timeout=ping_timeout, **options)

    monkeypatch.setattr(websockets.sync.client, "connect", note)
    assert fetch(lost_seconds=float("inf")).frames == FRAMES
    assert waits[0] < 86400  # no thread can wait for ever


def test_answers_without_end_are_cut_off(comfy, fetch):
    comfy.answers["/queue"] = [(200, b"{" + b" " * 5000, {})]
    with pytest.raises(ClientError, match="larger than 1000 bytes"):
        fetch(max_json_bytes=1000)
    with pytest.raises(ClientError, match="larger than 10 bytes, too large for a frame"):
        fetch(folder="other", max_file_bytes=10)


@pytest.fixture
def announce(comfy):
    """Set the size that the server announces for its first frame; it sends only a few bytes."""

    def set_size(size):
        comfy.answers["/view"] = [(200, b"\x89PNG\r\n\x1a\n", {"length": size})]

    return set_size


def test_what_is_announced_as_too_large_is_not_even_begun(fetch, announce, tmp_path, monkeypatch):
    monkeypatch.setattr("comfyui_tlbvfi.tlbvfi.comfy_http.atomic_file", None)
    announce(2**40)
    with pytest.raises(ClientError, match="is larger than 1000 bytes, too large for a frame"):
        fetch(max_file_bytes=1000)


def test_what_the_disk_has_no_room_for_is_not_even_begun(fetch, announce, tmp_path, monkeypatch):
    monkeypatch.setattr("comfyui_tlbvfi.tlbvfi.comfy_http.atomic_file", None)
    announce(2**60)
    with pytest.raises(OutputError, match=r"frames has .* free and .* GB are needed: free some"):
        fetch(max_file_bytes=2**62)


def test_more_frames_than_announced_are_not_kept(comfy, fetch, prompt, tmp_path):
    prompt["9"]["class_type"] = "SaveImageWebsocket"

    def run(prompt_id):
        comfy.tell("executing", node="9", prompt_id=prompt_id)
        for n in (*range(FRAMES), -3, FRAMES, 10**9):
            comfy.tell("progress", node="9", value=n, max=FRAMES, prompt_id=prompt_id)
            comfy.send(struct.pack(">II", 1, 2) + png(max(0, n % 256)))
        comfy.finish(prompt_id, outputs={})

    comfy.run = run
    assert numbers(fetch()) == list(range(FRAMES))


def test_a_batch_announced_as_endless_is_not_counted(comfy, fetch, prompt):
    prompt["9"]["class_type"] = "SaveImageWebsocket"

    def run(prompt_id):
        comfy.tell("progress", node="9", value=0, max=2**52, prompt_id=prompt_id)
        comfy.send(struct.pack(">II", 4, 16) + b'{"node_id": "9"}' + png(0))
        comfy.finish(prompt_id, outputs={})

    comfy.run = run
    with pytest.raises(ClientError, match="were lost on the way twice"):
        fetch()


@pytest.mark.parametrize(
    "damage",
    [{"frames": "4"}, {"frames": 2**60}, {"prompt_id": 5, "frames": None}, {"sound": "../a.wav"}],
)
def test_a_damaged_record_is_as_good_as_none(comfy, fetch, damage):
    record = fetch().folder.parent / "generation.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), **damage}))
    assert fetch().frames == FRAMES
    assert len(comfy.queued) == 2


def test_a_record_that_cannot_be_read_costs_no_frame(comfy, fetch, monkeypatch):
    frames = fetch().folder

    def fail(path, **options):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", fail)
        with pytest.raises(SessionError, match=r"generation\.json cannot be read"):
            fetch()
    assert len(list(frames.iterdir())) == FRAMES
    assert fetch().was_there
    assert len(comfy.queued) == 1


def test_names_from_the_server_never_become_paths(comfy, fetch, tmp_path):
    names = ["../../evil.png", "/etc/passwd", "a/../../b.png", "C:\\x.png", ".png", "n\0ul.png"]
    comfy.files = {name: png(n) for n, name in enumerate(names)}
    before = {path for path in tmp_path.parent.rglob("*") if "frames" not in path.parts}
    generation = fetch()
    assert generation.frames == len(names)
    after = {path for path in tmp_path.parent.rglob("*") if "frames" not in path.parts}
    assert before == after
    assert {path.name for path in generation.folder.iterdir()} == {
        f"frame_{n:06}.png" for n in range(1, len(names) + 1)
    }


def test_frames_are_linked_from_an_output_folder_on_this_machine(comfy, fetch, tmp_path):
    output = tmp_path / "output"
    output.mkdir()
    for name, data in comfy.files.items():
        (output / name).write_bytes(data)
    generation = fetch(output_folder=output)
    assert numbers(generation) == list(range(FRAMES))
    assert not any(path.startswith("/view") for path in comfy.requests)
    assert {path.stat().st_ino for path in generation.folder.iterdir()} == {
        path.stat().st_ino for path in output.iterdir()
    }
    discard(tmp_path / "frames")
    assert len(list(output.iterdir())) == FRAMES
    assert not (tmp_path / "frames").exists()


def test_discarding_leaves_what_is_not_ours(fetch, tmp_path):
    kept = fetch().folder / "notes.txt"
    kept.write_text("mine")
    for _ in range(2):
        discard(tmp_path / "frames")
        assert list((tmp_path / "frames").rglob("*")) == [kept.parent, kept]


@pytest.mark.parametrize("link", ["frames", "frames/frames"])
def test_frames_that_a_link_leads_to_are_not_removed(comfy, fetch, tmp_path, link):
    mine = tmp_path / "renders" / "frames"
    mine.mkdir(parents=True)
    (mine / "frame_000001.png").write_text("mine")
    (tmp_path / link).parent.mkdir(exist_ok=True)
    (tmp_path / link).symlink_to(mine if link == "frames/frames" else mine.parent)
    for act in (fetch, lambda: discard(tmp_path / "frames")):
        with pytest.raises(
            ClientError, match=r"is a link: remove it and run the same command again\.$"
        ):
            act()
    assert (mine / "frame_000001.png").read_text() == "mine"
    assert not comfy.queued


@pytest.mark.skipif(sys.platform != "linux", reason="names open files as Linux does")
@pytest.mark.parametrize("is_local", [True, False])
def test_frames_are_on_the_disk_before_the_record_says_so(
    comfy, fetch, tmp_path, monkeypatch, is_local
):
    output, safe, fsync, replace = tmp_path / "output", [], os.fsync, Path.replace
    output.mkdir()
    for name, data in comfy.files.items():
        (output / name).write_bytes(data)

    def note_fsync(descriptor):
        fsync(descriptor)
        safe.append(os.fstat(descriptor).st_ino)

    def check_rename(source, target):
        if Path(target).name == "generation.json" and json.loads(source.read_text())["frames"]:
            names = tmp_path / "frames" / "frames"
            assert {path.stat().st_ino for path in (names, *names.iterdir())} <= set(safe)
            safe.append("checked")
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", check_rename)
    fetch(output_folder=output if is_local else None)
    assert "checked" in safe


def test_links_and_dots_do_not_lead_out_of_the_output_folder(comfy, fetch, tmp_path):
    output, secret = tmp_path / "output", tmp_path / "secret.png"
    output.mkdir()
    secret.write_bytes(png(77))
    (output / "ComfyUI_00000_.png").symlink_to(secret)
    (output / "loop.png").symlink_to("loop.png")
    names = ("ComfyUI_00000_.png", "../secret.png", "a\0.png", "loop.png", "long" * 99 + ".png")
    comfy.files = {name: png(n) for n, name in enumerate(names)}
    assert sorted(numbers(fetch(output_folder=output))) == [0, 1, 2, 3, 4]  # all were downloaded


@pytest.mark.parametrize(
    ("stated", "asked"),
    [
        ({"subfolder": "video/Wan", "type": "temp"}, ("video/Wan", "temp")),
        ({"subfolder": "", "type": None}, ("", "output")),
        ({}, ("", "output")),
    ],
)
def test_frames_are_asked_for_where_the_server_put_them(comfy, fetch, stated, asked):
    def run(prompt_id):
        images = [{"filename": name, **stated} for name in sorted(comfy.files)]
        comfy.finish(prompt_id, outputs={"9": {"images": [None, {"filename": 5}, *images]}})

    comfy.run = run
    assert numbers(fetch()) == list(range(FRAMES))
    queries = [parse_qs(urlsplit(path).query, True) for path in comfy.requests if "view" in path]
    assert {(query["subfolder"][0], query["type"][0]) for query in queries} == {asked}


def test_the_first_saved_sound_is_fetched_too(comfy, fetch, prompt):
    prompt["11"] = {"class_type": "PreviewAudio", "inputs": {"audio": ["3", 1]}}
    prompt["12"] = {"class_type": "SaveAudio", "inputs": {"audio": ["3", 1]}}
    comfy.files |= {"s.flac": b"fLaC...", "p.flac": b"preview", "s.txt": b"words"}

    def run(prompt_id):
        images = [{"filename": n} for n in sorted(comfy.files) if n.endswith(".png")]
        heard, saved = (
            [{"filename": name, "subfolder": "", "type": "output"} for name in names]
            for names in (["p.flac"], ["s.txt", "s.flac"])
        )
        outputs = {"9": {"images": images}, "11": {"audio": heard}, "12": {"audio": saved}}
        comfy.finish(prompt_id, outputs=outputs)

    comfy.run = run
    generation = fetch()
    assert generation.sound.name == "sound.flac"
    assert generation.sound.read_bytes() == b"fLaC..."


def test_a_node_that_saves_a_video_is_told_from_one_that_saves_frames(comfy, fetch):
    comfy.files = {"ComfyUI_00001_.mp4": b"\0\0\0\x20ftypisom" + bytes(20)}
    with pytest.raises(ClientError, match=r"ComfyUI_00001_.mp4 .* tlbvfi comfy rewrite"):
        fetch()
    comfy.files = {}
    with pytest.raises(ClientError, match="node 9 SaveImage saved no images"):
        fetch(again=True)


def test_a_frame_the_server_has_lost_is_said_and_the_others_are_kept(comfy, fetch):
    lost = {}

    def run(prompt_id):
        comfy.finish(prompt_id)
        lost.update([comfy.files.popitem()])

    comfy.run = run
    with pytest.raises(ClientError, match=r"no longer has ComfyUI_00003_.png \(HTTP 404\)"):
        fetch()
    comfy.files |= lost
    comfy.requests.clear()
    assert numbers(fetch()) == list(range(FRAMES))
    assert len(comfy.queued) == sum(path.startswith("/view") for path in comfy.requests) == 1


def test_two_processes_do_not_fetch_into_one_folder(comfy, fetch, tmp_path):
    comfy.run = lambda prompt_id: None
    second = []

    def on_event(event):
        try:
            fetch()
        except ClientError as error:
            second.append(str(error))
        raise KeyboardInterrupt

    comfy.run = lambda prompt_id: comfy.tell("executing", node="3", prompt_id=prompt_id)
    with pytest.raises(KeyboardInterrupt):
        fetch(on_event=on_event)
    assert len(second) == 1
    assert "Another process" in second[0]


def test_a_missing_websocket_package_is_named(fetch, monkeypatch):
    monkeypatch.setitem(sys.modules, "websockets.version", None)
    with pytest.raises(ClientError, match="pip install -U websockets"):
        fetch()


def test_a_websocket_package_that_is_too_old_is_told(comfy, fetch, monkeypatch):
    monkeypatch.setattr("websockets.version.version", "14.2")
    with pytest.raises(ClientError, match=r"version 15 or newer: pip install -U websockets"):
        fetch()
    assert comfy.queued == []


@pytest.mark.parametrize(
    "text",
    ["file:///etc/passwd", "ftp://host/x", "http://", "://", "http://h/?a=b", "", "http:///p"],
)
def test_only_web_addresses_are_servers(text):
    with pytest.raises(SettingsError, match=r"write it like http://127.0.0.1:8188"):
        Server(url=server_url(text))


@pytest.mark.parametrize("text", ["http://[", "127.0.0.1:99999", "127.0.0.1:port"])
def test_addresses_that_cannot_be_are_refused(text):
    with pytest.raises(SettingsError, match=r"write it like http://127.0.0.1:8188"):
        Server(url=server_url(text))


@pytest.mark.parametrize("wait", ["lost_seconds", "total_seconds"])
@pytest.mark.parametrize("seconds", [-1.0, math.nan])
def test_a_wait_that_is_no_time_is_refused(wait, seconds):
    with pytest.raises(SettingsError, match=f"must be at least 0 seconds, got {seconds:g}"):
        Server(**{wait: seconds})


def test_a_password_in_an_address_is_neither_sent_nor_told():
    with pytest.raises(SettingsError, match="leave it out") as caught:
        Server(url=server_url("me:secret@127.0.0.1:8188"))
    assert "secret" not in str(caught.value)


def test_a_file_name_that_is_no_text_is_asked_for_all_the_same(comfy, tmp_path):
    comfy.files["?"] = png(1)
    ref = FileRef(filename="\ud800", subfolder="", type="output")
    download(Server(url=comfy.url), ref, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == png(1)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188"),
        ("ws://h:1/", "http://h:1"),
        ("wss://h/comfy/", "https://h/comfy"),
        ("https://h", "https://h"),
        ("[::1]:8188", "http://[::1]:8188"),
        ("http://h:1/#8d1f-its-graph", "http://h:1"),
    ],
)
def test_addresses_are_taken_as_people_write_them(text, url):
    assert Server(url=server_url(text)).url == url


def test_the_node_that_keeps_frames_is_found_or_asked_for(prompt):
    assert frames_node(prompt) == "9"
    preview = {"1": {"class_type": "PreviewImage"}}
    assert frames_node(preview) == "1"
    assert frames_node({**preview, **prompt}) == "9"
    assert frames_node(prompt, "3") == "3"
    two = {**prompt, "10": {"class_type": "SaveImageWebsocket"}}
    with pytest.raises(
        WorkflowError, match=r"node 9 SaveImage, node 10 SaveImageWebsocket.* --node"
    ):
        frames_node(two)
    with pytest.raises(WorkflowError, match="has no node 4: it has 3, 9"):
        frames_node(prompt, "4")
    with pytest.raises(WorkflowError, match="No node of the prompt keeps frames"):
        frames_node({"3": prompt["3"]})


def test_every_prompt_server_and_node_has_a_folder_of_its_own(prompt):
    other = {**prompt, "3": {"class_type": "KSampler", "inputs": {"seed": 8}}}
    server = Server()
    folders = {
        generation_folder(Path("r"), s, p, n)
        for s, p, n in [
            (server, prompt, "9"),
            (server, prompt, "3"),
            (server, other, "9"),
            (Server(url="http://other"), prompt, "9"),
        ]
    }
    assert len(folders) == 4
    assert generation_folder(Path("r"), server, dict(reversed(prompt.items())), "9") in folders


@given(st.binary(max_size=80))
def test_no_binary_message_does_harm(message):
    with suppress(ValueError):
        prompt_id, node, data = image_message(message)
        assert isinstance(prompt_id, str)
        assert isinstance(node, str)
        assert message.endswith(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "id", "é\0"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["status", "messages", "outputs", "9", "images", "filename", "status_str"]
            ),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["status", "outputs", "9"]), json_values))
def test_no_history_does_harm(entry):
    with suppress(ClientError):
        check_outcome(entry, {"9": None})
    for ref in output_files(entry, "9", "images"):
        assert isinstance(ref.filename, str)


@given(message=st.sampled_from(["", "{", "[[", "7"]) | json_values.map(json.dumps))
def test_no_text_message_does_harm(message):
    watch = client._Watch(
        server=Server(), prompt={}, on_event=lambda event: None, on_image=lambda image: None
    )
    assert watch._text(message, "id") in (True, False)


def test_a_full_disk_is_one_sentence(fetch, monkeypatch):
    def full(*args):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="The disk is full while writing") as caught:
        fetch()
    assert type(caught.value).__name__ == "OutputError"


@pytest.fixture
def save(prompt, tmp_path):
    """Write a prompt file and return its name."""

    def write(content=None):
        path = tmp_path / "prompt.json"
        path.write_text(json.dumps(prompt if content is None else content))
        return str(path)

    return write


@pytest.fixture
def run_command(comfy, save, tmp_path):
    """`tlbvfi comfy run` into out.mp4, with the method that needs no model."""

    def run(*options, content=None, output=None):
        comfy.files = {name: png8(n) for n, name in enumerate(sorted(comfy.files))}
        target = str(tmp_path / "out.mp4") if output is None else output
        words = ["comfy", "run", save(content), "--server", comfy.url, "-o", target]
        return main([*words, "--interpolate", "blend", "--root", str(tmp_path / "root"), *options])

    return run


def png8(number):
    """A PNG of 64x48, a size that encoders accept."""
    return cv2.imencode(".png", np.full((48, 64, 3), 40 * number, np.uint8))[1].tobytes()


def facts(file):
    """(frames, rate, tags) of a video."""
    with av.open(file) as container:
        stream = container.streams.video[0]
        frames = sum(1 for _ in container.decode(stream))
        return frames, stream.average_rate, dict(container.metadata)


def test_one_command_generates_interpolates_and_encodes_once(comfy, run_command, prompt, tmp_path):
    assert run_command("--input-fps", "16", "--crf", "18") == 0
    frames, rate, tags = facts(str(tmp_path / "out.mp4"))
    assert frames == 2 * FRAMES - 1
    assert rate == 32
    assert json.loads(tags["prompt"]) == prompt
    assert run_command("--input-fps", "16", "--crf", "18") == 0
    assert len(comfy.queued) == 1


def test_a_prompt_that_saves_a_video_keeps_its_frames_instead(comfy, run_command, prompt, capfd):
    del prompt["9"]
    prompt["4"] = {"class_type": "CreateVideo", "inputs": {"images": ["3", 0], "fps": 12.5}}
    prompt["5"] = {"class_type": "SaveVideo", "inputs": {"video": ["4", 0], "filename_prefix": "a"}}

    def finish(prompt_id):
        images = [{"filename": name} for name in sorted(comfy.files)]
        comfy.finish(prompt_id, outputs={"6": {"images": images}})

    comfy.run = finish
    assert run_command() == 0
    kinds = {node["class_type"] for node in comfy.queued[0]["prompt"].values()}
    assert kinds == {"KSampler", "SaveImage"}
    assert "- node 5 SaveVideo removed" in capfd.readouterr().err


def test_a_prompt_that_keeps_frames_beside_a_video_is_queued_as_it_is(comfy, run_command, prompt):
    prompt["4"] = {"class_type": "CreateVideo", "inputs": {"images": ["3", 0], "fps": 12.5}}
    prompt["5"] = {"class_type": "SaveVideo", "inputs": {"video": ["4", 0], "filename_prefix": "a"}}
    assert run_command("--input-fps", "16") == 0
    assert comfy.queued[0]["prompt"] == prompt


def test_a_dash_writes_the_video_to_standard_output(run_command, capfdbinary, tmp_path):
    assert run_command("--input-fps", "16", output="-") == 0
    video = tmp_path / "piped.mp4"
    video.write_bytes(capfdbinary.readouterr().out)
    assert facts(str(video))[:2] == (2 * FRAMES - 1, 32)


@pytest.mark.parametrize("output", [None, "-"])
def test_fetched_frames_are_removed_when_asked(run_command, tmp_path, output):
    assert run_command("--input-fps", "16", "--discard-frames", output=output) == 0
    assert list((tmp_path / "root" / "tlbvfi_frames").iterdir()) == []


def test_an_interrupted_job_is_resumed_by_its_session(
    comfy, run_command, tmp_path, capfd, monkeypatch
):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(BlendMethod, "between", interrupted)
        assert run_command("--input-fps", "16") == 130
    command = capfd.readouterr().err.strip().splitlines()[-1].split()
    assert command[:2] == ["tlbvfi", "resume"]
    assert main(command[1:]) == 0
    assert facts(str(tmp_path / "out.mp4"))[:2] == (2 * FRAMES - 1, 32)
    assert len(comfy.queued) == 1


@pytest.mark.parametrize("options", [[], ["--again"]])
def test_a_job_resumed_elsewhere_is_made_of_the_frames_that_are_there(
    comfy, save, tmp_path, capfdbinary, monkeypatch, options
):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    comfy.files = {name: png8(n) for n, name in enumerate(sorted(comfy.files))}
    monkeypatch.chdir(tmp_path)
    save()
    words = ["comfy", "run", "prompt.json", "--server", comfy.url, "-o", "-", "--input-fps", "16"]
    with monkeypatch.context() as patch:
        patch.setattr(BlendMethod, "between", interrupted)
        assert main([*words, "--method", "blend", *options]) == 130
    (session,) = (tmp_path / "output" / "tlbvfi_chunks").iterdir()
    (tmp_path / "output").rename(tmp_path / "moved")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    capfdbinary.readouterr()
    assert main(["resume", session.name, "--root", "../moved"]) == 0
    (tmp_path / "piped.mp4").write_bytes(capfdbinary.readouterr().out)
    assert facts(str(tmp_path / "piped.mp4"))[0] == 2 * FRAMES - 1
    assert len(comfy.queued) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "add --input-fps"),
        (["--input-fps", "x"], "a frame rate is a number"),
        (["--input-fps", "16", "--times", "0"], "times must be between"),
        (["--input-fps", "16", "--node", "77"], "has no node 77"),
        (
            ["--input-fps", "16", "--interpolate", "film", "--model", "no.safetensors"],
            "no.safetensors",
        ),
        (
            ["--input-fps", "16", "--server", "ftp://x"],
            "'ftp://x' is not the address of a ComfyUI server: write it like http://",
        ),
        (["--input-fps", "16", "--codec", "h265x"], "no codec 'h265x'"),
        (["--input-fps", "16", "--codec", "ffv1"], "ffv1 does not fit into a .mp4 file"),
        (["--input-fps", "16", "--crf", "99"], "crf 99 is out of range"),
    ],
)
def test_mistakes_come_to_light_before_anything_is_generated(
    comfy, run_command, capfd, options, said
):
    assert run_command(*options) == 1
    assert said in capfd.readouterr().err
    assert comfy.queued == []


@pytest.mark.parametrize("options", [["--again"], ["--node", "11"]])
def test_an_output_that_is_there_is_refused_before_anything_is_generated_for_it(
    comfy, run_command, prompt, capfd, options
):
    prompt["11"] = prompt["9"]
    given = ("--input-fps", "16", "--node", "9")
    assert run_command(*given) == 0
    assert run_command(*given, *options) == 1
    assert (
        "out.mp4 exists and was not made from frames that are still here" in capfd.readouterr().err
    )
    assert len(comfy.queued) == 1
    assert run_command(*given) == 0


def test_what_the_page_saves_is_not_queued(comfy, run_command, capfd):
    assert run_command("--input-fps", "16", content={"nodes": [], "links": []}) == 1
    assert "File > Export (API)" in capfd.readouterr().err
    assert comfy.requests == []


def test_ctrl_c_leaves_the_generation_running_and_says_so(comfy, run_command, capfd, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(client, "history", interrupted)
    assert run_command("--input-fps", "16") == 130
    assert "the same command fetches it" in capfd.readouterr().err


def test_the_rewrite_command_writes_a_file_once_and_lists_the_changes(save, tmp_path, capsys):
    workflow = {
        "1": {"class_type": "X", "inputs": {}},
        "2": {"class_type": "SaveWEBM", "inputs": {"images": ["1", 0], "fps": 8.0}},
    }
    out = tmp_path / "kept.json"
    assert main(["comfy", "rewrite", save(workflow), "-o", str(out)]) == 0
    assert "+ node 3 SaveImage saves every frame of node 2 SaveWEBM" in capsys.readouterr().err
    assert json.loads(out.read_text())["3"]["class_type"] == "SaveImage"
    assert main(["comfy", "rewrite", save(workflow), "-o", str(out)]) == 1
    assert "kept.json exists: choose another name or" in capsys.readouterr().err
    with sole_writer(out):
        assert main(["comfy", "rewrite", save(workflow), "-o", str(out), "--overwrite"]) == 1
    assert "is being made by another job" in capsys.readouterr().err
    assert main(["comfy", "rewrite", save(workflow), "--to", "tlbvfi", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["workflow"]["3"]["inputs"]["fps"] == 16
    assert told["changes"][-1] == "- node 2 SaveWEBM removed"
    assert main(["comfy", "rewrite", save(workflow)]) == 0
    assert "SaveImage" in capsys.readouterr().out
