"""Dense features: those of transformers' backbones, and of the hidden states where a family has none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from bundles import tiny_model
from environments import ROOT
from families import HEADS, ONE_A_FAMILY, Head, random_config
from raising import raises

from models.parity import assert_near, images
from vitdeploy.errors import UsageError
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.layers.dense import dense_features
from vitdeploy.models.signature import Served, output_names
from vitdeploy.sources.read import read_checkpoint
from vitdeploy.specs import Task, TensorSpec

if TYPE_CHECKING:
    from conftest import WriteCheckpoint

BACKBONES = {name: family.backbone for name, family in FAMILIES.items() if family.backbone is not None}
WITHOUT = [head for head in ONE_A_FAMILY if head.family not in BACKBONES]
SIZES = ((4, 4, 0), (3, 6, 0), (5, 4, 3))  # patches down and across, and pixels beyond


@pytest.mark.parametrize("normalized", [None, False], ids=["default", "raw"])
@pytest.mark.parametrize("family", BACKBONES)
def test_maps_of_every_layer_are_those_of_the_backbone(
    write_checkpoint: WriteCheckpoint, family: str, normalized: bool | None
) -> None:
    (features,) = (head for head in HEADS if head.family == family and head.task is Task.FEATURES)
    head = Head(family, BACKBONES[family], Task.FEATURES, features.processor)
    config = random_config(features, 1) | {"patch_size": 5, "image_size": 20, "num_hidden_layers": 3}
    config |= {"out_indices": list(range(4))}
    if normalized is not None:
        config["apply_layernorm"] = normalized
    checkpoint = write_checkpoint(head, config)
    model = checkpoint.load()
    names = [f"features.{layer}" for layer in range(4)]
    for rows, columns, rest in SIZES:
        pixels = images(2, 3, rows * 5 + rest, columns * 5 + rest)
        want = dict(zip(names, checkpoint.peer(pixels).feature_maps, strict=True))
        got = Served(model, names, dynamic_image_size=True)(pixels)
        assert {value.shape[2:] for value in got.values()} == {(rows, columns)}
        assert_near(got, want, 1e-5)


@pytest.mark.parametrize("source", [*WITHOUT, "vit_features_0", "eva02_0", "pe_core_0"], ids=str)
def test_maps_of_other_families_are_their_hidden_states(write_checkpoint: WriteCheckpoint, source: Head | str) -> None:
    if isinstance(source, str):
        model = read_checkpoint(ROOT / "tests" / "golden" / "timm" / source).model
    else:
        config = random_config(source, 1) | {"patch_size": 5, "image_size": 20}
        model = write_checkpoint(source, config).load()
    (height, width), depth = model.config.patch_size, model.config.num_hidden_layers
    pixels = images(2, 3, 3 * height, 4 * width)
    states = model(pixels, output_hidden_states=True, interpolate_pos_encoding=True)
    names = ["features", "raw_features", f"raw_features.{depth}", "features.0", "raw_features.1"]
    got = Served(model, names, dynamic_image_size=True)(pixels)
    want = {}
    for name in got:
        kind, _, layer = name.partition(".")
        state = states[f"hidden_states.{layer or depth}"]
        state = model.layernorm(state) if kind == "features" else state
        maps = torch.empty(2, model.config.hidden_size, 3, 4)
        for row in range(3):
            for column in range(4):
                maps[:, :, row, column] = state[:, model.config.num_prefix_tokens + 4 * row + column]
        want[name] = maps
    assert_near(got, want, 0.0)


@pytest.mark.parametrize(
    ("outputs", "layers"),
    [
        (["features.2"], 2),
        (["features.0"], 0),
        (["raw_features.1", "hidden_states.3"], 3),
        (["attentions.1", "features.1"], 2),
        (["features"], 4),
        (["logits", "features.1"], None),
    ],
)
def test_layers_that_no_output_needs_do_not_run(outputs: list[str], layers: int | None) -> None:
    model = tiny_model(num_hidden_layers=4).with_attention("eager")
    ran: list[int] = []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    model.head.register_forward_hook(lambda *_: ran.append(-1))
    served = Served(model, outputs)
    want = model(images(1, 3, 32, 32), output_hidden_states=True, output_attentions=True)
    ran.clear()
    got = served(images(1, 3, 32, 32))
    assert served.num_layers == layers
    assert ran == (list(range(layers)) if layers is not None else [0, 1, 2, 3, -1])
    assert list(got) == outputs
    assert all(torch.equal(got[name], want[name]) for name in got if name in want)


def test_their_axes_are_those_of_the_grid() -> None:
    model = tiny_model(image_size=(32, 48))
    spec = TensorSpec("features", "float32", ("batch", 24, 4, 6))
    assert Served(model, ["features"]).outputs == (spec,)
    (free,) = Served(model, ["features.1"], dynamic_image_size=True).outputs
    assert free.shape == ("batch", 24, "grid_height", "grid_width")


def test_a_layer_that_is_not_there_is_refused() -> None:
    model = tiny_model()
    for name in ("features.3", "features.-1", "features.", "features.01", "raw_features.x"):
        with raises(UsageError, what="outputs", found=name):
            output_names(model, [name])
    with raises(UsageError, what="outputs", hint="did you mean features?"):
        output_names(model, ["feature"])


@pytest.mark.parametrize(
    ("norm", "normalized"), [("all", [True, True, False]), ("last", [False, True, False]), ("none", [False] * 3)]
)
def test_the_norm_is_the_familys(norm: Any, normalized: list[bool]) -> None:
    model = tiny_model(feature_norm=norm)
    maps = dense_features(["features.1", "logits", "features", "raw_features"], model.config)
    assert [dense.normalized for dense in maps.values()] == normalized
    assert [dense.layer for dense in maps.values()] == [1, 2, 2]
