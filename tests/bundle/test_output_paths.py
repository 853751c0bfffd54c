"""An output is never an input of the command, nor another output, under any of its names."""

from __future__ import annotations

import collections
import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundles import write_bundle
from raising import raises
from written_results import COMPARISON

import vitdeploy
from vitdeploy.assess.report.markdown import write_markdown
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.errors import InputError, OutputError, UsageError

posix = pytest.mark.skipif(os.name != "posix", reason="there are no such files")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a bundle, a folder of images, a table of another one, and more names of them."""
    monkeypatch.chdir(tmp_path)
    for name in ("bundle/manifest.json", "bundle/onnx/model.onnx", "photos/cat/1.png", "stray.png", "rules.toml"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(name)
    Path("table.csv").write_text("image,label\nstray.png,cat\n")
    Path("blob").write_text("elsewhere")
    Path("bundle/linked.json").symlink_to("../blob")
    Path("photos/cat/2.png").symlink_to("../../blob")
    Path("to-bundle").symlink_to("bundle")
    Path("to-image").symlink_to("photos/cat/1.png")
    os.link("bundle/onnx/model.onnx", "hard-model")
    os.link("photos/cat/1.png", "hard-image")
    os.link("stray.png", "hard-stray")
    return tmp_path


@posix
@pytest.mark.parametrize(
    "output",
    [
        "bundle/manifest.json", "bundle/new.md", "./photos/../bundle/onnx/model.onnx", "to-bundle/onnx/model.onnx",
        "hard-model", "blob", "photos/cat/1.png", "photos/new.JPG", "photos/labels.csv", "to-image", "hard-image",
        "table.csv", "stray.png", "hard-stray", "rules.toml",
    ],
)  # fmt: skip
def test_an_output_is_no_input_under_any_name(here: Path, output: str) -> None:
    inputs = {"images": "photos", "data": "table.csv", "rules": "rules.toml", "none": None}
    for spelling in (output, here / output):
        with raises(UsageError, what="--html"):
            check_outputs({"--html": spelling}, inputs, bundle="bundle")
    with raises(UsageError, what="--html"):
        check_outputs({"--html": output}, {"images": list(map(Path, ("photos", "table.csv", "rules.toml", "bundle")))})


@posix
def test_other_places_are_outputs(here: Path) -> None:
    Path("old.html").write_text("replaced")
    os.link("old.html", "old-too.html")
    inputs = {"images": "photos", "data": "table.csv", "rules": "rules.toml"}
    for output in ("new.html", "old.html", "photos/summary.md", "bundle.html", "/dev/null", "a" * 300, "x\0y"):
        check_outputs({"--html": output, "--junit": None}, inputs, bundle="bundle")
    assert "old.html" in {path.name for path in here.iterdir()}


def test_an_output_is_no_folder_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for one, other in (("a", "a/b"), ("a/b", "a")):
        with raises(OutputError, where="a/b"):
            check_outputs({"--html": one, "--junit": other}, {})
    Path("a").mkdir()
    check_outputs({"--html": "a/b", "--junit": "a"}, {})  # `check_writable` says that "a" is a folder


@posix
@pytest.mark.parametrize("place", ["photos/kept.md", "elsewhere/kept.md", "linked.md", "hard.md"])
def test_a_file_that_is_there_is_part_of_a_folder_by_any_way(here: Path, place: str) -> None:
    """In it, in a folder that a link in it leads to, or with another name in it."""
    Path("elsewhere").mkdir()
    Path("photos/more").symlink_to(here / "elsewhere")
    Path("photos/circle").symlink_to("circle")
    Path(place).write_text("kept")
    if place == "linked.md":
        Path("photos/link").symlink_to(here / place)
    if place == "hard.md":
        os.link(place, "photos/hard")
    with raises(UsageError, what="--junit"):
        check_outputs({"--html": "new", "--junit": place}, {"data": "photos"})


@posix
def test_many_images_are_not_looked_at_one_by_one(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor once for each of several reports that exist."""
    reports = {name: here / name for name in ("--html", "--markdown", "--junit")}
    for report in reports.values():
        report.write_text("old")
    for index in range(300):
        (here / "photos" / "cat" / f"{index}.png").touch()
    calls: collections.Counter[str] = collections.Counter()

    def counted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(path, **options)

        return call

    for name in ("stat", "scandir"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    check_outputs(reports, {"data": "photos"})
    assert calls["stat"] < 100
    assert calls["scandir"] == 2  # photos and photos/cat


@posix
@pytest.mark.parametrize(("first", "second"), [("a", "./a"), ("old", "link"), ("old", "hard"), ("dangling", "absent")])
def test_two_outputs_are_not_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str, second: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old").write_text("")
    Path("link").symlink_to("old")
    os.link("old", "hard")
    Path("dangling").symlink_to("absent")
    for one, other in ((first, second), (second, first)):
        with raises(UsageError, what=re.compile("--(html|junit)")):
            check_outputs({"--html": one, "--junit": other}, {})
    check_outputs({"--html": "/dev/null", "--junit": "/dev/null"}, {})


@pytest.mark.parametrize(
    "output", ["bundle/model.safetensors", "bundle/manifest.json", "to-bundle/config.json", "hard"]
)
def test_python_refuses_them_too_and_alters_nothing(tmp_path: Path, output: str) -> None:
    bundle = write_bundle(tmp_path, formats=("torchscript",))
    (tmp_path / "to-bundle").symlink_to("bundle")
    os.link(tmp_path / "bundle" / "torchscript" / "model_fp32.pt", tmp_path / "hard")
    place = tmp_path / output
    (tmp_path / "data").mkdir()
    with raises(UsageError, what="save_golden"):
        vitdeploy.compare(bundle, save_golden=place)
    with raises(UsageError, what="resume"):
        vitdeploy.evaluate(bundle, data=tmp_path / "data", resume=place)
    with raises(UsageError, what="baseline"):
        vitdeploy.gate(bundle, data=tmp_path / "data", baseline=place, update=True)
    bundle.verify()


def test_a_report_is_not_written_into_what_it_is_of(here: Path) -> None:
    with raises(UsageError, what="the report"):
        write_markdown("hard-model", dataclasses.replace(COMPARISON, bundle="bundle"))
    assert (here / "bundle" / "onnx" / "model.onnx").read_text() == "bundle/onnx/model.onnx"


def test_an_image_is_no_output_however_large_the_table_that_names_it(here: Path) -> None:
    with Path("table.csv").open("a") as table:
        table.writelines(f"{index:01023}\n" for index in range(2**16))  # 64 MiB
        table.write("blob,cat\n")
    with raises(UsageError, what="--html"):
        check_outputs({"--html": "blob"}, {"data": "table.csv"})


def test_a_table_that_is_too_large_to_protect_its_images_is_refused(here: Path) -> None:
    with Path("table.csv").open("a") as table:
        table.truncate(2**33)
    with raises(InputError, where="table.csv"):
        check_outputs({"--html": "stray.png"}, {"data": "table.csv"})
