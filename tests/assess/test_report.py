"""Reports: one file, everything in it, nothing else loaded, nothing unescaped."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import re
import sys
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.assess.accuracy import Predictions
from vitdeploy.assess.compare import BackendComparison, Comparison
from vitdeploy.assess.difference import Difference, compare_outputs
from vitdeploy.assess.evaluate import Evaluation
from vitdeploy.assess.latency import Benchmark, Latency, NotMeasured
from vitdeploy.assess.layers import ArtifactLayers, PartDifference
from vitdeploy.assess.page import write_html
from vitdeploy.assess.report import Report
from vitdeploy.assess.shown_images import Sample
from vitdeploy.errors import ImageError, MissingDependencyError, OutputError
from vitdeploy.predictor import Prediction
from written_results import EVALUATION, LAYERS

if TYPE_CHECKING:
    from pathlib import Path

HOSTILE = "<script>alert('$x$ & \"')</script>"
_VOID = {"meta", "img", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """A page's elements with their attributes, and the text that each kind of element holds, and all of it in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.ordered: list[tuple[str, str]] = []
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
            tag, text = self.open[-1] if self.open else "", " ".join(data.split())
            self.text.setdefault(tag, []).append(text)
            self.ordered.append((tag, text))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / 'a "b" <i>.png'
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


@pytest.fixture(scope="module")
def report(image: Path) -> Report:
    logits = np.array([[1.0, 2.0], [4.0, 3.0]])
    differences = compare_outputs({"logits": logits}, {"logits": logits + 2e-4})
    results = (
        BackendComparison("onnx-fp32", "onnxruntime", 1e-4, differences, {"engine": "x"}),
        BackendComparison("engine-fp16", "elsewhere", 1e-2, skipped="no device"),
    )
    latencies = (
        Latency(
            "reference", "torch", "fp32", 1, ((4.0, 5.0, 6.0),),
            processing_ms=0.123, details={"engine": "torch 9", "providers": ["a", "b"]},
        ),
        Latency("x", "$x^$<b>", "fp32", 1, ((2.0, 2.5, 40.0),)),
        Latency("reference", "torch", "fp32", 8, ((16.0,),)),
    )  # fmt: skip
    right, wrong = Prediction(HOSTILE, 1, 0.75), Prediction("newt", 0, 0.5)
    samples = {
        "First": [Sample(image.name, HOSTILE, {"torch": right, "onnxruntime": wrong}, image.read_bytes)],
        "Second": [Sample(image.name, "newt", {"torch": wrong}, image.read_bytes)],
        "Empty": [],
    }
    return Report(
        title=f"A report of {HOSTILE}",
        source={"model": HOSTILE, "revision": ""},
        machine={"cpu": "abacus"},
        comparison=Comparison("bundle", 2, False, results),
        layers=LAYERS,
        evaluation=EVALUATION,
        benchmark=Benchmark("bundle", {}, {"rounds": 1, "batch_sizes": [1, 8]}, latencies),
        samples=samples,
    )


def written(path: Path, result: Any) -> Page:
    write_html(path, result)
    return Page(path)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(tmp_path_factory.mktemp("page") / "report.html", report)


def after(page: Page, cell: str, count: int, *, tag: str = "th") -> list[str]:
    """The text of the cells that follow the first row header of that text."""
    place = page.ordered.index((tag, cell))
    return [text for name, text in page.ordered[place + 1 :] if name in {"td", "span", "strong"}][:count]


def test_figures_of_a_comparison_and_a_benchmark_are_on_the_page(page: Page) -> None:
    cells = page.text["td"]
    assert cells[cells.index("logits") + 1 :][:4] == ["5.00e-05", "0.0001", "2.00e-04", "1.00000000"]
    assert "no device" in cells
    times = "\N{MULTIPLICATION SIGN}"
    assert cells[cells.index("5.000") - 1 :][:8] == [
        "1",
        "5.000",
        "5.800",
        "5.980",
        "200",
        f"1.00{times}",
        "3",
        "0.123",
    ]
    assert cells[cells.index("2.500") - 1 :][:7] == ["1", "2.500", "32.500", "39.250", "400", f"2.00{times}", "3"]
    assert cells[cells.index("16.000") - 1 :][:7] == ["8", "16.000", "16.000", "16.000", "500", f"1.00{times}", "1"]
    values = page.text["strong"]
    assert {"5.0e-05", "100.00%", "75.00%", "50.00%", "layers.1", "2.5 ms"} <= set(values)
    assert "2.0 times as fast as torch fp32" in page.text["span"]
    assert "engine torch 9, providers a, b" in page.text["dd"]
    assert "1, 8" in page.text["dd"]
    assert "Empty" not in page.text["h3"]
    assert "revision" not in page.text["dt"]


