"""Accuracy: the count, its interval, and what cannot be counted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from vitdeploy.assess.accuracy import Accuracy
from vitdeploy.assess.evaluate import evaluate
from vitdeploy.errors import InputError, UsageError
from vitdeploy.predictor import Predictor
from vitdeploy.processor import ImageProcessor
from vitdeploy.runtimes.base import Runtime
from vitdeploy.specs import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from vitdeploy.bundle import Bundle

LABELS = ("black", "gray", "white")


class Brightness(Runtime):
    """Classifies an image by its mean; of one with a mean of 40, it makes nothing finite."""

    backend = "brightness"
    inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, 4, 4)),)
    outputs = (TensorSpec("logits", "float32", ("batch", 3)),)

    def __init__(self) -> None:
        super().__init__()
        self.details = {}
        self.batches: list[int] = []

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, precision: str, device: str, **options: Any) -> Brightness:
        raise NotImplementedError

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        raise NotImplementedError

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        mean = (feeds["pixel_values"].mean(axis=(1, 2, 3)) + 1) * 127.5  # (N,)
        self.batches.append(len(mean))
        logits = -np.abs(mean[:, None] - np.array([0.0, 128.0, 255.0])).astype(np.float32)  # (N, 3)
        logits[np.abs(mean - 40) < 1, 1] = np.nan
        return {"logits": logits}

    def _close(self) -> None: ...


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(ImageProcessor.default("vit", 4, 4), Brightness(), LABELS)


def write(folder: Path, brightness: Mapping[str, list[int]]) -> Path:
    for label, values in brightness.items():
        (folder / label).mkdir()
        for index, value in enumerate(values):
            Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(folder / label / f"{index}.png")
    return folder


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe (1998), Statistics in Medicine 17, 857-872: table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0000),  # of the same formula: 1 / (1 + z * z / 29)
        (1, 1, 0.2065, 1.0000),
    ],
)
def test_interval_is_wilson_s(correct: int, total: int, low: float, high: float) -> None:
    found = Accuracy(correct, total)
    assert found.value == correct / total
    assert found.interval == pytest.approx((low, high), abs=5e-5)
    assert 0 <= found.interval[0] <= found.value <= found.interval[1] + 1e-15 <= 1 + 1e-15


def test_an_accuracy_reads_well_and_travels_as_json() -> None:
    found = Accuracy(8, 10, ("cat/1.png", "dog/7.png"))
    assert str(found) == "80.00% (49.02% to 94.33%, 8 of 10)"
    low, high = found.interval
    assert found.to_dict() == {
        "correct": 8,
        "total": 10,
        "wrong": ("cat/1.png", "dog/7.png"),
        "accuracy": 0.8,
        "low": low,
        "high": high,
    }


def test_wrong_images_are_named_whatever_the_batches(predictor: Predictor, tmp_path: Path) -> None:
    data = write(tmp_path, {"black": [0, 10, 200], "gray": [128, 120], "white": [255, 130]})
    for size in (1, 2, 32):
        assert evaluate(predictor, data, batch_size=size) == Accuracy(5, 7, ("black/2.png", "white/1.png"))
    assert predictor.runtime.batches == [1] * 7 + [2, 2, 2, 1] + [7]  # type: ignore[attr-defined]


def test_logits_that_are_not_finite_are_wrong(predictor: Predictor, tmp_path: Path) -> None:
    data = write(tmp_path, {"gray": [128, 40], "black": [0]})
    assert evaluate(predictor, data) == Accuracy(2, 3, ("gray/1.png",))


def test_what_cannot_be_evaluated_is_refused(predictor: Predictor, tmp_path: Path) -> None:
    data = write(tmp_path, {"black": [0], "purple": [1]})
    with pytest.raises(InputError, match="purple"):
        evaluate(predictor, data)
    with pytest.raises(UsageError, match="batch_size must be at least 1, got 0"):
        evaluate(predictor, data, batch_size=0)
    with pytest.raises(UsageError, match="needs a model with classes"):
        evaluate(Predictor(predictor.processor, predictor.runtime, ()), data)
