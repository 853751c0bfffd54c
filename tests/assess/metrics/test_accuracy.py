"""Accuracy, best classes and calibration."""

from __future__ import annotations

import numpy as np
import pytest

from vitdeploy.assess.metrics.accuracy import Accuracy, Predictions, best_classes, calibration
from vitdeploy.bundle.scores import ProblemType


def test_an_accuracy_reads_well_and_travels_as_json() -> None:
    accuracy = Accuracy(8, 10, ("cat/1.png", "dog/7.png"))
    assert str(accuracy) == "80.00% (49.02% to 94.33%, 8 of 10)"
    low, high = accuracy.interval
    assert accuracy.to_dict() == {
        "correct": 8,
        "total": 10,
        "wrong": ("cat/1.png", "dog/7.png"),
        "accuracy": 0.8,
        "low": low,
        "high": high,
    }


def test_best_classes_come_in_the_order_of_the_logits() -> None:
    logits = np.array([[1, 3, 2, 3, 0, -1, 9], [0, 0, 0, 0, 0, 0, 0]], np.float32)
    classes, scores = best_classes(logits)
    assert classes.tolist() == [[6, 1, 3, 2, 0], [0, 1, 2, 3, 4]]
    assert (classes.dtype.name, scores.dtype.name) == ("int32", "float32")
    assert scores == pytest.approx([np.exp(9) / np.exp(logits[0]).sum(), 1 / 7], rel=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_has_no_class(bad: float) -> None:
    classes, scores = best_classes(np.array([[0, 1, 2], [5, bad, 1]], np.float16))
    assert (classes.tolist(), np.isfinite(scores).tolist()) == ([[2, 1, 0], [-1, -1, -1]], [True, False])
    assert Predictions("onnx-fp16", "onnxruntime", "fp16", classes, scores).not_finite == 1


def test_large_logits_do_not_overflow() -> None:
    _, scores = best_classes(np.array([[1e4, 0, 0], [-1e30, 1e30, 0]], np.float32))
    assert scores.tolist() == [1.0, 1.0]


def test_the_score_of_a_pair_is_its_own_sigmoid() -> None:
    logits = np.array([[-3, -1, -2], [2, 0, np.nan]], np.float32)
    classes, scores = best_classes(logits, 1, ProblemType.PAIRWISE)
    assert classes.tolist() == [[1], [-1]]
    np.testing.assert_allclose(scores, [1 / (1 + np.e), np.nan], rtol=1e-6)


def test_calibration_of_a_sample_made_by_hand() -> None:
    """Bins of a fifth: 0.2 belongs to the first, and 0.21 to the second."""
    scores = np.array([0.1, 0.2, 0.21, 0.9, 1.0, np.nan], np.float64)
    summary = calibration(scores, np.array([False, True, True, True, False, False]), bins=5)
    assert [interval.count for interval in summary.bins] == [2, 1, 0, 0, 2]
    assert (summary.bins[0].low, summary.bins[0].high) == (0.0, 0.2)
    assert summary.bins[0].score == pytest.approx(0.15)
    assert summary.bins[0].accuracy == 0.5
    assert np.isnan(summary.bins[2].score)
    assert summary.ece == pytest.approx((2 * 0.35 + 1 * 0.79 + 2 * 0.45) / 5)


def test_scores_that_keep_their_promise_have_no_error() -> None:
    generator = np.random.default_rng(0)
    scores = generator.random(200_000)
    assert calibration(scores, generator.random(200_000) < scores).ece < 0.01
    assert calibration(scores, np.ones(200_000, np.bool_)).ece == pytest.approx(0.5, abs=0.01)


def test_no_score_at_all() -> None:
    assert np.isnan(calibration(np.array([np.nan]), np.array([False])).ece)
    assert calibration(np.array([0.0, 1.0]), np.array([False, True])).ece == 0
