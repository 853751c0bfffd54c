"""int8 and fp8 within an accuracy bound: outliers moved into weights, and as few layers in float32 as that takes."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import onnx
import pytest
from bundles import tiny_model, write_checkpoint_of
from click.testing import CliRunner
from outliers import with_outliers
from raising import raises
from safetensors.numpy import load_file, save_file
from told import Told

import vitdeploy
from vitdeploy import (
    Calibration,
    GraphOptions,
    MaxDrop,
    MinAgreement,
    Quantization,
    SourceOptions,
    ValidationOptions,
)
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import Artifact
from vitdeploy.cli.export import export as export_command
from vitdeploy.errors import CheckFailedError, CheckpointError, InputError, UsageError
from vitdeploy.exporting.quantization import candidate_search
from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
from vitdeploy.exporting.quantization.candidate_search import STRENGTHS
from vitdeploy.exporting.quantization.top1_target import Top1Target
from vitdeploy.runtimes.pytorch import PyTorchRuntime
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.system.progress import SILENT

IMAGES = Calibration(held_out_images(), count=150)
# Errors of 8 bits show in a model that they harm: the range of all values seen, and no smoothing.
NAIVE = Quantization(dataclasses.replace(IMAGES, method="minmax"), smooth_quant="off")
LOOSE = ValidationOptions(tolerance=3.0)
INT8: dict[str, Any] = {"precision": "int8", "validation": LOOSE}


def naive(**options: Any) -> Quantization:
    return dataclasses.replace(NAIVE, **options)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with outliers."""
    return with_outliers(default_checkpoint(), tmp_path_factory.mktemp("outliers") / "checkpoint", 80)


def only(bundle: Bundle) -> Artifact:
    (artifact,) = bundle.manifest.artifacts
    return artifact


def int8(checkpoint: Path, output: Path, quantization: Quantization) -> Artifact:
    return only(vitdeploy.export(checkpoint, output=output, quantization=quantization, **INT8))


def test_outliers_change_nothing_but_what_is_between(checkpoint: Path) -> None:
    images = sorted(held_out_images().rglob("*.png"))[:8]
    outputs = []
    for path in (checkpoint, default_checkpoint()):
        read = read_checkpoint(path)
        with PyTorchRuntime(read.model) as runtime:
            outputs.append(runtime.run({"pixel_values": read.processor(images)})["logits"])
    found, want = outputs
    np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())


