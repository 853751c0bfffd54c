"""Predictors: images in, labelled predictions out."""

from __future__ import annotations

import functools
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from bundles import CPU_BACKENDS, export_all, sign_again, tiny_model, write_checkpoint_of
from PIL import Image
from raising import raises

import vitdeploy
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import BundleError, ImageError, UsageError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.predictor import Predictor
from vitdeploy.specs import AxisRange, PixelFormat, Task, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import WriteCheckpoint


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("bundles") / "tiny"
    return vitdeploy.export(output=target, source=vitdeploy.SourceOptions(random_weights="vit-tiny-patch16-32")).path


@pytest.fixture
def altered(bundle: Path, tmp_path: Path) -> Bundle:
    """A copy, to be altered."""
    return Bundle.open(shutil.copytree(bundle, tmp_path / "out"))


@pytest.fixture(scope="module")
def predictor(bundle: Path) -> Iterator[Predictor]:
    with vitdeploy.load(bundle) as opened:
        yield opened


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [Image.fromarray(generator.integers(0, 256, (40, 50, 3), np.uint8)) for _ in range(5)]


def test_a_number_of_any_length_is_told(digits: Bundle) -> None:
    large: Any = 10**5000
    for given in ({"backend": large}, {"precision": large}):
        with raises(UsageError) as caught:
            vitdeploy.load(digits.path, **given)
        assert next(iter(given)) in str(caught.value)
    with raises(UsageError, what="batch_size", found=large):
        vitdeploy.evaluate(digits.path, data=digits.path, batch_size=large)
    with raises(UsageError, what="seed", found=large):
        vitdeploy.evaluate(digits.path, data=digits.path, seed=large)


def test_the_best_come_first_and_all_add_up_to_one(predictor: Predictor, images: list[Image.Image]) -> None:
    (best,) = predictor.predict(images[0], top_k=10_000)
    scores = [prediction.score for prediction in best]
    assert len(best) == 1000
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)  # 1,000 float32 terms
    assert all(prediction.label == f"LABEL_{prediction.index}" for prediction in best)
    json.dumps(best[0].to_dict())


def test_the_size_of_the_batches_does_not_matter(predictor: Predictor, images: list[Image.Image]) -> None:
    whole = predictor.predict(images, batch_size=5)
    for size in (1, 2, 3):
        for a, b in zip(whole, predictor.predict(images, batch_size=size), strict=True):
            assert [prediction.index for prediction in a] == [prediction.index for prediction in b]
            assert [item.score for item in a] == pytest.approx([item.score for item in b], rel=1e-5)


def test_one_image_a_batch_of_arrays_and_a_tuple(predictor: Predictor, images: list[Image.Image]) -> None:
    expected = predictor.predict(images)
    assert predictor.predict(np.stack([np.asarray(image) for image in images])) == expected
    assert predictor.predict(tuple(images)) == expected
    assert predictor.predict(images[0])[0][0].index == expected[0][0].index


def test_no_image_no_prediction(predictor: Predictor) -> None:
    assert predictor.predict([]) == []


def test_numbers_of_numpy_are_whole_numbers(predictor: Predictor, images: list[Image.Image]) -> None:
    numbers: dict[str, Any] = {"top_k": np.int64(2), "batch_size": np.uint8(2)}
    assert predictor.predict(images[:3], **numbers) == predictor.predict(images[:3], top_k=2, batch_size=2)


def test_threads_share_a_predictor(predictor: Predictor, images: list[Image.Image]) -> None:
    expected = [predictor.predict(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(predictor.predict, images * 4)) == expected * 4


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_k", 0), ("top_k", True), ("top_k", np.float32(2)), ("top_k", 1.5), ("batch_size", np.bool_(True)),
     ("batch_size", 0)],
)  # fmt: skip
def test_arguments_that_cannot_be(predictor: Predictor, images: list[Image.Image], name: str, value: Any) -> None:
    with raises(UsageError, what=name, found=value):
        predictor.predict(images[:1], **{name: value})


def test_an_image_in_a_later_batch_is_named_by_its_place(predictor: Predictor, images: list[Image.Image]) -> None:
    with raises(ImageError, what="images[3]"):
        predictor.predict([*images[:3], b"no image"], batch_size=2)


def test_a_model_without_logits_says_what_it_gives(tmp_path: Path) -> None:
    source = vitdeploy.SourceOptions(random_weights="vit-tiny-patch16-32", task=str(Task.FEATURES))
    vitdeploy.export(output=tmp_path / "out", source=source)
    outputs = ["last_hidden_state", "pooler_output"]
    with vitdeploy.load(tmp_path / "out") as features, raises(UsageError, what="outputs", found=outputs):
        features.predict(Image.new("RGB", (8, 8)))


