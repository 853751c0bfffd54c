"""The page in headless Chromium: an image in, an answer out; at a desk and on a phone, in both themes, by keyboard."""

from __future__ import annotations

import base64
import contextlib
import io
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from browser import browser, open_page
from PIL import Image
from playwright.sync_api import Browser, Page, expect

from vitdeploy.errors import ImageError
from vitdeploy.serving.page.page_server import MOST_BYTES, PageServer

DESK, PHONE = (1400, 900), (390, 844)
HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>"
LONG = "a_label_without_any_space_that_is_longer_than_a_phone_is_wide_" * 2
CLASSES = {
    "predictions": [{"label": HOSTILE, "score": 0.75}, {"label": LONG, "score": 0.125}, {"label": "newt", "score": 0}],
    "probabilities": True,
}
VECTOR = {"values": [["Values of the vector", 384], ["L2 norm", "12.5"]]}
ROWS = "[...document.querySelectorAll('#rows tr')].map(row => [...row.children].map(cell => cell.textContent))"
FILLED = """[...document.querySelectorAll('.track')]
    .map(track => track.firstChild.getBoundingClientRect().width / track.getBoundingClientRect().width)"""
VALUES = """Object.fromEntries([...document.querySelectorAll('#values dt')]
    .map(name => [name.textContent, name.nextElementSibling.textContent]))"""
TOO_WIDE = """width => [...document.querySelectorAll('main *')]
    .filter(each => each.getBoundingClientRect().right > width + 0.5).map(each => each.outerHTML.slice(0, 80))"""
