"""Requests to a ComfyUI server over HTTP.

Nothing of ComfyUI is imported, and nothing from the server is trusted: sizes are limited, its texts
are shortened to a line, and none of its names becomes a path.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ..encoding.durable import atomic_file, disk_errors, require_space
from .errors import ClientError, ServerLostError, SettingsError

Json = Mapping[str, Any]
SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
OK, BAD_REQUEST, TOO_LARGE = 200, 400, 413
MISSING = (404, 405, 410)
TRANSIENT = (408, 429, 502, 503, 504, *range(520, 525), 530)
"""Statuses from a proxy, 520 and up from Cloudflare's, while the server behind it restarts or is busy."""
USER_AGENT = "tlbvfi"
"""Some proxies, Cloudflare's among them, refuse what Python calls itself by default."""
HEADERS = {"Content-Type": "application/json", "User-Agent": USER_AGENT}
LEAST_SPEED = 1000
"""Bytes per second; what is slower than that on average would keep us for ever."""
LONGEST_TEXT = 400
"""Most characters of a server's text that we quote in a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A ComfyUI server, and our limits on its silence and its bytes."""

    url: str = "http://127.0.0.1:8188"
    answer_seconds: float = 30.0
    """Silence within an answer, after which the connection counts as lost."""
    lost_seconds: float = 120.0
    """How long a lost connection is retried."""
    total_seconds: float | None = None
    """Longest wait for a generation; None: as long as it takes."""
    max_json_bytes: int = 256 * 2**20
    max_file_bytes: int = 2**30

    def __post_init__(self) -> None:
        for wait, seconds in (
            ("The time to retry a lost server", self.lost_seconds),
            ("The longest wait for a generation", self.total_seconds),
        ):
            if seconds is not None and not seconds >= 0:  # nor NaN
                raise SettingsError(f"{wait} must be at least 0 seconds, got {seconds:g}.")
        try:
            parts = urlsplit(self.url)
            is_whole = parts.port != 0 and bool(parts.hostname)
        except ValueError as error:
            raise _no_address(self.url) from error
        if "@" in parts.netloc:  # urllib would take it as part of the host name
            raise SettingsError(
                f"The address of the ComfyUI server at {parts.hostname} contains a user name or "
                "password, which is never sent to a server: leave it out."
            )
        if parts.scheme not in ("http", "https") or not is_whole or parts.query:
            raise _no_address(self.url)


def server_url(text: str) -> str:
    """The address of a server as `Server.url`, from `host:port` or an http(s) or ws(s) address.

    Raises:
        SettingsError: not an address of this kind.
    """
    scheme, separator, rest = text.partition("#")[0].partition("://")  # the page adds #its-graph
    if not separator:
        scheme, rest = "http", scheme
    if scheme not in SCHEMES or not rest:
        raise _no_address(text)
    return f"{SCHEMES[scheme]}://{rest.rstrip('/')}"


