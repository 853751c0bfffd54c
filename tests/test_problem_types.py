"""Heads of every problem type: the scores of transformers' pipeline, and no best class where there is none."""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import re
import shutil
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from bundles import sign_again, tiny_model, write_bundle, write_checkpoint_of
from families import HEADS, random_config
from onnx import TensorProto, helper
from PIL import Image
from raising import raises
from sklearn.datasets import load_sample_images

import vitdeploy
from vitdeploy.assess.debug.layers import compare_layers
from vitdeploy.assess.gate.gate import planned_checks
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.cli import main
from vitdeploy.errors import CheckFailedError, CheckpointError, NotFiniteError, UsageError
from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
from vitdeploy.exporting.validation import OF_ONE, Sample, validate
from vitdeploy.models.config import ViTConfig
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import open_runtime
from vitdeploy.specs import Task
from vitdeploy.system.progress import SILENT

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from families import Head

    from conftest import Checkpoint, WriteCheckpoint

PHOTOGRAPHS = load_sample_images().filenames
# Of a sigmoid or a softmax, absolute; of a value, of the largest. Seen: below 1e-6.
TOLERANCE = 1e-5
CLASSIFIERS = [head for head in HEADS if head.task is Task.CLASSIFICATION]
# The pipeline reads `function_to_apply` only where a model has no labels, and then there is nothing to name.
CONFIGS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (1, {"problem_type": "regression"}),
    (1, {"problem_type": "multi_label_classification"}),
    (7, {}),
    (7, {"problem_type": "single_label_classification"}),
    (7, {"problem_type": "multi_label_classification"}),
    (7, {"problem_type": "regression"}),
    *((outputs, {"function_to_apply": name}) for outputs in (1, 7) for name in ("sigmoid", "softmax", "none")),
    (7, {"problem_type": "regression", "function_to_apply": "softmax"}),
]


@pytest.fixture(scope="module")
def exported(
    write_checkpoint: WriteCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Head, int], tuple[Checkpoint, Bundle]]:
    """A head with 1 or with 7 outputs, as transformers has it and as a TorchScript bundle; made once."""

    @functools.cache
    def export(head: Head, outputs: int) -> tuple[Checkpoint, Bundle]:
        config = {**random_config(head, 0), "num_labels": outputs}
        if outputs == 7:
            config |= {"id2label": {index: f"name {index}" for index in range(7)}}
        checkpoint = write_checkpoint(head, config)
        _processor(checkpoint).save_pretrained(checkpoint.folder)
        output = tmp_path_factory.mktemp("bundles") / "bundle"
        return checkpoint, vitdeploy.export(checkpoint.folder, to="torchscript", output=output)

    return export


def _processor(checkpoint: Checkpoint) -> Any:
    height, width = checkpoint.config.image_size
    return transformers.ViTImageProcessorPil(size={"height": height, "width": width})


def with_config(bundle: Bundle, folder: Path, **keys: Any) -> Bundle:
    """A copy of a bundle with other keys in its config.json."""
    copied = Bundle.open(shutil.copytree(bundle.path, folder))
    path = copied.path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | keys), encoding="utf-8")
    return sign_again(copied)


@pytest.mark.parametrize(
    ("head", "outputs", "keys"),
    [
        *((CLASSIFIERS[0], *config) for config in CONFIGS),
        *(
            (head, outputs, {}) for head in CLASSIFIERS[1:] for outputs in (1, 7)
        ),  # the scores do not depend on the head
    ],
    ids=str,
)
def test_labels_and_scores_are_those_of_the_pipeline(
    exported: Callable[[Head, int], tuple[Checkpoint, Bundle]],
    tmp_path: Path,
    head: Head,
    outputs: int,
    keys: dict[str, Any],
) -> None:
    checkpoint, bundle = exported(head, outputs)
    peer = copy.deepcopy(checkpoint.peer)
    for key, value in keys.items():
        setattr(peer.config, key, value)
    pipeline = transformers.pipeline("image-classification", peer, image_processor=_processor(checkpoint))
    with vitdeploy.load(with_config(bundle, tmp_path / "bundle", **keys).path, backend="torchscript") as predictor:
        found = predictor.predict(PHOTOGRAPHS)
    wanted = pipeline(PHOTOGRAPHS, top_k=outputs if keys.get("problem_type") == "regression" else 5)
    for predictions, want in zip(found, wanted, strict=True):
        assert len(predictions) == len(want)
        if keys.get("problem_type") == "regression":
            assert [each.index for each in predictions] == list(range(outputs))  # the pipeline ranks values
            predictions.sort(key=lambda each: -each.score)
        assert [each.label for each in predictions] == [each["label"] for each in want]
        largest = max(1.0, *(abs(each["score"]) for each in want))
        for each, of_pipeline in zip(predictions, want, strict=True):
            assert each.score == pytest.approx(of_pipeline["score"], abs=TOLERANCE * largest)


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A regression of two values and one of a single value would give classes by nothing but which is larger."""
    labels = ("age", "weight")
    return write_bundle(tmp_path_factory.mktemp("two"), labels=labels, problem_type=ProblemType.REGRESSION)


@pytest.fixture(scope="module")
def multi_label(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("multi"), problem_type=ProblemType.MULTI_LABEL)


@pytest.fixture(scope="module")
def single_output(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("single"), labels=("fire",))


@pytest.fixture(scope="module")
def one_value(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("one"), labels=("age",), problem_type=ProblemType.REGRESSION)


def run(*arguments: object, capsys: pytest.CaptureFixture[str]) -> tuple[Any, str]:
    """A command's exit code and all that it printed."""
    with pytest.raises(SystemExit) as caught:
        main([str(each) for each in arguments])
    return caught.value.code, "".join(capsys.readouterr())


