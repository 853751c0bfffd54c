"""Evaluation of every backend on labelled images: counts, skipped backends, and resumed batches."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from bundles import write_bundle
from PIL import Image
from raising import raises
from stub_runtime import StubRuntime
from told import Told

from vitdeploy.assess.evaluate.evaluate import Evaluation, evaluate
from vitdeploy.assess.evaluate.resume_file import WorkFile
from vitdeploy.assess.metrics.accuracy import Accuracy, Predictions
from vitdeploy.assess.runs.targets import Selected, select
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.errors import BundleError, DeviceError, ImageError, InputError, UsageError
from vitdeploy.runtimes import BACKENDS, Backend
from vitdeploy.runtimes.pytorch import PyTorchRuntimeOptions
from vitdeploy.specs import Task, TensorSpec

# A cat is black, a dog gray and a newt white; see `Brightness`.
IMAGES = {"cat": [0, 10, 200], "dog": [128, 120], "newt": [255, 130]}
WRONG = ("cat/2.png", "newt/1.png")


class Brightness(StubRuntime):
    """Classifies an image by its mean; of one with a mean of 40, it makes nothing finite; at 99 it fails."""

    backend = "brightness"
    options_type = PyTorchRuntimeOptions  # it stands for the reference
    inputs = (TensorSpec("pixel_values", "float32", ("batch", 3, 32, 32)),)
    outputs = (TensorSpec("logits", "float32", ("batch", 3)),)
    batches: list[int] = []  # noqa: RUF012  (of all instances)
    thread_details: ClassVar[Mapping[str, object]] = {}

    def __init__(self) -> None:
        super().__init__()
        self.details = {"engine": "brightness 1", **self.thread_details}

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: Any, *, precision: str, device: str) -> Brightness:
        return cls()

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        mean = (feeds["pixel_values"].mean(axis=(1, 2, 3)) + 1) * 127.5  # (N,)
        self.batches.append(len(mean))
        logits = -np.abs(mean[:, None] - np.array([0.0, 128.0, 255.0])).astype(np.float32)  # (N, 3)
        logits[np.abs(mean - 40) < 1, 1] = np.nan
        if (np.abs(mean - 99) < 1).any():
            raise DeviceError("memory ran out")
        return {"logits": logits}


class Constant(Brightness):
    """Sees nothing but cats."""

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": np.tile(np.array([2.0, 1.0, 0.0], np.float32), (len(feeds["pixel_values"]), 1))}


@pytest.fixture(autouse=True)
def brightness(monkeypatch: pytest.MonkeyPatch) -> type[Brightness]:
    """Runs in the place of torch."""
    monkeypatch.setattr(Brightness, "batches", [])
    monkeypatch.setitem(BACKENDS, "torch", Backend(f"{__name__}:Brightness", (), "torch", "torch"))
    return Brightness


def write(folder: Path, brightness: Mapping[str, list[int]]) -> Path:
    for label, values in brightness.items():
        (folder / label).mkdir(parents=True)
        for index, value in enumerate(values):
            Image.fromarray(np.full((4, 4, 3), value, np.uint8)).save(folder / label / f"{index}.png")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data", IMAGES)


def reference(bundle: Bundle, data: Path, **options: Any) -> tuple[Evaluation, Predictions]:
    evaluation = evaluate(bundle, data=data, backends=["torch"], **options)
    (result,) = evaluation.results
    return evaluation, result


def made(labels: tuple[str, ...], targets: list[int], classes: list[list[int]], **fields: Any) -> Evaluation:
    """The evaluation of one backend that is sure of everything."""
    scores = np.array([math.nan if row[0] < 0 else 1.0 for row in classes], np.float32)
    result = Predictions("onnx-fp32", "onnxruntime", "fp32", np.array(classes, np.int32), scores, **fields)
    names = tuple(f"{index}.png" for index in range(len(targets)))
    return Evaluation("bundle", "data", labels, names, np.array(targets, np.int32), "0" * 64, (result,))


def test_figures_of_predictions_made_by_hand() -> None:
    labels = ("crane", "dog", "crane", "emu", "fox", "gnu", "hen")
    classes = [[0, 1, 2, 3, 4], [2, 0, 1, 3, 4], [1, 2, 3, 4, 5], [1, 0, 2, 3, 4], [-1] * 5, [0, 1, 2, 3, 4]]
    evaluation = made(labels, [0, 0, 1, 2, 4, 6], classes)
    (result,) = evaluation.results
    assert evaluation.top1(result) == Accuracy(2, 6, ("1.png", "3.png", "4.png", "5.png"))
    assert evaluation.top5(result) == Accuracy(4, 6, ("4.png", "5.png"))
    assert evaluation.per_class(result) == {
        "crane (0)": Accuracy(1, 2, ("1.png",)),
        "dog": Accuracy(1, 1),
        "crane (2)": Accuracy(0, 1, ("3.png",)),
        "fox": Accuracy(0, 1, ("4.png",)),
        "hen": Accuracy(0, 1, ("5.png",)),
    }
    wanted = np.zeros((7, 7), np.int64)
    wanted[[0, 0, 1, 2, 6], [0, 2, 1, 1, 0]] = 1
    np.testing.assert_array_equal(evaluation.confusion(result), wanted)
    assert evaluation.confused(result) == [
        ("crane (0)", "crane (2)", 1),
        ("crane (2)", "dog", 1),
        ("hen", "crane (0)", 1),
    ]
    assert evaluation.calibration(result).ece == pytest.approx(1 - 2 / 5)
    assert evaluation.agreement(result, result) == Accuracy(5, 6, ("4.png",))
    found = json.loads(json.dumps(evaluation.to_dict()))["results"][0]
    assert (found["top1"]["correct"], found["not_finite"], found["agreement"]) == (2, 1, None)
    assert found["per_class"]["dog"]["accuracy"] == 1
    assert found["confused"][0] == {"label": "crane (0)", "predicted": "crane (2)", "images": 1}


def test_every_class_has_a_name_of_its_own() -> None:
    evaluation = made(("a", "a", "a (0)", "b"), [0, 1, 2, 3], [[0, 1, 2, 3]] * 4)
    assert evaluation.class_names == ("a (0) (0)", "a (1)", "a (0) (2)", "b")
    assert len(evaluation.per_class(evaluation.results[0])) == 4


def test_one_that_is_skipped_has_no_figures_and_never_passes() -> None:
    evaluation = made(("a", "b"), [0], [[0, 1]], skipped="it is not here")
    (result,) = evaluation.results
    assert evaluation.status == "skipped"
    with raises(UsageError, what="onnxruntime fp32", found="it is not here"):
        evaluation.top1(result)
    assert evaluation.to_dict()["results"][0]["skipped"] == "it is not here"
    assert dataclasses.replace(evaluation, results=()).status == "skipped"
    assert made(("a", "b"), [0], [[0, 1]]).status == "passed"


@pytest.mark.parametrize("size", [1, 2, 32])
def test_wrong_images_are_named_whatever_the_batches(single: Bundle, data: Path, size: int) -> None:
    progress: list[tuple[int, int]] = []
    evaluation, result = reference(
        single, data, batch_size=size, progress=Told(None, lambda *done: progress.append(done))
    )
    assert evaluation.top1(result) == Accuracy(5, 7, WRONG)
    assert (evaluation.status, evaluation.reference) == ("passed", result)
    assert Brightness.batches == {1: [1] * 7, 2: [2, 2, 2, 1], 32: [7]}[size]
    assert progress == [(min(7, size * (index + 1)), 7) for index in range(len(Brightness.batches))]
    assert result.details == {"engine": "brightness 1"}


def test_logits_that_are_not_finite_are_wrong_and_counted(single: Bundle, tmp_path: Path) -> None:
    evaluation, result = reference(single, write(tmp_path / "data", {"dog": [128, 40], "cat": [0]}))
    assert evaluation.top1(result) == Accuracy(2, 3, ("dog/1.png",))
    assert (evaluation.top5(result), result.not_finite) == (Accuracy(2, 3, ("dog/1.png",)), 1)


def test_all_backends_see_the_same_pass(single: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKENDS, "constant", Backend(f"{__name__}:Constant", ("onnx",), "onnxruntime", "onnxruntime"))
    steps: list[str] = []
    evaluation = evaluate(single, data=data, batch_size=3, progress=Told(steps.append))
    real, onnx, constant = evaluation.results
    assert [result.name for result in evaluation.results] == ["torch fp32", "onnxruntime fp32", "constant fp32"]
    assert [result.artifact for result in evaluation.results] == ["reference", "onnx-fp32", "onnx-fp32"]
    assert onnx.details["allow_spinning"] is False
    assert evaluation.top1(real).correct == 5
    assert evaluation.top1(constant) == Accuracy(3, 7, tuple(name for name in evaluation.images if name[:3] != "cat"))
    assert evaluation.agreement(constant, real).correct == 2
    assert steps == [
        f"reading the labels of {data}",
        "opening reference on torch",
        "opening onnx-fp32 on onnxruntime",
        "opening onnx-fp32 on constant",
        "evaluating 7 images",
    ]


def test_what_cannot_run_here_is_skipped_beside_what_can(
    single: Bundle, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BACKENDS, "onnxruntime", Backend("not_there:X", ("onnx",), "onnxruntime", "onnxruntime"))
    evaluation = evaluate(single, data=data)
    assert evaluation.status == "skipped"
    ran, skipped = evaluation.results
    assert evaluation.top1(ran).correct == 5
    assert "pip install 'vitdeploy[onnxruntime]'" in str(skipped.skipped)
    assert (skipped.classes.shape, skipped.scores.shape) == ((0, 3), (0,))


def test_one_that_fails_on_its_way_is_skipped_and_tried_again(single: Bundle, tmp_path: Path) -> None:
    data = write(tmp_path / "data", {"cat": [0, 99, 0]})
    for _ in range(2):
        evaluation, result = reference(single, data, batch_size=1, resume=tmp_path / "work")
        assert (evaluation.status, result.skipped, len(result.classes)) == ("skipped", "memory ran out", 0)
    assert Brightness.batches == [1, 1, 1], "the second time, what had failed ran again"


def test_an_artifact_without_logits_is_skipped(data: Path, tmp_path: Path) -> None:
    from bundles import tiny_model, write_checkpoint_of

    import vitdeploy

    checkpoint = write_checkpoint_of(tiny_model(), tmp_path / "checkpoint")
    bundle = vitdeploy.export(
        checkpoint, output=tmp_path / "bundle", graph=vitdeploy.GraphOptions(outputs=["hidden_states.0"])
    )
    (result,) = evaluate(bundle, data=data, backends=["onnxruntime"]).results
    assert result.skipped == "it gives hidden_states.0, and no logits"


def test_finished_batches_are_not_computed_again(single: Bundle, data: Path, tmp_path: Path) -> None:
    whole, expected = reference(single, data, batch_size=2, resume=tmp_path / "work")
    lines = (tmp_path / "work").read_bytes().splitlines(keepends=True)
    assert len(lines) == 5
    for kept in range(1, 6):
        (tmp_path / "work").write_bytes(b"".join(lines[:kept]))
        Brightness.batches.clear()
        evaluation, result = reference(single, data, batch_size=2, resume=tmp_path / "work")
        assert Brightness.batches == [2, 2, 2, 1][kept - 1 :]
        np.testing.assert_array_equal(result.classes, expected.classes)
        np.testing.assert_array_equal(result.scores, expected.scores)
        assert (evaluation.to_dict(), (tmp_path / "work").read_bytes()) == (whole.to_dict(), b"".join(lines))


def test_the_number_of_threads_counts_and_neither_its_reason_nor_how_they_wait(
    single: Bundle, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number does: sums of another order differ in their last bits."""
    work = tmp_path / "work"
    monkeypatch.setattr(
        Brightness,
        "thread_details",
        {"threads": 2, "threads_reason": "2 physical cores", "allow_spinning": True, "concurrent_runs": 2},
    )
    reference(single, data, batch_size=2, resume=work)
    monkeypatch.setattr(
        Brightness,
        "thread_details",
        {"threads": 2, "threads_reason": "OMP_NUM_THREADS", "allow_spinning": False, "concurrent_runs": 4},
    )
    reference(single, data, batch_size=2, resume=work)
    monkeypatch.setattr(Brightness, "thread_details", {"threads": 1, "threads_reason": "OMP_NUM_THREADS"})
    with raises(InputError, what=re.compile("^backends / .* / threads$"), expected=1, found=2):
        reference(single, data, batch_size=2, resume=work)


