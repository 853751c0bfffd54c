"""`vitdeploy demo`, on the embedded checkpoint."""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import run
from environments import ROOT
from faults import copy_of
from raising import raises

from vitdeploy import demo
from vitdeploy.assess.benchmark.benchmark import benchmark
from vitdeploy.assess.benchmark.result import Benchmark
from vitdeploy.assess.compare.compare import compare
from vitdeploy.assess.metrics.latency import Latency
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import InputError, MissingDependencyError, OutputError, UsageError

BACKENDS = ["torch", "onnxruntime"]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo") / "out"


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "benchmark", functools.partial(benchmark, rounds=2))
        code, printed, errors = run("demo", "-o", output, "--json")
    assert (code, errors) == (0, "")
    data: dict[str, Any] = json.loads(printed)
    return data


def test_the_artifact_is_proven_on_every_held_out_image(result: dict[str, Any]) -> None:
    assert result["status"] == result["comparison"]["status"] == "passed"
    assert (result["comparison"]["images"], result["comparison"]["synthetic"]) == (450, False)
    (only,) = result["comparison"]["results"]
    (logits,) = only["differences"]
    assert (only["artifact"], only["backend"], logits["count"], logits["top1_agreement"]) == (
        "onnx-fp32", "onnxruntime", 450, 1.0,
    )  # fmt: skip
    assert 0 < logits["max_relative"] < 1e-5 < only["tolerance"]


def test_both_backends_are_accurate_and_wrong_on_the_same_images(result: dict[str, Any]) -> None:
    torch, onnx = (found["top1"] for found in result["evaluation"]["results"])
    assert (torch, torch["total"]) == (onnx, 450)
    assert torch["accuracy"] > 0.95
    assert torch["low"] < torch["accuracy"] < torch["high"]


def test_samples_show_each_class_and_the_mistakes(result: dict[str, Any]) -> None:
    (first, classes), *others = result["samples"].items()
    assert first == "One image of each class"
    assert [example["expected"] for example in classes] == [str(digit) for digit in range(10)]
    ((_, mistakes),) = [group for group in others if group[0].startswith("Misclassified")]
    wrong = result["evaluation"]["results"][0]["top1"]["wrong"]
    assert len(mistakes) == min(len(wrong), 12)
    assert {example["image"] for example in mistakes} <= set(wrong)
    for example in [*classes, *mistakes]:
        assert list(example["predictions"]) == [f"{name} fp32" for name in BACKENDS]
        best = {name: prediction["label"] for name, prediction in example["predictions"].items()}
        assert example["correct"] == (set(best.values()) == {example["expected"]})


def test_latency_stands_beside_the_machine(result: dict[str, Any]) -> None:
    latencies = result["benchmark"]["latencies"]
    found = [(item["backend"], item["batch_size"], item["ready_input"]["runs"]) for item in latencies]
    assert found == [(name, size, 20) for size in (1, 8) for name in BACKENDS]
    for item in latencies:
        times = item["ready_input"]
        assert 0 < times["p50_ms"] <= times["p90_ms"] <= times["p95_ms"]
        assert times["p99_ms"] is None, "20 runs do not tell it"
        assert 0 < item["processing_ms"] < 1000
    assert {"cpu", "cores", "torch", "onnxruntime"} <= set(result["machine"])


def test_it_leaves_a_bundle_and_a_report(result: dict[str, Any], output: Path) -> None:
    assert sorted(path.name for path in output.iterdir()) == ["bundle", "images", "report.html"]
    assert len(list((output / "images").rglob("*.png"))) == 450
    assert (result["bundle"], result["report"]) == (str(output / "bundle"), str(output / "report.html"))
    Bundle.open(output / "bundle").verify()
    page = (output / "report.html").read_text(encoding="utf-8")
    shown = sum(len(examples) for examples in result["samples"].values())
    assert page.count("<img ") == page.count("data:image/png;base64,") == shown
    assert page.count("<svg") == 3


