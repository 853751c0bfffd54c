"""int8 within a bound of the cosine, and how a model without classes is judged, from export to compare."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from outliers import with_outliers
from safetensors.numpy import load_file, save_file
from schemas import validated
from sklearn.metrics.pairwise import paired_cosine_distances
from sklearn.neighbors import NearestNeighbors

import vitdeploy
from vitdeploy import Calibration, GraphOptions, MinCosine, Quantization, SourceOptions, ValidationOptions
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.cli.compare import compare as compare_command
from vitdeploy.cli.export import export as export_command
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8
from vitdeploy.exporting.quantization.calibration_images import CalibrationImages
from vitdeploy.predictor import load_processor
from vitdeploy.system.progress import SILENT

NAIVE = Quantization(Calibration(held_out_images(), "minmax", 96), smooth_quant="off")
TASK = "image-feature-extraction"
FEATURES = SourceOptions(task=TASK)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with outliers, which 8 bits harm."""
    return with_outliers(default_checkpoint(), tmp_path_factory.mktemp("outliers") / "checkpoint", 80)


@pytest.fixture(scope="module")
def bounded(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Its features, within a bound that takes some layers in float32."""
    output = tmp_path_factory.mktemp("bounded") / "out"
    quantization = dataclasses.replace(NAIVE, accuracy=MinCosine(0.98))
    return vitdeploy.export(checkpoint, precision="int8", output=output, quantization=quantization, source=FEATURES)


def tokens(bundle: Bundle, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The CLS tokens (N, D) of reference and artifact, as whoever loads them gets them."""
    found = []
    for backend, precision in (("torch", "fp32"), ("onnxruntime", "int8")):
        with vitdeploy.load(bundle.path, backend=backend, precision=precision) as predictor:
            pixels = predictor.processor([held_out_images() / name for name in names])
            found.append(predictor.runtime.run({"pixel_values": pixels})["last_hidden_state"][:, 0])
    wanted, given = found
    return wanted, given


def test_a_bound_holds_on_images_that_no_search_saw(bounded: Bundle, checkpoint: Path, tmp_path: Path) -> None:
    (artifact,) = bounded.manifest.artifacts
    found, measured = artifact.validation["accuracy"], artifact.validation
    parts = CalibrationImages.open(held_out_images(), load_processor(bounded), 96, 0, SILENT).parts()
    assert (found["bound"], found["at_least"], found["output"]) == ("min_cosine 0.98", 0.98, "cls_token")
    assert found["aim"] == pytest.approx(0.985)
    for figures, part, least in ((found, parts.choice, found["aim"]), (found["held_out"], parts.judge, 0.98)):
        cosines = 1 - paired_cosine_distances(*tokens(bounded, part.images.names))
        assert figures["images"] == len(cosines) == 24
        assert figures["p5_cosine"] == pytest.approx(np.percentile(cosines, 5), abs=2e-6)
        assert figures["mean_cosine"] == pytest.approx(cosines.mean(), abs=2e-6)
        assert figures["min_cosine"] == pytest.approx(cosines.min(), abs=2e-6)
        assert figures["p5_cosine"] >= least
    assert measured["p5_cosine_without"] < found["aim"]
    assert 0 < len(measured["kept_layers"]) < 30
    assert measured["minimal"]
    # None of the layers can go.
    without_one = vitdeploy.export(
        checkpoint,
        precision="int8",
        output=tmp_path / "fewer",
        graph=GraphOptions(keep_fp32=artifact.options["float32_nodes"][1:]),
        quantization=NAIVE,
        source=FEATURES,
        validation=ValidationOptions(tolerance=9.0),
    )
    cosines = 1 - paired_cosine_distances(*tokens(without_one, parts.choice.images.names))
    assert np.percentile(cosines, 5) < found["aim"]


def test_neighbours_are_told_of_the_images_that_judge(bounded: Bundle) -> None:
    (artifact,) = bounded.manifest.artifacts
    of = {each["output"]: each for each in artifact.validation["calibration_images"]}
    parts = CalibrationImages.open(held_out_images(), load_processor(bounded), 96, 0, SILENT).parts()
    nearest = [
        NearestNeighbors(n_neighbors=1, metric="cosine").fit(vector).kneighbors(return_distance=False)[:, 0]
        for vector in tokens(bounded, parts.judge.images.names)
    ]
    same = int((nearest[0] == nearest[1]).sum())
    assert of["cls_token"]["same_neighbours"] == same
    assert of["cls_token"]["neighbour_agreement"] == pytest.approx(same / 24, abs=1e-6)
    assert of["last_hidden_state"]["neighbour_agreement"] is None


def test_export_says_it_in_a_sentence(tmp_path: Path) -> None:
    arguments = ["--model", str(default_checkpoint()), "--int8", "-o", str(tmp_path / "out"), "--task", TASK]
    images = ["--calibration-data", str(held_out_images()), "--calibration-images", "64"]
    printed = CliRunner().invoke(export_command, [*arguments, *images, "--min-cosine", "90%"])
    assert printed.exit_code == 0, printed.output
    text = " ".join(printed.output.split())
    assert "onnx-int8 against the reference: cls_token: mean cosine " in text
    assert "(16 held-out images)" in text
    assert "nearest neighbour kept" in text
    assert "honours min_cosine 0.9" in text
    assert "on held-out images: cls_token" in text


@pytest.fixture(scope="module")
def far(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Features that 8 bits took far away, which somebody wanted nevertheless."""
    output = tmp_path_factory.mktemp("far") / "out"
    loose = ValidationOptions(tolerance=9)
    return vitdeploy.export(
        checkpoint, output=output, source=FEATURES, validation=loose, precision="int8", quantization=NAIVE
    )


def compared(bundle: Bundle, *options: str) -> tuple[int, Any]:
    images = str(held_out_images())
    run = CliRunner().invoke(compare_command, [str(bundle.path), "--images", images, "--json", *options])
    (result,) = validated("compare", run.stdout)["results"]
    return run.exit_code, result


def test_compare_judges_by_cosine_and_neighbours(bounded: Bundle, far: Bundle) -> None:
    code, near = compared(bounded)
    assert (code, near["status"], near["judged_by"]) == (0, "passed", "cosine")
    (vector,) = near["nearness"]
    names = [path.relative_to(held_out_images()).as_posix() for path in sorted(held_out_images().rglob("*.png"))]
    wanted, given = tokens(bounded, names)
    cosines = 1 - paired_cosine_distances(wanted, given)
    assert vector["images"] == len(names) == 450
    assert vector["mean_cosine"] == pytest.approx(cosines.mean(), abs=2e-5)
    assert vector["p5_cosine"] == pytest.approx(np.percentile(cosines, 5), abs=2e-5)
    assert vector["min_cosine"] == pytest.approx(cosines.min(), abs=2e-4)
    code, lost = compared(far)
    assert (code, lost["status"], lost["judged_by"]) == (1, "failed", "cosine")
    code, lost = compared(far, "--tolerance", "9")
    assert (code, lost["status"], lost["judged_by"], lost["cosine_bound"]) == (0, "passed", "difference", None)


def test_every_report_says_which_rule_judged(bounded: Bundle, tmp_path: Path) -> None:
    page, table = tmp_path / "page.html", tmp_path / "table.md"
    arguments = [str(bounded.path), "--images", str(held_out_images())]
    printed = CliRunner().invoke(compare_command, [*arguments, "--html", str(page), "--markdown", str(table)])
    assert printed.exit_code == 0, printed.output
    assert "is judged by: cosine" in " ".join(printed.output.split())
    html = page.read_text(encoding="utf-8")
    assert "is judged by: cosine, mean 0.99 and 5th percentile 0.97 required; same nearest neighbour" in html
    assert "Nearest neighbour kept" in html
    assert "mean cosine 0.99" in table.read_text(encoding="utf-8")


def test_among_made_up_images_nobody_looks_for_neighbours(bounded: Bundle) -> None:
    run = CliRunner().invoke(compare_command, [str(bounded.path), "--json"])
    (result,) = json.loads(run.stdout)["results"]
    assert [near["same_neighbours"] for near in result["nearness"]] == [None]


def _broken(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Static int8 whose last LayerNormalization is three times as large, or whose ranges are a fiftieth."""
    write = StaticInt8.write

    def spoilt(self: StaticInt8, model: ir.Model, nodes: Any, ranges: Any) -> None:
        if how == "clip":
            ranges = {name: Range(each.lowest / 50, each.highest / 50) for name, each in ranges.items()}
        write(self, model, nodes, ranges)
        if how == "scale":
            last = [node for node in model.graph if node.op_type == "LayerNormalization"][-1]
            for value in last.inputs[1:3]:
                assert value is not None
                assert value.const_value is not None
                value.const_value = ir.tensor(value.const_value.numpy() * np.float32(3), name=value.name)

    monkeypatch.setattr(StaticInt8, "write", spoilt)


@pytest.mark.parametrize(
    ("how", "options"),
    [("scale", {}), ("scale", {"accuracy": MinCosine(0.9)}), ("clip", {}), ("clip", {"source": SourceOptions()})],
    ids=str,
)
def test_what_is_broken_is_refused(
    how: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The factor keeps every cosine; the ranges keep, with a bias of 30 on all classes, that of the logits."""
    folder = shutil.copytree(default_checkpoint(), tmp_path / "checkpoint")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"] += np.float32(30)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    source = options.get("source", FEATURES)
    quantization = dataclasses.replace(NAIVE, scheme="static", accuracy=options.get("accuracy"))
    how_made: dict[str, Any] = {"precision": "int8", "quantization": quantization, "source": source}
    vitdeploy.export(folder, output=tmp_path / "sound", **how_made)
    _broken(monkeypatch, how)
    with pytest.raises(CheckFailedError):
        vitdeploy.export(folder, output=tmp_path / "out", **how_made)
    assert not (tmp_path / "out").exists()