def test_figures_of_an_evaluation_are_on_the_page(page: Page) -> None:
    dash = "\N{EN DASH}"
    assert after(page, "reference", 8) == [
        "torch fp32",
        "75.00%",
        f"30.06% {dash} 95.44%",
        "3",
        "4",
        "100.00%",
        "100.00%",
        "0.3500",
    ]
    assert after(page, "x-fp32", 8)[1:7] == ["50.00%", f"15.00% {dash} 85.00%", "2", "4", "75.00%", "25.00%"]
    assert "no such device" in page.text["td"]
    # labels in rows: the artifact takes a newt for a cat, and has nothing finite for another
    matrices = [item for item in page.all("table") if item.get("class") == "matrix"]
    assert len(matrices) == 2
    shares = [item["style"] for item in page.all("td") if item.get("style")]
    assert shares == [f"--share: {share}" for share in ("0.500", "0.500", "1.000", "1.000", "1.000")]
    assert {"reference on torch", "x-fp32 on x", "Bins of x-fp32 on x"} <= set(page.text["summary"])


def test_the_first_layer_that_diverges_is_named(page: Page) -> None:
    item = page.text["li"][page.text["li"].index("onnx-fp32: the first part that diverges is")]
    assert item
    assert page.text["strong"].count("layers.1") == 2
    assert "layers.1 (first)" in page.text["text"]
    assert "not finite" in page.text["td"]
    assert any(text.endswith("no ONNX") for text in page.text["li"])


def test_a_status_is_told_in_words(page: Page) -> None:
    marks = [attributes["class"] for attributes in page.all("span") if "mark" in (attributes.get("class") or "")]
    assert marks[:4] == ["mark skipped", "mark failed", "mark skipped", "mark passed"]  # of the parts of the page
    assert [item.get("class") for item in page.all("li")[-2:]] == ["wrong", None]
    assert [span["aria-label"] for span in page.all("span") if "aria-label" in span] == ["correct", "wrong", "correct"]


