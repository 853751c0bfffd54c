"""Read a checkpoint's image processor, or another folder's, as written: its values are not yet parsed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.manifest import FileRecord, ProcessorOrigin
from vitdeploy.errors import BundleError, CheckpointError, InputError
from vitdeploy.files.file_kinds import PROCESSOR_CONFIGS, SETTINGS_FILE, file_kind, is_lfs_pointer, is_model_file_name
from vitdeploy.images.preprocessor_config import Size
from vitdeploy.images.preprocessor_files import find_settings, read_file, read_files
from vitdeploy.images.processor import ImageProcessor
from vitdeploy.models.config import read_json
from vitdeploy.sources.hub import resolve_processor
from vitdeploy.sources.layouts.lookup import Layout, layout_of
from vitdeploy.sources.timm_layouts.layout import is_timm
from vitdeploy.sources.timm_layouts.processor import states_processor

if TYPE_CHECKING:
    from vitdeploy.models.config import ViTConfig
    from vitdeploy.sources.hub import CheckpointFiles

Extent = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class WrittenProcessor:
    """Settings of an image processor as written, with unparsed values.

    Attributes:
        settings: Content of a preprocessor_config.json.
        origin: Their origin.
        place: Their file, for errors; empty without one.
        files: Files for the bundle if no setting is changed; empty for a single file with every setting.
    """

    settings: Mapping[str, Any]
    origin: ProcessorOrigin
    place: str = ""
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)


def checkpoint_processor(
    files: CheckpointFiles, config: Mapping[str, Any], image_size: Extent | None, model: ViTConfig
) -> WrittenProcessor | None:
    """The processor of a checkpoint or an adapter; None if it has none.

    Args:
        files: Files of the checkpoint or the adapter.
        config: Content of the model's config.json, with an adapter's merged.
        image_size: Output (height, width) of timm's processor. Default: its configuration's.
        model: The model's configuration.

    Raises:
        InputError: If its file cannot be read, or timm's configuration is malformed.
    """
    if files.weights and files.weights[0].suffix == ".npz":  # a complete checkpoint: files beside it are ignored
        return WrittenProcessor(whole_image(model).to_dict(), ProcessorOrigin("npz"))
    layout = layout_of(config)
    if files.architecture is not None:
        origin = ProcessorOrigin("architecture", files.architecture)
        return None if layout is None else _layout_processor(layout, files.weights[0], config, image_size, origin)
    if layout is not None:
        return _layout_processor(layout, files.config, config, image_size, ProcessorOrigin(layout.name))
    try:
        content = read_files(files.folder)
    except InputError as exc:
        raise exc.as_type(CheckpointError) from exc
    own = find_settings(files.folder, content)
    if own is None:
        return None
    settings, path = own
    kept = {name: content[name] for name in PROCESSOR_CONFIGS if name in content}
    return WrittenProcessor(settings, _origin_in(files.folder, path), str(path), kept)


def given_processor(source: str | os.PathLike[str], image_size: Extent | None, **hub: Any) -> WrittenProcessor:
    """The processor of another folder or repository, or of a file.

    Args:
        source: See `ProcessorOptions`.
        image_size: See `checkpoint_processor`.
        hub: Options of `vitdeploy.sources.hub.resolve_processor`.

    Raises:
        CheckpointError: If there is none.
        InputError: If it cannot be read.
        HubError: If the Hub cannot be reached.
    """
    resolved = resolve_processor(source, **hub)
    origin = ProcessorOrigin("given", resolved.name, resolved.revision)
    if resolved.path.is_dir():
        path = resolved.path / "config.json"
        config = read_json(path) if path.is_file() else {}
    else:
        path = resolved.path
        _check_kind(path)
        config = read_file(path)
    layout = layout_of(config)
    written = None if layout is None else _layout_processor(layout, path, config, image_size, origin)
    if written is not None:
        return written
    if not resolved.path.is_dir():
        return WrittenProcessor(config, origin, str(path))
    own = find_settings(resolved.path, read_files(resolved.path))
    if own is None:
        message, hint = not_found(os.fspath(source), resolved.cached)
        hint += "name another folder, file or Hub id with --processor"
        raise CheckpointError(message, what="image processor", where=source, hint=hint)
    settings, path = own
    return WrittenProcessor(settings, origin, str(path))


def whole_image(model: ViTConfig) -> ImageProcessor:
    """The processor of Google's Vision Transformers: resize the whole image, and map bytes to -1..1 in every channel.

    Evaluation in google-research/vision_transformer, vit_jax/input_pipeline.py: `tf.image.resize`, whose default is
    bilinear, then (x - 127.5) / 127.5. Pillow's bilinear filter, unlike TensorFlow's, averages when an image shrinks,
    as in transformers' copies of these checkpoints (ViTImageProcessor). An .npz file has no such information;
    big_vision's models use the same value range, and a resize that depends on their configuration.
    """
    half = (0.5,) * model.num_channels
    return ImageProcessor(size=Size(*model.image_size), image_mean=half, image_std=half)


def not_found(name: str, cached: bool) -> tuple[str, str]:
    """A message, and the beginning of its hint."""
    place = " in the Hub's cache" if cached else ""
    message = f"{name} has no image processor ({SETTINGS_FILE} not found{place})"
    return message, "go online, where there may be one, or " if cached else ""


def _layout_processor(
    layout: Layout, path: Path, config: Mapping[str, Any], image_size: Extent | None, origin: ProcessorOrigin
) -> WrittenProcessor | None:
    # timm derives its resize from the size, with a different rule if that is not square
    size = image_size if image_size and image_size[0] == image_size[1] else None
    try:
        if origin.kind == "timm" and not states_processor(config):
            origin = ProcessorOrigin("timm-defaults")
        settings = layout.processor(config, size)
    except CheckpointError as exc:
        raise exc.with_message(f"{path if path.suffix != '.json' else path.parent}: {exc}") from exc
    place = f"{path}: pretrained_cfg" if path.suffix == ".json" else str(path)
    return None if settings is None else WrittenProcessor(settings, origin, place)


def _origin_in(folder: Path, path: Path) -> ProcessorOrigin:
    """The origin of a folder's processor: a bundle records it, for a file that was not altered since."""
    with contextlib.suppress(BundleError):
        manifest = Bundle.open(folder).manifest
        origin = manifest.source.processor
        if origin is not None and FileRecord.of(folder, path.name) in manifest.files:
            return origin
    return ProcessorOrigin("checkpoint")


def _check_kind(path: Path) -> None:
    """Refuse a file that is not an image processor's."""
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
