"""Read a source into the reference model and the files that a bundle keeps of it."""

from __future__ import annotations

import dataclasses
import json
import operator
import os
from typing import TYPE_CHECKING, Any

from vitdeploy.adapters import Adapter
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

if TYPE_CHECKING:
    from collections.abc import Mapping
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
        notes: what was done that its user may not expect, a line each.
    """

    source: Source
    model: VisionTransformer
    processor: ImageProcessor
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Content:
    """What a source of any layout holds, in transformers' words.

    Attributes:
        config: the content of `config.json`.
        weights: tensors under transformers' names.
        processor: the image processor; None where the source has none.
        files: its image processor's JSON files, by name.
        notes: as of `Checkpoint`.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    processor: ImageProcessor | None
    files: dict[str, bytes]
    notes: tuple[str, ...] = ()


def read_checkpoint(
    model: str | Path,
    task: Task | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    dynamic_image_size: bool = False,
    **hub_options: Any,
) -> Checkpoint:
    """Read a Hub id, a local folder of transformers or timm, or one of Google's `.npz` files.

    A LoRA adapter of PEFT, beside the weights or alone, is merged into its base; see `vitdeploy.adapters`.

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
    adapter = Adapter.find(found, hub_options) if found.adapter else None
    base = found if adapter is None else adapter.base
    content = _read(base, adapter, task, image_size)
    config = ViTConfig.from_dict(content.config)
    if config.num_channels != 3:
        raise CheckpointError(
            f"{model}: the model must take what the image processor gives, 3 channels of RGB, takes "
            f"{config.num_channels}; only models of RGB images are exported"
        )
    task = task or task_of(content.config)
    origin = ", ".join(map(str, (*base.weights, *found.adapter[1:])))
    reference = make_model(config, content.weights, task, origin=origin)
    data, files, processor = content.config, content.files, content.processor
    if processor is None:
        processor = _default_processor(config, files)
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
    weights = tuple(FileRecord.of(path.parent, path.name) for path in (*base.weights, *found.adapter))
    source = Source(found.model_id, found.revision, weights)
    if adapter is not None and adapter.is_alone:
        source = dataclasses.replace(source, base=base.model_id, base_revision=base.revision)
    return Checkpoint(source, reference, processor, files | {"config.json": _json(data)}, content.notes)


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


def _read(
    found: CheckpointFiles, adapter: Adapter | None, task: Task | None, image_size: tuple[int, int] | None
) -> _Content:
    """The content of the weights in `found`, with the adapter merged."""
    notes: tuple[str, ...] = ()
    if found.weights[0].suffix == ".npz":
        data, weights = read_npz(found.weights[0], task)
    else:
        data, weights = read_json(found.folder / "config.json"), read_weights(found.weights)
        _check_not_quantized(data, found)
    if adapter is not None:
        data, weights, note = adapter.merge(data, weights)
        notes = (note,)
    if is_timm(data):
        try:
            config, weights = from_timm(data, weights)
            # timm works its resize out from the size; of one that is not square, it resizes otherwise
            size = image_size if image_size and image_size[0] == image_size[1] else None
            processor = ImageProcessor.from_dict(processor_config(data, size))
        except CheckpointError as exc:
            raise CheckpointError(f"{found.folder}: {exc}") from exc
        return _Content(config, weights, processor, {_PROCESSOR: _json(processor.to_dict())}, notes)
    folders = [found.folder] if adapter is None or not adapter.is_alone else [adapter.files.folder, found.folder]
    if found.weights[0].suffix == ".npz":
        folders.remove(found.folder)  # a whole checkpoint: what lies beside it is not of it
    for folder in folders:
        paths = {name: folder / name for name in PROCESSOR_CONFIGS}
        files = {name: _read_file(path) for name, path in paths.items() if os.path.lexists(path)}
        if files:
            return _Content(data, weights, ImageProcessor.from_pretrained(folder), files, notes)
    return _Content(data, weights, None, {}, notes)


def _check_not_quantized(config: Mapping[str, Any], found: CheckpointFiles) -> None:
    """Refuse quantized weights, and those to be run with quantized activations, whatever their types look like."""
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            method = config[key].get("quant_method") if isinstance(config[key], dict) else None
            raise CheckpointError(
                f"{found.folder / 'config.json'}: the checkpoint is quantized ({method or key}); name the one that it "
                f"was made from, and quantize at export (--int8, --fp8)"
            )


def _default_processor(
    config: ViTConfig, files: dict[str, bytes], image_size: tuple[int, int] | None = None
) -> ImageProcessor:
    processor = ImageProcessor.default(config.model_type, *(image_size or config.image_size))
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
