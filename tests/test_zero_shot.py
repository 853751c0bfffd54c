"""Zero-shot classifiers: class embeddings and an image encoder, against transformers' models of two towers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from bundles import CPU_BACKENDS
from command_line import run
from families import HEADS, random_config
from numpy.typing import NDArray
from raising import raises
from two_towers import LABELS, TwoTowers

import vitdeploy
from conftest import WriteCheckpoint
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.delivery.model_card import model_card
from vitdeploy.errors import CheckpointError, InputError, UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.specs import AxisRange, Task

FORMATS = ("torchscript", "onnx", "openvino")


@pytest.fixture(scope="module", params=["CLIP", "Siglip"])
def towers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, spread: Any) -> TwoTowers:
    return TwoTowers(tmp_path_factory.mktemp("towers"), request.param, spread)


@pytest.fixture(scope="module")
def classes(towers: TwoTowers, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return towers.write_classes(tmp_path_factory.mktemp("classes") / "classes.npz")


@pytest.fixture(scope="module")
def bundle(towers: TwoTowers, classes: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every CPU format."""
    place = tmp_path_factory.mktemp("bundle") / "zero-shot"
    source = vitdeploy.SourceOptions(class_embeddings=classes)
    for to in FORMATS:
        made = vitdeploy.export(towers.folder, to=to, output=place, source=source)
    return made


def pictures(count: int) -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 255, (40, 50, 3), dtype=np.uint8) for _ in range(count)]


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_logits_are_those_of_two_towers(towers: TwoTowers, bundle: Bundle, backend: str) -> None:
    images = pictures(7)
    with vitdeploy.load(bundle.path, backend=backend) as predictor:
        pixels = predictor.processor(images)
        wanted = towers.logits(pixels)
        assert np.ptp(wanted, axis=1).min() > 1e-2  # the classes differ
        for count in (1, 2, 7):
            given = predictor.logits(pixels[:count])
            assert np.abs(given - wanted[:count]).max() <= 1e-5 * np.abs(wanted).max()
        scores = torch.from_numpy(wanted)
        scores = scores.softmax(-1) if isinstance(towers.model, transformers.CLIPModel) else scores.sigmoid()
        for best, row in zip(predictor.predict(images, top_k=4), scores.numpy(), strict=True):
            assert [prediction.label for prediction in best] == [LABELS[index] for index in np.argsort(-row)]
            np.testing.assert_allclose([prediction.score for prediction in best], np.sort(row)[::-1], rtol=1e-4)


def test_the_root_says_what_it_is(towers: TwoTowers, bundle: Bundle, classes: Path) -> None:
    config = json.loads((bundle.path / "config.json").read_text(encoding="utf-8"))
    assert (config["zero_shot"], config["normalize_embedding"]) == (True, True)
    assert "transformers reads the encoder alone" in config["zero_shot_note"]
    assert list(config["id2label"].values()) == list(LABELS)
    is_clip = isinstance(towers.model, transformers.CLIPModel)
    wanted = ProblemType.SINGLE_LABEL if is_clip else ProblemType.MULTI_LABEL
    assert (config["problem_type"], bundle.manifest.task) == (wanted, Task.CLASSIFICATION)
    assert bundle.read_config().problem_type is (ProblemType.SINGLE_LABEL if is_clip else ProblemType.PAIRWISE)
    assert [file.path for file in bundle.manifest.source.weights] == ["model.safetensors", classes.name]
    (architecture,) = config["architectures"]
    peer, report = getattr(transformers, architecture).from_pretrained(bundle.path, output_loading_info=True)
    assert (set(report["missing_keys"]), set(report["unexpected_keys"])) == (
        set(), {"zero_shot.weight", "zero_shot.bias"}
    )  # fmt: skip
    assert peer.config.model_type == config["model_type"]
    assert "Zero-shot: the vectors of the classes are `zero_shot.weight`" in model_card(bundle, "me/pets")


def test_it_is_a_bundle_like_any_other(towers: TwoTowers, bundle: Bundle, tmp_path: Path) -> None:
    assert run("verify", bundle.path, "--run").code == 0
    assert run("compare", bundle.path).code == 0
    data = tmp_path / "data"
    for index, picture in enumerate(pictures(12)):
        folder = data / LABELS[index % 4]
        folder.mkdir(parents=True, exist_ok=True)
        transformers.image_utils.PIL.Image.fromarray(picture).save(folder / f"{index}.png")
    code, out, err = run("evaluate", bundle.path, "--data", data, "--json")
    assert (code, err) == (0, "")
    evaluation = json.loads(out)
    assert {row["agreement"]["accuracy"] for row in evaluation["results"]} == {1}
    assert run("gate", bundle.path, "--data", data, "--min-agreement", "100%").code == 0
    again = vitdeploy.export(bundle.path, output=tmp_path / "again")  # the root is a checkpoint
    assert again.manifest.task == Task.CLASSIFICATION
    features = vitdeploy.export(
        bundle.path, output=tmp_path / "features", source=vitdeploy.SourceOptions(task=Task.FEATURES)
    )
    assert "zero_shot" not in features.read_config().model