DROP = """([content, name]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(content), each => each.charCodeAt(0))], name));
    for (const type of ['dragover', 'drop'])
        document.getElementById('drop').dispatchEvent(
            new DragEvent(type, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


def png(colour: tuple[int, int, int], size: tuple[int, int] = (640, 480)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def file(content: bytes, name: str = "a photo.png") -> Any:
    return {"name": name, "mimeType": "image/png", "buffer": content}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@contextlib.contextmanager
def opened(
    chromium: Browser,
    answer: Callable[[bytes], dict[str, Any]] = lambda _: CLASSES,
    size: tuple[int, int] = DESK,
    *,
    dark: bool = False,
) -> Iterator[Page]:
    """The page of a model; no script may fail in it."""
    problems: list[str] = []
    with (
        PageServer(answer, name="vit-tiny <b>", facts="onnx-fp32, 10 classes") as server,
        open_page(chromium, server.url, *size, dark=dark) as tab,
    ):
        tab.on("pageerror", lambda problem: problems.append(str(problem)))
        tab.on("console", lambda said: problems.append(said.text) if "Security Policy" in said.text else None)
        tab.set_default_timeout(20_000)
        expect(tab).to_have_title("vit-tiny <b>", timeout=20_000)
        yield tab
    assert problems == []


def answered(tab: Page) -> None:
    tab.wait_for_selector("#values:not([hidden])")


def test_a_chosen_image_is_shown_with_labels_scores_and_latency(chromium: Browser) -> None:
    received = []

    def answer(image: bytes) -> dict[str, Any]:
        received.append(image)
        return CLASSES

    with opened(chromium, answer) as tab:
        tab.set_input_files("#file", file(png((200, 30, 30))))
        answered(tab)
        assert received == [png((200, 30, 30))]
        assert tab.evaluate(ROWS) == [[HOSTILE, "", "75.00 %"], [LONG, "", "12.50 %"], ["newt", "", "0.00 %"]]
        assert tab.evaluate(FILLED) == pytest.approx([0.75, 0.125, 0], abs=0.01)
        values = tab.evaluate(VALUES)
        assert list(values) == ["Latency of the model server", "Latency in this browser"]
        assert all(float(value.removesuffix(" ms")) >= 0 for value in values.values())
        assert tab.inner_text("#status") == f"Best: {HOSTILE}."
        assert tab.inner_text("#facts") == "onnx-fp32, 10 classes"
        tab.wait_for_selector("#preview:not([hidden])")
        assert tab.evaluate("[preview.naturalWidth, preview.naturalHeight]") == [640, 480]
        # a label is text: it makes no element, and no script of it runs
        assert tab.evaluate("document.querySelectorAll('#rows img, #rows script, #status *').length") == 0
        assert tab.title() == "vit-tiny <b>"


def test_an_image_is_dropped_and_a_vector_has_its_size_and_norm(chromium: Browser) -> None:
    with opened(chromium, lambda _: VECTOR) as tab:
        tab.evaluate(DROP, [base64.b64encode(png((1, 2, 3))).decode(), "dropped.png"])
        answered(tab)
        values = tab.evaluate(VALUES)
        assert list(values.items())[:2] == [("Values of the vector", "384"), ("L2 norm", "12.5")]
        assert len(values) == 4
        assert tab.is_hidden("#predictions")
        assert tab.inner_text("#file-name") == "dropped.png"


def test_a_problem_is_told_and_the_next_image_is_answered(chromium: Browser) -> None:
    def answer(image: bytes) -> dict[str, Any]:
        if image == b"text":
            raise ImageError("cannot read the image: it is <b>empty</b>")
        return CLASSES

    with opened(chromium, answer) as tab:
        tab.set_input_files("#file", file(b"text", "x.heic"))
        tab.wait_for_selector("#error:not([hidden])")
        assert tab.inner_text("#error") == "cannot read the image: it is <b>empty</b>"
        tab.wait_for_selector("#file-name:has-text('cannot display')")
        assert tab.is_hidden("#values")
        tab.set_input_files("#file", file(png((9, 9, 9))))
        answered(tab)
        assert tab.is_hidden("#error")
        tab.evaluate("predict(new File([new Uint8Array(%d)], 'large.png'))" % (MOST_BYTES + 1))  # noqa: UP031
        tab.wait_for_selector("#error:not([hidden])")
        assert "at most 32 MiB" in tab.inner_text("#error")


def test_a_server_that_stopped(chromium: Browser) -> None:
    with PageServer(lambda _: CLASSES, name="vit") as server, open_page(chromium, server.url, *DESK) as tab:
        expect(tab).to_have_title("vit", timeout=20_000)
        server.__exit__()
        tab.route("**/predict", lambda route: route.abort("connectionrefused"))  # a connection that was kept
        tab.set_input_files("#file", file(png((9, 9, 9))))
        tab.wait_for_selector("#error:not([hidden])")
        assert "does not answer" in tab.inner_text("#error")


def test_a_slow_answer_is_not_shown_for_the_next_image(chromium: Browser) -> None:
    slow, quick, release = png((1, 1, 1)), png((2, 2, 2)), threading.Event()

    def answer(image: bytes) -> dict[str, Any]:
        if image == slow:
            release.wait(20)
        label = "slow" if image == slow else "quick"
        return {"predictions": [{"label": label, "score": 1.0}], "probabilities": True}

    with opened(chromium, answer) as tab:
        tab.set_input_files("#file", file(slow))
        tab.set_input_files("#file", file(quick))
        answered(tab)
        release.set()
        tab.wait_for_timeout(200)
        assert tab.evaluate(ROWS) == [["quick", "", "100.00 %"]]


@pytest.mark.parametrize(("size", "dark"), [(DESK, True), (PHONE, False)])
def test_it_fits_the_window_and_is_painted(chromium: Browser, size: tuple[int, int], dark: bool) -> None:
    with opened(chromium, size=size, dark=dark) as tab:
        tab.set_input_files("#file", file(png((128, 128, 128), (3000, 400)), f"{LONG}.png"))
        answered(tab)
        tab.wait_for_selector("#preview:not([hidden])")
        assert tab.evaluate(TOO_WIDE, size[0]) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        side_by_side = "document.querySelectorAll('.card')[1].getBoundingClientRect().left > innerWidth / 3"
        assert tab.evaluate(side_by_side) == (size == DESK)
        with Image.open(io.BytesIO(tab.screenshot())) as picture:
            pixels = np.asarray(picture.convert("L"))
    assert pixels.std() > 5
    assert (pixels.mean() < 100) == dark


def test_it_is_used_by_keyboard_and_read_aloud(chromium: Browser) -> None:
    with opened(chromium) as tab:
        tab.on("filechooser", lambda chooser: chooser.set_files(file(png((3, 3, 3)))))
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.id") == "file"
        assert tab.evaluate("getComputedStyle(document.getElementById('drop')).outlineStyle") == "solid"
        tab.keyboard.press("Enter")
        answered(tab)
        roles = tab.evaluate("['error', 'status'].map(id => document.getElementById(id).getAttribute('role'))")
        assert roles == ["alert", "status"]
        assert tab.get_attribute("#preview", "alt") == "The chosen image, a photo.png"
        name = "document.querySelector('#file').labels[0].textContent.replace(/\\s+/g, ' ').trim()"
        assert tab.evaluate(name).startswith("Drop an image here, paste one, or choose a file")
