"""Reports: one file, everything in it, nothing else loaded, nothing unescaped."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from vitdeploy.assess.accuracy import Accuracy
from vitdeploy.assess.compare import BackendComparison, Comparison
from vitdeploy.assess.difference import compare_outputs
from vitdeploy.assess.latency import Latency
from vitdeploy.assess.report import Report, Sample, write_report
from vitdeploy.errors import MissingDependencyError, OutputError
from vitdeploy.predictor import Prediction

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert('$x$ & \"')</script>"
_VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page's elements with their attributes, and the text that each kind of element holds."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.text.setdefault(self.open[-1] if self.open else "", []).append(" ".join(data.split()))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / 'a "b" <i>.png'
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


@pytest.fixture
def report(image: Path) -> Report:
    logits = np.array([[1.0, 2.0], [4.0, 3.0]])
    differences = compare_outputs({"logits": logits}, {"logits": logits + 2e-4})
    results = (
        BackendComparison("onnx-fp32", "onnxruntime", 1e-4, differences, {"engine": "x"}),
        BackendComparison("engine-fp16", "elsewhere", 1e-2, skipped="no device"),
    )
    right, wrong = Prediction(HOSTILE, 1, 0.75), Prediction("newt", 0, 0.5)
    return Report(
        title=f"A report of {HOSTILE}",
        source={"model": HOSTILE, "revision": ""},
        machine={"cpu": "abacus"},
        comparison=Comparison("bundle", 2, False, results),
        accuracies={"torch": Accuracy(8, 10), "onnxruntime": Accuracy(7, 10)},
        latencies=[
            Latency(
                "reference",
                "torch",
                "fp32",
                1,
                ((4.0, 5.0, 6.0),),
                details={"engine": "torch 9", "providers": ["a", "b"]},
            ),
            Latency("x", "$x^$<b>", "fp32", 1, ((2.0, 2.5, 40.0),)),
            Latency("reference", "torch", "fp32", 8, ((16.0,),)),
        ],
        processing_ms=0.123,
        samples={
            "First": [Sample(image, HOSTILE, {"torch": [right, wrong], "onnxruntime": [wrong]})],
            "Second": [Sample(image, "newt", {"torch": [wrong]})],
            "Empty": [],
        },
    )


@pytest.fixture
def page(report: Report, tmp_path: Path) -> Page:
    return Page(write_report(tmp_path / "report.html", report))


def test_figures_are_on_the_page(page: Page) -> None:
    cells = page.text["td"]
    assert cells[cells.index("logits") + 1 :][:4] == ["5.00e-05", "0.0001", "2.00e-04", "1.00000000"]
    assert "no device" in cells
    assert cells[cells.index("80.00%") :][:4] == ["80.00%", "49.02% \N{EN DASH} 94.33%", "8", "10"]
    assert cells[cells.index("5.000") - 1 :][:7] == [
        "1",
        "5.000",
        "5.800",
        "5.980",
        "200",
        "1.00\N{MULTIPLICATION SIGN}",
        "3",
    ]
    assert cells[cells.index("2.500") - 1 :][:7] == [
        "1",
        "2.500",
        "32.500",
        "39.250",
        "400",
        "2.00\N{MULTIPLICATION SIGN}",
        "3",
    ]
    assert cells[cells.index("16.000") - 1 :][:7] == [
        "8",
        "16.000",
        "16.000",
        "16.000",
        "500",
        "1.00\N{MULTIPLICATION SIGN}",
        "1",
    ]
    assert page.text["strong"] == ["5.0e-05", "100.00%", "80.00%", "70.00%", "2.5 ms"]
    assert "2.0 times as fast as torch fp32" in page.text["span"]
    assert any("0.123 ms more" in text for text in page.text["p"])
    assert "engine torch 9, providers a, b" in page.text["dd"]
    assert "Empty" not in page.text["h3"]
    assert "revision" not in page.text["dt"]


def test_a_status_is_told_in_words(page: Page) -> None:
    marks = [attributes["class"] for attributes in page.all("span") if "mark" in (attributes.get("class") or "")]
    assert marks == ["mark skipped", "mark passed", "mark skipped"]
    assert page.text["span"].count("✗") == 1
    assert [item.get("class") for item in page.all("li")[-2:]] == ["wrong", None]
    assert [span["aria-label"] for span in page.all("span") if "aria-label" in span] == ["correct", "wrong", "correct"]


def test_the_page_loads_nothing(page: Page) -> None:
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for name, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            if key in {"src", "href", "xlink:href", "srcset", "action", "data"}:
                assert (value or "").startswith(("data:image/png;base64,", "#")), (name, key)
            else:
                # The names of XML's namespaces are no addresses.
                assert key.startswith("xmlns") or "//" not in (value or ""), (name, key, value)
    styles = " ".join(page.text["style"])
    assert "@import" not in styles
    assert not re.search(r"url\((?!#)", styles)
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none';")


def test_names_are_text_and_nothing_else(page: Page, image: Path) -> None:
    assert page.text["title"] == [f"A report of {HOSTILE}"]
    assert page.text["h4"] == [f"Class {HOSTILE}", "Class newt"]
    assert page.all("b") == page.all("i") == []
    assert page.all("img")[0]["alt"] == f"{image.name}, of class {HOSTILE}"
    assert any(text.startswith("$x^$<b> fp32: median 2.5 ms, 1 run") for text in page.text["text"])


def test_the_page_can_be_used_without_seeing_it(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert all(picture.get("alt") for picture in page.all("img"))
    assert len(page.all("table")) == len(page.text["caption"]) == 3
    assert all(header.get("scope") in {"row", "col"} for header in page.all("th"))
    assert [name for name, _ in page.elements if name in {"h1", "h2", "h3", "h4"}][:3] == ["h1", "h2", "h2"]
    scrolled = [item for item in page.all("div") if item.get("class") == "scroll"]
    assert all(item["tabindex"] == "0" and item["aria-label"] for item in scrolled)
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))


def test_images_are_in_the_page(page: Page, image: Path) -> None:
    picture = page.all("img")[0]
    encoded = (picture["src"] or "").partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as found, Image.open(image) as wanted:
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
    assert (picture["width"], picture["height"], picture["class"]) == ("4", "4", "small")


def test_large_images_are_made_smaller(report: Report, tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "large.jpg")
    sample = Sample(tmp_path / "large.jpg", "newt", {"torch": [Prediction("newt", 0, 1.0)]})
    large = dataclasses.replace(report, samples={"Large": [sample]})
    (picture,) = Page(write_report(tmp_path / "report.html", large)).all("img")
    assert (picture["width"], picture["height"]) == ("320", "160")
    assert "class" not in picture


def test_parts_that_are_empty_are_left_out(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", Report("Bare", {"model": "m"}, {"cpu": "c"})))
    assert page.text["h2"] == ["Model", "Machine"]
    assert page.all("table") == page.all("svg") == page.all("ul") == []


def test_equal_reports_are_equal_files(report: Report, tmp_path: Path) -> None:
    first = write_report(tmp_path / "a.html", report).read_bytes()
    assert write_report(tmp_path / "b.html", report).read_bytes() == first


def test_a_file_is_replaced_whole_or_not_at_all(report: Report, tmp_path: Path) -> None:
    target = tmp_path / "new" / "report.html"
    write_report(target, report)
    before = target.read_bytes()
    write_report(target, dataclasses.replace(report, title="Another"))
    assert b"Another" in target.read_bytes() != before
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(OutputError, match="choose another folder"):
        write_report(target / "below-a-file.html", report)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        write_report(tmp_path / "folder", report)
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vitdeploy.assess.report")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitdeploy\[report\]'"):
        import vitdeploy.assess.report  # noqa: F401
