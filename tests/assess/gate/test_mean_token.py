"""Models without a class token are judged by the mean of the patches in every command."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest
from families import HEADS, random_config
from onnx_models import with_last_operator

import vitdeploy
from vitdeploy.assess.benchmark.setting import Setting
from vitdeploy.assess.benchmark.timer import Job, Timer
from vitdeploy.assess.gate.gate import gate
from vitdeploy.assess.gate.rules import GateRules, Rules
from vitdeploy.assess.runs.targets import Selected
from vitdeploy.assets import held_out_images

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteCheckpoint
    from vitdeploy.bundle.bundle import Bundle

IJEPA = next(head for head in HEADS if head.name == "IJepaModel")
COUNT = 24


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images without labels."""
    folder = tmp_path_factory.mktemp("images")
    for index, path in enumerate(sorted(held_out_images().rglob("*.png"))[::18][:COUNT]):
        shutil.copy(path, folder / f"{index:02}.png")
    return folder


@pytest.fixture(scope="module")
def bundle(write_checkpoint: WriteCheckpoint, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    checkpoint = write_checkpoint(IJEPA, random_config(IJEPA, 1))
    return vitdeploy.export(
        checkpoint.folder,
        precision="int8",
        output=tmp_path_factory.mktemp("ijepa") / "out",
        quantization=vitdeploy.Quantization(vitdeploy.Calibration(images)),
        validation=vitdeploy.ValidationOptions(tolerance=1),
    )


def mean_tokens(bundle: Bundle, images: Path, backend: str, precision: str) -> np.ndarray:
    """The mean of the patches by hand, (N, D)."""
    with vitdeploy.load(bundle.path, backend=backend, precision=precision) as predictor:
        pixels = predictor.processor(sorted(images.iterdir()))
        mean: np.ndarray = predictor.runtime.run({"pixel_values": pixels})["last_hidden_state"].mean(axis=1)
        return mean


def test_a_wrong_patch_counts_though_the_first_is_right(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    (artifact,) = bundle.manifest.artifacts
    judged = {each["output"] for each in artifact.validation["calibration_images"]}
    assert "mean_token" in judged
    assert "cls_token" not in judged

    def added(shape: tuple[int, ...]) -> np.ndarray:
        values = np.zeros(shape, np.float32)
        values[1, ::2] = 40
        return values

    spoilt = with_last_operator(bundle, tmp_path / "spoilt", "Add", added)
    wanted, given = (
        mean_tokens(spoilt, images, backend, precision)
        for backend, precision in (("torch", "fp32"), ("onnxruntime", "int8"))
    )
    cosines = (wanted * given).sum(axis=1) / np.linalg.norm(wanted, axis=1) / np.linalg.norm(given, axis=1)
    (compared,) = vitdeploy.compare(spoilt, images=images).results
    (near,) = [near for near in compared.nearness if near.output == "mean_token"]
    assert near.p5_cosine == pytest.approx(np.percentile(cosines, 5), abs=1e-4)
    assert compared.status == "failed"
    rules = GateRules(Rules(min_cosine=0.9))
    assert gate(bundle, data=images, rules=rules).status == "passed"
    failed = [check.rule for check in gate(spoilt, data=images, rules=rules).checks if check.status == "failed"]
    assert failed == ["min_cosine", "cosine"]
    timer = Timer(Job(spoilt, Setting(Selected("onnx-int8", "onnxruntime", "int8")), "cpu", ()))
    timer.open()
    files = tuple(path.read_bytes() for path in sorted(images.iterdir()))
    np.testing.assert_allclose(timer.vectors(files, None)["mean_token"], given, rtol=1e-4, atol=1e-4)


def test_a_baseline_by_the_first_patch_is_to_be_updated(bundle: Bundle, images: Path, tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    gate(bundle, data=images, baseline=file, update=True)
    text = file.read_text(encoding="utf-8")
    (figures,) = json.loads(text)["nearness"].values()
    assert "mean_token" in figures
    file.write_text(text.replace('"mean_token"', '"cls_token"'), encoding="utf-8")
    result = gate(bundle, data=images, baseline=file)
    (change,) = result.changes
    assert "mean_token" in change
    assert "--update" in change
    gate(bundle, data=images, baseline=file, update=True)
    assert file.read_text(encoding="utf-8") == text
