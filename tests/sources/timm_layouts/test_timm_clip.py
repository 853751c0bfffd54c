"""timm's CLIP image encoders: what their head is, and what is refused. `test_timm_layout.py` compares every output."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from raising import raises
from torch import Tensor

import vitdeploy
from vitdeploy.errors import CheckpointError
from vitdeploy.models.config import ViTConfig
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.sources.timm_layouts.layout import from_timm
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "timm"
PROJECTION, ENCODER, CLASSIFIER = (
    "CLIPVisionModelWithProjection", "CLIPVisionModel", "TimmClipForImageClassification",
)  # fmt: skip


def read(case: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config: dict[str, Any] = json.loads((GOLDEN / case / "config.json").read_text())
    return config, safetensors.torch.load_file(GOLDEN / case / "model.safetensors")


@pytest.mark.parametrize(
    ("case", "names", "task", "architecture"),
    [
        ("clip_0", False, None, PROJECTION),
        ("clip_0", False, Task.FEATURES, PROJECTION),
        ("clip_0", False, Task.CLASSIFICATION, CLASSIFIER),
        ("clip_0", True, None, CLASSIFIER),
        ("clip_0", True, Task.FEATURES, ENCODER),
        ("clip_classifier_0", False, None, CLASSIFIER),
        ("clip_classifier_0", False, Task.FEATURES, ENCODER),
        ("clip_features_0", False, None, ENCODER),
    ],
)
def test_a_head_without_bias_and_names_is_the_projection(
    case: str, names: bool, task: Task | None, architecture: str
) -> None:
    config, tensors = read(case)
    config |= {"label_names": ["a", "b", "c", "d"]} if names else {}
    content, weights = from_timm(config, tensors, task)
    assert content["architectures"] == [architecture]
    heads = {
        PROJECTION: {"visual_projection.weight"},
        ENCODER: set(),
        CLASSIFIER: {"classifier.weight", "classifier.bias"},
    }
    assert {name for name in weights if not name.startswith("vision_model.")} == heads[architecture]
    assert (content["model_type"] == "timm_clip") == (architecture == CLASSIFIER)


@pytest.mark.parametrize(
    ("case", "arguments", "hidden_act"),
    [
        ("clip_0", {}, "quick_gelu"),
        ("clip_0", {"act_layer": "gelu"}, "gelu"),
        ("clip_2", {}, "gelu"),
    ],
)
def test_the_name_states_the_activation_unless_an_argument_does(
    case: str, arguments: dict[str, Any], hidden_act: str
) -> None:
    config, tensors = read(case)
    config["model_args"] |= arguments
    assert from_timm(config, tensors)[0]["hidden_act"] == hidden_act


def _set(key: str, value: object) -> Any:
    return lambda config, tensors: config["model_args"].update({key: value})


def _averaged(config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    config["global_pool"] = config["model_args"]["global_pool"] = "avg"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_averaged, "global_pool"),
        (_set("act_layer", "relu"), "act_layer"),
        (_set("pre_norm", True), "pre_norm"),
        (_set("reg_tokens", 4), "model_args.reg_tokens"),
        (_set("no_embed_class", True), "model_args.no_embed_class"),
        (lambda config, tensors: tensors.pop("norm_pre.weight"), "weights"),
        (lambda config, tensors: tensors.update({"patch_embed.proj.bias": torch.zeros(24)}), "weights"),
        (lambda config, tensors: tensors.update({"blocks.0.ls1.gamma": torch.ones(24)}), "weights"),
    ],
)  # fmt: skip
def test_what_is_not_clip_is_refused(change: Any, what: str) -> None:
    config, tensors = read("clip_0")
    change(config, tensors)
    with raises(CheckpointError, what=what):
        from_timm(config, tensors)


@pytest.mark.parametrize("case", ["clip_0", "clip_classifier_1"])
def test_a_bundle_of_it_is_read_again(case: str, tmp_path: Path) -> None:
    bundle = vitdeploy.export(GOLDEN / case, to="torchscript", output=tmp_path / "out")
    first, again = read_checkpoint(GOLDEN / case), read_checkpoint(bundle.path)
    assert again.model.config == first.model.config == ViTConfig.from_pretrained(bundle.path)
    for name, value in first.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
