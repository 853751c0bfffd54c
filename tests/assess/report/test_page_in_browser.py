"""The page in headless Chromium: at a desk and on a phone, in both themes, by keyboard alone."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import browser, open_page
from PIL import Image
from playwright.sync_api import Browser, Page
from written_results import COMPARISON, EVALUATION, LAYERS, SENSITIVITY, gate_result

from vitdeploy.assess.report.page import write_html
from vitdeploy.assess.report.report import report_of

DESK, PHONE = (1400, 900), (375, 812)
TOO_WIDE = """[...document.querySelectorAll('main *')]
    .filter(each => !each.parentElement.closest('.scroll') && each.getBoundingClientRect().right > innerWidth + 0.5)
    .map(each => each.outerHTML.slice(0, 80))"""
# Texts of a plot that lie over each other, or beyond its edge.
OVERPRINTED = """[...document.querySelectorAll('svg')].flatMap(svg => {
    const edge = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')].filter(each => each.textContent.trim());
    const boxes = texts.map(each => [each.textContent.trim(), each.getBoundingClientRect()]);
    const outside = boxes.filter(([_, box]) => box.left < edge.left - 1 || box.right > edge.right + 1);
    const over = boxes.filter(([_, one], index) => boxes.slice(0, index).some(([_, other]) =>
        Math.min(one.right, other.right) - Math.max(one.left, other.left) > 1 &&
        Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top) > 2));
    return [...outside, ...over].map(([text]) => text);
})"""
# The cells of each row of the checks from top to bottom, by their classes.
READING_ORDER = """[...document.querySelectorAll('#gate ~ .scroll tbody tr')].map(row => [...row.children]
    .sort((one, other) => one.getBoundingClientRect().top - other.getBoundingClientRect().top)
    .map(each => each.tagName === 'TH' ? 'subject' : each.className.replace('text', '').trim()))"""
# All that can be followed, opened or scrolled, but for what a closed <details> hides.
REACHED = """[...document.querySelectorAll('a, summary, .scroll')]
    .filter(each => each.tagName === 'SUMMARY' || !each.closest('details:not([open])'))
    .map(each => each.getAttribute('aria-label') || each.textContent.trim().slice(0, 40))"""
FOCUSED = """(() => {
    const at = document.activeElement, box = at.getBoundingClientRect(), style = getComputedStyle(at);
    return [at.tagName, at.getAttribute('aria-label') || at.textContent.trim().slice(0, 40), style.outlineStyle,
            box.left < innerWidth && box.right > 0 && box.top < innerHeight && box.bottom > 0];
})()"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All parts, long names in all of them, and images but for one."""
    folder = tmp_path_factory.mktemp("page")
    labels = ("a_name_without_any_space_that_is_longer_than_a_phone_is_wide", "dog", "great newt, Triturus cristatus")
    images = tuple(f"{labels[label]}/{index}.png" for index, label in enumerate(EVALUATION.targets))
    for index, name in enumerate(images[:-1]):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (400, 300), (60 * index, 200, 100)).save(folder / name)
    evaluation = dataclasses.replace(EVALUATION, data=str(folder), labels=labels, images=images)
    gate = dataclasses.replace(gate_result(folder / "baseline.json"), evaluation=evaluation)
    report = dataclasses.replace(report_of(gate), comparison=COMPARISON, layers=LAYERS, sensitivity=SENSITIVITY)
    write_html(folder / "page.html", report)
    return folder / "page.html"


@pytest.fixture
def phone(chromium: Browser, page: Path) -> Iterator[Page]:
    with open_page(chromium, page, *PHONE) as tab:
        yield tab