def test_it_is_quantized_within_a_bound(towers: TwoTowers, classes: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for index, picture in enumerate(pictures(24)):
        transformers.image_utils.PIL.Image.fromarray(picture).save(photos / f"{index}.png")
    bounded = vitdeploy.Quantization(vitdeploy.Calibration(photos), accuracy=vitdeploy.MinAgreement(0.5))
    made = vitdeploy.export(
        towers.folder, precision="int8", output=tmp_path / "b", quantization=bounded,
        source=vitdeploy.SourceOptions(class_embeddings=classes),
    )  # fmt: skip
    (artifact,) = made.manifest.artifacts
    assert artifact.validation["accuracy"]["correct"] >= artifact.validation["accuracy"]["at_least"]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(towers: TwoTowers, classes: Path, tmp_path: Path, precision: str) -> None:
    source = vitdeploy.SourceOptions(class_embeddings=classes)
    made = vitdeploy.export(towers.folder, precision=precision, output=tmp_path / "b", source=source)
    (output,) = made.artifact("onnx", precision).validation["outputs"]
    assert output["output"] == "logits"


def test_an_engine_is_built(towers: TwoTowers, classes: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no wheel for this platform")
    made = vitdeploy.export(
        towers.folder, to="tensorrt-rtx", precision="fp16", output=tmp_path / "b",
        source=vitdeploy.SourceOptions(class_embeddings=classes),
        engine=vitdeploy.EngineOptions(batch=(AxisRange(1, 2, 7),)),
    )  # fmt: skip
    assert [spec.name for spec in made.artifact("tensorrt-rtx", "fp16").outputs] == ["logits"]


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model", "BeitModel", "ViTMAEModel"])
@pytest.mark.parametrize("pool", [None, "mean"])
def test_prototypes_of_any_encoder(name: str, pool: Any, write_checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    """Images of each class, as vectors, are its prototypes."""
    head = next(head for head in HEADS if head.name == name)
    checkpoint = write_checkpoint(head, random_config(head, 0) | {"image_size": 20, "patch_size": 5})
    source = vitdeploy.SourceOptions(task=Task.FEATURES)
    graph = vitdeploy.GraphOptions(pool=pool, normalize=True)
    features = vitdeploy.export(checkpoint.folder, output=tmp_path / "features", source=source, graph=graph)
    images = pictures(4)
    with vitdeploy.load(features.path, backend="onnxruntime") as predictor:
        vectors = predictor.embed(images)
    np.savez(tmp_path / "classes.npz", names=np.array(LABELS), vectors=vectors, logit_scale=np.array(1.0))
    graph = vitdeploy.GraphOptions(pool=pool)
    made = vitdeploy.export(
        checkpoint.folder, output=tmp_path / "b", graph=graph,
        source=vitdeploy.SourceOptions(class_embeddings=tmp_path / "classes.npz"),
    )  # fmt: skip
    with vitdeploy.load(made.path, backend="onnxruntime") as predictor:
        logits = predictor.logits(predictor.processor(images))
    np.testing.assert_allclose(logits, np.e * vectors @ vectors.T, atol=1e-5 * np.e)


def test_vectors_of_another_length_are_refused(towers: TwoTowers, tmp_path: Path) -> None:
    path = towers.write_classes(tmp_path / "classes.npz", vectors=np.ones((4, 7)))
    width = 24 if isinstance(towers.model, transformers.CLIPModel) else 32
    with raises(InputError, what="vectors", where=path, expected=width, found=7):
        vitdeploy.export(towers.folder, output=tmp_path / "b", source=vitdeploy.SourceOptions(class_embeddings=path))
    assert not (tmp_path / "b").exists()


def test_options_that_exclude_each_other(tmp_path: Path) -> None:
    with raises(UsageError, what="task", found=Task.FEATURES):
        vitdeploy.SourceOptions(class_embeddings="classes.npz", task=Task.FEATURES)
    with raises(UsageError, what="class_embeddings"):
        vitdeploy.SourceOptions(class_embeddings="classes.npz", random_weights="vit-tiny-patch16-224")
    code, _, err = run("export", tmp_path, "--class-embeddings", "classes.npz", "--task", "image-feature-extraction")
    assert (code, "class_embeddings" in err or "--class-embeddings" in err) == (2, True)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"zero_shot": "yes"}, "zero_shot"),
        ({"embedding_pool": None}, "embedding_pool"),
        ({"num_labels": 0}, "id2label"),
        ({"problem_type": "regression"}, "problem_type"),
    ],
)
def test_an_invalid_configuration_is_named_by_its_key(changed: dict[str, Any], what: str) -> None:
    config = {"model_type": "vit", "zero_shot": True, "embedding_pool": "cls", "num_labels": 3, **changed}
    with raises(CheckpointError, what=what, where="config.json"):
        ViTConfig.from_dict(config)


def test_another_file_of_classes_makes_another_bundle(
    towers: TwoTowers, bundle: Bundle, classes: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(bundle.path, tmp_path / "b")
    other = towers.write_classes(tmp_path / "classes.npz", names=np.array([*LABELS[:3], "shark"]))
    with raises(UsageError, what="model"):
        vitdeploy.export(towers.folder, output=place, source=vitdeploy.SourceOptions(class_embeddings=other))
