"""Headless Chromium, told what to do over its own protocol; tests that need it are skipped where there is none."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Without a sandbox, for it cannot have one as root; the pages are our own.
_FLAGS = ("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--no-first-run", "--disable-gpu",
          "--disable-dev-shm-usage", "--disable-background-networking", "--hide-scrollbars")  # fmt: skip
_CODES = {"Tab": 9, "Enter": 13, "ArrowRight": 39}
_DESK = 600  # pixels; what is narrower is a phone
_LONGEST_S = 120  # then the browser is ended: a test fails, and does not wait for ever
# The browser's ends of the pipes must be its descriptors 3 and 4.
_EXEC = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
)


def chromium() -> str:
    """The browser's program; the test is skipped where there is none."""
    for name in _NAMES:
        found = shutil.which(name)
        if found is not None and subprocess.run([found, "--version"], capture_output=True, check=False).returncode == 0:
            return found
    pytest.skip("needs Chromium; where apt may install it: make chromium")


class Browser:
    """One tab: https://chromedevtools.github.io/devtools-protocol, over a pipe."""

    def __init__(self, read: BinaryIO, write: BinaryIO) -> None:
        self._read, self._write = read, write
        self._number, self._rest, self._session = 0, b"", ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, page: Path, width: int, height: int, *, dark: bool = False) -> None:
        """Load a page in a window of that size, in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < _DESK}
        self._ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Page.enable")
        self._ask("Page.navigate", url=page.as_uri())
        self.run("new Promise(done => document.readyState === 'complete' ? done() : addEventListener('load', done))")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        found = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key, as a keyboard does: Tab, Enter or ArrowRight."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_CODES[key], **text)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                found: dict[str, Any] = answer["result"]
                return found

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = self._read.read(1 << 16)
            assert part, "the browser ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(line)
        return found


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser whose profile is that folder; it is ended with the block, and when what runs this ends."""
    program = chromium()
    theirs_in, ours_out = _pipe()
    ours_in, theirs_out = _pipe()
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _EXEC, str(theirs_in), str(theirs_out), program, *_FLAGS,
         f"--user-data-dir={profile}"],
        pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    watchdog = threading.Timer(_LONGEST_S, process.kill)
    watchdog.start()
    try:
        with os.fdopen(ours_in, "rb", 0) as read, os.fdopen(ours_out, "wb", 0) as write:
            yield Browser(read, write)
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(10)


def _pipe() -> tuple[int, int]:
    """Descriptors from 10 up, out of the way of those that the browser wants."""
    ends = []
    for end in os.pipe():
        ends.append(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10))
        os.close(end)
    return ends[0], ends[1]
