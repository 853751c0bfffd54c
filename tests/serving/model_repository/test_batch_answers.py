"""Batches of requests in one predictor: grouped by shape, split, and each with errors of its own."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import tiny_model, write_bundle, write_checkpoint_of
from PIL import Image

import vitdeploy
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import ImageError, NotFiniteError, UsageError, VitDeployError
from vitdeploy.serving.model_repository.batch_answers import EMBEDDING, INDICES, LABELS, SCORES, BatchAnswers
from vitdeploy.specs import Task

CLASSES = (LABELS, SCORES, INDICES)


def png(seed: int, height: int = 40, width: int = 50) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def request(*images: bytes) -> np.ndarray:
    array = np.empty((len(images), 1), object)
    array[:, 0] = images
    return array


def opened(bundle: Bundle, *outputs: str, **options: Any) -> BatchAnswers:
    settings = {"top_k": 2, "max_batch_size": 4, "max_image_bytes": 20_000} | options
    return BatchAnswers(vitdeploy.load(bundle.path), outputs, **settings)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("answers"))


@pytest.fixture
def answers(bundle: Bundle) -> Iterator[BatchAnswers]:
    made = opened(bundle, *CLASSES)
    yield made
    made.close()


def classes(answer: Any) -> list[list[tuple[str, int]]]:
    assert not isinstance(answer, VitDeployError), answer
    assert {name: array.dtype for name, array in answer.items()} == {
        LABELS: object,
        SCORES: "float32",
        INDICES: "int32",
    }
    return [
        [(label.decode(), int(index)) for label, index in zip(*row, strict=True)]
        for row in zip(answer[LABELS], answer[INDICES], strict=True)
    ]


def expected(bundle: Bundle, *images: bytes) -> list[list[tuple[str, int]]]:
    with vitdeploy.load(bundle.path) as predictor:
        return [[(best.label, best.index) for best in image] for image in predictor.predict(images, top_k=2)]


def test_requests_share_runs_and_keep_their_images(bundle: Bundle, answers: BatchAnswers) -> None:
    images = [png(seed) for seed in range(7)]
    runs = sizes_of_runs(answers)
    found = answers([request(*images[:1]), request(*images[1:4]), request(*images[4:])])
    assert [classes(answer) for answer in found] == [
        expected(bundle, *part) for part in (images[:1], images[1:4], images[4:])
    ]
    assert runs == [4, 3]


def test_labels_that_are_not_text_are_escaped(bundle: Bundle, answers: BatchAnswers) -> None:
    predictor = answers._predictor
    predictor.labels = tuple(f"\ud800{index}" for index in range(len(predictor.labels)))
    (answer,) = answers([request(png(0))])
    assert classes(answer) == [[(f"\\ud800{best}", best) for _, best in expected(bundle, png(0))[0]]]


def test_a_bad_image_is_left_out_of_the_run(bundle: Bundle, answers: BatchAnswers) -> None:
    runs = sizes_of_runs(answers)
    first, second, third, fourth = answers(
        [request(png(0)), request(png(1), b"no image", png(2)), request(bytes(20_001)), request(png(3))]
    )
    assert (classes(first), classes(fourth)) == (expected(bundle, png(0)), expected(bundle, png(3)))
    assert isinstance(second, ImageError)
    assert "images[1]" in str(second)
    assert isinstance(third, ImageError)
    assert (third.what, third.expected, third.found) == ("images[0]", 20_000, 20_001)
    assert runs == [2]


def test_an_output_that_is_not_finite_is_an_error_of_its_request(bundle: Bundle, answers: BatchAnswers) -> None:
    predictor = answers._predictor
    run = predictor.runtime.run

    def second_is_nan(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = run(feeds)
        outputs["logits"][1] = np.nan
        return outputs

    predictor.runtime.run = second_is_nan  # type: ignore[method-assign]
    first, second, third = answers([request(png(seed)) for seed in range(3)])
    assert isinstance(second, NotFiniteError)
    assert (classes(first), classes(third)) == (expected(bundle, png(0)), expected(bundle, png(2)))


def test_tensors_of_a_wrong_size_fail_alone(bundle: Bundle, answers: BatchAnswers) -> None:
    good = answers._predictor.processor([png(0)])
    first, second = answers([good, np.zeros((2, 3, 8, 8), np.float32)])
    assert classes(first) == expected(bundle, png(0))
    assert isinstance(second, UsageError)


def test_decoded_images_of_different_sizes(tmp_path: Path) -> None:
    """They cannot share a run."""
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    decoded = vitdeploy.export(checkpoint, output=tmp_path / "decoded", graph=vitdeploy.GraphOptions(embed_resize=True))
    images = [png(0), png(1, 60, 30), png(2)]
    made = opened(decoded, *CLASSES)
    runs = sizes_of_runs(made)
    first, second = made([request(*images[:2]), request(images[2])])
    made.close()
    assert (classes(first), classes(second)) == (expected(decoded, *images[:2]), expected(decoded, images[2]))
    assert runs == [1, 1, 1]


def test_vectors(tmp_path: Path) -> None:
    features = write_bundle(tmp_path, Task.FEATURES)
    made = opened(features, EMBEDDING)
    made.warm_up()
    (answer,) = made([request(png(0), png(1))])
    made.close()
    with vitdeploy.load(features.path) as predictor:
        vectors = predictor.embed([png(0), png(1)])
    assert isinstance(answer, dict)
    np.testing.assert_allclose(answer[EMBEDDING], vectors, rtol=0, atol=1e-5)


def sizes_of_runs(answers: BatchAnswers) -> list[int]:
    """A list to which each run adds its size."""
    runtime, sizes = answers._predictor.runtime, []
    run = runtime.run

    def counted(feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        sizes.append(len(feeds["pixel_values"]))
        return run(feeds)

    runtime.run = counted  # type: ignore[method-assign]
    return sizes


def test_a_request_without_the_axis_of_images_is_an_error_of_its_own(bundle: Bundle, answers: BatchAnswers) -> None:
    """Triton passes one on that states 2**32 images."""
    good, bad = answers([request(png(0)), np.array([png(1)], object)])
    assert classes(good) == expected(bundle, png(0))
    assert isinstance(bad, UsageError)
