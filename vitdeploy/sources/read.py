"""Read a source into the reference model and the bundle's files."""

from __future__ import annotations

import dataclasses
import logging
import operator
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.manifest import FileRecord, Source
from vitdeploy.errors import CheckpointError, UsageError
from vitdeploy.files.json_text import json_file
from vitdeploy.images.preprocessor_files import note_unknown_settings
from vitdeploy.models.checkpoint import architecture_of, make_model, task_of
from vitdeploy.models.config import ViTConfig, json_size, read_json
from vitdeploy.models.families.config_keys import note_unknown_keys
from vitdeploy.models.families.lookup import encoder_keys, image_tower
from vitdeploy.models.presets import preset_config, random_model
from vitdeploy.models.weights import read_weights
from vitdeploy.sources.adapters import Adapter
from vitdeploy.sources.architectures.lookup import read_named_weights
from vitdeploy.sources.architectures.weights_options import WeightsFile
from vitdeploy.sources.hub import CheckpointFiles, resolve
from vitdeploy.sources.layouts.lookup import layout_of
from vitdeploy.sources.layouts.npz_layout import read_npz
from vitdeploy.sources.license_files import read_licenses, stated_license
from vitdeploy.sources.processor_source import find_processor, preset_processor
from vitdeploy.specs import MODES, ZERO_SHOT, ZERO_SHOT_NOTE, Task
from vitdeploy.system.forks import with_threads

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from vitdeploy.images.processor import ImageProcessor
    from vitdeploy.images.processor_options import ProcessorOptions
    from vitdeploy.models.vit import VisionTransformer


logger = logging.getLogger(__name__)

_SIZE_HINT = "give an image size, or another processor"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A source after reading.

    Attributes:
        source: Origin of the model.
        model: The reference.
        processor: Image processor for its input.
        files: JSON and license files of the model repository, by name.
    """

    source: Source
    model: VisionTransformer
    processor: ImageProcessor
    files: dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class _Content:
    """Content of a checkpoint in any layout, with transformers' names.

    Attributes:
        config: Content of `config.json`.
        weights: Tensors under transformers' names.
        written: Content of the original `config.json` in its library's form, with an adapter's merged.
        any_image_size: True if the model is resized to the processor's size: timm interpolates its tables to another
            evaluation size (`dynamic_img_size`).
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    written: dict[str, Any]
    any_image_size: bool = False


