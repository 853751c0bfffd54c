"""Requests to the example application, given to it as an ASGI server gives them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from environments import ROOT

from fuzz.cases import PASSED, Case
from fuzz.damage import choose, damaged
from fuzz.images import Images

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

_EXAMPLE = ROOT / "examples" / "fastapi_app"
_MOST_BYTES = 100_000
_CLASSES = 3
_ALLOWED = frozenset({200, 307, 404, 405, 408, 413, 422, 503})
_BATCH = "/predict/batch"
_PATHS = (
    "/predict",
    "/predict",
    "/predict",
    "/predict",
    _BATCH,
    _BATCH,
    "/health",
    "/ready",
    "/metrics",
    "/",
    "/x",
    "/predict/",
    "//",
)
_NUMBERS = ("1", "3", "0", "-1", "1e3", "9" * 30, "9" * 5000, "", "x", "1&top_k=2", "%", "%00", "\u0661", "nan")
_LENGTHS = ("0", "1", "100001", "9" * 30, "00", "+1")  # a server refuses those that are no number
_TYPES = ("image/png", "application/json", "multipart/form-data", "multipart/form-data; boundary=x", "", "\xff")


class ApplicationRequests:
    """Methods, paths, queries, headers and bodies.

    Oracle: one of the application's statuses, never 500; a 200 has classes whose scores sum to at most 1. A good image
    after each request is still answered.
    """

    def __init__(self, base: Path) -> None:
        sys.path.append(str(_EXAMPLE))
        settings = {"BUNDLE": str(base / "bundle"), "MAX_BODY_BYTES": str(_MOST_BYTES), "BODY_TIMEOUT": "0.2"}
        before = dict(os.environ)
        os.environ.update(settings)
        self._app: Any = importlib.import_module("app").app
        self._loop, self._open = asyncio.new_event_loop(), contextlib.AsyncExitStack()
        self._loop.run_until_complete(self._open.enter_async_context(self._app.router.lifespan_context(self._app)))
        os.environ.clear()  # the application's limit of pixels is not that of the other classes
        os.environ.update(before)
        self._good = (base / "data" / "cat" / "0.png").read_bytes()

    def make(self, rng: np.random.Generator, folder: Path) -> Case:
        draw = rng.random()
        if draw < 0.2:
            note, body = "good", self._good
        elif draw < 0.3:
            note, body = "large", bytes(_MOST_BYTES + int(rng.integers(0, 2)))
        elif draw < 0.4:
            note, body = damaged(rng, b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--x--\r\n')
        else:
            note, body = Images.content(rng)
        method, path = choose(rng, ("POST", "POST", "POST", "GET", "PUT", "HEAD", "x")), choose(rng, _PATHS)
        if path == _BATCH and rng.random() < 0.8:
            body = json.dumps([base64.b64encode(image).decode() for image in (body, self._good)]).encode()
        query = f"top_k={choose(rng, _NUMBERS)}" if rng.random() < 0.4 else ""
        headers = [(b"content-type", choose(rng, _TYPES).encode("latin-1"))]
        if rng.random() < 0.3:
            headers.append((b"content-length", choose(rng, _LENGTHS).encode()))
        parts = int(rng.integers(1, 5))
        chunks = [body[index * len(body) // parts : (index + 1) * len(body) // parts] for index in range(parts)]
        ends = choose(rng, ("whole", "whole", "whole", "gone", "silent"))

        def call() -> tuple[int, bytes]:
            answered = self._ask(method, path, query, headers, chunks, ends)
            status, content = self._ask("POST", "/predict", "", [], [self._good], "whole")
            assert status == 200, f"a good image is answered with {status} {content!r:.200}"
            return answered

        def check(answered: tuple[int, bytes]) -> str | None:
            status, content = answered
            if ends == "gone":
                return None  # nobody takes the answer
            if status not in _ALLOWED:
                return f"status {status}: {content!r:.300}"
            if status == 200 and path in ("/predict", _BATCH) and method == "POST":
                answer = json.loads(content)
                images = [{"predictions": answer}] if path == "/predict" else answer
                if path == _BATCH and (len(images) != 2 or "predictions" not in images[1]):
                    return f"a batch with a good image is answered with {images}"
                for image in images:
                    scores = [best["score"] for best in image.get("predictions", ())]
                    if "error" not in image and (not 1 <= len(scores) <= _CLASSES or not 0 <= sum(scores) <= 1 + 1e-5):
                        return f"scores {scores}"
            return None

        note = f"{method} {path}?{query:.40} {ends}: {note}"
        return Case(note, ("verify",), frozenset({PASSED}), check, call)

    def _ask(
        self, method: str, path: str, query: str, headers: list[tuple[bytes, bytes]], chunks: list[bytes], ends: str
    ) -> tuple[int, bytes]:
        """The status and body of the answer; 0 without one."""
        from starlette.requests import ClientDisconnect

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": headers, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
        }  # fmt: skip
        waiting, status, content = list(chunks), 0, b""

        async def receive() -> dict[str, Any]:
            if waiting and (len(waiting) > 1 or ends == "whole"):
                chunk = waiting.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}
            if ends != "gone":
                await asyncio.sleep(60)  # until it is cancelled: the client waits for the answer
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status, content
            status = message.get("status", status)
            content += message.get("body", b"")

        with contextlib.suppress(ClientDisconnect):  # which a server takes from it
            self._loop.run_until_complete(self._app(scope, receive, send))
        return status, content
