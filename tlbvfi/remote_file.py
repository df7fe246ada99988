"""A file on a web server: what the server states about it, and its bytes from any offset.

Requests follow huggingface.co's own client: the response to a HEAD request to the `resolve` address
holds `X-Linked-Size` and, as `X-Linked-Etag`, the SHA-256 of a large file, and redirects to a
storage host that knows neither.
"""

from __future__ import annotations

import http.client
import ipaddress
import re
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from email.message import Message
from typing import IO
from urllib.parse import urljoin, urlsplit

from .errors import DownloadError

MAX_REDIRECTS = 5
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses of temporary failures."""

Response = http.client.HTTPResponse | urllib.error.HTTPError
"""What urllib returns; an HTTPError is a response like any other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """What the server states about a file before it sends it."""

    size: int | None
    sha256: str | None
    version: str | None
    """Changes when the content does; None if the server states none."""


class BrokenOffError(Exception):
    """The connection ended early; what has arrived is valid."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Returns redirects: the default handler follows them anywhere, even from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: Message,
        newurl: str,
    ) -> None:
        return None


class RemoteFile:
    """Requests for one file at `url`, and the errors for what goes wrong with them.

    `otherwise`: what a person can do instead, to end the sentence. `timeout_seconds`: silence after
    which a connection counts as broken.
    """

    def __init__(self, url: str, *, otherwise: str, timeout_seconds: float) -> None:
        self.url = url
        self._otherwise = otherwise
        self._timeout = timeout_seconds
        self._opener = urllib.request.build_opener(NoRedirects)
        self._check_address(self.url, self.url)

    def ask(self) -> Promise:
        """What the server states about the file.

        Redirects are followed only on the same host: a storage host does not know the checksum, and
        some refuse HEAD.

        Raises:
            DownloadError: it cannot be reached or does not have the file.
        """
        try:
            status, response = self._request("HEAD", {}, same_host=True)
        except BrokenOffError as error:
            raise DownloadError(
                f"{urlsplit(self.url).hostname} cannot be reached ({error}): {self._otherwise}, "
                "or try again later."
            ) from error
        with closing(response):
            if status >= 400:
                raise self.refusal(status)
            if status == 200 and response.headers.get_content_type() == "text/html":
                raise self.web_page()
            return _read_promise(response.headers, is_file=status == 200)

    def get(self, headers: Mapping[str, str]) -> tuple[int, Response]:
        """Status 200, 206 or 416, and the content, which the caller closes. Redirects are followed.

        Raises:
            BrokenOffError: the server cannot be reached now.
            DownloadError: it refuses, or sends a web page.
        """
        status, response = self._request("GET", headers, same_host=False)
        if status in TRANSIENT:
            response.close()
            raise BrokenOffError(_status_text(status))
        if status not in (200, 206, 416):
            response.close()
            raise self.refusal(status)
        if response.headers.get_content_type() == "text/html":
            response.close()
            raise self.web_page()
        return status, response

    def refusal(self, status: int) -> DownloadError:
        """The error for a request that the server refuses."""
        return DownloadError(
            f"The server does not provide {self.url} ({_status_text(status)}): {self._otherwise}."
        )

    def web_page(self) -> DownloadError:
        """The error for a page instead of the file: a login, a proxy, a hotel's network."""
        return DownloadError(
            f"A web page came instead of {self.url}, perhaps from a proxy or a login: {self._otherwise}."
        )

    def _request(
        self, method: str, headers: Mapping[str, str], *, same_host: bool
    ) -> tuple[int, Response]:
        url = self.url
        for _ in range(MAX_REDIRECTS):
            status, response = self._send(method, url, headers)
            location = response.headers.get("Location") if 300 <= status < 400 else None
            if location is None:
                return status, response
            following = self._joined(url, location)
            if same_host and urlsplit(following).netloc != urlsplit(url).netloc:
                return status, response
            response.close()
            self._check_address(following, url)
            url = following
        raise DownloadError(f"{self.url} redirects too often: {self._otherwise}.")

    def _joined(self, url: str, location: str) -> str:
        try:
            return urljoin(url, location)
        except ValueError as error:
            raise self._unsafe(location) from error

    def _send(self, method: str, url: str, headers: Mapping[str, str]) -> tuple[int, Response]:
        # With compression, ranges and lengths would not be those of the file.
        headers = {"User-Agent": "tlbvfi", "Accept-Encoding": "identity", **headers}
        try:
            request = urllib.request.Request(url, headers=headers, method=method)
            response = self._opener.open(request, timeout=self._timeout)
        except urllib.error.HTTPError as error:
            return error.code, error
        except (OSError, http.client.HTTPException, ValueError) as error:  # or not valid in HTTP
            raise BrokenOffError(
                str(getattr(error, "reason", error)) or type(error).__name__
            ) from error
        return response.status, response

    def _check_address(self, url: str, origin: str) -> None:
        """Allow only https, or http on this machine; a remote server cannot redirect to it."""
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise self._unsafe(url) from error
        if "@" in parts.netloc:  # urllib would take it as part of the host name
            raise DownloadError(
                f"The address at {parts.hostname} contains a user name or password, which is never "
                "sent to a server: leave it out."
            )
        is_here, begins_here = _is_loopback(parts.hostname), _is_loopback(urlsplit(origin).hostname)
        schemes = ("https", "http") if is_here and begins_here else ("https",)
        if parts.scheme not in schemes or (is_here and not begins_here):
            raise self._unsafe(url)

    def _unsafe(self, url: str) -> DownloadError:
        return DownloadError(f"{url} is not a safe address (https): {self._otherwise}.")


def stated_size(text: str | None) -> int | None:
    """The number of bytes that a header states; None if it states none."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def _read_promise(headers: Message, *, is_file: bool) -> Promise:
    """`is_file`: whether the headers are those of the file itself, not of a redirect to it."""
    linked = headers.get("X-Linked-Etag", "").strip('"').lower()
    size = headers.get("X-Linked-Size") or (headers.get("Content-Length") if is_file else None)
    return Promise(
        size=stated_size(size),
        sha256=linked if re.fullmatch("[0-9a-f]{64}", linked) else None,
        version=linked or (headers.get("ETag") if is_file else None),
    )


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _status_text(status: int) -> str:
    return f"HTTP {status} {http.client.responses.get(status, '')}".rstrip()
