"""Runs a prompt on a running ComfyUI and follows it over the websocket.

It is queued under an id of our own, so that we can ask the server for it whatever happens to the
connection: the server carries on, and the result stays in its history. The websocket brings
progress and the images of SaveImageWebsocket; only the history decides how a prompt ended.
"""

from __future__ import annotations

import json
import logging
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlencode

from .comfy_http import (
    TRANSIENT,
    USER_AGENT,
    Json,
    Server,
    as_dict,
    cancel,
    check_outcome,
    history,
    no_websocket,
    node_title,
    not_ready,
    plain,
    queue_position,
    queue_prompt,
    unreachable,
    whole,
)
from .errors import ClientError, ServerLostError

if TYPE_CHECKING:
    from websockets.sync.client import ClientConnection

log = logging.getLogger("tlbvfi.client")

T = TypeVar("T")

POLL_SECONDS = 5.0
"""Messages can be missed, so the history is polled at least this often."""
RETRY_SECONDS = 1.0
SETTLE_SECONDS = 1.0
"""Messages of a prompt that has ended are waited for at least this long."""
OLDEST_WEBSOCKETS = 15
LONGEST_PING = 3600.0
"""Most seconds to wait for the answer to a ping: a thread cannot wait for ever."""
ENDS = ("execution_success", "execution_error", "execution_interrupted")
PREVIEW, PREVIEW_WITH_NODE = 1, 4
"""Binary messages that carry an image (ComfyUI protocol.py)."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The prompt waits in the queue; `position` 1 is next."""

    position: int


@dataclass(frozen=True, slots=True)
class NodeProgress:
    """A node is running; `value` of `maximum` steps are done, 0 of 0 if it does not say."""

    node: str
    title: str
    value: int
    maximum: int


@dataclass(frozen=True, slots=True)
class ConnectionLost:
    """The server cannot be reached at the moment; we try again."""

    reason: str


@dataclass(frozen=True, slots=True)
class ReceivedImage:
    """An image file that came over the websocket: a frame, or a preview of one."""

    node: str
    index: int
    """Position in its batch, from 0."""
    count: int
    """Number of images in the batch."""
    data: bytes


ServerEvent = Queued | NodeProgress | ConnectionLost
OnServerEvent = Callable[[ServerEvent], None]
OnImage = Callable[[ReceivedImage], None]


def generate(
    server: Server,
    prompt: Json,
    *,
    prompt_id: str,
    client_id: str,
    needed: str,
    on_event: OnServerEvent,
    on_image: OnImage,
) -> Json:
    """The server's history entry of a prompt that succeeded.

    `prompt`, nodes in API format, is queued unless the server already knows `prompt_id`, a UUID.
    `needed` is a node that must run: if the server accepts the prompt without it, the prompt is
    canceled. A lost connection is retried for `server.lost_seconds`.

    Raises:
        ClientError: the prompt was refused, failed, was interrupted or forgotten, or takes too long.
        ServerLostError: the server cannot be reached; what it has queued continues there.
    """
    watch = _Watch(server=server, prompt=prompt, on_event=on_event, on_image=on_image)
    known_id = None
    while True:
        try:
            if known_id is None:
                known_id = prompt_id if _is_known(server, prompt_id) else None
                watch.heard = time.monotonic()
            with _connection(server, client_id) as socket:
                if known_id is None:
                    known_id = _queue(server, prompt, prompt_id, client_id, needed)
                return check_outcome(watch.until_done(socket, known_id), prompt)
        except ServerLostError as error:
            if not watch.heard:  # more likely a wrong address than a server that will come back
                raise ServerLostError(
                    f"{str(error).rstrip('.')}: start ComfyUI there, or give its address with --server."
                ) from error
            _wait_to_retry(server, error, watch.heard, on_event)


def patiently(server: Server, on_event: OnServerEvent, attempt: Callable[[], T]) -> T:
    """The result of `attempt`, retried for `lost_seconds` while the server cannot be reached.

    Raises:
        ServerLostError: it could not be reached in that time.
    """
    begun = time.monotonic()
    while True:
        try:
            return attempt()
        except ServerLostError as error:
            _wait_to_retry(server, error, begun, on_event)