def read_checkpoint(
    model: str | Path | WeightsFile,
    task: Task | None = None,
    *,
    processor: ProcessorOptions | None = None,
    image_size: tuple[int, int] | None = None,
    dynamic_image_size: bool = False,
    **hub_options: Any,
) -> Checkpoint:
    """Read a Hub id, a local transformers or timm folder, a Google `.npz` file, or weights of a named architecture.

    A PEFT LoRA adapter, beside the weights or alone, is merged into its base; see `vitdeploy.sources.adapters`.

    If the image processor's size differs from the model's, a model that takes any size (`ViTConfig.any_image_size`) is
    resized to it.

    Args:
        model: See `vitdeploy.sources.hub.resolve`; or a file of weights with the name of their architecture.
        task: Task of the model. Default: the checkpoint's.
        processor: Another image processor, or settings for the checkpoint's.
        image_size: New (height, width) of model and processor.
        dynamic_image_size: Keep the model's size, because other sizes will be accepted too.
        hub_options: Options of `vitdeploy.sources.hub.resolve`; the revision is the model's.

    Raises:
        CheckpointError: If a file is missing or corrupt, there is no image processor, or it does not fit the model.
        HubError: If the Hub cannot be reached.
        UsageError: If the image size is smaller than a patch, or the settings of the processor contradict it.
    """
    adapter = None
    if isinstance(model, WeightsFile):
        checkpoint, content = _read_named(model, task, image_size)
    else:
        checkpoint = resolve(model, **hub_options)
        adapter = Adapter.find(checkpoint, hub_options) if checkpoint.adapter else None
        content = _read(checkpoint if adapter is None else adapter.base, adapter, task)
    base = checkpoint if adapter is None else adapter.base
    if task is Task.FEATURES:  # of a zero-shot classifier, too
        for key in (ZERO_SHOT, ZERO_SHOT_NOTE):
            content.config.pop(key, None)
    ViTConfig.from_dict(content.config)  # before its architectures are read
    task = task or task_of(content.config)
    data = image_tower(content.config, task)
    config = ViTConfig.from_dict(data)
    note_unknown_keys(data)
    if any(name.startswith("text_model.") for name in content.weights):
        logger.warning("the checkpoint has an image and a text encoder; the text encoder is not exported")
    if config.num_channels not in MODES:
        raise CheckpointError(
            f"{model}: the model takes images of {config.num_channels} channels",
            what="num_channels", where=str(model), expected=tuple(MODES), found=config.num_channels,
            hint="only models of 1 (gray), 3 (RGB) or 4 (RGBA) channels can be exported",
        )  # fmt: skip
    hub = {name: value for name, value in hub_options.items() if name != "revision"}
    image_processor = find_processor(checkpoint, base, content.written, processor, config, image_size, **hub)
    note_unknown_settings(image_processor.files)
    origin = ", ".join(map(str, (*base.weights, *checkpoint.adapter[1:])))
    reference = make_model(config, content.weights, task, origin=origin)
    try:
        _fit(
            reference,
            image_processor.processor,
            image_size,
            dynamic_image_size=dynamic_image_size,
            any_image_size=config.any_image_size or content.any_image_size,
            whole_patches=content.any_image_size,
        )
    except CheckpointError as exc:
        raise _misfit(str(model), exc, processor, image_size) from exc
    encoder = encoder_keys(data)
    if reference.config.image_size != config.image_size:
        encoder["image_size"] = json_size(reference.config.image_size)
    # The bundle's weights are float32, for every source type and head.
    for keys in (data, encoder):
        keys |= {key: "float32" for key in ("dtype", "torch_dtype") if key in keys}
    data["architectures"] = [architecture_of(reference)]
    weights = tuple(FileRecord.of(path.parent, path.name) for path in (*base.weights, *checkpoint.adapter))
    source = Source(
        checkpoint.model_id, checkpoint.revision, weights, image_processor.origin, architecture=checkpoint.architecture
    )
    if adapter is not None:
        source = dataclasses.replace(source, base=base.model_id, base_revision=base.revision)
    licenses, stated = _licenses(checkpoint, base)
    source = dataclasses.replace(source, license=stated)
    files = licenses | image_processor.files | {"config.json": json_file(data)}
    return Checkpoint(source, reference, image_processor.processor, files)


def random_checkpoint(
    preset: str,
    task: Task,
    seed: int,
    *,
    processor: ProcessorOptions | None = None,
    image_size: tuple[int, int] | None = None,
    dynamic_image_size: bool = False,
    **hub_options: Any,
) -> Checkpoint:
    """Create a preset architecture with random weights. See `vitdeploy.models.presets` and `read_checkpoint`.

    A preset has no checkpoint: its image processor is that of Google's Vision Transformers.

    Raises:
        CheckpointError: If the image processor does not fit the model.
        UsageError: If the architecture is unknown.
    """
    config = preset_config(preset)
    if image_size is not None and not dynamic_image_size:
        config = dataclasses.replace(config, image_size=image_size)
    image_processor = preset_processor(config, processor, image_size, **hub_options)
    model = random_model(config, task, seed=seed)
    name = f"{preset}-random-{seed}"
    try:
        _fit(model, image_processor.processor, image_size, dynamic_image_size=dynamic_image_size)
    except CheckpointError as exc:
        raise _misfit(name, exc, processor, image_size) from exc
    files = {"config.json": json_file({**config.to_dict(), "architectures": [architecture_of(model)]})}
    source = Source(name, processor=image_processor.origin)
    return Checkpoint(source, model, image_processor.processor, files | image_processor.files)


def _licenses(checkpoint: CheckpointFiles, base: CheckpointFiles) -> tuple[dict[str, bytes], dict[str, str] | None]:
    """License files of the weights and of an adapter, and what the weights' model card states.

    A single file of weights has neither: the files beside it may be of others.
    """
    if base.architecture is not None or base.weights[0].suffix == ".npz":
        return {}, None
    licenses = read_licenses(base.folder)
    if checkpoint.folder != base.folder:
        found = read_licenses(checkpoint.folder).items()
        licenses |= {_of_adapter(name) if name in licenses else name: content for name, content in found}
    return licenses, stated_license(base.folder)


