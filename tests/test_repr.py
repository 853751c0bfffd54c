"""Values in a Python session: one short line each, from what is in memory."""

from __future__ import annotations

import dataclasses
import shutil
from typing import TYPE_CHECKING

import pytest
from stub_runtime import StubRuntime
from written_results import BENCHMARK, COMPARISON, EVALUATION, LAYERS, SENSITIVITY, SERVER_RUN, gate_result

import vitdeploy
from vitdeploy.assess.debug.bisection import Bisection
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.predictor import Prediction, Predictor

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np

    from vitdeploy.assess.metrics.status import Assessment

MOST_CHARACTERS = 160
BISECTION = Bisection("gone\nfor ever", 4, True, "fp16", 1e-2, 9, (), 1.0, 1e-3, 5, True)


class Never(StubRuntime):
    """Nothing runs for a repr."""

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        raise NotImplementedError


def test_a_bundle_that_is_gone(digits: Bundle, tmp_path: Path) -> None:
    folder = shutil.copytree(digits.path, tmp_path / "gone")
    bundle = Bundle.open(folder)
    shutil.rmtree(folder)
    assert repr(bundle) == f"<Bundle {str(folder)!r}: 'vit-tiny-digits', image-classification, 1 artifact (onnx-fp32)>"


def test_a_predictor_and_its_runtime(digits: Bundle) -> None:
    with vitdeploy.load(digits.path) as predictor:
        assert repr(predictor.runtime) == "<OnnxRuntime onnxruntime fp32 on cpu>"
        assert repr(predictor) == (
            f"<Predictor onnxruntime fp32 on cpu: {str(digits.path)!r}, image-classification, 10 labels>"
        )
    assert repr(predictor.runtime) == "<OnnxRuntime onnxruntime fp32 on cpu, closed>"


def test_a_predictor_that_was_put_together() -> None:
    predictor = Predictor(ImageProcessor(), Never(), ())
    assert repr(predictor) == "<Predictor test: no labels>"


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (COMPARISON, "<Comparison of 'gone': failed on 16 synthetic images; 2 results, 1 failed, 1 skipped>"),
        (LAYERS, "<LayerComparison of 'gone': failed on 16 images; 2 results, 1 failed, 1 skipped>"),
        (SENSITIVITY, "<Sensitivity of 'gone': 4 layers in fp16, on 16 synthetic images>"),
        (dataclasses.replace(SENSITIVITY, images=1), "<Sensitivity of 'gone': 4 layers in fp16, on 1 synthetic image>"),
        (BISECTION, "<Bisection of 'gone\\nfor ever': passed, 0 of 9 nodes kept in float32, the others fp16>"),
        (EVALUATION, "<Evaluation of 'gone': 4 images; 3 backends, 1 skipped>"),
        (SERVER_RUN, "<ScenarioBenchmark of 'gone': server, 4 measurements, 2 failed, 1 skipped>"),
        (BENCHMARK, "<Benchmark of 'gone': 4 measurements, 2 skipped>"),
        (gate_result(), "<GateResult of 'gone': failed on 4 images; 3 checks, 1 failed, 1 skipped>"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_result(result: Assessment, expected: str) -> None:
    assert repr(result) == expected
    assert len(expected) < MOST_CHARACTERS


def test_a_prediction() -> None:
    assert repr(Prediction("cat", 0, 0.5)) == "Prediction(label='cat', index=0, score=0.5)"