@pytest.fixture(scope="module")
def bound(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    """The model within a bound that takes some layers in float32, and the steps that were told."""
    steps: list[str] = []
    output = tmp_path_factory.mktemp("bound") / "out"
    return vitdeploy.export(
        checkpoint, output=output, progress=Told(steps.append), quantization=naive(accuracy=MinAgreement(1.0)), **INT8
    ), steps


def parts() -> tuple[set[str], set[str]]:
    """The names of the 150 images that the search sees, and of those that are held out."""
    processor = read_checkpoint(default_checkpoint()).processor
    apart = CalibrationImages.open(held_out_images(), processor, 150, 0, SILENT).parts()
    return {*apart.ranges.images.names, *apart.choice.images.names}, {*apart.judge.images.names}


def agreeing(bundle: Bundle) -> tuple[int, int]:
    """Numbers of search and held-out images with the reference's top-1 class."""
    backends = ["onnxruntime:int8", "torch"]
    evaluation = vitdeploy.evaluate(bundle, data=held_out_images(), backends=backends, limit=150, batch_size=1)
    wrong = evaluation.agreement(*evaluation.results).wrong
    searched, held_out = (len(names.difference(wrong)) for names in parts())
    return searched, held_out


def test_as_few_layers_as_the_bound_takes(bound: tuple[Bundle, list[str]], checkpoint: Path, tmp_path: Path) -> None:
    bundle, steps = bound
    artifact = only(bundle)
    made, measured = artifact.options, artifact.validation
    assert tuple(map(len, parts())) == (113, 37)
    wanted = {"bound": "min_agreement 1", "images": 113, "correct": 113, "at_least": 113, "reference": 113}
    found = dict(measured["accuracy"])
    held_out = found.pop("held_out")
    assert found == {**wanted, "low": 0.9671, "high": 1.0}
    searched, judged = agreeing(bundle)
    assert (searched, judged) == (113, held_out["correct"])
    assert (held_out["images"], held_out["at_least"], held_out["honoured"]) == (37, 37, judged == 37)
    assert 0 < len(measured["kept_layers"]) <= 10  # a third
    assert len(made["float32_nodes"]) == len(measured["kept_layers"]) == 30 - made["quantized_nodes"]
    assert measured["correct_without"] < 113
    assert measured["minimal"]
    assert measured["runs"] == sum(step.startswith("run ") for step in steps)
    assert set(measured["kept_layers"]) < set(measured["layer_effects"])
    assert len(measured["layer_effects"]) == 30
    assert all(name.startswith("layers.") for name in measured["layer_effects"])
    # The figures are of the artifact: an evaluation by itself comes to the same.
    whole = vitdeploy.export(checkpoint, output=tmp_path / "whole", quantization=NAIVE, **INT8)
    assert agreeing(whole)[0] == measured["correct_without"]
    graph = GraphOptions(keep_fp32=made["float32_nodes"][1:])
    fewer = vitdeploy.export(checkpoint, output=tmp_path / "fewer", graph=graph, quantization=NAIVE, **INT8)
    assert agreeing(fewer)[0] < 113, "each of them is needed"


def test_the_same_bytes_again(bound: tuple[Bundle, list[str]], checkpoint: Path, tmp_path: Path) -> None:
    uncached = naive(calibration=dataclasses.replace(IMAGES, method="minmax", cache=False), accuracy=MinAgreement(1.0))
    again = vitdeploy.export(checkpoint, output=tmp_path / "out", quantization=uncached, **INT8)
    assert only(again) == only(bound[0]) == only(Bundle.open(again.path))


def test_labels_and_nodes_that_somebody_keeps(
    checkpoint: Path, tmp_path: Path, bound: tuple[Bundle, list[str]]
) -> None:
    kept = only(bound[0]).options["float32_nodes"][:1]
    graph, bounded = GraphOptions(keep_fp32=kept), naive(accuracy=MaxDrop("3%"))
    bundle = vitdeploy.export(checkpoint, output=tmp_path / "out", graph=graph, quantization=bounded, **INT8)
    artifact = only(bundle)
    accuracy = artifact.validation["accuracy"]
    assert accuracy["bound"] == "max_drop 3%"
    assert accuracy["correct"] >= accuracy["at_least"] == accuracy["reference"] - 3  # of 113 images, 3.39
    assert set(kept) <= set(artifact.options["float32_nodes"])
    evaluation = vitdeploy.evaluate(
        bundle, data=held_out_images(), backends=["onnxruntime:int8"], limit=150, batch_size=1
    )
    wrong = evaluation.top1(evaluation.results[0]).wrong
    searched, held_out = parts()
    assert len(searched.difference(wrong)) == accuracy["correct"]
    assert len(held_out.difference(wrong)) == accuracy["held_out"]["correct"]


def test_outliers_are_moved_where_that_helps(checkpoint: Path, tmp_path: Path) -> None:
    auto = naive(smooth_quant="auto")
    for folder, path, share in (("with", checkpoint, 0.3), ("without", default_checkpoint(), 1.0)):
        artifact = int8(path, tmp_path / folder, auto)
        candidates = artifact.validation["candidates"]
        errors = {each["smooth_quant"]: each["error"] for each in candidates if each["multiply"] is not False}
        assert list(errors) == [None, *STRENGTHS]
        assert {(each["scheme"], each["ranges"], each["margin"]) for each in candidates} == {("static", "minmax", 0)}
        least = min(errors.values())
        assert errors[artifact.options.get("smooth_quant")] == least
        assert least < share * errors[None]
        (chosen,) = (each for each in candidates if each["chosen"])
        assert chosen["smooth_quant"] == artifact.options["smooth_quant"]
        assert ("mlp" in artifact.options["smooth_quant_places"]) == chosen["multiply"]
    strong = int8(checkpoint, tmp_path / "strong", naive(smooth_quant=0.75))
    assert strong.options["smooth_quant"] == 0.75
    assert strong.options["smooth_quant_places"] == ["attention", "layer_norm", "mlp"]
    assert "candidates" not in strong.validation


def test_dynamic_ranges_are_taken_where_they_are_much_nearer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for gain, scheme in ((0, "static"), (100, "dynamic")):
        monkeypatch.setattr(candidate_search, "DYNAMIC_GAIN", gain)
        artifact = int8(default_checkpoint(), tmp_path / scheme, Quantization(Calibration(held_out_images(), count=24)))
        assert (artifact.options["scheme"], "calibration" in artifact.options) == (scheme, scheme == "static")
        candidates = artifact.validation["candidates"]
        assert [candidate["scheme"] for candidate in candidates if candidate["chosen"]] == [scheme]


def test_a_strength_that_is_asked_for_is_in_all_places(checkpoint: Path, tmp_path: Path) -> None:
    """It is the graph that was chosen, where its Mul was chosen too: the same bytes."""
    chosen = int8(checkpoint, tmp_path / "auto", naive(smooth_quant="auto"))
    strength = chosen.options["smooth_quant"]
    asked = int8(checkpoint, tmp_path / "asked", naive(smooth_quant=strength))
    assert (asked.files == chosen.files) == (
        chosen.options["smooth_quant_places"] == ["attention", "layer_norm", "mlp"]
    )


def test_images_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    bounded = naive(accuracy_data=held_out_images(), accuracy=MinAgreement(0.9), smooth_quant="auto")
    artifact = int8(checkpoint, tmp_path / "out", bounded)
    accuracy = artifact.validation["accuracy"]
    assert (accuracy["images"], accuracy["held_out"]["images"]) == (338, 112)  # a quarter, none of which chose anything
    assert artifact.options["calibration_images"] == 150 - 37  # which judge


def test_the_bound_judges_and_no_tolerance_that_is_not_given(checkpoint: Path, tmp_path: Path) -> None:
    with raises(CheckFailedError, what="logits", where="onnx-int8"):
        vitdeploy.export(checkpoint, output=tmp_path / "out", precision="int8", quantization=NAIVE)
    bounded = naive(accuracy=MinAgreement(0.8))
    artifact = only(vitdeploy.export(checkpoint, output=tmp_path / "out", precision="int8", quantization=bounded))
    assert artifact.validation["kept_layers"] == []
    assert artifact.validation["tolerance"] is None
    assert artifact.validation["judged_by"] == "cosine"
    strict = ValidationOptions(tolerance=0.01)
    with raises(CheckFailedError, what="logits", where="onnx-int8", expected=0.01):
        vitdeploy.export(
            checkpoint, output=tmp_path / "strict", precision="int8", quantization=bounded, validation=strict
        )


@pytest.mark.parametrize(("precision", "target"), [("fp8", None), ("int8", "tensorrt")])
def test_for_tensorrt(tmp_path: Path, precision: str, target: str | None) -> None:
    bounded = Quantization(IMAGES, target=target, accuracy=MinAgreement(0.99))
    bundle = vitdeploy.export(default_checkpoint(), output=tmp_path / "out", precision=precision, quantization=bounded)
    assert only(bundle).validation["accuracy"]["correct"] >= 112


def test_all_that_could_be_in_8_bits_is_kept(bound: tuple[Bundle, list[str]], tmp_path: Path) -> None:
    names = list(quantizable_names(bound[0]))
    with raises(UsageError, what="keep_fp32", found=tuple(names)):
        vitdeploy.export(
            default_checkpoint(), output=tmp_path / "out", precision="int8", graph=GraphOptions(keep_fp32=names)
        )


def quantizable_names(bundle: Bundle) -> Iterator[str]:
    """The products of a quantized artifact that have a weight, in 8 bits or kept."""
    graph = onnx.load(bundle.path / only(bundle).files[0].path).graph
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        weight = makers.get(node.input[1]) if node.op_type == "MatMul" else None
        if node.op_type == "MatMul" and (weight is None or weight.op_type == "DequantizeLinear"):
            yield node.output[0]


def test_what_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is enough: the least that can be in 8 bits is one layer."""
    checkpoint = write_checkpoint_of(tiny_model(num_hidden_layers=1), tmp_path / "checkpoint")
    monkeypatch.setattr(Top1Target, "reached_by", lambda *_: False)
    steps: list[str] = []
    bounded = Quantization(Calibration(held_out_images(), count=8), accuracy=MinAgreement(1))
    with raises(CheckFailedError, what="accuracy", expected="min_agreement 1", found=re.compile(r"of 8\)")):
        vitdeploy.export(
            checkpoint, precision="int8", output=tmp_path / "out", progress=Told(steps.append), quantization=bounded
        )
    assert sum(step.startswith("run ") for step in steps) == 5  # none, one, two, four and five layers
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("accuracy", "task", "data", "error", "fields"),
    [
        (MinAgreement(0.9), None, "none", InputError, {"where": "none", "expected": "a folder of images"}),
        (MaxDrop("1%"), None, "none", InputError, {"where": "none", "what": "data"}),
        (MinAgreement(0.9), "image-feature-extraction", None, UsageError, {"what": "accuracy", "expected": "logits"}),
    ],
    ids=str,
)
def test_a_bound_that_nothing_can_measure(
    tmp_path: Path, accuracy: Any, task: str | None, data: str | None, error: Any, fields: dict[str, Any]
) -> None:
    bounded = Quantization(Calibration(held_out_images(), count=16), accuracy=accuracy, accuracy_data=data)
    source = SourceOptions(task=task)
    with raises(error, **fields):
        vitdeploy.export(
            default_checkpoint(), output=tmp_path / "out", precision="int8", quantization=bounded, source=source
        )
    assert not (tmp_path / "out").exists()


def test_a_reference_that_is_not_finite_is_what_is_at_fault(checkpoint: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights["vit.layernorm.bias"][0] = np.nan
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    with raises(CheckpointError, where="broken"):
        vitdeploy.export(broken, output=tmp_path / "out", quantization=naive(accuracy=MinAgreement(0.9)), **INT8)


def test_on_the_command_line(checkpoint: Path, tmp_path: Path) -> None:
    run = CliRunner()
    arguments = ["--model", str(checkpoint), "-o", str(tmp_path / "out"), "--int8", "--tolerance", "3"]
    images = ["--calibration-data", os.fspath(held_out_images()), "--calibration-images", "150"]
    naive = [*arguments, *images, "--calibration", "minmax", "--smooth-quant", "off"]
    printed = run.invoke(export_command, [*naive, "--min-agreement", "100%"])
    assert printed.exit_code == 0, printed.output
    assert "onnx-int8 honours min_agreement 1: 113 of 113 images, at least 113 wanted; " in printed.output
    assert "of 30 layers kept float32 for it" in printed.output
    assert "on held-out images: " in printed.output
    assert "of 37 images, at least 37 wanted" in printed.output
    assert "relative error of the outputs when it alone is not" in printed.output
    printed = run.invoke(export_command, [*naive, "--max-drop", "50%", "--json"])
    assert printed.exit_code == 0, printed.exception
    (artifact,) = json.loads(printed.output)["artifacts"]
    assert artifact["validation"]["accuracy"]["bound"] == "max_drop 50%"
    for option, value in (("--max-drop", "0.5"), ("--min-agreement", "99"), ("--smooth-quant", "on")):
        refused = command_line.run("export", *naive, option, value)
        assert (refused.code, refused.out, option in refused.err) == (2, "", True)
    both = command_line.run("export", *naive, "--min-agreement", "99%", "--max-drop", "1%")
    assert (both.code, both.out) == (2, "")
    assert "--min-agreement" in both.err
    assert "--max-drop" in both.err
