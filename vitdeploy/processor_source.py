"""Find a checkpoint's image processor: its own, another one, or stated settings. None is made up."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError, InputError, UsageError
from vitdeploy.hub import resolve_processor
from vitdeploy.layouts.timm_layout import is_timm, processor_config
from vitdeploy.manifest import PROCESSOR_CONFIGS, ProcessorOrigin
from vitdeploy.models.config import read_json
from vitdeploy.preprocessor_config import SETTINGS_FILE, Size, find_settings, read_file
from vitdeploy.processor import ImageProcessor
from vitdeploy.processor_options import ProcessorOptions

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    from vitdeploy.hub import CheckpointFiles
    from vitdeploy.models.config import ViTConfig

    Extent = tuple[int, int]

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

    @classmethod
    def of(cls, processor: ImageProcessor, origin: ProcessorOrigin) -> FoundProcessor:
        """With the one file that states every setting of the processor."""
        content = json.dumps(processor.to_dict(), indent=2) + "\n"
        return cls(processor, origin, {SETTINGS_FILE: content.encode()})


def own_processor(files: CheckpointFiles, image_size: Extent | None, model: ViTConfig) -> FoundProcessor | None:
    """The processor that a checkpoint or an adapter brings; None where it has none.

    Args:
        files: of the checkpoint or the adapter.
        image_size: (height, width) of what timm's processor is to give; by default what its configuration states.
        model: the configuration of the model.

    Raises:
        InputError: its file cannot be read, or asks for something that cannot be done exactly.
    """
    if files.weights and files.weights[0].suffix == ".npz":  # a whole checkpoint: what lies beside it is not of it
        return FoundProcessor.of(whole_image(model), ProcessorOrigin("npz"))
    path = files.folder / "config.json"
    config = read_json(path) if files.weights or path.exists() else {}
    if is_timm(config):
        return FoundProcessor.of(_timm_processor(files.folder, config, image_size), ProcessorOrigin("timm"))
    paths = {name: files.folder / name for name in PROCESSOR_CONFIGS}
    content = {name: _read_bytes(path) for name, path in paths.items() if os.path.lexists(path)}
    if find_settings(files.folder) is None:
        return None
    processor = ImageProcessor.from_pretrained(files.folder, num_channels=model.num_channels)
    return FoundProcessor(processor, ProcessorOrigin("checkpoint"), content)


def given_processor(
    source: str | os.PathLike[str], image_size: Extent | None, num_channels: int, **hub: Any
) -> FoundProcessor:
    """The processor of another folder or repository, or of a file.

    Args:
        source: see `ProcessorOptions`.
        image_size: see `own_processor`.
        num_channels: of the model that the processor is for.
        hub: options of `vitdeploy.hub.resolve_processor`.

    Raises:
        CheckpointError: there is none.
        InputError: it asks for something that cannot be done exactly.
        HubError: the Hub cannot be reached.
    """
    found = resolve_processor(source, **hub)
    origin = ProcessorOrigin("given", found.name, found.revision)
    if not found.path.is_dir():
        content = read_file(found.path)
        if is_timm(content):
            return FoundProcessor.of(_timm_processor(found.path, content, image_size), origin)
        try:
            return FoundProcessor.of(ImageProcessor.from_dict(content, num_channels=num_channels), origin)
        except InputError as exc:
            raise InputError(f"{found.path}: {exc}") from exc
    if (found.path / "config.json").is_file():
        config = read_json(found.path / "config.json")
        if is_timm(config):
            return FoundProcessor.of(_timm_processor(found.path, config, image_size), origin)
    if find_settings(found.path) is None:
        raise CheckpointError(
            f"{os.fspath(source)} has no image processor ({SETTINGS_FILE} not found{_in_cache(found.cached)}); "
            f"name another folder, file or Hub id with --processor"
        )
    return FoundProcessor.of(ImageProcessor.from_pretrained(found.path, num_channels=num_channels), origin)


def find_processor(
    places: Collection[CheckpointFiles],
    options: ProcessorOptions | None,
    model: ViTConfig,
    image_size: Extent | None = None,
    **hub: Any,
) -> FoundProcessor:
    """The image processor of a checkpoint: the given one or else its own, with the settings of the options.

    Args:
        places: the checkpoint; or an adapter and then its base, whose processor counts where the adapter has none.
        options: what was asked for; None for the checkpoint's own processor as it is.
        model: the configuration of the model, which decides the number of channels.
        image_size: (height, width) that the processor is changed to, after all settings.
        hub: options of `vitdeploy.hub.resolve_processor`.

    Raises:
        CheckpointError: the checkpoint has no processor, and the options do not define one.
        InputError: a processor's file cannot be read, or asks for something that cannot be done exactly.
        HubError: the Hub cannot be reached.
        UsageError: the settings do not fit the processor, or the image size.
    """
    options = options or ProcessorOptions()
    found: FoundProcessor | None
    if options.source is not None:
        found = given_processor(options.source, image_size, model.num_channels, **hub)
    else:
        own = (own_processor(files, image_size, model) for files in places)
        found = next((each for each in own if each is not None), None)
    if found is None:
        missing = options.missing(sized=image_size is not None)
        if missing:
            raise CheckpointError(_no_processor(next(iter(places)), options, missing))
        found = FoundProcessor.of(ImageProcessor(), ProcessorOrigin("options"))
    return adapt_processor(found, options, image_size, model.num_channels)


def adapt_processor(
    found: FoundProcessor, options: ProcessorOptions | None, image_size: Extent | None, num_channels: int
) -> FoundProcessor:
    """The processor with the settings of the options, then for another image size.

    Raises:
        UsageError: a setting belongs to a step that is off, or `size` and `crop_size` do not give the image size.
    """
    options = options or ProcessorOptions()
    stated = (*options.settings, *(() if image_size is None else ("image_size",)))
    if not stated:
        return found
    processor = ImageProcessor.from_dict(options.replace_in(found.processor.to_dict()), num_channels=num_channels)
    if image_size is not None and (options.size is not None or options.crop_size not in (None, False)):
        if processor.output_size != image_size:
            gives = "any size" if processor.output_size is None else _pixels(processor.output_size)
            names = [name for name in ("size", "crop_size") if getattr(options, name) is not None]
            raise UsageError(
                f"{_flags(names)} gives {gives}, but --image-size is {_pixels(image_size)}; leave --image-size "
                f"out, or make them agree"
            )
    elif image_size is not None:
        processor = processor.resized(*image_size)
    return FoundProcessor.of(processor, dataclasses.replace(found.origin, settings=stated))


def whole_image(model: ViTConfig) -> ImageProcessor:
    """The processor of Google's Vision Transformers: the whole image resized, and bytes to -1..1 in every channel.

    Evaluation in google-research/vision_transformer, vit_jax/input_pipeline.py: `tf.image.resize`, whose default is
    bilinear, then (x - 127.5) / 127.5. Pillow's bilinear filter, unlike TensorFlow's, averages where an image shrinks,
    as in transformers' copies of these checkpoints (ViTImageProcessor). An .npz file itself says nothing; those of
    big_vision have the same range of values, and a resize that differs by their configuration.
    """
    half = (0.5,) * model.num_channels
    return ImageProcessor(size=Size(*model.image_size), image_mean=half, image_std=half)


def _timm_processor(folder: Path, config: Mapping[str, Any], image_size: Extent | None) -> ImageProcessor:
    # timm works its resize out from the size; of one that is not square, it resizes otherwise
    size = image_size if image_size and image_size[0] == image_size[1] else None
    try:
        return ImageProcessor.from_dict(processor_config(config, size))
    except CheckpointError as exc:
        raise CheckpointError(f"{folder}: {exc}") from exc


def _no_processor(files: CheckpointFiles, options: ProcessorOptions, missing: tuple[str, ...]) -> str:
    message = f"{files.model_id} has no image processor ({SETTINGS_FILE} not found{_in_cache(files.cached)})"
    if options.settings:
        return (
            f"{message}; to define one, {_flags(options.settings)} also needs {_flags(missing)}; give them, or name a "
            f"processor with --processor FOLDER|ID"
        )
    return (
        f"{message}, and the defaults of its class may differ from its training; name one with --processor FOLDER|ID, "
        f"or state it with {_flags(missing)}"
    )


def _in_cache(cached: bool) -> str:
    return " in the Hub's cache; online there may be one" if cached else ""


def _flags(names: Sequence[str]) -> str:
    """The command line's options of settings, in a sentence."""
    flags = [f"--{_FLAGS.get(name, name).replace('_', '-')}" for name in names]
    return " and ".join(part for part in (", ".join(flags[:-1]), flags[-1]) if part)


def _pixels(size: Extent) -> str:
    return f"{size[0]}x{size[1]}"


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():  # a broken link, for example: what is there must not be taken for absent
        raise CheckpointError(f"{path} must be a file, is something else; download or copy it again")
    try:
        return path.read_bytes()
    except OSError as exc:
        raise CheckpointError(f"{path} must be readable: {exc.strerror}") from exc
