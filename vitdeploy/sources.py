"""Read a source into the reference model and the files that a bundle keeps of it."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError
from vitdeploy.hub import resolve
from vitdeploy.manifest import PROCESSOR_CONFIGS, FileRecord, Source
from vitdeploy.models.checkpoint import architecture_of, load_model, task_of
from vitdeploy.models.config import ViTConfig, read_json
from vitdeploy.models.presets import preset_config, random_model
from vitdeploy.processor import ImageProcessor

if TYPE_CHECKING:
    from pathlib import Path

    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import Task


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A source, read.

    Attributes:
        source: where it came from.
        model: the reference.
        processor: what makes its input.
        files: the model repository's JSON files, by name.
    """

    source: Source
    model: VisionTransformer
    processor: ImageProcessor
    files: dict[str, bytes]


def read_checkpoint(model: str | Path, task: Task | None = None, **hub_options: Any) -> Checkpoint:
    """Read a Hub id or a local folder.

    Args:
        model: see `vitdeploy.hub.resolve`.
        task: by default the one that the checkpoint's `architectures` name.
        hub_options: of `vitdeploy.hub.resolve`.

    Raises:
        CheckpointError: a file is missing or corrupt, or the processor does not fit the model.
        HubError: the Hub cannot be reached.
    """
    found = resolve(model, **hub_options)
    data = read_json(found.folder / "config.json")
    config = ViTConfig.from_dict(data)
    task = task or task_of(data)
    files = {name: _read(found.folder / name) for name in PROCESSOR_CONFIGS if os.path.lexists(found.folder / name)}
    processor = ImageProcessor.from_pretrained(found.folder) if files else _default_processor(config, files)
    if config.num_channels != 3 or processor.output_size != config.image_size:
        raise CheckpointError(
            f"{model}: the model must take what the image processor gives, 3 channels of {processor.output_size} "
            f"pixels; it takes {config.num_channels} of {config.image_size}: mend preprocessor_config.json"
        )
    reference = load_model(config, found.weights, task)
    # The bundle's weights are float32, whatever the source's type and whichever of its heads is used.
    data |= {"architectures": [architecture_of(task)]} | {
        key: "float32" for key in ("dtype", "torch_dtype") if key in data
    }
    files["config.json"] = _json(data)
    weights = tuple(FileRecord.of(path.parent, path.name) for path in found.weights)
    return Checkpoint(Source(found.model_id, found.revision, weights), reference, processor, files)


def random_checkpoint(preset: str, task: Task, seed: int) -> Checkpoint:
    """An architecture by its name, with random weights. See `vitdeploy.models.presets`.

    Raises:
        UsageError: there is no such architecture.
    """
    config = preset_config(preset)
    files = {"config.json": _json({**config.to_dict(), "architectures": [architecture_of(task)]})}
    processor = _default_processor(config, files)
    return Checkpoint(Source(f"{preset}-random-{seed}"), random_model(config, task, seed=seed), processor, files)


def _default_processor(config: ViTConfig, files: dict[str, bytes]) -> ImageProcessor:
    processor = ImageProcessor.for_image_size(*config.image_size)
    files["preprocessor_config.json"] = _json(processor.to_dict())
    return processor


def _read(path: Path) -> bytes:
    if not path.is_file():  # a broken link, for example: what is there must not be taken for absent
        raise CheckpointError(f"{path} must be a file, is something else; download or copy it again")
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"{path} must be readable: {exc.strerror}") from exc


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