def test_the_command_prints_values_and_no_percentages(regression: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with vitdeploy.load(regression.path, backend="torch") as predictor:
        ((age, weight),) = predictor.predict(PHOTOGRAPHS[0])
        logits = predictor.logits(predictor.processor(PHOTOGRAPHS[0]))[0]
    assert [(age.label, age.index), (weight.label, weight.index)] == [("age", 0), ("weight", 1)]
    assert [age.score, weight.score] == logits.tolist()
    command = ("predict", regression.path, PHOTOGRAPHS[0], "--backend", "torch")
    code, printed = run(*command, capsys=capsys)
    assert code == 0, printed
    _, header, *rows = printed.splitlines()
    assert header.split() == ["image", "label", "value"]
    assert [row.split()[-2:] for row in rows] == [["age", f"{age.score:.6g}"], ["weight", f"{weight.score:.6g}"]]
    data = json.loads(run(*command, "--json", capsys=capsys)[1])
    assert data["problem_type"] == "regression"
    assert [each["score"] for each in data["results"][0]["predictions"]] == [age.score, weight.score]


def test_values_have_no_rank(regression: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with vitdeploy.load(regression.path) as predictor, raises(UsageError, what="top_k", found=1):
        predictor.predict(PHOTOGRAPHS[0], top_k=1)
    assert run("predict", regression.path, PHOTOGRAPHS[0], "--top-k", "1", capsys=capsys)[0] == 2


@pytest.mark.parametrize("value", ["ranking", "Regression", 3, ["regression"], ""])
def test_an_unknown_problem_type_is_refused_where_it_is_read(regression: Bundle, tmp_path: Path, value: Any) -> None:
    altered = with_config(regression, tmp_path / "bundle", problem_type=value)
    with raises(CheckpointError, what="problem_type"):
        vitdeploy.load(altered.path)
    with raises(CheckpointError, what="problem_type"):
        ViTConfig.from_dict({"model_type": "vit", "problem_type": value})


def test_one_class_alone_is_no_class() -> None:
    keys = {"problem_type": "single_label_classification", "num_labels": 1}
    with raises(CheckpointError, what="problem_type"):
        ViTConfig.from_dict({"model_type": "vit", **keys})
    with pytest.raises(ValueError, match="problem_type"):
        transformers.ViTConfig(**keys)


@pytest.mark.parametrize("kind", ["regression", "one_value", "multi_label", "single_output"])
def test_accuracy_is_refused_with_what_to_do(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    for name in bundle.read_config().labels:
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(PHOTOGRAPHS[0], tmp_path / "data" / name / "0.jpg")
    commands: list[Any] = [vitdeploy.evaluate, vitdeploy.gate, planned_checks]
    for command in commands:
        with raises(UsageError, what="problem_type", hint=re.compile("vitdeploy compare")):
            command(bundle, data=tmp_path / "data")
    assert run("evaluate", bundle.path, "--data", tmp_path / "data", capsys=capsys)[0] == 2


@pytest.mark.parametrize("kind", ["regression", "multi_label", "single_output"])
def test_a_comparison_says_nothing_of_classes(
    kind: str, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle: Bundle = request.getfixturevalue(kind)
    result = vitdeploy.compare(bundle, images=PHOTOGRAPHS, tolerance=1e-3)  # one random logit, 0.007: a sum near zero
    (found,) = result.results
    (difference,) = found.differences
    assert found.status == "passed"
    assert (difference.top1_agreement, found.logits, found.furthest) == (None, None, ())
    (artifact,) = bundle.manifest.artifacts
    assert artifact.validation["outputs"][0]["top1_agreement"] is None
    assert result.to_dict()["problem_type"] == str(bundle.read_config().problem_type)
    assert str(bundle.read_config().problem_type) in run("compare", bundle.path, capsys=capsys)[1]


@pytest.fixture(scope="module")
def two_units(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A regression whose weight is some 100,000 times its age, and an ONNX file that gives -3 times the age."""
    folder = tmp_path_factory.mktemp("units")
    model = tiny_model(labels=("age", "weight"), problem_type=ProblemType.REGRESSION)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("head.classifier."):
                parameter[1] *= 1e5
    bundle = vitdeploy.export(write_checkpoint_of(model, folder / "checkpoint"), output=folder / "out")
    (artifact,) = bundle.manifest.artifacts
    path = bundle.path / artifact.files[0].path
    graph_model = onnx.load(path)
    graph = graph_model.graph
    graph.node[-1].output[0] = "plain"
    graph.initializer.append(helper.make_tensor("factors", TensorProto.FLOAT, [2], [-3.0, 1.0]))
    graph.node.append(helper.make_node("Mul", ["plain", "factors"], ["logits"]))
    onnx.save(graph_model, path)
    return sign_again(Bundle.open(bundle.path))


def test_a_wrong_value_is_not_hidden_by_one_of_a_larger_unit(
    two_units: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    result = vitdeploy.compare(two_units, images=PHOTOGRAPHS)
    (difference,) = result.results[0].differences
    assert result.status == "failed"
    assert difference.max_relative == pytest.approx(4, rel=1e-4)
    assert (difference.min_cosine, difference.mean_cosine) == (None, None)
    assert run("compare", two_units.path, capsys=capsys)[0] == 1
    layers = compare_layers(two_units, images=PHOTOGRAPHS)
    assert [each.first for each in layers.results] == ["head"]


def test_an_export_with_a_wrong_value_is_refused(two_units: Bundle) -> None:
    processor, (artifact,) = load_processor(two_units), two_units.manifest.artifacts
    images = [Sample([Image.open(path).convert("RGB") for path in PHOTOGRAPHS[:1]], processor, OF_ONE)]
    with open_runtime(two_units, "torch") as reference:
        expected = [reference.run({"pixel_values": sample.pixel_values()}) for sample in images]
    with open_runtime(two_units, "onnxruntime") as runtime, pytest.raises(CheckFailedError):
        validate(runtime, artifact.name, images, expected, 1e-4, two_units.read_config().problem_type)


def test_visual_tokens_are_classes_whatever_the_problem_type(write_checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    head = next(each for each in HEADS if each.name == "BeitForMaskedImageModeling")
    checkpoint = write_checkpoint(head, {**random_config(head, 0), "num_labels": 1})
    _processor(checkpoint).save_pretrained(checkpoint.folder)
    bundle = vitdeploy.export(checkpoint.folder, output=tmp_path / "out")
    assert bundle.read_config().problem_type is ProblemType.SINGLE_LABEL
    (difference,) = vitdeploy.compare(bundle).results[0].differences
    assert difference.top1_agreement == 1


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(24):
        pixels = generator.integers(0, 256, (4, 4, 3), np.uint8)
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.mark.parametrize("bound", [vitdeploy.MinAgreement(0.9), vitdeploy.MaxDrop("1%")], ids=str)
@pytest.mark.parametrize("problem_type", [ProblemType.REGRESSION, ProblemType.MULTI_LABEL])
def test_no_bound_by_the_best_class(problem_type: ProblemType, bound: Any, pictures: Path, tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(problem_type=problem_type), tmp_path / "checkpoint")
    with raises(UsageError, what="accuracy", found=problem_type):
        vitdeploy.export(
            checkpoint,
            precision="int8",
            output=tmp_path / "out",
            quantization=vitdeploy.Quantization(vitdeploy.Calibration(pictures), accuracy=bound),
        )


def test_int8_of_one_value_is_judged_by_the_value(pictures: Path, tmp_path: Path) -> None:
    """The cosine of one value is that of its sign: 1 for whatever 8 bits make of an age."""
    checkpoint = write_checkpoint_of(
        tiny_model(labels=("age",), problem_type=ProblemType.REGRESSION), tmp_path / "checkpoint"
    )
    options: dict[str, Any] = {
        "precision": "int8",
        "output": tmp_path / "out",
        "quantization": vitdeploy.Quantization(vitdeploy.Calibration(pictures)),
    }
    bundle = vitdeploy.export(checkpoint, validation=vitdeploy.ValidationOptions(tolerance=0.5), **options)
    (artifact,) = bundle.manifest.artifacts
    (entry,) = artifact.validation["calibration_images"]
    assert entry["top1_agreement"] is None
    images = CalibrationImages.open(pictures, load_processor(bundle), None, 0, SILENT)
    files = [pictures / name for name in images.parts().judge.images.names]
    assert entry["images"] == len(files) < len(list(pictures.iterdir()))
    values = []
    for backend, precision in (("torch", "fp32"), ("onnxruntime", "int8")):
        with vitdeploy.load(bundle.path, backend=backend, precision=precision) as predictor:
            values.append(np.array([predictor.predict(file)[0][0].score for file in files]))
    want, got = values
    error = math.sqrt(np.square(got - want).sum() / np.square(want).sum())
    assert 0 < entry["relative_error"] == pytest.approx(error, rel=1e-2)  # three digits
    with pytest.raises(CheckFailedError):
        vitdeploy.export(
            checkpoint, validation=vitdeploy.ValidationOptions(tolerance=entry["relative_error"] / 2), **options
        )


def test_a_regression_is_calibrated_on_its_own_csv(pictures: Path, tmp_path: Path) -> None:
    """Whatever its labels are: they are not classes, and not needed."""
    checkpoint = write_checkpoint_of(
        tiny_model(labels=("age",), problem_type=ProblemType.REGRESSION), tmp_path / "checkpoint"
    )
    records = []
    for header, value in (("image,label", ",41.5"), ("image", "")):
        rows = [f"{file}{value}" for file in sorted(pictures.iterdir())]
        (tmp_path / "ages.csv").write_text("\n".join([header, *rows]), encoding="utf-8")
        bundle = vitdeploy.export(
            checkpoint,
            precision="int8",
            output=tmp_path / header,
            quantization=vitdeploy.Quantization(vitdeploy.Calibration(tmp_path / "ages.csv")),
            validation=vitdeploy.ValidationOptions(tolerance=0.5),
        )
        records.append(bundle.manifest.artifacts[0].validation["calibration_images"])
    assert records[0] == records[1]
    assert records[0][0]["images"] == 24 // 4  # which judge
    assert [records[0][0][figure] for figure in ("mean_cosine", "p5_cosine", "min_cosine")] == [None] * 3


def spoilt_by_dark_images(bundle: Bundle, folder: Path) -> Bundle:
    """A copy whose logits are NaN for images darker than the mean: a square root of less than nothing is added."""
    copied = Bundle.open(shutil.copytree(bundle.path, folder))
    (artifact,) = copied.manifest.artifacts
    path = copied.path / artifact.files[0].path
    model = onnx.load(path)
    graph = model.graph
    last = graph.node[-1]
    name, last.output[0] = last.output[0], "plain"
    assert name == "logits"
    graph.initializer.extend(
        [
            helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3]),
            helper.make_tensor("channels", TensorProto.INT64, [1], [1]),
            helper.make_tensor("nothing", TensorProto.FLOAT, [], [0.0]),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("ReduceMean", ["pixel_values", "axes"], ["of_channels"], keepdims=0),
            helper.make_node("ReduceMean", ["of_channels", "channels"], ["brightness"], keepdims=1),
            helper.make_node("Sqrt", ["brightness"], ["root"]),
            helper.make_node("Mul", ["root", "nothing"], ["zero_or_nan"]),
            helper.make_node("Add", ["plain", "zero_or_nan"], ["logits"]),
        ]
    )
    onnx.save(model, path)
    return sign_again(copied)


@pytest.fixture(scope="module", params=["single_label", "regression", "multi_label"])
def spoilt(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, single: Bundle) -> Bundle:
    bundle = single if request.param == "single_label" else request.getfixturevalue(request.param)
    return spoilt_by_dark_images(bundle, tmp_path_factory.mktemp("spoilt") / "bundle")


@pytest.fixture(scope="module")
def bright_and_dark(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("images")
    paths = folder / "bright.png", folder / "dark.png"
    for path, value in zip(paths, (250, 3), strict=True):
        Image.new("RGB", (32, 32), (value, value, value)).save(path)
    return paths


def test_nothing_is_predicted_of_what_is_not_finite(
    spoilt: Bundle, bright_and_dark: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    bright, dark = bright_and_dark
    with vitdeploy.load(spoilt.path) as predictor:
        assert all(math.isfinite(each.score) for each in predictor.predict(bright)[0])
        with raises(NotFiniteError, what="logits", found=re.compile("dark.png")) as caught:
            predictor.predict([bright, dark])
        assert "fp32" not in str(caught.value)  # which it is
        predictor.runtime.precision = "fp16"
        with raises(NotFiniteError, hint=re.compile("try fp32 instead of fp16")):
            predictor.predict(dark)
        with raises(NotFiniteError, what="logits", found=["images[9]", "images[10]"]):
            predictor.predict([bright.read_bytes()] * 9 + [dark.read_bytes()] * 2)
        assert np.isnan(predictor.logits(predictor.processor([dark]))).all()  # these stay as they are
    code, printed = run("predict", spoilt.path, bright, dark, capsys=capsys)
    assert code == 1
    assert "dark.png" in printed


def test_a_comparison_with_what_is_not_finite_fails(spoilt: Bundle, bright_and_dark: tuple[Path, Path]) -> None:
    result = vitdeploy.compare(spoilt, images=list(bright_and_dark))
    assert result.status == "failed"
    assert result.results[0].not_finite == (1,)


def test_an_evaluation_counts_what_is_not_finite_as_wrong(
    single: Bundle, bright_and_dark: tuple[Path, Path], tmp_path: Path
) -> None:
    bundle = spoilt_by_dark_images(single, tmp_path / "bundle")
    with vitdeploy.load(bundle.path, backend="torch") as reference:
        labels = [reference.predict(path)[0][0].label for path in bright_and_dark]
    rows = [f"{path},{label}" for path, label in zip(bright_and_dark, labels, strict=True)]
    (tmp_path / "data.csv").write_text("\n".join(["image,label", *rows]), encoding="utf-8")
    evaluation = vitdeploy.evaluate(bundle, data=tmp_path / "data.csv")
    right = {result.backend: evaluation.top1(result).correct for result in evaluation.results}
    assert right == {"torch": 2, "onnxruntime": 1}
    assert [result.not_finite for result in evaluation.results] == [0, 1]
    checks = {check.rule: check.status for check in vitdeploy.gate(bundle, data=tmp_path / "data.csv").checks
              if check.subject == "onnxruntime fp32"}  # fmt: skip
    assert checks["finite"] == "failed"


def test_what_is_not_finite_is_not_timed_and_has_failed(
    single: Bundle, bright_and_dark: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = spoilt_by_dark_images(single, tmp_path / "bundle")
    (tmp_path / "images").mkdir()
    shutil.copy(bright_and_dark[1], tmp_path / "images")
    options = ("--images", tmp_path / "images", "--batch-sizes", "1", "--rounds", "1", "--runs", "1", "--json")
    status, printed = run("benchmark", bundle.path, *options, capsys=capsys)
    assert status == 1
    found = json.loads(printed)
    assert [each["backend"] for each in found["latencies"]] == ["torch"]
    assert [(each["backend"], each["status"]) for each in found["skipped"]] == [("onnxruntime", "failed")]
    assert found["status"] == "failed"


def test_triton_ranks_no_values(regression: Bundle, multi_label: Bundle, tmp_path: Path) -> None:
    names = {}
    for bundle in (regression, multi_label):
        model = vitdeploy.write_triton_model(
            bundle.path, tmp_path / "models", name=str(bundle.read_config().problem_type)
        )
        names[bundle.read_config().problem_type] = "labels.txt" in model.files
    assert names == {ProblemType.REGRESSION: False, ProblemType.MULTI_LABEL: True}


def test_the_default_configuration_states_no_problem_type() -> None:
    assert "problem_type" not in ViTConfig().to_dict()
    stated = dataclasses.replace(ViTConfig(), problem_type=ProblemType.REGRESSION)
    assert ViTConfig.from_dict(stated.to_dict()) == stated
    assert transformers.ViTConfig(**stated.to_dict()).problem_type == "regression"


def test_a_score_of_a_large_logit_is_0_and_no_warning() -> None:
    logits = np.array([[-1e4, 0.0, 1e4]], np.float32)
    assert ProblemType.MULTI_LABEL.scores(logits).tolist() == [[0, 0.5, 1]]
    assert ProblemType.SINGLE_LABEL.scores(logits).tolist() == [[0, 0, 1]]
    assert ProblemType.REGRESSION.scores(logits) is logits
