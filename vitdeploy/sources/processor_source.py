"""Find a checkpoint's image processor: its own, another one, or stated settings. None is made up."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import operator
import os
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import FileRecord, ProcessorOrigin
from vitdeploy.errors import BundleError, CheckpointError, InputError, UsageError
from vitdeploy.files.file_kinds import PROCESSOR_CONFIGS, SETTINGS_FILE, file_kind, is_lfs_pointer, is_model_file_name
from vitdeploy.images.preprocessor_config import ShortestEdge, Size, complete
from vitdeploy.images.preprocessor_files import find_settings, read_file, read_files
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.images.processor_options import ProcessorOptions
from vitdeploy.models.config import read_json
from vitdeploy.sources.hub import resolve_processor
from vitdeploy.sources.layouts.timm_layout import is_timm, processor_config
from vitdeploy.sources.layouts.timm_processor import states_processor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from vitdeploy.models.config import ViTConfig
    from vitdeploy.sources.hub import CheckpointFiles

    Extent = tuple[int, int]

logger = logging.getLogger(__name__)

# The command line's names of the settings.
_FLAGS = {"size": "resize"}


@dataclasses.dataclass(frozen=True)
class FoundProcessor:
    """An image processor.

    Attributes:
        processor: the processor.
        origin: where it came from.
        files: the JSON files that a bundle keeps of it, by name.
    """

    processor: ImageProcessor
    origin: ProcessorOrigin
    files: dict[str, bytes]


@dataclasses.dataclass(frozen=True)
class WrittenProcessor:
    """The settings of an image processor as they are written, of which no value has been read.

    Attributes:
        settings: the content of a preprocessor_config.json.
        origin: where they came from.
        place: the file that says them, for errors; empty where there is none.
        files: the files that a bundle keeps where no setting is changed; none for one file with every setting.
    """

    settings: Mapping[str, Any]
    origin: ProcessorOrigin
    place: str = ""
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def own_processor(
    files: CheckpointFiles, config: Mapping[str, Any], image_size: Extent | None, model: ViTConfig
) -> WrittenProcessor | None:
    """The processor that a checkpoint or an adapter brings; None where it has none.

    Args:
        files: of the checkpoint or the adapter.
        config: the content of config.json of the model, with an adapter's merged.
        image_size: (height, width) of what timm's processor is to give; by default what its configuration states.
        model: the configuration of the model.

    Raises:
        InputError: its file cannot be read, or timm's configuration is malformed.
    """
    if files.weights and files.weights[0].suffix == ".npz":  # a whole checkpoint: what lies beside it is not of it
        return WrittenProcessor(whole_image(model).to_dict(), ProcessorOrigin("npz"))
    if is_timm(config):
        return _timm_processor(files.folder / "config.json", config, image_size, ProcessorOrigin("timm"))
    try:
        content = read_files(files.folder)
    except InputError as exc:
        raise exc.as_type(CheckpointError) from exc
    found = find_settings(files.folder, content)
    if found is None:
        return None
    settings, path = found
    kept = {name: content[name] for name in PROCESSOR_CONFIGS if name in content}
    return WrittenProcessor(settings, _origin_in(files.folder, path), str(path), kept)


def given_processor(source: str | os.PathLike[str], image_size: Extent | None, **hub: Any) -> WrittenProcessor:
    """The processor of another folder or repository, or of a file.

    Args:
        source: see `ProcessorOptions`.
        image_size: see `own_processor`.
        hub: options of `vitdeploy.sources.hub.resolve_processor`.

    Raises:
        CheckpointError: there is none.
        InputError: it cannot be read.
        HubError: the Hub cannot be reached.
    """
    found = resolve_processor(source, **hub)
    origin = ProcessorOrigin("given", found.name, found.revision)
    if found.path.is_dir():
        path = found.path / "config.json"
        config = read_json(path) if path.is_file() else {}
    else:
        path = found.path
        _check_kind(path)
        config = read_file(path)
    if is_timm(config):
        return _timm_processor(path, config, image_size, origin)
    if not found.path.is_dir():
        return WrittenProcessor(config, origin, str(path))
    own = find_settings(found.path, read_files(found.path))
    if own is None:
        message, hint = _not_found(os.fspath(source), found.cached)
        hint += "name another folder, file or Hub id with --processor"
        raise CheckpointError(message, what="image processor", where=source, hint=hint)
    settings, path = own
    return WrittenProcessor(settings, origin, str(path))


def preset_processor(
    model: ViTConfig, options: ProcessorOptions | None, image_size: Extent | None = None, **hub: Any
) -> FoundProcessor:
    """The image processor of a model with random weights; see `find_processor`."""
    written = WrittenProcessor(whole_image(model).to_dict(), ProcessorOrigin("preset"))
    if options is not None and options.source is not None:
        written = given_processor(options.source, image_size, **hub)
    return _with_settings(written, options or ProcessorOptions(), image_size, model.num_channels)


def find_processor(
    files: CheckpointFiles,
    base: CheckpointFiles,
    config: Mapping[str, Any],
    options: ProcessorOptions | None,
    model: ViTConfig,
    image_size: Extent | None = None,
    **hub: Any,
) -> FoundProcessor:
    """The image processor of a checkpoint: the given one or else its own, with the settings of the options.

    Args:
        files: the checkpoint, or an adapter.
        base: the adapter's base, whose processor counts where the adapter has none; else the same as `files`.
        config: the content of config.json, with an adapter's merged.
        options: what was asked for; None for the checkpoint's own processor as it is.
        model: the configuration of the model, which decides the number of channels.
        image_size: (height, width) that the processor is changed to, after all settings.
        hub: options of `vitdeploy.sources.hub.resolve_processor`.

    Raises:
        CheckpointError: the checkpoint has no processor, and the options do not define one.
        InputError: a processor's file cannot be read, or asks for something that cannot be done exactly.
        HubError: the Hub cannot be reached.
        UsageError: the settings do not fit the processor, the model or the image size.
    """
    options = options or ProcessorOptions()
    if options.source is not None:
        written = given_processor(options.source, image_size, **hub)
        return _with_settings(written, options, image_size, model.num_channels)
    found = None
    try:
        own = own_processor(files, config, image_size, model)
        if own is None and base is not files:
            own = own_processor(base, config, image_size, model)
            if own is not None and own.origin == ProcessorOrigin("checkpoint"):
                own = dataclasses.replace(own, origin=ProcessorOrigin("base"))
        if own is not None:
            found = _with_settings(own, options, image_size, model.num_channels)
    except InputError as exc:
        if options.missing(sized=image_size is not None):
            raise
        logger.warning("the image processor is the one that was stated, since the model's own is of no use: %s", exc)
    if found is not None:
        return found
    missing = options.missing(sized=image_size is not None)
    if missing:
        raise _no_processor(files, options, missing)
    stated = WrittenProcessor(ImageProcessor().to_dict(), ProcessorOrigin("options"))
    return _with_settings(stated, options, image_size, model.num_channels)


def _with_settings(
    written: WrittenProcessor, options: ProcessorOptions, image_size: Extent | None, num_channels: int
) -> FoundProcessor:
    """The processor with the settings of the options, then for another image size.

    Raises:
        InputError: what is written asks for something that cannot be done exactly.
        UsageError: the settings do not fit the processor, the model or the image size.
    """
    _check_channels(options, num_channels)
    try:
        settings = options.replace_in(complete(written.settings))
        processor = ImageProcessor.from_dict(settings, num_channels=num_channels)
    except InputError as exc:
        place = f"{written.place}: " if written.place else ""
        raise InputError(f"{place}{exc}", what=exc.what, expected=exc.expected, found=exc.found) from exc
    stated = (*options.settings, *(() if image_size is None else ("image_size",)))
    origin = dataclasses.replace(written.origin, settings=tuple(dict.fromkeys((*written.origin.settings, *stated))))
    if not stated:
        return FoundProcessor(processor, origin, dict(written.files) or _one_file(processor))
    if image_size is not None and (options.size is not None or options.crop_size not in (None, False)):
        if processor.output_size != image_size:
            gives = "any size" if processor.output_size is None else _pixels(processor.output_size)
            names = [name for name in ("size", "crop_size") if getattr(options, name) is not None]
            raise UsageError(
                f"{_flags(names)} gives {gives}, but --image-size is {_pixels(image_size)}",
                what="image_size", expected=gives, found=image_size,
                hint="leave --image-size out, or make them agree",
            )  # fmt: skip
    elif image_size is not None:
        processor = processor.resized(*image_size)
    if options.size is not None or options.crop_size is not None:
        _check_crop(processor)
    return FoundProcessor(processor, origin, _one_file(processor))


def whole_image(model: ViTConfig) -> ImageProcessor:
    """The processor of Google's Vision Transformers: the whole image resized, and bytes to -1..1 in every channel.

    Evaluation in google-research/vision_transformer, vit_jax/input_pipeline.py: `tf.image.resize`, whose default is
    bilinear, then (x - 127.5) / 127.5. Pillow's bilinear filter, unlike TensorFlow's, averages where an image shrinks,
    as in transformers' copies of these checkpoints (ViTImageProcessor). An .npz file itself says nothing; those of
    big_vision have the same range of values, and a resize that differs by their configuration.
    """
    half = (0.5,) * model.num_channels
    return ImageProcessor(size=Size(*model.image_size), image_mean=half, image_std=half)


def _one_file(processor: ImageProcessor) -> dict[str, bytes]:
    """The one file that states every setting."""
    return {SETTINGS_FILE: (json.dumps(processor.to_dict(), indent=2) + "\n").encode()}


def _timm_processor(
    path: Path, config: Mapping[str, Any], image_size: Extent | None, origin: ProcessorOrigin
) -> WrittenProcessor:
    # timm works its resize out from the size; of one that is not square, it resizes otherwise
    size = image_size if image_size and image_size[0] == image_size[1] else None
    try:
        if origin.kind == "timm" and not states_processor(config):
            origin = ProcessorOrigin("timm-defaults")
        settings = processor_config(config, size)
    except CheckpointError as exc:
        raise exc.with_message(f"{path.parent}: {exc}") from exc
    return WrittenProcessor(settings, origin, f"{path}: pretrained_cfg")


def _origin_in(folder: Path, path: Path) -> ProcessorOrigin:
    """Where the processor of a folder came from: a bundle says it, of a file that has not been altered since."""
    with contextlib.suppress(BundleError):
        manifest = Bundle.open(folder).manifest
        origin = manifest.source.processor
        if origin is not None and FileRecord.of(folder, path.name) in manifest.files:
            return origin
    return ProcessorOrigin("checkpoint")


def _check_kind(path: Path) -> None:
    """Refuse a file that holds something else than an image processor."""
    if not path.is_file() or is_lfs_pointer(path):
        return
    if path.suffix != ".json" and is_model_file_name(path.name):
        kind = file_kind(path) or "the file of a model"
        raise InputError(
            f"{path} is {kind}, not an image processor",
            where=path, found=kind, hint=f"name its folder, or the {SETTINGS_FILE} that belongs to it",
        )  # fmt: skip
    if path.name == "config.json":
        config = read_json(path)
        if not is_timm(config) and "image_processor_type" not in config and "feature_extractor_type" not in config:
            raise InputError(
                f"{path} configures a model, not an image processor",
                where=path, found="model", hint=f"name its folder, or the {SETTINGS_FILE} beside it",
            )  # fmt: skip


def _check_channels(options: ProcessorOptions, num_channels: int) -> None:
    for name in ("image_mean", "image_std"):
        value = getattr(options, name)
        if isinstance(value, tuple) and len(value) != num_channels:
            raise UsageError(
                f"{_flags([name])} has {len(value)} numbers, but the model takes images of {num_channels} "
                f"channel{'s' * (num_channels > 1)}",
                what=name, expected=num_channels, found=value,
                hint="give one number for all channels, or one for each",
            )  # fmt: skip


def _check_crop(processor: ImageProcessor) -> None:
    """Refuse a resize to less than the crop, whose rest would be black in every image."""
    size, crop = processor.size, processor.crop_size
    if not (processor.do_resize and processor.do_center_crop) or crop is None:
        return
    sides = (size.shortest_edge,) * 2 if isinstance(size, ShortestEdge) else (size.height, size.width)
    if any(map(operator.lt, sides, (crop.height, crop.width))):
        resized = f"shortest:{size.shortest_edge}" if isinstance(size, ShortestEdge) else _pixels(sides)
        raise UsageError(
            f"images are resized to {resized}, less than the center crop of {_pixels((crop.height, crop.width))}, "
            f"so that its edges would be black",
            what="resize", found=resized, hint="give a larger --resize, or --crop-size",
        )  # fmt: skip


def _no_processor(files: CheckpointFiles, options: ProcessorOptions, missing: tuple[str, ...]) -> CheckpointError:
    message, hint = _not_found(files.model_id, files.cached)
    if options.settings:
        needs = "needs" if len(options.settings) == 1 else "need"
        message += f"; to define one, {_flags(options.settings)} also {needs} {_flags(missing)}"
        hint += f"give {_flags(missing)}, or name a processor with --processor FOLDER|ID"
    else:
        message += ", and the defaults of its class may differ from its training"
        hint += f"name one with --processor FOLDER|ID, or state it with {_flags(missing)}"
    return CheckpointError(message, what="image processor", where=files.folder, hint=hint)


def _not_found(name: str, cached: bool) -> tuple[str, str]:
    """A message, and how its hint begins."""
    place = " in the Hub's cache" if cached else ""
    message = f"{name} has no image processor ({SETTINGS_FILE} not found{place})"
    return message, "go online, where there may be one, or " if cached else ""


def _flags(names: Sequence[str]) -> str:
    """The command line's options of settings, in a sentence."""
    flags = [f"--{_FLAGS.get(name, name).replace('_', '-')}" for name in names]
    return " and ".join(part for part in (", ".join(flags[:-1]), flags[-1]) if part)


def _pixels(size: Extent) -> str:
    return f"{size[0]}x{size[1]}"
