"""Embeddings within the model and outside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from bundles import CPU_BACKENDS, PORTABLE, tiny_model, write_checkpoint_of
from raising import raises

import vitdeploy
from vitdeploy.assess.data.images import synthetic_images
from vitdeploy.errors import CheckpointError, UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.embedding import l2_normalized
from vitdeploy.models.layers.pooling import Pooling
from vitdeploy.models.layers.pooling import l2_normalized as l2_normalized_outside
from vitdeploy.models.signature import output_specs
from vitdeploy.specs import EMBEDS, POOLS, Pool, Task

if TYPE_CHECKING:
    from pathlib import Path

IMAGES = synthetic_images(3, 40, 50)
# Vectors of length one, against the reference in float32: sums in another order.
TOLERANCE = 1e-5


def test_a_zero_vector_stays_zero_and_others_have_length_one() -> None:
    x = np.array([[0, 0], [3, 4], [3e4, 4e4]], np.float32)  # the squares of the last exceed float16
    expected = np.array([[0, 0], [0.6, 0.8], [0.6, 0.8]], np.float32)
    np.testing.assert_allclose(l2_normalized(torch.from_numpy(x)).numpy(), expected, atol=1e-7)
    np.testing.assert_allclose(l2_normalized(torch.from_numpy(x).half()).numpy(), expected, atol=1e-3)
    np.testing.assert_allclose(l2_normalized_outside(x), expected, atol=1e-7)


@pytest.mark.parametrize("pool", [pool for pool in POOLS if pool != "projection"])
def test_pooling_outside_equals_that_within(pool: Pool) -> None:
    model = tiny_model(Task.FEATURES)
    config, specs = model.config.to_dict(), output_specs(model)
    with torch.inference_mode():
        outputs = {name: value.numpy() for name, value in model(torch.ones(2, 3, 32, 32)).items()}
        model.embed_by(pool, normalize=True)
        within = model(torch.ones(2, 3, 32, 32))[EMBEDS].numpy()
    pooling = Pooling.choose(config, specs, pool)
    outside = pooling(outputs, normalize=True)
    assert outside.shape == (2, pooling.width)
    np.testing.assert_allclose(outside, within, atol=1e-6)


@pytest.mark.parametrize("model_type", ["vit", "vit_mae"])
def test_each_family_has_its_default(model_type: str) -> None:
    config = {"model_type": model_type}
    specs = output_specs(tiny_model(Task.FEATURES))
    tokens = [spec for spec in specs if spec.name == "last_hidden_state"]
    assert Pooling.choose(config, specs).output == "pooler_output"
    assert Pooling.choose(config, tokens).pool == {"vit": "cls", "vit_mae": "mean"}[model_type]


def test_what_a_model_lacks_is_refused() -> None:
    with raises(UsageError, what="pool", found=Task.CLASSIFICATION):
        tiny_model().embed_by("cls", normalize=False)
    with raises(UsageError, what="normalize"):
        tiny_model().embed_by(None, normalize=True)
    with raises(UsageError, what="pool", found="projection", expected=("pooler", "cls", "mean", "cls+mean")):
        tiny_model(Task.FEATURES).embed_by("projection", normalize=False)
    with raises(CheckpointError, what="embedding_pool"):
        ViTConfig.from_dict({"model_type": "vit", "embedding_pool": "max"})


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
    for backend in CPU_BACKENDS:
        with vitdeploy.load(bundle.path, backend=backend) as predictor:
            assert [spec.name for spec in predictor.runtime.outputs] == [EMBEDS]
            np.testing.assert_allclose(predictor.embed(IMAGES, batch_size=2), expected, atol=TOLERANCE)
    for artifact in bundle.manifest.artifacts:
        assert artifact.options["embedding_pool"] == "mean"
        assert artifact.options["normalize_embedding"] is True
