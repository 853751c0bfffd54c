"""Answers of the page are the predictor's, through the model server's outputs."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from bundles import write_bundle
from fake_triton import Answer, error, fake_triton, outputs_in_binary
from raising import raises

import vitdeploy
from vitdeploy.assets import held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import ImageError, VitDeployError
from vitdeploy.serving.model_repository.batch_answers import EMBEDDING, INDICES, LABELS, SCORES, BatchAnswers
from vitdeploy.serving.page.inference_client import InferenceClient
from vitdeploy.serving.page.served_model import ServedModel
from vitdeploy.specs import Task

IMAGE = sorted(held_out_images().rglob("*.png"))[5].read_bytes()
CLASSES = (LABELS, SCORES, INDICES)


@contextlib.contextmanager
def served(bundle: Bundle, outputs: Sequence[str], *, probabilities: bool = True) -> Iterator[ServedModel]:
    """The bundle behind a server, answered as the model of the Python backend does."""
    predictor = vitdeploy.load(bundle.path)
    answers = BatchAnswers(predictor, outputs, top_k=5, max_batch_size=4, max_image_bytes=10**6)

    def answer(image: bytes) -> Answer:
        (found,) = answers([np.array([[image]], object)])
        return error(400, str(found)) if isinstance(found, VitDeployError) else outputs_in_binary(found)

    with contextlib.closing(answers), fake_triton(answer, "vit", "image") as port:
        yield ServedModel(InferenceClient("127.0.0.1", port, "vit", 10.0), "image", probabilities)


def test_classes_and_scores_are_the_predictors(digits: Bundle) -> None:
    with served(digits, CLASSES) as model:
        found = model.answer(IMAGE)
    (expected,) = vitdeploy.load(digits.path).predict(IMAGE)
    assert found["probabilities"]
    assert [item["label"] for item in found["predictions"]] == [item.label for item in expected]
    assert [item["score"] for item in found["predictions"]] == pytest.approx([item.score for item in expected])


def test_a_regression_has_values(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, problem_type=ProblemType.REGRESSION)
    with served(bundle, CLASSES, probabilities=False) as model:
        found = model.answer(IMAGE)
    (expected,) = vitdeploy.load(bundle.path).predict(IMAGE)
    assert not found["probabilities"]
    assert [item["label"] for item in found["predictions"]] == [item.label for item in expected]
    assert [item["score"] for item in found["predictions"]] == pytest.approx([item.score for item in expected])


def test_an_embedding_has_its_size_and_norm(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, Task.FEATURES)
    with served(bundle, [EMBEDDING]) as model:
        values = dict(model.answer(IMAGE)["values"])
    (vector,) = vitdeploy.load(bundle.path).embed(IMAGE)
    assert values["Values of the vector"] == len(vector) == 24
    assert math.isclose(float(values["L2 norm"]), np.linalg.norm(vector), rel_tol=1e-3)


def test_a_bad_image_is_told(digits: Bundle) -> None:
    with served(digits, CLASSES) as model, raises(ImageError, what="vit", found=400):
        model.answer(b"no image")