def test_the_next_line_of_the_readme(result: dict[str, Any], output: Path, tmp_path: Path) -> None:
    """From a clone: `make demo`, the line that puts `vitdeploy` on the PATH, and a first prediction, in a shell."""
    assert "\n\t$(BIN)/vitdeploy demo\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    if not (ROOT / ".venv" / "bin" / "activate").exists():
        pytest.skip("the tests do not run in the environment that `make` makes")
    (tmp_path / ".venv").symlink_to(ROOT / ".venv")
    (tmp_path / "demo-output").symlink_to(output)
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    activate = next(line for line in lines if line.startswith(". .venv/bin/activate"))
    predict = next(line[2:] for line in lines if line.startswith("$ vitdeploy predict demo-output/bundle "))
    found = subprocess.run(
        ["sh", "-euc", f"{activate}\n{predict} --json"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert (found.returncode, found.stderr) == (0, "")
    (image,) = json.loads(found.stdout)["results"]
    assert image["predictions"][0]["label"] == Path(predict.split()[3]).parent.name


def test_a_difference_ends_in_1_with_the_report_written(
    result: dict[str, Any], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def quick(bundle: Bundle, backends: Sequence[str], **_: object) -> Benchmark:
        latencies = [
            Latency("onnx-fp32", name.partition(":")[0], "fp32", 1, ((1.0, 2.0, 3.0),) * 2, processing_ms=0.1)
            for name in backends
        ]
        return Benchmark(str(bundle.path), {"cpu": "one"}, {}, tuple(latencies))

    monkeypatch.setattr(demo, "benchmark", quick)
    monkeypatch.setattr(demo, "compare", functools.partial(compare, tolerance=0.0))
    before = (output / "report.html").read_bytes()
    code, printed, _ = run("demo", "-o", output)
    assert code == 1
    assert "Against the reference, on 450 images: failed" in printed
    (row,) = [line.split() for line in printed.splitlines() if "as fast" in line and line.startswith("onnxruntime ")]
    assert row[:5] == ["onnxruntime", "fp32", "1", "2.000", "500"]
    assert row[5:] == ["as", "fast", "(1.000,", "1.000", "to", "1.000)"]
    assert f"{result['evaluation']['results'][0]['top1']['correct']} of 450" in printed
    assert f"Report: {output / 'report.html'}" in printed
    after = (output / "report.html").read_bytes()
    assert after != before
    assert b"failed" in after


def test_a_missing_package_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "vitdeploy.assess.report.page", raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with raises(MissingDependencyError, extra="report"):
        demo.run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", ["bundle", "link", "bundle/onnx", "bundle/new/folder", "around"])
def test_a_bundle_is_not_written_into(single: Bundle, tmp_path: Path, place: str) -> None:
    bundle = copy_of(single, tmp_path / "bundle")
    (tmp_path / "link").symlink_to("bundle")
    if place == "around":
        (tmp_path / "around").mkdir()
        (tmp_path / "around" / "bundle").symlink_to("../bundle")
        (tmp_path / "around" / "report.html").symlink_to("bundle/model.safetensors")
    with pytest.raises(UsageError):
        demo.run_demo(tmp_path / place)
    bundle.verify()


def test_images_of_others_are_not_replaced(tmp_path: Path) -> None:
    other = tmp_path / "images" / "0" / "mine.png"
    other.parent.mkdir(parents=True)
    other.touch()
    with raises(UsageError, what="output", where=tmp_path / "images"):
        demo.run_demo(tmp_path)
    assert list(tmp_path.rglob("*")) == [tmp_path / "images", other.parent, other]


def test_an_output_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with raises(UsageError, what="output", found=""):
        demo.run_demo("")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_images_are_no_file_and_no_link(tmp_path: Path, kind: str) -> None:
    images = tmp_path / "out" / "images"
    images.parent.mkdir()
    (tmp_path / "mine").mkdir()
    images.write_text("mine") if kind == "file" else images.symlink_to(tmp_path / "mine")
    with raises(UsageError, what="output", where=images):
        demo.run_demo(images.parent)
    assert list(images.parent.iterdir()) == [images]
    assert images.read_text() == "mine" if kind == "file" else images.is_symlink()


def test_images_that_cannot_be_read_are_kept(tmp_path: Path) -> None:
    mine = tmp_path / "images" / "mine"
    mine.mkdir(parents=True)
    (mine / "photo.png").touch()
    mine.chmod(0)
    try:
        if os.access(mine, os.R_OK):
            pytest.skip("nothing is forbidden to this user")
        with raises(InputError, where=tmp_path / "images"):
            demo.run_demo(tmp_path)
    finally:
        mine.chmod(0o700)
    assert (mine / "photo.png").exists()


def test_a_disk_that_is_full_before_the_images_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, place: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source), None, str(place))

    monkeypatch.setattr(shutil, "copyfile", full)
    with raises(OutputError, where=tmp_path / "images") as caught:
        demo.run_demo(tmp_path)
    assert str(tmp_path / ".images.partial-") in str(caught.value)  # the file that cannot be written, not the source
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_of_something_else_is_no_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(*_: object, **__: object) -> None:
        raise MissingDependencyError("here", extra="there")

    monkeypatch.setattr(demo, "export", reached)
    (tmp_path / "manifest.json").write_text('{"name": "a page"}')
    with pytest.raises(MissingDependencyError):
        demo.run_demo(tmp_path / "demo")
