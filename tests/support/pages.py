"""Pages of reports: one with everything in it, made by hand, and a reader for any."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import numpy as np
from written_results import EVALUATION, LAYERS, SENSITIVITY

from vitdeploy.assess.benchmark.result import Benchmark
from vitdeploy.assess.compare.results import BackendComparison, Comparison
from vitdeploy.assess.metrics.latency import Latency
from vitdeploy.assess.metrics.outputs import compare_outputs
from vitdeploy.assess.report.example_images import ExampleImage
from vitdeploy.assess.report.page import write_html
from vitdeploy.assess.report.report import Report
from vitdeploy.predictor import Prediction

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


def hostile_report(image: Path) -> Report:
    """Every part but a gate's, with names that are markup or a formula."""
    logits = np.array([[1.0, 2.0], [4.0, 3.0]])
    differences = compare_outputs({"logits": logits}, {"logits": logits + 2e-4})
    results = (
        BackendComparison("onnx-fp32", "onnxruntime", 1e-4, differences, {"engine": "x"}),
        BackendComparison("engine-fp16", "elsewhere", 1e-2, skipped="no device"),
    )
    latencies = (
        Latency(
            "reference", "torch", "fp32", 1, ((4.0, 5.0, 6.0),) * 2,
            processing_ms=0.123, details={"engine": "torch 9", "providers": ["a", "b"]},
        ),
        Latency("x", "$x^$<b>", "fp32", 1, ((2.0, 2.5, 40.0),) * 2),
        Latency("reference", "torch", "fp32", 8, ((16.0,),)),
    )  # fmt: skip
    right, wrong = Prediction(HOSTILE, 1, 0.75), Prediction("newt", 0, 0.5)
    examples = {
        "First": [ExampleImage(image.name, HOSTILE, {"torch": right, "onnxruntime": wrong}, image.read_bytes)],
        "Second": [ExampleImage(image.name, "newt", {"torch": wrong}, image.read_bytes)],
        "Empty": [],
    }
    hostile = [dataclasses.replace(layer, layer=f"{HOSTILE}{layer.layer}") for layer in SENSITIVITY.layers[2:]]
    return Report(
        title=f"A report of {HOSTILE}",
        source={"model": HOSTILE, "revision": ""},
        machine={"cpu": "abacus"},
        comparison=Comparison("bundle", 2, False, results),
        layers=LAYERS,
        sensitivity=dataclasses.replace(SENSITIVITY, layers=(*SENSITIVITY.layers[:2], *hostile)),
        evaluation=EVALUATION,
        benchmark=Benchmark("bundle", {}, {"rounds": 1, "batch_sizes": [1, 8]}, latencies),
        examples=examples,
    )


def written(path: Path, result: Any) -> Page:
    write_html(path, result)
    return Page(path)
