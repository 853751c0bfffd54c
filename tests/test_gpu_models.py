"""The models of the GPU scripts: every family that the steps name can be made."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
from gpu import models as gpu_models
from gpu import steps as gpu_steps
from gpu.models import CONFIGS, EMBEDDED, artifact
from gpu.rows import CannotRunError

SMALL = {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48, "num_hidden_layers": 1}
SMALL_POOLER = {"pooler_attention_heads": 4, "pooler_intermediate_size": 48, "projection_size": 8}


def test_the_steps_name_models_that_are_made() -> None:
    _, _, names = gpu_steps.STEPS["families-fp16"].arguments.partition("--models ")
    models = names.partition(" --")[0].split()
    assert models == list(CONFIGS)
    made = {model for model, to, precision in gpu_models.ARTIFACTS if (to, precision) == (gpu_models.RTX, "fp16")}
    assert made == {EMBEDDED, gpu_models.VIT_B, *models}


@pytest.mark.parametrize("model", CONFIGS)
def test_a_family_is_made_with_random_weights(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[model]
    small = {key: value for key, value in {**SMALL, **SMALL_POOLER}.items() if key in (*config, *SMALL)}
    monkeypatch.setitem(CONFIGS, model, {**config, **small})
    bundle = artifact(tmp_path, model, "onnx", "fp16")
    assert bundle.read_config().model["model_type"] == config["model_type"]
    assert bundle.artifact("onnx", "fp16").validation["outputs"]
    assert artifact(tmp_path, model, "onnx", "fp16").path == bundle.path, "it is made once"


def test_a_model_in_another_opset(tmp_path: Path) -> None:
    bundle = artifact(tmp_path, f"{EMBEDDED}{gpu_models.OPSET_18}", "onnx", "fp16")
    graph = onnx.load(bundle.path / bundle.artifact("onnx", "fp16").files[0].path)
    assert {imported.domain: imported.version for imported in graph.opset_import}[""] == 18


@pytest.mark.parametrize(
    ("result", "error"), [("failed", RuntimeError), ("skipped", CannotRunError), ("begun", RuntimeError)]
)
def test_a_model_that_could_not_be_made_is_not_tried_again(tmp_path: Path, result: str, error: type[Exception]) -> None:
    attempt = {"result": result, "reason": "no such kernel", "seconds": 1.0}
    (tmp_path / "models.json").write_text(json.dumps({"attempts": {"embedded onnx fp16": attempt}}), encoding="utf-8")
    # "begun": the process that made it has ended, since nobody holds its lock.
    with pytest.raises(error, match=gpu_steps.ENDED if result == "begun" else "no such kernel"):
        artifact(tmp_path, EMBEDDED, "onnx", "fp16")
