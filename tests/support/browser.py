"""Headless Chromium, driven by Playwright; tests that need it are skipped where there is none."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, Page

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_LIMIT_S = 120  # of all tests of a browser; seen: 6
_DESK = 600  # pixels; what is narrower is a phone


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """The system's browser, ended with the block; without a sandbox, which root cannot have. The pages are our own.

    It is killed after two minutes: no timeout of Playwright's ends a page's endless script.
    """
    for name in _PROGRAMS:
        program = shutil.which(name)
        if program and subprocess.run([program, "--version"], capture_output=True, check=False).returncode == 0:
            break
    else:
        pytest.skip("needs Chromium; where apt may install it: make chromium")
    with tempfile.TemporaryDirectory() as folder:
        limited = Path(folder, "limited")
        limited.write_text(f'#!/bin/sh\nexec timeout -s KILL {_LIMIT_S} "{program}" "$@"\n', encoding="utf-8")
        limited.chmod(0o755)
        with (
            sync_api.sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=limited, args=["--no-sandbox"]) as opened,
        ):
            yield opened


@contextlib.contextmanager
def open_page(browser: Browser, place: Path | str, width: int, height: int, *, dark: bool = False) -> Iterator[Page]:
    """A loaded page, of a file or an address, in a window of that size, in pixels."""
    with browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        is_mobile=width < _DESK,
    ) as page:
        page.goto(place if isinstance(place, str) else place.as_uri())
        yield page
