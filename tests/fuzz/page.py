"""Bytes on the socket of the page's server."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from fuzz.cases import PASSED, Case
from fuzz.damage import choose, damaged
from vitdeploy.errors import ImageError, OverloadedError
from vitdeploy.serving.page.page_server import MOST_BYTES, PageServer

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

_TIMEOUT_S = 10.0
_STATUSES = frozenset({100, 200, 400, 404, 405, 411, 413, 414, 415, 421, 422, 431, 501, 502, 503, 505})
_LENGTHS = ("0", "4", "-1", "+4", " 4", "4 ", "0x4", "1e1", "9" * 30, str(MOST_BYTES + 1), "4, 4", "\u0664", "")
_HOSTS = ("127.0.0.1", "localhost:80", "evil.example", "127.0.0.1.evil.example", "[::1]", "", "127.0.0.1:x")
_HEADERS = (
    "Transfer-Encoding: chunked", "Expect: 100-continue", "Content-Length: 3", "Connection: keep-alive", ": x", "x",
    "X: " + "y" * 70_000, "Content-Type: application/octet-stream", "Upgrade: websocket", " folded: x", "\0: \0",
)  # fmt: skip


class PageRequests:
    """Requests with odd lines, headers and lengths, and damaged ones.

    Oracle: no answer, or one of HTTP/1.1 with a status of the page's, and nothing on standard error; afterwards the
    page is served. With another host name, no image is answered.
    """

    def __init__(self, base: Path) -> None:
        self._asked = 0
        server = PageServer(self._answer, name="a model").__enter__()
        self._port = urlsplit(server.url).port or 0

    def _answer(self, image: bytes) -> dict[str, Any]:
        self._asked += 1
        if image.startswith(b"bad"):
            raise ImageError("not an image", what="images[0]")
        if image.startswith(b"many"):
            raise OverloadedError("busy")
        return {"predictions": []}

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        body = choose(rng, (b"good", b"bad", b"many", b"", rng.bytes(3000)))
        host = choose(rng, ("127.0.0.1",) * 6 + _HOSTS)
        length = str(len(body)) if rng.random() < 0.6 else choose(rng, _LENGTHS)
        lines = [f"Host: {host}", f"Content-Length: {length}", "Content-Type: application/octet-stream"]
        for _ in range(int(rng.integers(0, 3))):
            lines.insert(int(rng.integers(len(lines) + 1)), choose(rng, _HEADERS))
        if rng.random() < 0.2:
            del lines[int(rng.integers(len(lines)))]
        method, path = (
            choose(rng, ("POST",) * 4 + ("GET", "HEAD", "PUT", "x")),
            choose(rng, ("/predict",) * 4 + ("/", "*")),
        )
        version = choose(rng, ("HTTP/1.1",) * 4 + ("HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/9" * 30, ""))
        head = "\r\n".join([f"{method} {path} {version}", *lines]).encode() + b"\r\n\r\n"
        request, note = head + body, f"{method} {path} {version:.20} {'; '.join(lines):.100}"
        if rng.random() < 0.4:
            note, request = damaged(rng, request)

        def call() -> bytes:
            asked, answer = self._asked, self._send(request)
            assert self._send(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").startswith(
                b"HTTP/1.1 200 "
            ), "the page is no longer served"
            foreign = b"evil" in request and request.count(b"Host:") == 1
            assert not (foreign and self._asked > asked), "an image for another host name was answered"
            return answer

        def check(answer: bytes) -> str | None:
            if not answer or answer.startswith((b"<!DOCTYPE", b"{", b"<!doctype")):  # HTTP/0.9 has no status line
                return None
            status = answer.partition(b"\r\n")[0].split(b" ")
            if status[0] != b"HTTP/1.1" or int(status[1]) not in _STATUSES:
                return f"the answer is {answer[:200]!r}"
            return None

        return Case(note, ("verify",), frozenset({PASSED}), check, call)

    def _send(self, request: bytes) -> bytes:
        """All that the server sends until it closes the connection."""
        answer = b""
        with socket.create_connection(("127.0.0.1", self._port), timeout=_TIMEOUT_S) as connection:
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                while part := connection.recv(1 << 16):
                    answer += part
            except TimeoutError:
                raise
            except OSError:
                pass  # the server closed the connection before it read everything
        return answer