def _of_adapter(name: str) -> str:
    """Name of an adapter's license file, if its base has one of the same name."""
    stem, dot, ending = name.partition(".")
    return f"{stem}-adapter{dot}{ending}"


@with_threads
def _read(files: CheckpointFiles, adapter: Adapter | None, task: Task | None) -> _Content:
    """Content of the weights in `files`, with the adapter merged."""
    if files.weights[0].suffix == ".npz":
        data, weights = read_npz(files.weights[0], task)
    else:
        data, weights = read_json(files.config), read_weights(files.weights)
    if adapter is not None:
        data, weights, note = adapter.merge(data, weights)
        logger.warning("merged the LoRA adapter into %s", note)
    return _converted(data, weights, task, files.folder)


@with_threads
def _read_named(
    file: WeightsFile, task: Task | None, image_size: tuple[int, int] | None
) -> tuple[CheckpointFiles, _Content]:
    """The file of weights as a checkpoint, and its content."""
    path = file.located()
    try:
        named = read_named_weights(file, image_size)
    except CheckpointError as exc:
        raise exc if exc.where is not None else exc.at(path) from exc
    if named.note:
        logger.warning("%s", named.note)
    files = CheckpointFiles(file.name, None, path.parent, (path,), architecture=named.architecture)
    return files, _converted(named.config, named.tensors, task, path)


def _converted(data: dict[str, Any], weights: dict[str, Tensor], task: Task | None, origin: Path) -> _Content:
    """Content under transformers' names, of a checkpoint in any library's layout."""
    layout = layout_of(data)
    if layout is None:
        return _Content(data, weights, data)
    try:
        config, weights = layout.convert(data, weights, task)
    except CheckpointError as exc:
        raise exc.with_message(f"{origin}: {exc}") from exc
    return _Content(config, weights, data, layout.any_image_size(data))


def _fit(
    reference: VisionTransformer,
    processor: ImageProcessor,
    image_size: tuple[int, int] | None,
    *,
    dynamic_image_size: bool,
    any_image_size: bool = False,
    whole_patches: bool = False,
) -> None:
    """Resize the model to the image size, or, if it takes any size, to the processor's; otherwise both must agree.

    Raises:
        CheckpointError: If they do not agree, or an image does not consist of `whole_patches`.
    """
    given, config = processor.output_size, reference.config
    if processor.num_channels != config.num_channels:
        raise CheckpointError(
            f"the image processor gives {processor.num_channels} channels, and the model takes {config.num_channels}",
            what="num_channels", expected=config.num_channels, found=processor.num_channels,
            hint="give another processor",
        )  # fmt: skip
    if image_size is None and given is not None and any(map(operator.lt, given, config.patch_size)):
        raise CheckpointError(
            f"the image processor gives {given} pixels, less than one patch of {config.patch_size}",
            what="image_size", expected=config.patch_size, found=given, hint=_SIZE_HINT,
        )  # fmt: skip
    if whole_patches and given is not None and any(map(operator.mod, given, config.patch_size)):
        raise CheckpointError(
            f"the image processor gives {given} pixels, which are not whole patches of {config.patch_size} pixels",
            what="image_size", expected=config.patch_size, found=given, hint=_SIZE_HINT,
        )  # fmt: skip
    new_size = None if dynamic_image_size else image_size or (given if any_image_size else None)
    if new_size not in (None, config.image_size):
        reference.resize(new_size)
    if not dynamic_image_size and given != reference.config.image_size:
        raise CheckpointError(
            f"the image processor gives {given or 'any size of'} pixels, but the model takes "
            f"{reference.config.image_size}",
            what="image_size", expected=reference.config.image_size, found=given, hint=_SIZE_HINT,
        )  # fmt: skip


def _misfit(
    name: str, problem: CheckpointError, options: ProcessorOptions | None, image_size: tuple[int, int] | None
) -> CheckpointError | UsageError:
    """The error for a processor that does not fit the model `name`; names the option that decided the size."""
    sized = options is not None and (options.size is not None or options.crop_size is not None)
    error = UsageError if sized or image_size is not None else CheckpointError
    return error(f"{name}: {problem}", what=problem.what, where=name, expected=problem.expected, found=problem.found)