@pytest.mark.parametrize(("size", "dark"), [(DESK, False), (PHONE, False), (PHONE, True)])
def test_it_fits_the_window_and_is_painted(chromium: Browser, page: Path, size: tuple[int, int], dark: bool) -> None:
    with open_page(chromium, page, *size, dark=dark) as tab:
        assert tab.evaluate("innerWidth") == size[0]
        tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert tab.evaluate(TOO_WIDE) == []
        assert tab.evaluate("document.documentElement.scrollWidth") <= size[0]
        shot = tab.screenshot()
    assert shot.startswith(b"\x89PNG")
    with Image.open(io.BytesIO(shot)) as picture:
        assert picture.size == size
        pixels = np.asarray(picture.convert("L"))
    assert pixels.std() > 5
    assert (pixels.mean() < 80) == dark


def test_a_desk_is_used_and_a_phone_shows_the_outcome_and_the_reason_first(chromium: Browser, page: Path) -> None:
    table = "document.querySelector('#gate ~ .scroll').getBoundingClientRect()"
    beyond = """[...document.querySelectorAll('.stacked')].filter(each => each.scrollWidth > each.clientWidth).length"""
    with open_page(chromium, page, *DESK) as tab:
        assert tab.evaluate(f"{table}.width") > 0.9 * DESK[0]
        assert all(row == ["subject", "outcome", "", "wide"] for row in tab.evaluate(READING_ORDER))
    with open_page(chromium, page, *PHONE) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        rows = tab.evaluate(READING_ORDER)
        assert len(rows) == 3
        assert all(row == ["subject", "outcome", "wide", ""] for row in rows)
        assert tab.evaluate(beyond) == 0
        label = "getComputedStyle(document.querySelector('#gate ~ .scroll td:nth-child(3)'), '::before').content"
        assert tab.evaluate(label) == '"Check"'


def test_the_texts_of_plots_do_not_overprint_each_other(chromium: Browser, page: Path) -> None:
    for size in (DESK, PHONE):
        with open_page(chromium, page, *size) as tab:
            assert tab.evaluate("document.querySelectorAll('svg text').length") > 30
            assert tab.evaluate(OVERPRINTED) == []


def test_every_image_and_plot_is_shown(phone: Page) -> None:
    widths = "[...document.querySelectorAll('img')].map(each => [each.naturalWidth, each.naturalHeight])"
    assert phone.evaluate(widths) == [[320, 240]] * 4
    assert phone.evaluate("document.querySelectorAll('.gone').length") == 2
    assert (
        phone.evaluate("[...document.querySelectorAll('svg')].filter(each => each.getBoundingClientRect().height < 60)")
        == []
    )
    # the colours of plots and cells are the theme's
    assert (
        phone.evaluate("getComputedStyle(document.querySelector('.matrix td.right')).backgroundColor")
        != "rgba(0, 0, 0, 0)"
    )
    smallest = """Math.min(...[...document.querySelectorAll('svg text[style]')].map(each => {
        const { a, b } = each.getScreenCTM();
        return parseFloat(getComputedStyle(each).fontSize) * Math.hypot(a, b);
    }))"""
    assert phone.evaluate(smallest) > 9  # pixels


def test_everything_is_reached_by_keyboard(phone: Page) -> None:
    wanted = phone.evaluate(REACHED)
    found = []
    for _ in wanted:
        phone.keyboard.press("Tab")
        name, label, outline, visible = phone.evaluate(FOCUSED)
        assert outline == "solid", (name, label)
        assert visible, (name, label)
        found.append(label)
    assert found == wanted
    assert len(wanted) > 20


def test_a_table_that_is_too_wide_scrolls_by_keyboard(phone: Page) -> None:
    region = "document.querySelector('.scroll:has(.matrix)')"
    phone.evaluate(f"{region}.focus()")
    before = phone.evaluate(f"{region}.scrollLeft")
    for _ in range(3):
        phone.keyboard.press("ArrowRight")
    moved = f"new Promise(done => setTimeout(() => done({region}.scrollLeft), 300))"
    assert (before, phone.evaluate(moved) > 0) == (0, True)


def test_the_skip_link_skips(chromium: Browser, page: Path) -> None:
    with open_page(chromium, page, *DESK) as tab:
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        tab.keyboard.press("Enter")
        assert tab.evaluate("document.activeElement.id") == "content"
