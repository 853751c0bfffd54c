"""Sources: what is read of a checkpoint, and what a bundle keeps of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from vitdeploy.errors import CheckpointError
from vitdeploy.manifest import FileRecord
from vitdeploy.processor import ImageProcessor
from vitdeploy.sources import random_checkpoint, read_checkpoint
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from conftest import WriteCheckpoint


def test_a_checkpoint_without_a_processor_gets_the_default(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]
) -> None:
    found = read_checkpoint(write_checkpoint(Task.CLASSIFICATION, tiny_config).folder)
    assert found.processor == ImageProcessor.for_image_size(32, 32)
    assert ImageProcessor.from_dict(json.loads(found.files["preprocessor_config.json"])) == found.processor


def test_every_processor_file_is_kept_as_it_is(write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, tiny_config).folder
    nested = {"image_processor": {"image_processor_type": "ViTImageProcessor", "size": 32}}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    (folder / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 64}')
    found = read_checkpoint(folder)
    assert found.processor.output_size == (32, 32)
    assert json.loads(found.files["processor_config.json"]) == nested
    assert found.files["preprocessor_config.json"] == (folder / "preprocessor_config.json").read_bytes()


@pytest.mark.parametrize("kind", ["folder", "broken link"])
def test_a_processor_file_that_is_no_file_is_not_taken_for_absent(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any], kind: str
) -> None:
    path = write_checkpoint(Task.CLASSIFICATION, tiny_config).folder / "preprocessor_config.json"
    path.mkdir() if kind == "folder" else path.symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json must be a file, is something else"):
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


def test_the_task_may_be_another_than_the_checkpoints(
    write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]
) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, tiny_config).folder
    found = read_checkpoint(folder, Task.FEATURES)
    assert json.loads(found.files["config.json"])["architectures"] == ["ViTModel"]
    with pytest.raises(CheckpointError, match="no head for masked-image-modeling"):
        read_checkpoint(folder, Task.MASKED_IMAGE_MODELING)


def test_a_model_of_gray_images_is_refused(write_checkpoint: WriteCheckpoint, tiny_config: dict[str, Any]) -> None:
    folder = write_checkpoint(Task.CLASSIFICATION, {**tiny_config, "num_channels": 1}).folder
    with pytest.raises(CheckpointError, match="3 channels of"):
        read_checkpoint(folder)


def test_a_seed_is_a_model() -> None:
    a, b, c = (random_checkpoint("vit-tiny-patch16-32", Task.CLASSIFICATION, seed) for seed in (0, 0, 1))
    weights = [found.model.state_dict()["head.classifier.weight"] for found in (a, b, c)]
    assert weights[0].equal(weights[1])
    assert not weights[0].equal(weights[2])
    assert (a.source.id, c.source.id) == ("vit-tiny-patch16-32-random-0", "vit-tiny-patch16-32-random-1")
