"""The content of a report's page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import Page, hostile_report, written
from PIL import Image
from written_results import BENCHMARK, COMPARISON, EVALUATION, LAYERS, SENSITIVITY, TUNING, gate_result

from vitdeploy.assess.benchmark.result import Benchmark, NotMeasured
from vitdeploy.assess.debug.layer_results import ArtifactLayers, PartDifference
from vitdeploy.assess.debug.sensitivity import LayerEffect
from vitdeploy.assess.evaluate.evaluate import Evaluation
from vitdeploy.assess.metrics.accuracy import Predictions
from vitdeploy.assess.metrics.outputs import Difference
from vitdeploy.assess.report.page_data import settings, statuses
from vitdeploy.assess.report.report import Report
from vitdeploy.system.cpu import ThreadCount


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("page")
    Image.new("RGB", (4, 4)).save(folder / "a.png")
    return written(folder / "report.html", hostile_report(folder / "a.png"))


def after(page: Page, cell: str, count: int, *, tag: str = "th") -> list[str]:
    """The text of the cells that follow the first row header of that text."""
    place = page.ordered.index((tag, cell))
    return [text for name, text in page.ordered[place + 1 :] if name in {"td", "span", "strong"}][:count]


def test_figures_of_a_comparison_and_a_benchmark_are_on_the_page(page: Page) -> None:
    cells = page.text["td"]
    assert cells[cells.index("logits") + 1 :][:4] == ["5.00e-05", "0.0001", "2.00e-04", "1.00000000"]
    assert "no device" in cells
    assert cells[cells.index("5.000") - 1 :][:6] == ["1", "5.000", "200", "first", "6", "0.123"]
    assert cells[cells.index("2.500") - 1 :][:5] == [
        "1",
        "2.500",
        "400",
        "2.0x faster (0.500, 0.500 to 0.500)",
        "6",
    ]
    assert cells[cells.index("16.000") - 1 :][:5] == ["8", "16.000", "500", "first", "1"]
    assert {"5.0e-05", "100.00%", "75.00%", "50.00%", "block 1", "2.5 ms"} <= set(page.text["strong"])
    assert "2.0x faster than torch fp32 (0.50 of its time)" in page.text["span"]
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
    assert len([item for item in page.all("table") if item.get("class") == "matrix"]) == 2
    shares = [item["style"] for item in page.all("td") if item.get("style")]
    assert shares == [f"--share: {share}" for share in ("0.500", "0.500", "1.000", "1.000", "1.000")]
    assert {"reference on torch", "x-fp32 on x", "Bins of x-fp32 on x"} <= set(page.text["summary"])


def test_the_first_layer_that_diverges_is_named(page: Page) -> None:
    assert page.text["li"][page.text["li"].index("onnx-fp32: the first part that diverges is")]
    assert page.text["strong"].count("block 1") == 2
    assert "block 1 (first)" in page.text["text"]
    assert "not finite" in page.text["td"]
    assert any(text.endswith("cannot be told apart") for text in page.text["li"])


def test_the_most_sensitive_layer_is_named_first(page: Page) -> None:
    assert page.text["th"][page.text["th"].index("block 0, MLP, fc1") + 1] == "embeddings, projection"
    assert after(page, "block 0, MLP, fc1", 3) == ["MatMul", "not finite", "val_1, linear_1"]
    assert after(page, "embeddings, projection", 3) == ["Conv", "2.50e-01", "conv"]
    assert after(page, "block 0, MLP, fc1: the most sensitive layer", 2, tag="span") == [
        "not finite",
        "relative error with it alone in fp16; not finite with all layers",
    ]
    bars = page.text["text"]
    assert bars.index("embeddings, projection") + 1 == bars.index("block 0, MLP, fc1")


def test_a_great_many_layers_are_folded_away(tmp_path: Path) -> None:
    layers = [
        LayerEffect(f"layers.{index}.fc", (f"n{index}",), "MatMul", "head", 1e-3 * index, f"block {index}, fc")
        for index in range(150)
    ]
    found = dataclasses.replace(SENSITIVITY, layers=tuple(layers), error=0.0)
    page = written(tmp_path / "report.html", Report("Many", {}, {}, sensitivity=found))
    assert page.text["summary"] == ["The other 140 layers"]
    assert [text for text in page.text["th"] if text.startswith("block ")][:2] == ["block 149, fc", "block 148, fc"]
    assert len(page.all("td")) == 3 * 150
    assert (tmp_path / "report.html").stat().st_size < 250_000


def test_a_status_is_told_in_words(page: Page) -> None:
    marks = [attributes["class"] for attributes in page.all("span") if "mark" in (attributes.get("class") or "")]
    wanted = ["skipped", "failed", "skipped"]  # comparison, layers, accuracy; what only measures has not passed
    assert marks[:3] == [f"mark {status}" for status in wanted]
    assert [item.get("class") for item in page.all("li")[-2:]] == ["wrong", None]
    predicted = [text for text in page.text["span"] if text.startswith(("correct, ", "wrong, "))]
    assert predicted == ["correct, 75.0%", "wrong, 50.0%", "correct, 50.0%"]


@pytest.mark.parametrize("part", ["sensitivity", "evaluation", "benchmark", "tuning"])
def test_a_page_that_judges_nothing_has_no_verdict(part: str, tmp_path: Path) -> None:
    measured: dict[str, Any] = {
        "sensitivity": SENSITIVITY,
        "evaluation": dataclasses.replace(EVALUATION, results=EVALUATION.results[:2]),
        "benchmark": dataclasses.replace(BENCHMARK, skipped=()),
        "tuning": TUNING,
    }
    page = written(tmp_path / "report.html", Report("Measured", {}, {}, **{part: measured[part]}))
    assert measured[part].status == "passed"
    words = {word.strip(".,:;") for tag, text in page.ordered if tag != "style" for word in text.split()}
    assert not {"passed", "failed", "✓", "✗"} & words


def test_nothing_has_passed_beside_a_failed_gate() -> None:
    nothing = dataclasses.replace(COMPARISON, results=())
    measured: dict[str, Any] = {"evaluation": EVALUATION, "benchmark": BENCHMARK, "sensitivity": SENSITIVITY}
    found = statuses(Report("Gate", {}, {}, gate=gate_result(), comparison=nothing, **measured))
    assert found == {"Gate": "failed", "Comparison": "skipped", "Accuracy": "skipped", "Latency": BENCHMARK.status}
    assert "passed" not in found.values()


def test_threads_are_told_by_their_number() -> None:
    torch, other = (
        dataclasses.replace(item, threads=ThreadCount(count, "why"))
        for count, item in enumerate(BENCHMARK.latencies, 1)
    )
    found = dataclasses.replace(BENCHMARK, settings={"threads": 0, "warm_up": [1, True]}, latencies=(torch, other))
    assert settings(found) == {
        "threads": f"{torch.backend} 1, {other.backend} 2 (default of each backend)",
        "warm up": "1, yes",
    }
    assert settings(dataclasses.replace(found, latencies=(torch,)))["threads"] == "1 (default of each backend)"
    assert settings(BENCHMARK)["threads"] == "default of each backend"
    assert settings(dataclasses.replace(found, settings={"threads": 4})) == {"threads": "4"}


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
    exact = Difference("logits", 1, True, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, None)
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
    page = written(tmp_path / "report.html", Evaluation("b", "gone", labels, names, targets, "0" * 64, results))
    assert (tmp_path / "report.html").stat().st_size < 250_000
    assert "the 50 least accurate of 1000 classes" in " ".join(page.text["summary"])
    assert [item for item in page.all("table") if item.get("class") == "matrix"] == []
    assert any("further pairs, none of them more frequent" in text for text in page.text["p"])
    assert page.text["summary"][0] == "onnx-fp32 on onnxruntime, onnx-fp16 on onnxruntime"  # alike, and so told once
    assert len(page.all("img")) == 0
    assert "Misclassified with the highest score: " in page.text["h3"][-1]
