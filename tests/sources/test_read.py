"""Sources: what is read of a checkpoint, and what a bundle keeps of it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import safetensors.torch
import torch
from families import HEADS, random_config
from hub_server import hub_server
from raising import raises

from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.errors import CheckpointError
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.sources.read import random_checkpoint, read_checkpoint
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from conftest import WriteCheckpoint


def test_every_processor_file_is_kept_as_it_is(write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, tiny_config).folder
    nested = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 32}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 64}')
    checkpoint = read_checkpoint(folder)
    assert checkpoint.processor.output_size == (32, 32)
    assert json.loads(checkpoint.files["processor_config.json"]) == nested
    assert checkpoint.files["preprocessor_config.json"] == (folder / "preprocessor_config.json").read_bytes()


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_a_processor_file_that_is_no_file_is_not_taken_for_absent(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], kind: str
) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, tiny_config, processor=False).folder
    path = folder / "preprocessor_config.json"
    path.mkdir() if kind == "folder" else path.symlink_to("nowhere")
    with raises(CheckpointError, where=path):
        read_checkpoint(path.parent)


def test_shards_are_recorded_one_by_one(write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]) -> None:
    checkpoint = write_checkpoint(Task.CLASSIFICATION, tiny_config)
    checkpoint.weights[0].unlink()
    checkpoint.peer.save_pretrained(checkpoint.folder, max_shard_size="20KB")
    found = read_checkpoint(checkpoint.folder)
    shards = sorted(path.name for path in checkpoint.folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert sorted(found.source.weights, key=lambda record: record.path) == [
        FileRecord.of(checkpoint.folder, name) for name in shards
    ]


def test_the_task_may_be_another(write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, tiny_config).folder
    checkpoint = read_checkpoint(folder, Task.FEATURES)
    assert json.loads(checkpoint.files["config.json"])["architectures"] == ["ViTModel"]
    with raises(CheckpointError, what="weights", hint=re.compile("no head for masked-image-modeling")):
        read_checkpoint(folder, Task.MASKED_IMAGE_MODELING)


@pytest.mark.parametrize("processor", [True, False])
def test_a_model_of_two_channels_is_refused(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], processor: bool
) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, {**tiny_config, "num_channels": 2}).folder
    if processor:
        settings = {"image_processor_type": "ViTImageProcessor", "image_mean": 0.5, "image_std": 0.5, "size": 32}
        (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with raises(CheckpointError, what="num_channels", found=2):
        read_checkpoint(folder)


def test_a_seed_is_a_model() -> None:
    a, b, c = (random_checkpoint("vit-tiny-patch16-32", Task.CLASSIFICATION, seed) for seed in (0, 0, 1))
    weights = [found.model.state_dict()["head.classifier.weight"] for found in (a, b, c)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    assert (a.source.id, c.source.id) == ("vit-tiny-patch16-32-random-0", "vit-tiny-patch16-32-random-1")


def test_a_timm_repository_on_the_hub_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    golden = Path(__file__).parents[1] / "golden" / "timm" / "deit_distilled_0"
    name = "timm/deit_tiny_distilled"
    with hub_server({name: golden}) as hub:
        checkpoint = read_checkpoint(name, endpoint=hub.url, cache_dir=tmp_path)
    config = json.loads(checkpoint.files["config.json"])
    assert config["architectures"] == ["DeiTForImageClassificationWithTeacher"]
    assert (checkpoint.source.id, checkpoint.source.revision) == (name, hub.commit(name, "main"))
    assert checkpoint.processor.crop_rounding == "half_even"


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "timm_model."])
@pytest.mark.parametrize("case", ["deit_distilled_0", "beit_0"])
def test_prefixes_and_loss_weights_of_a_timm_checkpoint_are_left_out(tmp_path: Path, case: str, prefix: str) -> None:
    """As timm.models.clean_state_dict does, and for transformers' wrapper around timm."""
    golden = Path(__file__).parents[1] / "golden" / "timm" / case
    tensors = safetensors.torch.load_file(golden / "model.safetensors")
    wrapped = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    safetensors.torch.save_file(wrapped | {"loss_fct.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    shutil.copy(golden / "config.json", tmp_path)
    want, got = (read_checkpoint(folder).model.state_dict() for folder in (golden, tmp_path))
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_a_model_that_takes_every_size_is_made_one_of_its_processors(write_checkpoint: WriteCheckpoint) -> None:
    """As facebook/dinov2-base is: 518 pixels in config.json, 224 from the processor."""
    head = next(head for head in HEADS if head.name == "Dinov2Model")
    folder = write_checkpoint(head, random_config(head, 0) | {"image_size": 40, "patch_size": 8}).folder
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "crop_size": 24}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    fixed, dynamic = read_checkpoint(folder), read_checkpoint(folder, dynamic_image_size=True)
    assert json.loads(fixed.files["config.json"])["image_size"] == 24
    assert fixed.model.config.num_patches == 9
    assert json.loads(dynamic.files["config.json"])["image_size"] == 40
    assert dynamic.model.config.num_patches == 25
    assert fixed.processor == dynamic.processor

    head = next(head for head in HEADS if head.name == "ViTModel")
    folder = write_checkpoint(head, random_config(head, 0) | {"image_size": 40, "patch_size": 8}).folder
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with raises(CheckpointError, what="image_size", expected=(40, 40), found=(24, 24)):
        read_checkpoint(folder)
    assert read_checkpoint(folder, image_size=(24, 24)).model.config.image_size == (24, 24)


def test_another_size_is_one_processor_file(write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, tiny_config).folder
    nested = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 32}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    checkpoint = read_checkpoint(folder, image_size=(40, 24))
    assert set(checkpoint.files) == {"config.json", "preprocessor_config.json"}
    assert ImageProcessor.from_dict(json.loads(checkpoint.files["preprocessor_config.json"])).output_size == (40, 24)
    assert json.loads(checkpoint.files["config.json"])["image_size"] == [40, 24]


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_processor_that_gives_less_than_a_patch_is_refused(write_checkpoint: WriteCheckpoint, dynamic: bool) -> None:
    head = next(head for head in HEADS if head.name == "Dinov2Model")
    folder = write_checkpoint(head, random_config(head, 0) | {"image_size": 40, "patch_size": 8}).folder
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 28}, "crop_size": [24, 7]}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    with raises(CheckpointError, what="image_size", expected=(8, 8), found=(24, 7)):
        read_checkpoint(folder, dynamic_image_size=dynamic)
