"""Answers of the page are the predictor's, through the model server's outputs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from fake_triton import Answer, error, fake_triton, outputs_in_binary
from raising import raises

import vitdeploy
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import ImageError, VitDeployError
from vitdeploy.serving.model_repository.batch_answers import EMBEDDING, INDICES, LABELS, SCORES, BatchAnswers
from vitdeploy.serving.page.inference_client import InferenceClient
from vitdeploy.serving.page.served_model import ServedModel

IMAGE = sorted(held_out_images().rglob("*.png"))[5].read_bytes()
CLASSES = (LABELS, SCORES, INDICES)


@contextlib.contextmanager
def served(bundle: Bundle, outputs: Sequence[str]) -> Iterator[ServedModel]:
    """The bundle behind a server, answered as the model of the Python backend does."""
    predictor = vitdeploy.load(bundle.path)
    answers = BatchAnswers(predictor, outputs, top_k=5, max_batch_size=4, max_image_bytes=10**6)

    def answer(image: bytes) -> Answer:
        (found,) = answers([np.array([[image]], object)])
        return error(400, str(found)) if isinstance(found, VitDeployError) else outputs_in_binary(found)

    with contextlib.closing(answers), fake_triton(answer, "vit", "image") as port:
        yield ServedModel(InferenceClient("127.0.0.1", port, "vit", 10.0), "image")


def test_classes_and_scores_are_the_predictors(digits: Bundle) -> None:
    with served(digits, CLASSES) as model:
        found = model.answer(IMAGE)
    (expected,) = vitdeploy.load(digits.path).predict(IMAGE)
    assert found["probabilities"]
    assert [item["label"] for item in found["predictions"]] == [item.label for item in expected]
    assert [item["score"] for item in found["predictions"]] == pytest.approx([item.score for item in expected])


def answered(outputs: dict[str, np.ndarray], *, probabilities: bool = True) -> dict[str, Any]:
    with fake_triton(lambda _: outputs_in_binary(outputs), "vit", "image") as port:
        return ServedModel(InferenceClient("127.0.0.1", port, "vit", 10.0), "image", probabilities).answer(IMAGE)


def test_a_regression_has_values_in_its_own_order() -> None:
    outputs = {LABELS: np.array([[b"age", b"height"]], object), SCORES: np.array([[-3.5, 180.25]], np.float32)}
    found = answered(outputs, probabilities=False)
    predictions = [{"label": "age", "score": -3.5}, {"label": "height", "score": 180.25}]
    assert found == {"predictions": predictions, "probabilities": False}


def test_an_embedding_has_its_size_and_norm() -> None:
    found = answered({EMBEDDING: np.array([[3.0, 0.0, 4.0]], np.float32)})
    assert found == {"values": [["Values of the vector", 3], ["L2 norm", "5"]]}


def test_a_bad_image_is_told(digits: Bundle) -> None:
    with served(digits, CLASSES) as model, raises(ImageError, what="vit", found=400):
        model.answer(b"no image")