def test_finished_batches_of_other_work_are_refused(single: Bundle, data: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    reference(single, data, batch_size=2, resume=work)
    content = work.read_bytes()
    refused: dict[str, dict[str, Any]] = {
        "batch_size": {"batch_size": 3},
        "limit": {"limit": 6},
        "backends": {"backends": ["onnxruntime"]},
    }
    for what, options in refused.items():
        with raises(InputError, what=re.compile(f"^{what}( / |$)"), where=str(work)):
            evaluate(single, data=data, resume=work, **{"backends": ["torch"], "batch_size": 2, **options})
    Image.fromarray(np.full((4, 4, 3), 1, np.uint8)).save(data / "cat" / "0.png")
    with raises(InputError, what="images", found="cat/0.png"):
        reference(single, data, batch_size=2, resume=work)
    (data / "cat" / "0.png").rename(data / "cat" / "9.png")
    with raises(InputError, what="data", where=str(work)):
        reference(single, data, batch_size=2, resume=work)
    assert work.read_bytes() == content


@pytest.mark.parametrize(
    "spoilt",
    [
        {"classes": [[0, 1, 2]], "scores": [1.0]},
        {"classes": [[0, 1]] * 2, "scores": [1.0] * 2},
        {"classes": [[0, 1, 10**400]] * 2, "scores": [1.0] * 2},
        {"classes": [[0, 1, 1.5]] * 2, "scores": [1.0] * 2},
        {"classes": [[0, 1, 3]] * 2, "scores": [1.0] * 2},
        {"classes": [[0, 1, -2]] * 2, "scores": [1.0] * 2},
        {"classes": [[0], [0, 1]], "scores": [1.0] * 2},
        {"classes": [[0, 1, 2]] * 2, "scores": [1.0, 1.5]},
        {"classes": [[0, 1, 2]] * 2, "scores": [1.0, 10**400]},
        {"classes": [[0, 1, 2]] * 2, "scores": ["1", "1"]},
        {"classes": [[0, 1, 2]] * 2, "scores": [1.0]},
        {"classes": [[0, 1, 2]] * 2, "scores": [1.0, None]},
        {"skipped": "because"},
        {"skipped": None},
        3,
    ],
)
def test_a_damaged_batch_is_not_believed(single: Bundle, data: Path, tmp_path: Path, spoilt: Any) -> None:
    reference(single, data, batch_size=2, resume=tmp_path / "work")
    header = json.loads((tmp_path / "work").read_bytes().partition(b"\n")[0])
    with WorkFile(tmp_path / "work", header) as work:
        batch = work.batches[0]
    (tmp_path / "work").unlink()
    with WorkFile(tmp_path / "work", header) as work:
        work.append({**batch, "results": [spoilt]})
    with raises(InputError, what="resume", found=0):
        reference(single, data, batch_size=2, resume=tmp_path / "work")


def test_another_bundle_is_refused(single: Bundle, data: Path, tmp_path: Path) -> None:
    reference(single, data, resume=tmp_path / "work")
    manifest = single.path / MANIFEST
    text = manifest.read_text(encoding="utf-8")
    altered = json.loads(text)
    altered["source"]["id"] = "another"
    manifest.write_text(json.dumps(altered), encoding="utf-8")
    try:
        with raises(InputError, what="bundle"):
            reference(Bundle.open(single.path), data, resume=tmp_path / "work")
    finally:
        manifest.write_text(text, encoding="utf-8")


def test_a_damaged_image_loses_nothing(single: Bundle, data: Path, tmp_path: Path) -> None:
    good = (data / "newt" / "0.png").read_bytes()
    (data / "newt" / "0.png").write_bytes(b"no image")
    with raises(ImageError, what="newt/0.png", where=str(data)):
        reference(single, data, batch_size=1, resume=tmp_path / "work")
    assert Brightness.batches == [1] * 5
    (data / "newt" / "0.png").write_bytes(good)
    evaluation, result = reference(single, data, batch_size=1, resume=tmp_path / "work")
    assert (evaluation.top1(result), Brightness.batches) == (Accuracy(5, 7, WRONG), [1] * 7)


def test_the_hash_of_the_data_is_of_names_labels_and_bytes(single: Bundle, data: Path, tmp_path: Path) -> None:
    digests = {reference(single, data, batch_size=size)[0].data_sha256 for size in (1, 3, 32)}
    assert len(digests) == 1
    (data / "cat" / "0.png").rename(data / "cat" / "00.png")
    digests.add(reference(single, data)[0].data_sha256)
    (data / "cat" / "00.png").rename(data / "dog" / "00.png")
    digests.add(reference(single, data)[0].data_sha256)
    Image.fromarray(np.full((4, 4, 3), 1, np.uint8)).save(data / "dog" / "00.png")
    digests.add(reference(single, data)[0].data_sha256)
    assert len(digests) == 4


def test_a_limit_is_recorded(single: Bundle, data: Path) -> None:
    evaluation, result = reference(single, data, limit=4, seed=3)
    assert len(evaluation.images) == len(evaluation.targets) == len(result.classes) == 4
    assert evaluation.settings == {
        "kind": "folder", "labels_matched": "by name", "images": 7, "batch_size": 32, "device": "cpu", "limit": 4,
        "seed": 3,
    }  # fmt: skip


def test_what_cannot_be_evaluated_is_refused(single: Bundle, data: Path, tmp_path: Path) -> None:
    for size in (0, 10**20):
        with raises(UsageError, what="batch_size", found=size):
            evaluate(single, data=data, batch_size=size)
    with raises(BundleError, where=str(tmp_path)):
        evaluate(tmp_path, data=data)
    with raises(InputError, what="label", found="purple"):
        evaluate(single, data=write(tmp_path / "other", {"purple": [1]}))
    features = write_bundle(tmp_path / "features", Task.FEATURES)
    with raises(UsageError, what="task", found=Task.FEATURES):
        evaluate(features, data=data)


def test_selection(single: Bundle) -> None:
    real, onnx = Selected("reference", "torch", "fp32"), Selected("onnx-fp32", "onnxruntime", "fp32")
    assert select(single) == [real, onnx]
    assert select(single, ["onnxruntime", "torch", "onnxruntime:fp32"]) == [onnx, real]
    assert select(single, ["torch:bf16"]) == [Selected("reference", "torch", "bf16")]
    for names in (("tensorflow",), ("onnxruntime:fp7",), ("torchscript",)):
        with raises(UsageError, what="backends", found=names[0]):
            select(single, names)
    with raises(UsageError, what="backends", found=()):
        select(single, ())
    with raises(UsageError, what="precision", found="onnx-fp16"):
        select(single, ("onnxruntime:fp16",))


def test_an_artifact_that_nothing_here_runs_is_selected_and_skipped(single: Bundle, data: Path) -> None:
    (artifact,) = single.manifest.artifacts
    manifest = dataclasses.replace(single.manifest, artifacts=(dataclasses.replace(artifact, format="tomorrow"),))
    _, result = evaluate(dataclasses.replace(single, manifest=manifest), data=data).results
    assert (result.artifact, result.backend) == ("tomorrow-fp32", "")
    assert "no backend of vitdeploy" in str(result.skipped)
