"""Find an image processor's settings in the files of a model folder."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError, shown
from vitdeploy.files.file_kinds import NESTED_FILE, PROCESSOR_CONFIGS, SETTINGS_FILE, is_lfs_pointer, lfs_advice
from vitdeploy.files.json_text import json_object, utf_8_json
from vitdeploy.files.regular_file import read_regular
from vitdeploy.images.preprocessor_config import CLASS_OF_MODEL, KNOWN, class_name
from vitdeploy.specs import MODES

logger = logging.getLogger(__name__)

_MODEL_FILE = "config.json"
_USUAL_CHANNELS = 3


def find_settings(folder: Path, files: Mapping[str, bytes]) -> tuple[dict[str, Any], Path] | None:
    """A model folder's settings and their file; None without any.

    As in transformers' AutoImageProcessor, a processor_config.json with nested settings takes precedence, and a file
    without a class name has config.json's, or else that of config.json's model.

    Args:
        files: See `read_files`.

    Raises:
        InputError: If a file is not JSON.
    """
    path, settings = folder / NESTED_FILE, None
    if NESTED_FILE in files:
        settings = _parse(path, files[NESTED_FILE]).get("image_processor")
    if settings is not None:
        settings = _object(settings, path)
    elif SETTINGS_FILE in files:
        path = folder / SETTINGS_FILE
        settings = _parse(path, files[SETTINGS_FILE])
    else:
        return None
    if class_name(settings) is None and _MODEL_FILE in files:
        model = _parse(folder / _MODEL_FILE, files[_MODEL_FILE])
        known = CLASS_OF_MODEL.get(str(model.get("model_type")))
        named = model.get("image_processor_type") if "model_type" in model else None
        settings = {**settings, "image_processor_type": known if named is None else named}
    return settings, path


def read_files(folder: Path) -> dict[str, bytes]:
    """Content of a folder's image processor files, by name; InputError if one cannot be read."""
    names = [name for name in PROCESSOR_CONFIGS if os.path.lexists(folder / name)]  # a broken link is not absent
    names += [_MODEL_FILE] if (folder / _MODEL_FILE).is_file() else []
    return {name: _content(folder / name) for name in names}


def read_file(path: Path) -> dict[str, Any]:
    """Read settings, possibly nested in a processor_config.json; InputError if the file is unreadable or not JSON."""
    content = _parse(path, _content(path))
    settings = content.get("image_processor") if path.name == NESTED_FILE else None
    return content if settings is None else _object(settings, path)


def channels_of_model(folder: Path, files: Mapping[str, bytes]) -> int | None:
    """Number of channels of a folder's model; None without a model's config.json.

    Raises:
        InputError: If the file is not JSON, or the number is not 1, 3 or 4.
    """
    path = folder / _MODEL_FILE
    config = _parse(path, files[_MODEL_FILE]) if _MODEL_FILE in files else {}
    if "model_type" not in config:
        return None
    towers = (config.get(key) for key in ("vision_config_dict", "vision_config"))  # a model with two has them nested
    keys = next((tower for tower in towers if isinstance(tower, dict)), config)
    channels = keys.get("num_channels", _USUAL_CHANNELS)
    if type(channels) is not int or channels not in MODES:
        message = f"{path}: 'num_channels' is {shown(channels)}; images have 1 (gray), 3 (RGB) or 4 (RGBA) channels"
        raise InputError(message, what="num_channels", where=path, expected=tuple(MODES), found=channels)
    return channels


def note_unknown_settings(files: Mapping[str, bytes]) -> None:
    """Log keys that the classes do not have in transformers; they have no effect there or here."""
    for name, content in files.items():
        settings = json.loads(content)
        settings = settings.get("image_processor") if name == NESTED_FILE else settings
        unknown = sorted(settings.keys() - KNOWN) if isinstance(settings, dict) else []
        if unknown:
            more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
            logger.warning(
                "%s has keys that its class does not have in transformers; like there, they have no effect: %s",
                name,
                ", ".join(key[:40] for key in unknown[:8]) + more,
            )


def _content(path: Path) -> bytes:
    if is_lfs_pointer(path):
        raise InputError(lfs_advice(path), where=path, found="a Git LFS pointer")
    try:
        return read_regular(path)
    except OSError as exc:
        raise InputError(f"{path} cannot be read: {exc.strerror}", where=path) from exc


def _parse(path: Path, content: bytes) -> dict[str, Any]:
    return json_object(path, content, InputError, utf_8_json)


def _object(settings: object, path: Path) -> dict[str, Any]:
    if not isinstance(settings, dict):
        message = f"{path}: 'image_processor' is {shown(settings)}, not an object"
        raise InputError(message, what="image_processor", where=path, found=settings)
    return settings
