"""Sensitivity of each layer: as an export measures it, on the command line and in files."""

from __future__ import annotations

import itertools
import math
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest
from bundles import tiny_model, write_checkpoint_of
from command_line import run
from outliers import with_outliers
from pages import Page
from raising import raises
from schemas import validated
from told import Told
from written_results import SENSITIVITY

import vitdeploy
from vitdeploy.assess.data.folder_listing import list_images
from vitdeploy.assess.debug.mixed_precision import LowerPrecision
from vitdeploy.assess.debug.sensitivity import Sensitivity, sensitivity
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.kept_nodes import kept_nodes
from vitdeploy.exporters.graph.onnx_file import read_onnx_ir
from vitdeploy.exporters.graph.precision import on_data_path
from vitdeploy.exporters.quantization.schemes.scheme import quantizable
from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8
from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
from vitdeploy.predictor import load_processor
from vitdeploy.system.progress import SILENT

COUNT = 24  # images
LOOSE = vitdeploy.ValidationOptions(tolerance=3.0)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index, file in enumerate(list_images(held_out_images()).files[::18][:COUNT]):
        shutil.copy(file, folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def outliers(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The embedded model with outliers, in float32."""
    folder = tmp_path_factory.mktemp("outliers")
    checkpoint = with_outliers(default_checkpoint(), folder / "checkpoint", 80)
    return vitdeploy.export(checkpoint, output=folder / "out")


def with_int8(bundle: Bundle, folder: Path, photos: Path, **options: Any) -> Bundle:
    """A copy of the bundle with int8 beside its float32."""
    shutil.copytree(bundle.path, folder)
    checkpoint = bundle.path.parent / "checkpoint"
    naive: dict[str, Any] = {"calibration": vitdeploy.Calibration(photos, "minmax"), "smooth_quant": "off"}
    quantization = vitdeploy.Quantization(**{**naive, **options})
    return vitdeploy.export(checkpoint, precision="int8", output=folder, quantization=quantization, validation=LOOSE)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A model of two layers in float32 and in int8."""
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint = write_checkpoint_of(tiny_model(), folder / "checkpoint")
    vitdeploy.export(checkpoint, output=folder / "out")
    return vitdeploy.export(
        checkpoint, output=folder / "out", precision="int8", validation=vitdeploy.ValidationOptions(tolerance=0.9)
    )


@pytest.fixture(scope="module")
def half(tiny: Bundle) -> Sensitivity:
    return sensitivity(tiny, "fp16", max_images=3)


def test_it_is_what_an_export_within_a_bound_measures(outliers: Bundle, photos: Path, tmp_path: Path) -> None:
    """The images are those of the choice, and the ranges are the same: what is left is the order of sums."""
    opened = CalibrationImages.open(photos, load_processor(outliers), COUNT, 0, SILENT)
    few = tmp_path / "few"
    few.mkdir()
    for name in opened.parts().choice.images.names:
        shutil.copy(photos / name, few)
    bound = with_int8(outliers, tmp_path / "bound", photos, accuracy=vitdeploy.MinAgreement(1))
    recorded = {name: float(effect) for name, effect in
                bound.artifact("onnx", "int8").validation["layer_effects"].items()}  # fmt: skip
    told: list[tuple[int, int]] = []
    bundle = with_int8(outliers, tmp_path / "naive", photos)
    result = vitdeploy.sensitivity(bundle, images=few, progress=Told(None, lambda *done: told.append(done)))
    assert (result.precision, result.images, result.synthetic) == ("int8", COUNT // 4, False)
    found = {layer.label: layer.error for layer in result.layers}
    assert list(found) == list(recorded), "in the order of the graph"
    assert found == pytest.approx(recorded, rel=0.01)  # three digits are recorded
    assert [layer.error for layer in result.ranked] == sorted(found.values(), reverse=True)
    for more, less in itertools.pairwise(result.ranked):
        assert recorded[more.label] >= 0.99 * recorded[less.label]
    assert told == [(done, 30) for done in range(1, 31)]


def test_the_layers_with_outliers_stand_out(outliers: Bundle, photos: Path, tmp_path: Path) -> None:
    """Among them the attention's output projections; smoothing moves outliers into the weights."""
    plain = sensitivity(with_int8(outliers, tmp_path / "off", photos), images=photos, max_images=8)
    assert plain.images == 8
    result = sensitivity(with_int8(outliers, tmp_path / "out", photos, smooth_quant=0.5), images=photos, max_images=8)
    assert result.error < plain.error / 3
    before, after = ({layer.label: layer.error for layer in each.layers} for each in (plain, result))
    for layer in range(5):
        assert after[f"layers.{layer}.attention.o_proj"] < before[f"layers.{layer}.attention.o_proj"] / 3
    first = result.ranked[0]
    assert (first.op_type, first.part) == ("MatMul", first.label.rpartition(".")[0].rpartition(".")[0])
    # With every node in float32 it is the model as it was, though its weights are smoothed.
    assert result.error_float32 < 1e-5 < first.error < 2 * result.error
    assert result.summary.startswith(f"{first.layer} is the most sensitive of 30 layers: relative error 0.")


def test_in_half_precision_a_layer_is_what_takes_a_modules_weights_or_computes_without(
    tiny: Bundle, half: Sensitivity
) -> None:
    nodes = {node.output[0]: node for node in onnx.load(tiny.path / "onnx/model.onnx").graph.node}
    fc1 = {layer.label: layer for layer in half.layers}["layers.1.mlp.fc1"]
    assert ([nodes[name].op_type for name in fc1.nodes], fc1.op_type, fc1.part) == (
        ["MatMul", "Add"], "MatMul", "layers.1"
    )  # fmt: skip
    assert "layers.1.mlp.fc1.bias" in nodes[fc1.nodes[1]].input
    measured = [name for layer in half.layers for name in layer.nodes]
    assert len(measured) == len(set(measured))
    variants = LowerPrecision.of(tiny, "fp16", "a test").variants
    left_out = {nodes[name].op_type for name in set(variants.nodes).difference(measured)}
    assert left_out == {"Gather", "Pad", "Reshape", "Slice", "Transpose"}
    assert len([layer for layer in half.layers if layer.part == "layers.0"]) == 12
    assert {layer.op_type for layer in half.layers if len(layer.nodes) == 1} >= {"Gelu", "MatMul", "Add"}
    assert 0 < half.error_float32 < min(layer.error for layer in half.layers)
    assert half.ranked[0].error < half.error


def test_what_is_named_can_be_kept(tiny: Bundle, half: Sensitivity, tmp_path: Path) -> None:
    checkpoint = tiny.path.parent / "checkpoint"
    first = half.ranked[0]
    bundle = vitdeploy.export(
        checkpoint, precision="fp16", output=tmp_path / "out", graph=vitdeploy.GraphOptions(keep_fp32=first.nodes)
    )
    assert set(first.nodes) <= set(bundle.artifact("onnx", "fp16").options["float32_nodes"])


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_every_name_of_a_layer_stands_for_its_nodes(tiny: Bundle, half: Sensitivity, precision: str) -> None:
    result = half if precision == "fp16" else sensitivity(tiny, precision, max_images=1)
    model = read_onnx_ir(tiny.path / "onnx/model.onnx")
    scheme = StaticInt8()
    nodes = on_data_path(model) if precision == "fp16" else quantizable(model, scheme)
    for layer in result.layers:
        for name in (layer.layer, layer.layer.upper(), layer.label):
            assert kept_nodes([name], model, nodes, "{}") == layer.nodes, name
    assert len({layer.layer for layer in result.layers}) == len(result.layers)


def test_bfloat16_has_an_eighth_of_the_digits(tiny: Bundle, half: Sensitivity) -> None:
    brain = sensitivity(tiny, "bf16", max_images=3)
    assert 3 < brain.error / half.error < 20
    assert all(layer.error > 1e-5 for layer in brain.layers)


def test_on_the_command_line(tiny: Bundle, tmp_path: Path) -> None:
    command = ("debug", "sensitivity", tiny.path, "--max-images", 3)
    files = [f"--{name}={tmp_path / name}" for name in ("html", "markdown")]
    printed = run(*command, *files)
    assert printed.code == 0, printed.err
    first, second, header, *rows = printed.out.splitlines()
    assert first == f"{tiny.path} in int8, a layer at a time, 3 synthetic images"
    assert header.startswith("layer, as --keep-fp32 takes it ")
    labels = [row.split("  ")[0] for row in rows]
    assert len(labels) == 12
    assert second.startswith(f"{labels[0]} is the most sensitive of 12 layers: relative error ")
    printed = run(*command, "--json")
    result = validated("compare", printed.out)
    assert (printed.code, result["status"], result["precision"], result["images"]) == (0, "passed", "int8", 3)
    assert [layer["layer"] for layer in sorted(result["layers"], key=lambda layer: -layer["error"])] == labels
    assert [layer["label"] for layer in result["layers"]][:2] == [
        "layers.0.attention.q_proj",
        "layers.0.attention.k_proj",
    ]
    lines = (tmp_path / "markdown").read_text(encoding="utf-8").splitlines()
    (summary,) = (index for index, line in enumerate(lines) if line.endswith("float32:"))
    assert lines[summary + 4].startswith(f"| {labels[0]} | ")
    page = Page(tmp_path / "html")
    assert "Sensitivity" in page.text["h2"]
    assert page.text["summary"] == ["The other 2 layers"]
    assert [text for tag, text in page.ordered if tag == "th" and text.startswith("block ")] == labels
    assert len(page.all("svg")) == 1
    assert [text for text in page.text["text"] if text.startswith("block ")] == [
        layer["layer"] for layer in result["layers"]
    ]


def test_values_that_are_not_finite_come_first() -> None:
    assert [layer.error for layer in SENSITIVITY.ranked] == [math.inf, 0.25, 0.25, 0]
    assert [layer.label for layer in SENSITIVITY.ranked][1:3] == ["embeddings.projection", "gelu"], "as in the graph"
    assert "relative error inf with it alone in fp16, inf with all of them, 1e-07 in float32" in SENSITIVITY.summary


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ({"precision": "fp32"}, {"what": "precision", "found": "fp32"}),
        ({"max_images": 0}, {"what": "max_images", "found": 0}),
        ({"precision": "fp8"}, {}),
    ],
    ids=str,
)
def test_arguments(tiny: Bundle, options: dict[str, Any], fields: dict[str, Any]) -> None:
    with raises(UsageError, **fields):
        sensitivity(tiny, **options)
