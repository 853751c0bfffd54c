"""torchvision's architectures and transforms are the library's, which tests/golden/make_architectures.py wrote down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from raising import raises

from vitdeploy.errors import CheckpointError
from vitdeploy.images.preprocessor_config import FILTERS
from vitdeploy.sources.layouts.torchvision_layout import (
    MODELS,
    from_torchvision,
    torchvision_config,
    torchvision_processor,
)
from vitdeploy.specs import Task

GOLDEN = Path(__file__).parents[2] / "golden" / "weights"
FACTS: dict[str, Any] = json.loads((GOLDEN / "torchvision.json").read_text())


def positions(name: str, edge: int) -> dict[str, torch.Tensor]:
    rows = (edge // MODELS[name].patch) ** 2 + 1
    return {"encoder.pos_embedding": torch.empty(1, rows, 1, device="meta")}


def test_the_sizes_are_torchvisions() -> None:
    assert {name: list(sizes) for name, sizes in MODELS.items()} == {name: row["sizes"] for name, row in FACTS.items()}
    assert {row["eps"] for row in FACTS.values()} == {1e-6}


@pytest.mark.parametrize(("name", "weights"), [(name, key) for name, row in FACTS.items() for key in row["weights"]])
def test_each_published_file_has_its_own_transforms(name: str, weights: str) -> None:
    facts = FACTS[name]["weights"][weights]
    config = torchvision_config(name, positions(name, facts["crop"]), facts["file"])
    assert config["transforms"]["weights"] == weights
    settings = torchvision_processor(config)
    assert settings is not None
    assert settings["size"] == {"shortest_edge": facts["resize"]}
    assert settings["crop_size"] == {"height": facts["crop"], "width": facts["crop"]}
    assert settings["resample"] == FILTERS[facts["interpolation"]]
    assert (settings["image_mean"], settings["image_std"]) == (facts["mean"], facts["std"])


def test_a_size_without_published_weights_has_no_transforms() -> None:
    assert torchvision_processor(torchvision_config("vit_b_16", positions("vit_b_16", 448), "w.pth")) is None
    assert torchvision_processor(torchvision_config("vit_b_16", positions("vit_b_16", 224), "mine.pth")) is not None


@pytest.mark.parametrize("shape", [None, (1, 18, 32), (1, 1, 32), (17, 32)])
def test_a_table_of_no_square_grid_is_refused(shape: tuple[int, ...] | None) -> None:
    tensors = {} if shape is None else {"encoder.pos_embedding": torch.zeros(shape)}
    with raises(CheckpointError, what="encoder.pos_embedding", found=shape):
        torchvision_config("vit_b_16", tensors, "w.pth")


@pytest.fixture
def weights(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    monkeypatch.setitem(MODELS, "vit_b_16", type(MODELS["vit_b_16"])(8, 2, 2, 32, 64))
    return dict(torch.load(GOLDEN / "torchvision.pth"))


def test_the_names_of_torchvision_0_12_are_read(weights: dict[str, torch.Tensor]) -> None:
    config = torchvision_config("vit_b_16", weights, "w.pth")
    former = {
        name.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): tensor
        for name, tensor in weights.items()
    }
    assert from_torchvision(config, former)[1].keys() == from_torchvision(config, weights)[1].keys()


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights.pop("class_token"),
        lambda weights: weights.update({"heads.pre_logits.weight": torch.zeros(32, 32)}),
        lambda weights: weights.update({"heads.head.weight": torch.zeros(3, 33)}),
        lambda weights: weights.update({"heads.head.weight": torch.tensor(1.0)}),
        lambda weights: weights.update({"conv_proj.weight": torch.zeros(32, 3, 16, 16)}),
        lambda weights: weights.update({"encoder.layers.encoder_layer_2.ln_1.weight": torch.zeros(32)}),
    ],
)
def test_other_weights_are_refused(weights: dict[str, torch.Tensor], change: Any) -> None:
    config = torchvision_config("vit_b_16", weights, "w.pth")
    change(weights)
    with raises(CheckpointError, what="weights"):
        from_torchvision(config, weights)


def test_weights_without_a_classifier_are_for_features(weights: dict[str, torch.Tensor]) -> None:
    config = torchvision_config("vit_b_16", weights, "w.pth")
    features = {name: tensor for name, tensor in weights.items() if not name.startswith("heads.")}
    assert from_torchvision(config, features)[0]["architectures"] == ["ViTModel"]
    with raises(CheckpointError, what="task", found=Task.CLASSIFICATION):
        from_torchvision(config, features, Task.CLASSIFICATION)