def test_the_page_loads_nothing(page: Page) -> None:
    names = {name for name, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for name, attributes in page.elements:
        for key, value in attributes.items():
            assert not key.startswith("on"), (name, key)
            if key in {"src", "href", "xlink:href", "srcset", "action", "data"}:
                assert (value or "").startswith(("data:image/png;base64,", "data:image/jpeg;base64,", "#")), (name, key)
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
    assert len(page.all("img")) == 2


def test_the_page_can_be_used_without_seeing_it(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert all(picture.get("alt") for picture in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) == 9
    assert all(header.get("scope") in {"row", "col"} for header in page.all("th"))
    levels = [int(name[1]) for name, _ in page.elements if name in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert all(next_ <= level + 1 for level, next_ in itertools.pairwise(levels))
    scrolled = [item for item in page.all("div") if item.get("class") == "scroll"]
    assert len(scrolled) == 9
    assert all(item["tabindex"] == "0" and item["role"] == "region" and item["aria-label"] for item in scrolled)
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    targets = {item["href"] for item in page.all("a")} | {f"#{item['aria-labelledby']}" for item in page.all("section")}
    assert targets <= {f"#{name}" for name in identifiers}
    assert page.all("a")[0] == {"class": "skip", "href": "#content"}


def test_images_are_in_the_page(page: Page, image: Path) -> None:
    picture = page.all("img")[0]
    encoded = (picture["src"] or "").partition("base64,")[2]
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as found, Image.open(image) as wanted:
        assert np.array_equal(np.asarray(found), np.asarray(wanted))
    assert (picture["width"], picture["height"], picture["class"]) == ("4", "4", "small")


def test_large_images_are_made_smaller(report: Report, tmp_path: Path) -> None:
    Image.new("RGB", (2000, 1000), "red").save(tmp_path / "large.jpg")
    sample = Sample("large.jpg", "newt", {"torch": Prediction("newt", 0, 1.0)}, (tmp_path / "large.jpg").read_bytes)
    large = dataclasses.replace(report, samples={"Large": [sample]})
    (picture,) = written(tmp_path / "report.html", large).all("img")
    assert (picture["width"], picture["height"]) == ("320", "160")
    assert "class" not in picture


def test_an_image_that_is_gone_is_named_in_its_place(report: Report, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")

    def gone() -> bytes:
        raise ImageError("cannot read 'a.png': gone")

    best = {"torch": Prediction("newt", 0, 1.0)}
    samples = [Sample("a.png", "newt", best, gone), Sample("b.png", "newt", best, (tmp_path / "broken.png").read_bytes)]
    page = written(tmp_path / "report.html", dataclasses.replace(report, samples={"Gone": samples}))
    assert page.all("img") == []
    assert "cannot read 'a.png': gone" in page.text["p"]
    assert any(text.startswith("cannot read 'b.png': ") for text in page.text["p"])
    assert page.text["h4"] == ["Class newt", "Class newt"]


def test_parts_that_are_absent_are_left_out(tmp_path: Path) -> None:
    page = written(tmp_path / "report.html", Report("Bare", {"model": "m"}, {"cpu": "c"}))
    assert page.text["h2"] == page.text["a"][1:] == ["Model", "Machine"]
    assert page.all("table") == page.all("svg") == page.all("figure") == []


def test_a_part_of_which_nothing_ran(tmp_path: Path) -> None:
    skipped = dataclasses.replace(EVALUATION, results=EVALUATION.results[2:])
    layers = dataclasses.replace(LAYERS, results=LAYERS.results[1:])
    benchmark = Benchmark("gone", {}, {}, (), (NotMeasured("x", "x", "fp32", None, "no device"),))
    bare = Report("Bare", {}, {}, layers=layers, evaluation=skipped, benchmark=benchmark)
    page = written(tmp_path / "report.html", bare)
    assert page.all("svg") == []
    assert any("no device" in text for text in page.text["p"])


def test_figures_that_have_no_logarithm_or_no_mean(tmp_path: Path) -> None:
    exact = Difference("logits", 1, True, 0.0, 0.0, 0.0, 1.0, 1.0)
    parts = tuple(PartDifference(name, (exact,)) for name in ("embeddings", "head"))
    layers = dataclasses.replace(LAYERS, results=(ArtifactLayers("onnx-fp32", 0.0, parts),))
    nothing = dataclasses.replace(
        EVALUATION.results[1], classes=np.full((4, 3), -1, np.int32), scores=np.full(4, np.nan, np.float32)
    )
    evaluation = dataclasses.replace(EVALUATION, results=(nothing,))
    page = written(tmp_path / "report.html", Report("Odd", {}, {}, layers=layers, evaluation=evaluation))
    assert len(page.all("svg")) == 3
    assert after(page, "x-fp32", 8)[1:] == ["0.00%", "0.00% \N{EN DASH} 48.99%", "0", "4", "0.00%", "not finite", "4"]
    assert any(text.endswith("no part diverges") for text in page.text["li"])


def test_a_thousand_classes_make_a_small_page(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    labels = tuple(f"class number {index}" for index in range(1000))
    targets = np.arange(5000, dtype=np.int32) % 1000
    classes = np.stack([(targets + generator.integers(0, 2, 5000) * (1 + k)) % 1000 for k in range(5)], axis=1)
    results = tuple(
        Predictions(name, "onnxruntime", "fp32", classes.astype(np.int32), np.full(5000, 0.5, np.float32))
        for name in ("onnx-fp32", "onnx-fp16")
    )
    names = tuple(f"{index}.png" for index in range(5000))
    evaluation = Evaluation("b", "gone", labels, names, targets, "0" * 64, results)
    page = written(tmp_path / "report.html", evaluation)
    assert (tmp_path / "report.html").stat().st_size < 250_000
    assert "the 50 least accurate of 1000 classes" in " ".join(page.text["summary"])
    assert [item for item in page.all("table") if item.get("class") == "matrix"] == []
    assert any("further pairs, none of them more frequent" in text for text in page.text["p"])
    assert page.text["summary"][0] == "onnx-fp32 on onnxruntime, onnx-fp16 on onnxruntime"  # alike, and so told once
    assert len(page.all("img")) == 0
    assert "Misclassified with the highest score: " in page.text["h3"][-1]


def test_equal_reports_are_equal_files(report: Report, tmp_path: Path) -> None:
    write_html(tmp_path / "a.html", report)
    write_html(tmp_path / "b.html", report)
    assert (tmp_path / "a.html").read_bytes() == (tmp_path / "b.html").read_bytes()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    report = Report("One", {}, {})
    target = tmp_path / "new" / "report.html"
    write_html(target, report)
    before = target.read_bytes()
    write_html(target, dataclasses.replace(report, title="Another \ud800\x00"))
    assert "Another \N{REPLACEMENT CHARACTER}".encode() in target.read_bytes() != before
    assert list(target.parent.iterdir()) == [target]
    with pytest.raises(OutputError, match="choose another folder"):
        write_html(target / "below-a-file.html", report)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError):
        write_html(tmp_path / "folder", report)
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("page", "plots"):
        monkeypatch.delitem(sys.modules, f"vitdeploy.assess.{module}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vitdeploy\[report\]'"):
        import vitdeploy.assess.page  # noqa: F401