def _no_address(text: str) -> SettingsError:
    return SettingsError(
        f"{text!r} is not the address of a ComfyUI server: write it like http://127.0.0.1:8188."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRef:
    """A file in one of the server's folders, as the server names it."""

    filename: str
    subfolder: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accepted:
    """A prompt that the server queued."""

    prompt_id: str
    left_out: frozenset[str]
    """Nodes that will not run because something is wrong with them."""
    complaint: str
    """What is wrong with them; empty if nothing is."""


def queue_prompt(server: Server, prompt: Json, *, prompt_id: str, client_id: str) -> Accepted:
    """Queue a prompt, nodes in API format, under an id of our own (a UUID).

    Raises:
        ClientError: the server refuses it; the text names the node.
        ServerLostError: it cannot be reached; the prompt may be queued nevertheless.
    """
    body = {"prompt": prompt, "prompt_id": prompt_id, "client_id": client_id}
    status, raw = _request(server, "/prompt", body)
    if status not in (OK, BAD_REQUEST):
        raise bad_status(server, "/prompt", status)
    answer = _parsed(server, "/prompt", raw)
    if status == BAD_REQUEST:
        raise ClientError(_refusal(answer))
    errors = as_dict(answer.get("node_errors"))
    outputs = [as_list(as_dict(error).get("dependent_outputs")) for error in errors.values()]
    return Accepted(
        prompt_id=str(answer.get("prompt_id") or prompt_id),
        left_out=frozenset(str(node) for nodes in [*outputs, list(errors)] for node in nodes),
        complaint=_refusal(answer) if errors else "",
    )


def _refusal(answer: Json) -> str:
    """The error that POST /prompt reports, in one sentence."""
    said = answer.get("error")
    if isinstance(said, dict):
        said = f"{said.get('message')} {said.get('details') or ''}"
    for node, content in as_dict(answer.get("node_errors")).items():
        for error in as_list(as_dict(content).get("errors"))[:1]:
            cause = f"{as_dict(error).get('message')}: {as_dict(error).get('details')}"
            said = f"node {node} {as_dict(content).get('class_type')}: {cause}"
    return plain(f"ComfyUI refuses the prompt: {said}")


def history(server: Server, prompt_id: str) -> Json | None:
    """The server's history entry of a prompt; None: it is not finished, or unknown."""
    entry = _get_json(server, f"/history/{quote(prompt_id, safe='')}").get(prompt_id)
    return entry if isinstance(entry, dict) else None


def queue_position(server: Server, prompt_id: str) -> int | None:
    """0 while a prompt runs, 1 when it is next, and so on; None: it is not in the queue."""
    queue = _get_json(server, "/queue")
    if prompt_id in [prompt for _, prompt in _queue_items(queue.get("queue_running"))]:
        return 0
    order = [prompt for _, prompt in sorted(_queue_items(queue.get("queue_pending")))]
    return order.index(prompt_id) + 1 if prompt_id in order else None


def _queue_items(items: Any) -> list[tuple[int, str]]:  # noqa: ANN401 - JSON
    """(number, prompt id) of [[number, id, prompt, ...], ...]; lower numbers run first."""
    return [(whole(i[0]), str(i[1])) for i in as_list(items) if isinstance(i, list) and len(i) > 1]


def cancel(server: Server, prompt_id: str) -> None:
    """Take a prompt out of the queue, or stop it if it runs."""
    position = queue_position(server, prompt_id)
    if position == 0:
        _request(server, "/interrupt", {"prompt_id": prompt_id})
    elif position is not None:
        _request(server, "/queue", {"delete": [prompt_id]})


def check_outcome(entry: Json, prompt: Json) -> Json:
    """The history entry itself, if the prompt succeeded.

    Raises:
        ClientError: a node failed, or the prompt was interrupted.
    """
    status = as_dict(entry.get("status"))
    for message in as_list(status.get("messages")):
        event, data = (message[0], as_dict(message[-1])) if as_list(message) else ("", {})
        where = node_title(prompt, data.get("node_id"))
        if event == "execution_error":
            said = plain(f"{data.get('exception_type')}: {data.get('exception_message')}")
            raise ClientError(f"{where} failed on the server: {said}")
        if event == "execution_interrupted":
            raise ClientError(
                f"The generation was interrupted on the server, in {where}: run the same command to "
                "queue it again."
            )
    if status.get("status_str") == "error":
        raise ClientError(
            "The generation failed on the server, which does not say why: see its log."
        )
    return entry


def output_files(entry: Json, node: str, kind: str) -> list[FileRef]:
    """Files of a node in a history entry, in order; `kind` is `images` or `audio`."""
    files = as_list(as_dict(as_dict(entry.get("outputs")).get(node)).get(kind))
    return [
        FileRef(
            filename=f["filename"],
            subfolder=str(f.get("subfolder") or ""),
            type=str(f.get("type") or "output"),
        )
        for f in files
        if isinstance(f, dict) and isinstance(f.get("filename"), str)
    ]


def download(server: Server, ref: FileRef, path: Path) -> None:
    """Write one of the server's files to `path`, completely or not at all.

    Raises:
        ClientError: the server no longer has it, refuses it, or it is larger than `max_file_bytes`.
        ServerLostError: the connection broke.
        OutputError: the disk is full, lacks room for the announced size, or cannot be written.
    """
    query = {"filename": ref.filename, "subfolder": ref.subfolder, "type": ref.type}
    path_there = f"/view?{urlencode(query, errors='replace')}"
    with _answer(server, path_there) as (response, connected):
        if response.status in MISSING:
            raise ClientError(
                f"{server.url} no longer has {plain(ref.filename)} (HTTP {response.status}): run the "
                "same command with --again to queue the prompt again."
            )
        if response.status != OK:
            raise bad_status(server, "/view", response.status)
        announced = response.length or 0  # no more than this is read
        _refuse_too_large(server, ref, announced)
        require_space(path.parent, announced)
        with disk_errors(path), atomic_file(path) as part, part.open("wb") as file:
            received = 0
            for block in _blocks(server, response, connected):
                received += len(block)
                _refuse_too_large(server, ref, received)
                file.write(block)


def _refuse_too_large(server: Server, ref: FileRef, size: int) -> None:
    if size > server.max_file_bytes:
        raise ClientError(
            f"{plain(ref.filename)} is larger than {server.max_file_bytes} bytes, too large for a "
            "frame: check which node saves the frames."
        )


def node_title(prompt: Json, node: Any) -> str:  # noqa: ANN401 - JSON
    """`node 5 KSampler`; nodes that another node was expanded into get its name."""
    content = as_dict(prompt.get(str(node)) or prompt.get(str(node).split(".")[0]))
    return plain(f"node {node} {content.get('class_type', '')}")


def plain(text: str) -> str:
    """A server's text, made fit for one line of a terminal."""
    words = re.sub(r"[\x00-\x20\x7f-\x9f]+", " ", text).strip()
    return words if len(words) <= LONGEST_TEXT else f"{words[:LONGEST_TEXT]}…"


def whole(value: Any) -> int:  # noqa: ANN401 - JSON
    """A number from a server, or 0 if it is not one."""
    return int(value) if isinstance(value, int | float) and abs(value) < 2**53 else 0


def as_dict(value: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """An object from a server, or an empty one if it is not one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:  # noqa: ANN401 - JSON
    """A list from a server, or an empty one if it is not one."""
    return value if isinstance(value, list) else []


@cache
def _tls() -> ssl.SSLContext:
    """Made once, because it reads every certificate of the system."""
    return ssl.create_default_context()


def _connection(server: Server) -> HTTPConnection:
    """Of no proxy: ComfyUI runs here or nearby, and the websocket connects directly as well."""
    parts, timeout = urlsplit(server.url), server.answer_seconds
    host = parts.hostname or ""
    if parts.scheme == "https":
        return HTTPSConnection(host, parts.port, timeout=timeout, context=_tls())
    return HTTPConnection(host, parts.port, timeout=timeout)


@contextmanager
def _answer(
    server: Server, path: str, body: Json | None = None
) -> Iterator[tuple[HTTPResponse, socket.socket]]:
    """The response to a request, whatever its status, and where it comes from.

    Redirects are not followed.

    Raises:
        ServerLostError: there is none.
    """
    data = None if body is None else json.dumps(body).encode()
    method, whole_path = "GET" if data is None else "POST", urlsplit(server.url).path + path
    with ExitStack() as stack:
        with _network(server):
            connection = stack.enter_context(closing(_connection(server)))
            connection.request(method, whole_path, data, HEADERS)
            connected = connection.sock
            with _cut_off_after(server.answer_seconds, connected):
                response = stack.enter_context(connection.getresponse())
        if response.status in TRANSIENT:
            raise not_ready(server, response.status)
        yield response, connected


@contextmanager
def _cut_off_after(seconds: float, connected: socket.socket) -> Iterator[None]:
    """Limit the block, which reads what may come in bits, each of them in time.

    Raises:
        TimeoutError: it took longer.
    """
    is_late = threading.Event()

    def cut_off() -> None:
        is_late.set()
        with suppress(OSError):  # closed meanwhile
            connected.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if is_late.is_set():
            raise TimeoutError(f"no answer in {seconds:g} s")


@contextmanager
def _network(server: Server) -> Iterator[None]:
    """Turn what fails in the block, in which nothing but the network is used, into one error.

    Raises:
        ServerLostError: the connection failed, or what came is not HTTP.
        ClientError: the server's certificate is not valid.
    """
    try:
        yield
    except (OSError, HTTPException, ValueError) as error:  # ValueError: a chunk of negative length
        raise unreachable(server, error) from error


def _blocks(server: Server, response: HTTPResponse, connected: socket.socket) -> Iterator[bytes]:
    """The body of a response, as it comes.

    Raises:
        ServerLostError: it is not complete, or comes too slowly.
    """
    begun, received = time.monotonic(), 0
    while True:
        lines = response.chunked  # between the blocks, which are read until they end
        limit = _cut_off_after(server.answer_seconds, connected) if lines else nullcontext()
        with _network(server), limit:
            block = response.read1(1 << 16)
        if not block:
            break
        received += len(block)
        if time.monotonic() - begun > server.answer_seconds + received / LEAST_SPEED:
            raise ServerLostError(f"{server.url} sends its answer too slowly.")
        yield block
    if response.length:
        raise ServerLostError(f"{server.url} broke off in the middle of an answer.")


def _request(server: Server, path: str, body: Json | None = None) -> tuple[int, bytes]:
    """Status and body of a response."""
    with _answer(server, path, body) as (response, connected):
        raw = bytearray()
        for block in _blocks(server, response, connected):
            raw += block
            if len(raw) > server.max_json_bytes:
                raise ClientError(
                    f"The answer of {server.url}{path} is larger than {server.max_json_bytes} "
                    "bytes: check that the address is that of a ComfyUI server."
                )
        return response.status, bytes(raw)


def _get_json(server: Server, path: str) -> Json:
    status, raw = _request(server, path)
    if status != OK:
        raise bad_status(server, path, status)
    return _parsed(server, path, raw)


def _parsed(server: Server, path: str, raw: bytes) -> Json:
    try:
        answer = json.loads(raw)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ClientError(
            f"{server.url}{path} does not answer in JSON, so it is not a ComfyUI server: check the "
            "address."
        )
    return answer


def bad_status(server: Server, path: str, status: int) -> ClientError:
    """An error that explains an unusable HTTP status to a person."""
    if status in (401, 403):
        return ClientError(
            f"{server.url} refuses access (HTTP {status}): give an address that needs no login."
        )
    if 300 <= status < 400:
        return ClientError(
            f"{server.url} redirects to another address (HTTP {status}): give that one directly."
        )
    if status == TOO_LARGE:
        return ClientError(
            f"{server.url} does not take a prompt of this size (HTTP {status}): raise the limit of the "
            "proxy in front of it (nginx: client_max_body_size), or its own (--max-upload-size)."
        )
    if status >= 500:
        return ClientError(f"{server.url} failed at {path} (HTTP {status}): see its log.")
    if status not in MISSING:
        return ClientError(
            f"{server.url} does not answer at {path} (HTTP {status}): check the address, and the "
            "settings of a proxy in front of it."
        )
    return ClientError(
        f"{server.url}{path} does not exist (HTTP {status}), so it is not a ComfyUI server: check "
        "the address."
    )


def no_websocket(server: Server, status: int) -> ClientError:
    """The error of a server that answers requests, but opens no websocket."""
    if status in (401, 403) or 300 <= status < 400 or status >= 500:
        return bad_status(server, "/ws", status)
    return ClientError(
        f"{server.url} opens no websocket at /ws (HTTP {status}): let the proxy in front of it pass "
        "websockets on (with the headers Upgrade and Connection)."
    )


def not_ready(server: Server, status: int) -> ServerLostError:
    """The error for a proxy that answers while the server behind it does not."""
    return ServerLostError(f"{server.url} is not ready (HTTP {status}).")


def unreachable(server: Server, error: Exception) -> ClientError:
    """The error for a missing or broken connection; a bad certificate is not retried."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return ClientError(
            f"The certificate of {server.url} is not valid ({error.verify_message}): check the "
            "address, or name the file of its authority in the variable SSL_CERT_FILE."
        )
    return ServerLostError(f"{server.url} cannot be reached ({plain(str(error) or repr(error))}).")
