"""Requests to a ComfyUI server over HTTP.

Nothing of ComfyUI is imported, and nothing from the server is trusted: sizes are limited, its texts
are shortened to a line, and none of its names becomes a path.
"""

from __future__ import annotations

import http.client
import json
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ..encoding.durable import atomic_file, disk_errors, require_space
from .errors import ClientError, ServerLostError, SettingsError
from .remote_file import NoRedirects, Response

Json = Mapping[str, Any]
SCHEMES = {"http": "http", "https": "https", "ws": "http", "wss": "https"}
TRANSIENT = (502, 503, 504)
"""Statuses from a proxy while the server behind it restarts."""
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
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
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
    if status not in (http.client.OK, http.client.BAD_REQUEST):
        raise bad_status(server, "/prompt", status)
    answer = _parsed(server, "/prompt", raw)
    if status == http.client.BAD_REQUEST:
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
        ClientError: the server no longer has it, or it is larger than `max_file_bytes`.
        ServerLostError: the connection broke.
        OutputError: the disk is full, lacks room for the announced size, or cannot be written.
    """
    query = {"filename": ref.filename, "subfolder": ref.subfolder, "type": ref.type}
    with _answer(server, f"/view?{urlencode(query, errors='replace')}") as response:
        if response.status != http.client.OK:
            raise ClientError(
                f"{server.url} no longer has {plain(ref.filename)} (HTTP {response.status}): run the "
                "same command with --again to queue the prompt again."
            )
        announced = getattr(response, "length", None) or 0  # no more than this is read
        _refuse_too_large(server, ref, announced)
        require_space(path.parent, announced)
        with disk_errors(path), atomic_file(path) as part, part.open("wb") as file:
            received = 0
            while block := response.read(1 << 20):
                received += len(block)
                _refuse_too_large(server, ref, received)
                file.write(block)
            _check_whole(server, response)


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
def _opener() -> urllib.request.OpenerDirector:
    """Opens requests; made once, because it reads every certificate of the system.

    No proxies: ComfyUI runs here or nearby, and the websocket connects directly as well.
    """
    return urllib.request.build_opener(NoRedirects, urllib.request.ProxyHandler({}))


@contextmanager
def _answer(server: Server, path: str, body: Json | None = None) -> Iterator[Response]:
    """The response to a request, whatever its status.

    Raises:
        ServerLostError: there is none, or it breaks off.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, {"Content-Type": "application/json"})
    try:
        try:
            response: Response = _opener().open(request, timeout=server.answer_seconds)
        except urllib.error.HTTPError as error:
            response = error
        with response:
            if response.status in TRANSIENT:
                raise not_ready(server, response.status)
            yield response
    except (
        urllib.error.URLError,
        http.client.HTTPException,
        ssl.SSLError,
        ConnectionError,
        TimeoutError,
        ValueError,  # a chunk of negative length, or a name that HTTP cannot express
    ) as error:
        raise unreachable(server, error) from error


def _check_whole(server: Server, response: Response) -> None:
    """Refuse a body shorter than announced, which urllib takes as complete."""
    if getattr(response, "length", 0):
        raise ServerLostError(f"{server.url} broke off in the middle of an answer.")


def _request(server: Server, path: str, body: Json | None = None) -> tuple[int, bytes]:
    """Status and body of a response."""
    with _answer(server, path, body) as response:
        raw = response.read(server.max_json_bytes + 1)
        if len(raw) > server.max_json_bytes:
            raise ClientError(
                f"The answer of {server.url}{path} is larger than {server.max_json_bytes} bytes: "
                "check that the address is that of a ComfyUI server."
            )
        _check_whole(server, response)
        return response.status or 0, raw


def _get_json(server: Server, path: str) -> Json:
    status, raw = _request(server, path)
    if status != http.client.OK:
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
    if status >= 500:
        return ClientError(f"{server.url} failed at {path} (HTTP {status}): see its log.")
    return ClientError(
        f"{server.url}{path} does not exist (HTTP {status}), so it is not a ComfyUI server: check "
        "the address."
    )


def not_ready(server: Server, status: int) -> ServerLostError:
    """The error for a proxy that answers while the server behind it does not."""
    return ServerLostError(f"{server.url} is not ready (HTTP {status}).")


def unreachable(server: Server, error: Exception) -> ClientError:
    """The error for a missing or broken connection; a bad certificate is not retried."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return ClientError(
            f"The certificate of {server.url} is not valid ({reason.verify_message}): check the "
            "address, or name the file of its authority in the variable SSL_CERT_FILE."
        )
    return ServerLostError(
        f"{server.url} cannot be reached ({plain(str(reason) or repr(reason))})."
    )
