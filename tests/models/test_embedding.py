"""Embeddings within the model and outside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from bundles import CPU_BACKENDS, PORTABLE, tiny_model, write_checkpoint_of
from environments import ROOT
from families import HEADS, Head, random_config
from raising import raises

import vitdeploy
from models.parity import images
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.errors import CheckpointError, UsageError
from vitdeploy.models.config import ViTConfig, read_json
from vitdeploy.models.families.lookup import image_tower
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.layers.embedding import l2_normalized
from vitdeploy.models.layers.heads import FeatureHead
from vitdeploy.models.layers.pooling import Pooling
from vitdeploy.models.layers.pooling import l2_normalized as l2_normalized_outside
from vitdeploy.models.signature import output_specs
from vitdeploy.specs import EMBEDS, AxisRange, Task

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import WriteCheckpoint

IMAGES = synthetic_images(3, 40, 50)
# Vectors of length one, against the reference in float32: sums in another order.
TOLERANCE = 1e-5


def test_a_zero_vector_stays_zero_and_others_have_length_one() -> None:
    x = np.array([[0, 0], [3, 4], [3e4, 4e4]], np.float32)  # the squares of the last exceed float16
    expected = np.array([[0, 0], [0.6, 0.8], [0.6, 0.8]], np.float32)
    np.testing.assert_allclose(l2_normalized(torch.from_numpy(x)).numpy(), expected, atol=1e-7)
    np.testing.assert_allclose(l2_normalized(torch.from_numpy(x).half()).numpy(), expected, atol=1e-3)
    np.testing.assert_allclose(l2_normalized_outside(x), expected, atol=1e-7)


@pytest.mark.parametrize("head", [head for head in HEADS if head.task is Task.FEATURES], ids=str)
def test_every_head_gives_its_own_pooling_by_default(write_checkpoint: WriteCheckpoint, head: Head) -> None:
    """With the projection or the pooler that it has; and each other pooling is the same outside it."""
    checkpoint = write_checkpoint(head, random_config(head, 1))
    model = checkpoint.load()
    config, specs = image_tower(read_json(checkpoint.folder / "config.json"), head.task), output_specs(model)
    pixels = images(2, model.config.num_channels, *model.config.image_size)
    with torch.inference_mode():
        outputs = {name: value.numpy() for name, value in model(pixels).items()}
    assert isinstance(model.head, FeatureHead)
    for pool in (None, *model.head.pools(model.config)):
        model.embed_by(pool, normalize=True)
        with torch.inference_mode():
            within = model(pixels)[EMBEDS].numpy()
        if pool == "pooler" and EMBEDS in outputs:  # transformers' class with a projection has no such output
            with raises(UsageError, what="pool", found=pool):
                Pooling.choose(config, specs, pool)
            continue
        outside = Pooling.choose(config, specs, pool)(outputs, normalize=True)
        np.testing.assert_allclose(outside, within, atol=1e-6)


@pytest.mark.parametrize("model_type", ["vit", "vit_mae"])
def test_each_family_has_its_default(model_type: str) -> None:
    config = {"model_type": model_type}
    specs = output_specs(tiny_model(Task.FEATURES))
    tokens = [spec for spec in specs if spec.name == "last_hidden_state"]
    assert Pooling.choose(config, specs).output == "pooler_output"
    assert Pooling.choose(config, tokens).pool == {"vit": "cls", "vit_mae": "mean"}[model_type]


def test_the_documented_default_of_each_family_is_the_models() -> None:
    text = (ROOT / "docs" / "reference" / "models.md").read_text(encoding="utf-8")
    table = text.split("\n## Embeddings\n")[1].split("\n## ")[0]
    documented = {
        model_type: tuple(cell.strip().partition(":")[0] for cell in cells)
        for line in table.split("|---|---|---|\n")[1].splitlines()
        if line.startswith("|")
        for names, *cells in [line.strip("|").split("|")]
        for model_type in names.replace("`", "").replace(" ", "").split(",")
    }
    assert documented.keys() == FAMILIES.keys()
    for model_type, (with_pooler, without) in documented.items():
        config = ViTConfig.from_dict({"model_type": model_type})
        if config.feature_pooler is not None:
            with torch.device("meta"):
                pools = FeatureHead(config, pooler=True).pools(config)
            assert with_pooler.startswith(f"`{pools[0]}`"), model_type
        assert without in ("", f"`{config.token_pools[0]}`"), model_type
        assert without or config.feature_pooler is not None, model_type


@pytest.mark.parametrize("pool", ["cls", "cls+mean"])
def test_a_model_without_a_class_token_has_none_to_pool(pool: str) -> None:
    with raises(CheckpointError, what="embedding_pool", found=pool):
        ViTConfig.from_dict({"model_type": "ijepa", "embedding_pool": pool})


def test_threads_share_a_predictor_and_an_engine_takes_its_largest_batch(tmp_path: Path) -> None:
    checkpoint = write_checkpoint_of(tiny_model(Task.FEATURES), tmp_path / "checkpoint")
    with vitdeploy.load(vitdeploy.export(checkpoint, output=tmp_path / "out").path) as predictor:
        expected = predictor.embed(IMAGES, normalize=True)
        with ThreadPoolExecutor(4) as threads:
            for vectors in threads.map(lambda _: predictor.embed(IMAGES, normalize=True), range(8)):
                np.testing.assert_array_equal(vectors, expected)
        predictor.runtime.axes = {"batch": AxisRange(1, 2, 2)}
        np.testing.assert_allclose(predictor.embed(IMAGES, normalize=True, batch_size=3), expected, atol=1e-6)
        assert predictor.embed([], pool="cls+mean").shape == (0, 48)
        for name, value in (("batch_size", 0), ("normalize", 1)):
            arguments: dict[str, Any] = {name: value}
            with raises(UsageError, what=name, found=value):
                predictor.embed(IMAGES, **arguments)


def test_what_a_model_lacks_is_refused() -> None:
    with raises(UsageError, what="pool", found=Task.CLASSIFICATION):
        tiny_model().embed_by("cls", normalize=False)
    with raises(UsageError, what="normalize"):
        tiny_model().embed_by(None, normalize=True)
    with raises(UsageError, what="pool", found="projection", expected=("pooler", "cls", "mean", "cls+mean")):
        tiny_model(Task.FEATURES).embed_by("projection", normalize=False)
    with raises(CheckpointError, what="embedding_pool"):
        ViTConfig.from_dict({"model_type": "vit", "embedding_pool": "max"})


@pytest.mark.parametrize(
    ("pool", "outputs", "fields"),
    [
        (None, ("features",), {"what": "outputs", "found": ["features"]}),
        ("pooler", ("last_hidden_state",), {"what": "pool", "found": "pooler"}),
    ],
)
def test_outputs_that_no_vector_can_be_made_of_are_refused(
    tmp_path: Path, pool: Any, outputs: tuple[str, ...], fields: dict[str, Any]
) -> None:
    checkpoint = write_checkpoint_of(tiny_model(Task.FEATURES), tmp_path / "checkpoint")
    graph = vitdeploy.GraphOptions(pool=pool, normalize=True, outputs=outputs)
    with raises(UsageError, **fields):
        vitdeploy.export(checkpoint, output=tmp_path / "bundle", graph=graph)
    assert not (tmp_path / "bundle").exists()


def test_every_backend_gives_the_same_vectors(tmp_path: Path) -> None:
    model = tiny_model(Task.FEATURES)
    checkpoint = write_checkpoint_of(model, tmp_path / "checkpoint")
    graph = vitdeploy.GraphOptions(pool="mean", normalize=True)
    for to in PORTABLE:
        bundle = vitdeploy.export(checkpoint, to=to, output=tmp_path / "bundle", graph=graph)
    plain = vitdeploy.export(checkpoint, output=tmp_path / "plain")
    with vitdeploy.load(plain.path) as predictor:
        expected = predictor.embed(IMAGES, pool="mean", normalize=True)
    np.testing.assert_allclose(np.linalg.norm(expected, axis=1), 1, atol=1e-6)
    tokens = vitdeploy.GraphOptions(pool="mean", normalize=True, outputs=("last_hidden_state",))
    vitdeploy.export(checkpoint, precision="fp16", output=tmp_path / "bundle", graph=tokens)
    with vitdeploy.load(bundle.path, backend="onnxruntime", precision="fp16") as predictor:  # pooled outside
        np.testing.assert_allclose(predictor.embed(IMAGES), expected, atol=1e-3)
        assert np.linalg.norm(predictor.embed(IMAGES, pool="cls"), axis=1).min() > 2  # not the bundle's
    for backend in CPU_BACKENDS:
        with vitdeploy.load(bundle.path, backend=backend, precision="fp32") as predictor:
            assert [spec.name for spec in predictor.runtime.outputs] == [EMBEDS]
            np.testing.assert_allclose(predictor.embed(IMAGES, batch_size=2), expected, atol=TOLERANCE)
    for artifact in bundle.manifest.artifacts:
        assert artifact.options["embedding_pool"] == "mean"
        assert artifact.options["normalize_embedding"] is True