def test_a_classifier_without_classes_predicts_nothing(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint(Task.CLASSIFICATION, {**tiny_config, "id2label": {}, "label2id": {}})
    bundle = vitdeploy.export(checkpoint.folder, output=tmp_path / "out")
    with vitdeploy.load(bundle.path) as predictor, raises(UsageError, what="labels"):
        predictor.predict(Image.new("RGB", (8, 8)))


def test_labels_that_are_not_the_logits(altered: Bundle) -> None:
    (altered.path / "config.json").write_text('{"model_type": "vit", "num_labels": 3}')
    sign_again(altered)
    with raises(BundleError, what="id2label", expected=1000, found=3):
        vitdeploy.load(altered.path)


def test_a_processor_for_other_images(altered: Bundle) -> None:
    config = {"image_processor_type": "ViTImageProcessor", "size": 64}
    (altered.path / "preprocessor_config.json").write_text(json.dumps(config))
    sign_again(altered)
    for use in (vitdeploy.load, vitdeploy.compare):
        with raises(BundleError, what="size", expected=(32, 32), found=(64, 64)):
            use(altered.path)


def test_an_artifact_that_is_not_what_the_manifest_says(altered: Bundle) -> None:
    model = onnx.load(altered.path / "onnx" / "model.onnx")
    model.graph.output[0].name = "other"
    model.graph.node[-1].output[0] = "other"
    onnx.save(model, altered.path / "onnx" / "model.onnx")
    sign_again(altered)
    with raises(BundleError, what="inputs and outputs", where=str(altered.path / "onnx" / "model.onnx")):
        vitdeploy.load(altered.path)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "onnx/model.onnx"])
def test_nothing_altered_is_opened(altered: Bundle, name: str) -> None:
    with (altered.path / name).open("ab") as file:
        file.write(b"\n")
    with raises(BundleError, where=altered.path / name):
        vitdeploy.load(altered.path)


def test_no_more_images_than_an_engine_takes_go_through_it_together(bundle: Path, images: list[Image.Image]) -> None:
    with vitdeploy.load(bundle) as predictor:
        whole = predictor.predict(images)
        predictor.runtime.axes = {"batch": AxisRange(1, 2, 2)}
        parts = predictor.predict(images)
        with raises(UsageError, what="batch", expected=AxisRange(1, 2, 2), found=5):
            predictor.logits(predictor.processor(images))
    assert [[each.index for each in one] for one in parts] == [[each.index for each in one] for one in whole]


def test_images_that_come_out_in_sizes_of_their_own(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 40}, "do_center_crop": False}
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(processor), encoding="utf-8")
    export_all(checkpoint, graph=vitdeploy.GraphOptions(dynamic_image_size=True), output=tmp_path / "bundle")
    pictures = [image for shape in ((30, 60), (80, 40), (40, 40)) for image in synthetic_images(1, *shape)]
    for backend in CPU_BACKENDS:
        with vitdeploy.load(tmp_path / "bundle", backend=backend) as predictor:
            together = predictor.predict(pictures, top_k=3)
            assert together == [predictor.predict(picture, top_k=3)[0] for picture in pictures]


class Logits:
    """A runtime that gives the same logits for every image."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = logits
        self.inputs = [TensorSpec("pixel_values", "float32", ("batch", 3, 224, 224))]
        self.outputs = [TensorSpec("logits", "float32", ("batch", logits.shape[1]))]
        self.pixels = PixelFormat()
        self.axes: dict[str, Any] = {}

    def run(self, _: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": self.logits}


@pytest.mark.parametrize(
    ("problem_type", "logits", "scores"),
    [
        (None, [-1.5], torch.sigmoid),
        (None, [-1.5, 0.5], functools.partial(torch.softmax, dim=-1)),
        ("multi_label_classification", [-1.5, 0.5], torch.sigmoid),
        ("regression", [-1.5, 0.5], torch.clone),
        (ProblemType.MULTI_LABEL, [-1.5, 0.5], torch.sigmoid),
    ],
)
def test_a_predictor_of_its_parts_reads_logits_as_transformers_does(
    problem_type: ProblemType | str | None, logits: list[float], scores: Any
) -> None:
    runtime: Any = Logits(np.array([logits], np.float32))
    predictor = Predictor(ImageProcessor(), runtime, [f"label {index}" for index in range(len(logits))], problem_type)
    (predictions,) = predictor.predict(Image.new("RGB", (8, 8)))
    found = [each.score for each in sorted(predictions, key=lambda each: each.index)]
    assert found == pytest.approx(scores(torch.tensor(logits)).tolist(), rel=1e-6)


@pytest.mark.parametrize("problem_type", ["ranking", "", 3])
def test_a_predictor_refuses_an_unknown_problem_type(problem_type: Any) -> None:
    runtime: Any = Logits(np.zeros((1, 1), np.float32))
    with raises(UsageError, what="problem_type", found=problem_type):
        Predictor(ImageProcessor(), runtime, ["fire"], problem_type)
