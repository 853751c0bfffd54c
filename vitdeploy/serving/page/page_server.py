"""Serve the page on this machine, and pass its images on to the model server."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vitdeploy.errors import ImageError, OutputError, OverloadedError, VitDeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from typing_extensions import Self

ADDRESS = "127.0.0.1"
MOST_BYTES = 32 * 2**20  # of an image file
_MOST_WAITING = 8  # images that wait for the model server at a time
_TIMEOUT_S = 30.0  # of a silent browser
# A body that arrives more slowly would hold a place: at this rate, the largest image takes two minutes over a tunnel.
_GRACE_S, _LEAST_BYTES_PER_S = 5.0, 256 * 1024
_CHUNK_BYTES = 64 * 1024
_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
_IMAGE = "application/octet-stream"
_PAGE = Path(__file__).with_name("page.html")


class PageServer:
    """The page, and the answers to its images; a context manager that serves in a thread.

    It listens on 127.0.0.1 alone. Requests with another host name are refused, and so are those that another site's
    page could send without asking: a page must not be able to use a server that only this machine can reach.

    Args:
        answer: Answers one image's encoded bytes, as `ServedModel.answer` does; called from several threads.
        name: Name of the model.
        facts: One line about it.
        port: 0 for any free port.

    Raises:
        OutputError: If the port is taken.

    Attributes:
        url: The page's address.
    """

    def __init__(
        self, answer: Callable[[bytes], Mapping[str, Any]], *, name: str, facts: str = "", port: int = 0
    ) -> None:
        content = _PAGE.read_bytes()
        handler = type("Handler", (_Handler,), {
            "page": content,
            "policy": _policy(content.decode()),
            "model": json.dumps({"name": name, "facts": facts, "most_bytes": MOST_BYTES}).encode(),
            "answer": staticmethod(answer),
            "places": threading.BoundedSemaphore(_MOST_WAITING),
        })  # fmt: skip
        try:
            self._server = _Server((ADDRESS, port), handler)
        except OSError as exc:
            raise OutputError(
                f"the page cannot listen on port {port}: {exc.strerror}", what="page_port", found=port,
                hint="choose another with --page-port",
            ) from exc  # fmt: skip
        self.url = f"http://{ADDRESS}:{self._server.server_address[1]}/"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), name="page", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a browser keeps its connection; the process need not wait for it

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of a defect; a browser that went away is none."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    page: ClassVar[bytes]
    policy: ClassVar[str]
    model: ClassVar[bytes]
    answer: ClassVar[Callable[[bytes], Mapping[str, Any]]]
    places: ClassVar[threading.BoundedSemaphore]

    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT_S

    def do_GET(self) -> None:
        """Serve the page, and what it asks about the model."""
        path = self._path()
        if not self._is_ours():
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, f"This page is at http://{ADDRESS}.")
        elif path == "/":
            self._send(HTTPStatus.OK, self.page, "text/html; charset=utf-8")
        elif path == "/model":
            self._send(HTTPStatus.OK, self.model)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    do_HEAD = do_GET  # noqa: N815  (the name that http.server calls)

    def do_POST(self) -> None:
        """Answer an image."""
        length, closes = self.headers["Content-Length"] or "", self.close_connection
        self.close_connection = True  # unless the body is read
        if not self._is_ours():
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST, f"This page is at http://{ADDRESS}.")
        elif self._path() != "/predict":
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
        elif self.headers["Content-Type"] != _IMAGE:
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"Send the image file's bytes as {_IMAGE}.")
        elif not re.fullmatch("[0-9]{1,18}", length) or self.headers["Transfer-Encoding"]:
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "The request does not say how long it is.")
        elif int(length) > MOST_BYTES:
            problem = f"The file has {int(length) / 2**20:.1f} MiB; at most {MOST_BYTES // 2**20} MiB are taken."
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, problem)
        elif not self.places.acquire(timeout=_TIMEOUT_S):  # before the body is in memory
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "Too many images are waiting. Try again in a moment.")
        else:
            try:
                self._predict(int(length), closes)
            finally:
                self.places.release()

    def _predict(self, length: int, closes: bool) -> None:
        try:
            image = self._read_body(length)
        except TimeoutError:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, "The image arrived too slowly. Try again.")
            return
        if len(image) < length:
            return  # the browser went away
        self.close_connection = closes
        begin = time.perf_counter()
        try:
            found = dict(type(self).answer(image))
        except VitDeployError as exc:
            self._refuse(_status(exc), str(exc))
            return
        except Exception:
            self.close_connection = True
            self._refuse(
                HTTPStatus.INTERNAL_SERVER_ERROR, "This is a defect of vitdeploy; the terminal has the reason."
            )
            raise
        found["server_ms"] = 1e3 * (time.perf_counter() - begin)
        self._send(HTTPStatus.OK, json.dumps(found).encode())

    def _read_body(self, length: int) -> bytes:
        """The body, or less if the browser goes away; TimeoutError if it arrives too slowly."""
        body, begin = bytearray(), time.monotonic()
        while len(body) < length:
            left_s = begin + _GRACE_S + len(body) / _LEAST_BYTES_PER_S - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self.connection.settimeout(left_s)
            chunk = self.rfile.read1(min(length - len(body), _CHUNK_BYTES))
            if not chunk:
                break
            body += chunk
        self.connection.settimeout(_TIMEOUT_S)
        return bytes(body)

    def _path(self) -> str:
        """The path without a query; any text of a client's is one."""
        return self.path.partition("?")[0]

    def _is_ours(self) -> bool:
        """False for a name that another site's owner has pointed to this machine (DNS rebinding)."""
        name = re.sub(r":[0-9]*\Z", "", self.headers["Host"] or "")
        return name.lower() in _NAMES

    def _refuse(self, status: HTTPStatus, problem: str) -> None:
        self._send(status, json.dumps({"error": problem}).encode())

    def _send(self, status: HTTPStatus, content: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def end_headers(self) -> None:
        """Add the headers of every response, those to malformed requests too."""
        for name, value in {
            "Content-Security-Policy": self.policy,
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        super().end_headers()

    def version_string(self) -> str:
        """Tell no versions."""
        return "vitdeploy"

    def log_message(self, *_: object) -> None:
        """Print nothing: the terminal is the model server's."""


def _policy(page: str) -> str:
    """A policy that allows the page's own script and style, by their hashes, and nothing else."""
    hashes = {
        tag: " ".join(
            f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for text in re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        )
        for tag in ("script", "style")
    }
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; img-src blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _status(error: VitDeployError) -> HTTPStatus:
    if isinstance(error, ImageError):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    return HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, OverloadedError) else HTTPStatus.BAD_GATEWAY
