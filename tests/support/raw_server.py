"""A server on loopback that is not the Hub: each answer is written by the test, byte for byte."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

COMMIT = "a" * 40


@dataclass(frozen=True)
class Exchange:
    """One request, and the way to answer it."""

    method: str
    path: str
    url: str
    write: Callable[[bytes], object]

    def reply(
        self,
        status: str = "200 OK",
        headers: Mapping[str, str | None] | None = None,
        body: bytes = b"",
        **more: int | str,
    ) -> None:
        """Answer whole; `length` replaces the true Content-Length, and a header of None is left out."""
        lines = {"Connection": "close", "Content-Length": str(more.get("length", len(body))), **(headers or {})}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value is not None)
        self.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + (b"" if self.method == "HEAD" else body))

    def drip(self, seconds: float = 0.05) -> None:
        """Send a byte at a time until the client goes."""
        with contextlib.suppress(OSError):
            while True:
                self.write(b"x")
                time.sleep(seconds)


@dataclass
class RawServer:
    """Attributes: url: its address; requests: the method and path of each request."""

    url: str = ""
    requests: list[str] = field(default_factory=list)


@contextlib.contextmanager
def raw_server(answer: Callable[[Exchange], Any]) -> Iterator[RawServer]:
    """Answer every request by `answer`, and close its connection, until the block ends."""
    state = RawServer()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            method, path = self.rfile.readline().decode().split()[:2]
            while self.rfile.readline().strip():
                pass
            state.requests.append(f"{method} {path}")
            with contextlib.suppress(OSError):  # the client is gone
                answer(Exchange(method, path, state.url, self.wfile.write))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


def listing(*names: str) -> bytes:
    """The Hub's description of a model with these files."""
    return json.dumps({"id": "org/vit", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}).encode()
