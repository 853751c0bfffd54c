"""A bundle's ONNX artifact is what optimum expects to find."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
from environments import environment, run

import vitdeploy
from vitdeploy.models.families.unsupported import OPTIMUM, UNSUPPORTED
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteCheckpoint

LOAD = """
import json, sys
import numpy as np
from optimum.onnxruntime import ORTModelForImageClassification
model = ORTModelForImageClassification.from_pretrained(sys.argv[1], subfolder="onnx", file_name="model.onnx")
pixel_values = np.load(sys.argv[2])
print(json.dumps({"logits": model(pixel_values=pixel_values).logits.tolist(), "labels": model.config.id2label}))
"""


def test_optimum_loads_the_onnx_folder(
    tmp_path: Path, write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]
) -> None:
    python = environment("optimum")
    checkpoint = write_checkpoint(Task.CLASSIFICATION, tiny_config)
    bundle = vitdeploy.export(checkpoint.folder, output=tmp_path / "out")
    pixel_values = np.random.default_rng(0).standard_normal((3, 3, 32, 32), np.float32)
    np.save(tmp_path / "pixels.npy", pixel_values)
    data = json.loads(run(python, "-c", LOAD, bundle.path, tmp_path / "pixels.npy").splitlines()[-1])
    with vitdeploy.load(bundle.path) as predictor:
        expected = predictor.logits(pixel_values)
        labels = predictor.labels
    np.testing.assert_array_equal(np.array(data["logits"], np.float32), expected)  # one engine, one file
    assert tuple(data["labels"].values()) == labels


def test_optimum_exports_the_families_that_are_left_to_it() -> None:
    folder = environment("optimum").parents[1]
    (source,) = folder.glob("lib/*/site-packages/optimum/exporters/onnx/model_configs.py")
    exported = set(re.findall(r'register_tasks_manager_onnx\(\s*"([^"]+)"', source.read_text(encoding="utf-8")))
    left = {model_type for model_type, family in UNSUPPORTED.items() if family.alternative == OPTIMUM}
    assert "default-timm-config" in exported
    assert not left - exported
    assert not (UNSUPPORTED.keys() - left) & exported
