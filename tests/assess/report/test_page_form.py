"""Pages of reports: one file, everything in it, nothing else loaded, nothing unescaped, used without eyes."""

from __future__ import annotations

import base64
import dataclasses
import io
import itertools
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from pages import HOSTILE, Page, hostile_report, written
from PIL import Image
from raising import raises

from vitdeploy.assess.report import page as page_module
from vitdeploy.assess.report.example_images import ExampleImage
from vitdeploy.assess.report.page import write_html
from vitdeploy.assess.report.report import Report
from vitdeploy.errors import ImageError, MissingDependencyError, OutputError
from vitdeploy.predictor import Prediction


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("image") / 'a "b" <i>.png'
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(path)
    return path


@pytest.fixture(scope="module")
def report(image: Path) -> Report:
    return hostile_report(image)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Page:
    return written(tmp_path_factory.mktemp("page") / "report.html", report)


def test_a_class_name_is_a_heading_as_it_is() -> None:
    jinja2 = pytest.importorskip("jinja2")
    folder = jinja2.FileSystemLoader(Path(page_module.__file__).with_name("templates"))
    environment = jinja2.Environment(loader=folder, autoescape=True)
    environment.filters["labelled"] = page_module.labelled
    template = environment.from_string(
        '{% import "macros.html" as m %}'
        '{% call m.table("", ["<b", "<<c"], "", true) %}{% endcall %}{% call m.table("", ["<Output"]) %}{% endcall %}'
    )
    assert re.findall(r"<th\b[^>]*>(.*?)</th>", template.render()) == ["&lt;b", "&lt;&lt;c", "Output"]


def test_a_cell_has_the_name_of_its_column() -> None:
    rows = Markup(
        '<tr><th scope="row">a &lt;td&gt;</th><td class="x">1</td><td>2</td></tr>\n<tr><td colspan="2">b</td></tr>'
    )
    assert page_module.labelled(rows, ("Artifact", '<"Best" & last', "Time")) == (
        '<tr><th scope="row">a &lt;td&gt;</th><td data-label="&#34;Best&#34; &amp; last" class="x">1</td>'
        '<td data-label="Time">2</td></tr>\n<tr><td colspan="2">b</td></tr>'
    )


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
    assert any(text.startswith("$x^$<b> fp32: median 2.5 ms (2 runs") for text in page.text["text"])
    assert len(page.all("img")) == 2


def test_the_page_can_be_used_without_seeing_it(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))
    assert all(picture.get("alt") for picture in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption")) == 10
    assert all(header.get("scope") in {"row", "col"} for header in page.all("th"))
    levels = [int(name[1]) for name, _ in page.elements if name in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert all(next_ <= level + 1 for level, next_ in itertools.pairwise(levels))
    scrolled = [item for item in page.all("div") if "scroll" in (item.get("class") or "").split()]
    assert len(scrolled) == 10
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
    example = ExampleImage(
        "large.jpg", "newt", {"torch": Prediction("newt", 0, 1.0)}, (tmp_path / "large.jpg").read_bytes
    )
    large = dataclasses.replace(report, examples={"Large": [example]})
    (picture,) = written(tmp_path / "report.html", large).all("img")
    assert (picture["width"], picture["height"]) == ("320", "160")
    assert "class" not in picture


def test_an_image_that_is_gone_is_named_in_its_place(report: Report, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")

    def gone() -> bytes:
        raise ImageError("cannot read 'a.png': gone")

    best = {"torch": Prediction("newt", 0, 1.0)}
    examples = [
        ExampleImage("a.png", "newt", best, gone),
        ExampleImage("b.png", "newt", best, (tmp_path / "broken.png").read_bytes),
    ]
    page = written(tmp_path / "report.html", dataclasses.replace(report, examples={"Gone": examples}))
    assert page.all("img") == []
    assert "cannot read 'a.png': gone" in page.text["p"]
    assert any(text.startswith("cannot read 'b.png': ") for text in page.text["p"])
    assert page.text["h4"] == ["Class newt", "Class newt"]


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
    with raises(OutputError, where=target / "below-a-file.html"):
        write_html(target / "below-a-file.html", report)
    (tmp_path / "folder").mkdir()
    with raises(OutputError, where=tmp_path / "folder"):
        write_html(tmp_path / "folder", report)
    assert not list(tmp_path.glob("*.partial-*"))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_says_what_to_install(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("page", "plots"):
        monkeypatch.delitem(sys.modules, f"vitdeploy.assess.report.{module}")
    monkeypatch.setitem(sys.modules, package, None)
    with raises(MissingDependencyError, extra="report"):
        import vitdeploy.assess.report.page  # noqa: F401
