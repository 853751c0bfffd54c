"""Read a source into the reference model and the files that a bundle keeps of it."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError
from vitdeploy.hub import CheckpointFiles, resolve
from vitdeploy.layouts.npz_layout import read_npz
from vitdeploy.layouts.timm_layout import from_timm, is_timm, processor_config
from vitdeploy.manifest import PROCESSOR_CONFIGS, FileRecord, Source
from vitdeploy.models.checkpoint import architecture_of, make_model, task_of
from vitdeploy.models.config import ViTConfig, json_size, read_json
from vitdeploy.models.presets import preset_config, random_model
from vitdeploy.models.weights import read_weights
from vitdeploy.processor import ImageProcessor
from vitdeploy.specs import MODES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.specs import Task

_PROCESSOR = "preprocessor_config.json"


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


@dataclasses.dataclass(frozen=True)
class _Content:
    """What a source of any layout holds, in transformers' words.

    Attributes:
        config: the content of `config.json`.
        weights: tensors under transformers' names.
        processor: the image processor; None where the source has none.
        files: its image processor's JSON files, by name.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    processor: ImageProcessor | None
    files: dict[str, bytes]


def read_checkpoint(
    model: str | Path,
    task: Task | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    dynamic_image_size: bool = False,
    **hub_options: Any,
) -> Checkpoint:
    """Read a Hub id, a local folder of transformers or timm, or one of Google's `.npz` files.

    Where the image processor's size is not the model's, a model that takes every size (`ViTConfig.any_image_size`) is
    made one of the processor's.

    Args:
        model: see `vitdeploy.hub.resolve`.
        task: by default the one that the checkpoint was made for.
        image_size: (height, width) that model and processor are to be changed to.
        dynamic_image_size: leave the model's size as it is, since others will be taken too.
        hub_options: of `vitdeploy.hub.resolve`.

    Raises:
        CheckpointError: a file is missing or corrupt, or the processor does not fit the model.
        HubError: the Hub cannot be reached.
        UsageError: the image size is smaller than a patch.
    """
    found = resolve(model, **hub_options)
    content = _read(found, task, image_size)
    config = ViTConfig.from_dict(content.config)
    if config.num_channels not in MODES:
        raise CheckpointError(
            f"{model}: the model takes images of {config.num_channels} channels; only models of 1 (gray), 3 (RGB) or "
            f"4 (RGBA) channels can be exported"
        )
    task = task or task_of(content.config)
    reference = make_model(config, content.weights, task, origin=", ".join(map(str, found.weights)))
    data, files, processor = content.config, content.files, content.processor
    if processor is None:
        processor = _default_processor(config, files)
    if processor.num_channels != config.num_channels:
        raise CheckpointError(
            f"{model}: the image processor gives {processor.num_channels} channels, and the model takes "
            f"{config.num_channels}; mend the configuration of one of them"
        )
    if image_size is not None:
        processor = processor.resized(*image_size)
        files = {_PROCESSOR: _json(processor.to_dict())}
    given = processor.output_size
    if image_size is None and given is not None and any(map(operator.lt, given, config.patch_size)):
        raise CheckpointError(
            f"{model}: the image processor must give at least one patch, {config.patch_size} pixels, gives {given}: "
            f"mend {_PROCESSOR}, or say an image size"
        )
    new_size = None if dynamic_image_size else image_size or (given if config.any_image_size else None)
    if new_size not in (None, config.image_size):
        reference.resize(new_size)
        data["image_size"] = json_size(new_size)
    if not dynamic_image_size and given != reference.config.image_size:
        raise CheckpointError(
            f"{model}: the model must take what the image processor gives, {given or 'any size of'} pixels, it takes "
            f"{config.image_size}: mend {_PROCESSOR}, or say an image size"
        )
    # The bundle's weights are float32, whatever the source's type and whichever of its heads is used.
    data |= {"architectures": [architecture_of(reference)]} | {
        key: "float32" for key in ("dtype", "torch_dtype") if key in data
    }
    weights = tuple(FileRecord.of(path.parent, path.name) for path in found.weights)
    source = Source(found.model_id, found.revision, weights)
    return Checkpoint(source, reference, processor, files | {"config.json": _json(data)})


def random_checkpoint(
    preset: str,
    task: Task,
    seed: int,
    *,
    image_size: tuple[int, int] | None = None,
    dynamic_image_size: bool = False,
) -> Checkpoint:
    """An architecture by its name, with random weights. See `vitdeploy.models.presets` and `read_checkpoint`.

    Raises:
        UsageError: there is no such architecture.
    """
    config = preset_config(preset)
    if image_size is not None and not dynamic_image_size:
        config = dataclasses.replace(config, image_size=image_size)
    model = random_model(config, task, seed=seed)
    files = {"config.json": _json({**config.to_dict(), "architectures": [architecture_of(model)]})}
    processor = _default_processor(config, files, image_size)
    return Checkpoint(Source(f"{preset}-random-{seed}"), model, processor, files)


def _read(found: CheckpointFiles, task: Task | None, image_size: tuple[int, int] | None) -> _Content:
    if found.weights[0].suffix == ".npz":
        return _Content(*read_npz(found.weights[0], task), None, {})
    data = read_json(found.folder / "config.json")
    weights = read_weights(found.weights)
    if is_timm(data):
        try:
            config, weights = from_timm(data, weights)
            # timm works its resize out from the size; of one that is not square, it resizes otherwise
            size = image_size if image_size and image_size[0] == image_size[1] else None
            processor = ImageProcessor.from_dict(processor_config(data, size))
        except CheckpointError as exc:
            raise CheckpointError(f"{found.folder}: {exc}") from exc
        return _Content(config, weights, processor, {_PROCESSOR: _json(processor.to_dict())})
    paths = {name: found.folder / name for name in PROCESSOR_CONFIGS}
    files = {name: _read_file(path) for name, path in paths.items() if os.path.lexists(path)}
    return _Content(data, weights, ImageProcessor.from_pretrained(found.folder) if files else None, files)


def _default_processor(
    config: ViTConfig, files: dict[str, bytes], image_size: tuple[int, int] | None = None
) -> ImageProcessor:
    size = image_size or config.image_size
    processor = ImageProcessor.default(config.model_type, *size, num_channels=config.num_channels)
    files[_PROCESSOR] = _json(processor.to_dict())
    return processor


def _read_file(path: Path) -> bytes:
    if not path.is_file():  # a broken link, for example: what is there must not be taken for absent
        raise CheckpointError(f"{path} must be a file, is something else; download or copy it again")
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"{path} must be readable: {exc.strerror}") from exc


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
