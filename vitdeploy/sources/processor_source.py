"""Find a checkpoint's image processor: its own, another one, or given settings. None is invented."""

from __future__ import annotations

import dataclasses
import logging
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.manifest import ProcessorOrigin
from vitdeploy.errors import CheckpointError, InputError, UsageError
from vitdeploy.files.file_kinds import SETTINGS_FILE
from vitdeploy.files.json_text import json_file
from vitdeploy.images.preprocessor_config import ShortestEdge, complete
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.images.processor_options import ProcessorOptions
from vitdeploy.sources.written_processor import (
    Extent,
    WrittenProcessor,
    checkpoint_processor,
    given_processor,
    not_found,
    whole_image,
)

if TYPE_CHECKING:
    from vitdeploy.models.config import ViTConfig
    from vitdeploy.sources.hub import CheckpointFiles

logger = logging.getLogger(__name__)

# The settings' names on the command line.
_FLAGS = {"size": "resize"}


@dataclasses.dataclass(frozen=True)
class RecordedProcessor:
    """An image processor and its origin.

    Attributes:
        processor: The processor.
        origin: Its origin.
        files: Its JSON files for the bundle, by name.
    """

    processor: ImageProcessor
    origin: ProcessorOrigin
    files: dict[str, bytes]


def preset_processor(
    model: ViTConfig, options: ProcessorOptions | None, image_size: Extent | None = None, **hub: Any
) -> RecordedProcessor:
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
) -> RecordedProcessor:
    """The image processor of a checkpoint: the given one or else the checkpoint's, with the options' settings.

    Args:
        files: Files of the checkpoint or adapter.
        base: The adapter's base, whose processor is used if the adapter has none; else the same as `files`.
        config: Content of config.json, with an adapter's merged.
        options: Requested options; None for the checkpoint's processor, unchanged.
        model: The model's configuration, which defines the number of channels.
        image_size: New (height, width) of the processor, applied after all settings.
        hub: Options of `vitdeploy.sources.hub.resolve_processor`.

    Raises:
        CheckpointError: If the checkpoint has no processor, and the options do not define one.
        InputError: If a processor's file cannot be read, or requires something that cannot be done exactly.
        HubError: If the Hub cannot be reached.
        UsageError: If the settings do not fit the processor, the model or the image size.
    """
    options = options or ProcessorOptions()
    if options.source is not None:
        given = given_processor(options.source, image_size, **hub)
        return _with_settings(given, options, image_size, model.num_channels)
    try:
        written = checkpoint_processor(files, config, image_size, model)
        if written is None and base is not files:
            written = checkpoint_processor(base, config, image_size, model)
            if written is not None and written.origin == ProcessorOrigin("checkpoint"):
                written = dataclasses.replace(written, origin=ProcessorOrigin("base"))
        if written is not None:
            return _with_settings(written, options, image_size, model.num_channels)
    except InputError as exc:
        if options.missing(sized=image_size is not None):
            raise
        logger.warning("the image processor is the one that was stated, since the model's own is of no use: %s", exc)
    missing = options.missing(sized=image_size is not None)
    if missing:
        raise _no_processor(files, options, missing)
    stated = WrittenProcessor(ImageProcessor().to_dict(), ProcessorOrigin("options"))
    return _with_settings(stated, options, image_size, model.num_channels)


def _with_settings(
    written: WrittenProcessor, options: ProcessorOptions, image_size: Extent | None, num_channels: int
) -> RecordedProcessor:
    """Apply the options' settings to the processor, then another image size.

    Raises:
        InputError: If the written settings require something that cannot be done exactly.
        UsageError: If the settings do not fit the processor, the model or the image size.
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
        return RecordedProcessor(processor, origin, dict(written.files) or _one_file(processor))
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
    return RecordedProcessor(processor, origin, _one_file(processor))


def _one_file(processor: ImageProcessor) -> dict[str, bytes]:
    """The single file with every setting."""
    return {SETTINGS_FILE: json_file(processor.to_dict())}


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
    """Refuse a resize to less than the crop, which would leave a black border in every image."""
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
    message, hint = not_found(files.model_id, files.cached)
    if options.settings:
        needs = "needs" if len(options.settings) == 1 else "need"
        message += f"; to define one, {_flags(options.settings)} also {needs} {_flags(missing)}"
        hint += f"give {_flags(missing)}, or name a processor with --processor FOLDER|ID"
    else:
        message += ", and the defaults of its class may differ from its training"
        hint += f"name one with --processor FOLDER|ID, or state it with {_flags(missing)}"
    return CheckpointError(message, what="image processor", where=files.folder, hint=hint)


def _flags(names: Sequence[str]) -> str:
    """The settings' command-line options, as text."""
    flags = [f"--{_FLAGS.get(name, name).replace('_', '-')}" for name in names]
    return " and ".join(part for part in (", ".join(flags[:-1]), flags[-1]) if part)


def _pixels(size: Extent) -> str:
    return f"{size[0]}x{size[1]}"