def image_message(message: bytes) -> tuple[str, str, bytes]:
    """Prompt and node ("" if not given) and image file of a binary message.

    Raises:
        ValueError: a different kind of message, or a damaged one.
    """
    if len(message) < 8:
        raise ValueError("shorter than its header")
    event, second = struct.unpack_from(">II", message)
    if event == PREVIEW:  # `second` is the format, which the image itself also states
        return "", "", message[8:]
    if event == PREVIEW_WITH_NODE and 8 + second <= len(message):
        about = as_dict(json.loads(message[8 : 8 + second]))
        prompt_id, node = (str(about.get(name) or "") for name in ("prompt_id", "node_id"))
        return prompt_id, node, message[8 + second :]
    raise ValueError(f"event {event}")


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Follows one prompt: which node runs, its progress, and which image comes next."""

    server: Server
    prompt: Json
    on_event: OnServerEvent
    on_image: OnImage
    running: str = ""
    """The node that images without one come from; empty while another prompt is told of.

    What a prompt without a client reports goes to all of them.
    """
    steps: dict[str, tuple[int, int]] = field(default_factory=dict)
    """(value, maximum) of the nodes that reported them."""
    images: int = 0
    """How many came from this prompt, previews included."""
    begun: float = field(default_factory=time.monotonic)
    heard: float = 0.0
    """When the server last answered a request; 0: never."""

    def until_done(self, socket: ClientConnection, prompt_id: str) -> Json:
        """The prompt's history entry, once there is one and all messages are handled."""
        ended = False
        while True:
            entry = self._ask(prompt_id)
            if entry is not None:
                if not ended:
                    with suppress(ServerLostError):  # as some proxies close every websocket
                        self._settle(socket, prompt_id)
                return entry
            ended = self._listen(socket, prompt_id, POLL_SECONDS)

    def _ask(self, prompt_id: str) -> Json | None:
        position = queue_position(self.server, prompt_id)  # first: from here it goes to the history
        entry = history(self.server, prompt_id)
        self.heard = time.monotonic()
        limit = self.server.total_seconds
        if entry is None and position is None:
            raise ClientError(
                f"{self.server.url} no longer knows the prompt (it was restarted, or the prompt was "
                "removed): run the same command to queue it again."
            )
        if entry is None and limit is not None and self.heard - self.begun > limit:
            raise ClientError(
                f"The generation takes longer than {limit:g} s and continues at {self.server.url}: "
                "run the same command with a longer --timeout to fetch it."
            )
        if entry is None and position:
            self.on_event(Queued(position))
        return entry

    def _settle(self, socket: ClientConnection, prompt_id: str) -> None:
        """Handle what is still on its way for a prompt that has ended.

        A large image takes the server long to compress and to send. It answers a ping behind it, so
        once a ping is answered and no image came before the answer, none is left.
        """
        seen, answered = self.images, _ping(socket)
        while not self._listen(socket, prompt_id, SETTLE_SECONDS):
            if answered.is_set():
                if self.images == seen:
                    return
                seen, answered = self.images, _ping(socket)

    def _listen(self, socket: ClientConnection, prompt_id: str, seconds: float) -> bool:
        """Handle messages until one says that the prompt has ended (True) or time is up (False)."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            message = _receive(socket, left)
            if message is None:
                break
            if isinstance(message, bytes):
                self._image(message, prompt_id)
            elif self._text(message, prompt_id):
                return True
        return False

    def _text(self, message: str, prompt_id: str) -> bool:
        """Handle a text message; True if it says that the prompt has ended."""
        try:
            content = as_dict(json.loads(message))
        except (ValueError, RecursionError):
            log.debug("not a ComfyUI message: %s", plain(message))
            return False
        event, data = content.get("type"), as_dict(content.get("data"))
        if data.get("prompt_id", prompt_id) != prompt_id:
            self.running = ""
            return False
        if event == "executing" and data.get("node") is not None:
            self.running = str(data["node"])
            self._tell(self.running)
        elif event == "progress":
            self.running = str(data.get("node") or self.running)
            self._step(self.running, data)
        elif event == "progress_state":
            for node, state in as_dict(data.get("nodes")).items():
                if as_dict(state).get("state") == "running":
                    self._step(node, state)
        return event in ENDS or (event == "executing" and data.get("node") is None)

    def _step(self, node: str, data: Json) -> None:
        step = (whole(data.get("value")), whole(data.get("max")))
        if self.steps.get(node) != step:
            self.steps[node] = step
            self._tell(node)

    def _tell(self, node: str) -> None:
        value, maximum = self.steps.get(node, (0, 0))
        self.on_event(NodeProgress(node, node_title(self.prompt, node), value, maximum))

    def _image(self, message: bytes, prompt_id: str) -> None:
        try:
            its_prompt, node, data = image_message(message)
        except (ValueError, RecursionError) as error:
            log.debug("no image in a binary message: %s", error)
            return
        node = node or self.running
        if not node or its_prompt not in ("", prompt_id):
            return
        self.images += 1
        index, count = self.steps.get(node, (0, 0))  # reported just before the image
        self.on_image(ReceivedImage(node, index, count, data))


def _is_known(server: Server, prompt_id: str) -> bool:
    return queue_position(server, prompt_id) is not None or history(server, prompt_id) is not None


def _queue(server: Server, prompt: Json, prompt_id: str, client_id: str, needed: str) -> str:
    """The id under which the server has queued the prompt."""
    accepted = queue_prompt(server, prompt, prompt_id=prompt_id, client_id=client_id)
    if needed in accepted.left_out:
        cancel(server, accepted.prompt_id)
        raise ClientError(accepted.complaint)
    if accepted.complaint:
        log.warning("%s; the rest of the prompt runs.", accepted.complaint)
    return accepted.prompt_id


def _wait_to_retry(
    server: Server, error: ServerLostError, since: float, on_event: OnServerEvent
) -> None:
    """Wait a moment before the next attempt; `since`: when the server was heard, or first asked.

    Raises:
        ServerLostError: that is more than `server.lost_seconds` ago.
    """
    if time.monotonic() - since > server.lost_seconds:
        raise ServerLostError(
            f"{str(error).rstrip('.')}, for {server.lost_seconds:g} s now; what was queued continues "
            "there, and the same command fetches it."
        ) from error
    on_event(ConnectionLost(str(error)))
    time.sleep(RETRY_SECONDS)


def _require_websockets() -> None:
    """Require the package websockets; versions before 15 cannot be told to use no proxy.

    Raises:
        ClientError: it is missing, or too old.
    """
    try:
        from websockets.version import version
    except ImportError:
        version = "0"
    if int(version.partition(".")[0]) < OLDEST_WEBSOCKETS:
        raise ClientError(
            f"Following a ComfyUI server needs the package websockets, version {OLDEST_WEBSOCKETS} or "
            "newer: pip install -U websockets."
        )


@contextmanager
def _connection(server: Server, client_id: str) -> Iterator[ClientConnection]:
    """This client's websocket, over which the server sends messages about its prompts."""
    _require_websockets()
    from websockets.exceptions import InvalidStatus, WebSocketException
    from websockets.sync.client import connect

    url = f"ws{server.url.removeprefix('http')}/ws?{urlencode({'clientId': client_id})}"
    flags = {"type": "feature_flags", "data": {"supports_preview_metadata": True}}
    limit = server.max_file_bytes
    with ExitStack() as stack:
        try:
            socket = stack.enter_context(
                connect(  # images are already compressed; a few bytes could unpack to `limit`
                    url,
                    proxy=None,
                    user_agent_header=USER_AGENT,
                    compression=None,
                    open_timeout=server.answer_seconds,
                    ping_timeout=min(LONGEST_PING, max(server.answer_seconds, server.lost_seconds)),
                    max_size=limit,
                )
            )
            socket.send(json.dumps(flags))
        except InvalidStatus as error:
            status = error.response.status_code
            if status in TRANSIENT:
                raise not_ready(server, status) from error
            raise no_websocket(server, status) from error
        except (WebSocketException, EOFError, OSError) as error:
            raise unreachable(server, error) from error
        yield socket


def _receive(socket: ClientConnection, seconds: float) -> str | bytes | None:
    """The next message, or None if none comes in time."""
    with _closed_is_lost():
        try:
            return socket.recv(timeout=seconds)
        except TimeoutError:
            return None


def _ping(socket: ClientConnection) -> threading.Event:
    """Ping the server; the event is set when it answers."""
    with _closed_is_lost():
        return socket.ping()


@contextmanager
def _closed_is_lost() -> Iterator[None]:
    from websockets.exceptions import ConnectionClosed

    try:
        yield
    except ConnectionClosed as error:
        raise ServerLostError(f"The server closed the connection ({error}).") from error
