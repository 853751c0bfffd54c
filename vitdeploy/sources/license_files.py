"""The license of a checkpoint: its files, and the lines of its model card, which a bundle keeps."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vitdeploy.errors import CheckpointError
from vitdeploy.files.file_kinds import is_license_name
from vitdeploy.files.regular_file import TooLargeError, read_regular

if TYPE_CHECKING:
    from pathlib import Path

CARD = "README.md"
# The Hub's model cards begin with YAML: https://huggingface.co/docs/hub/repositories-licenses
_FRONT_MATTER = re.compile(rb"\A---\s*\n(.*?\n)---\s*\n", re.DOTALL)
_LINE = re.compile(r"^(license|license_name|license_link):[ \t]*(['\"]?)([^\n#'\"]+)\2[ \t]*(?:#.*)?$", re.MULTILINE)


def read_licenses(folder: Path) -> dict[str, bytes]:
    """The license files of a checkpoint's folder, by name.

    Raises:
        CheckpointError: If one cannot be read, or is too large for a text.
    """
    paths = sorted(path for path in folder.iterdir() if is_license_name(path.name) and path.is_file())
    return {path.name: _read(path) for path in paths}


def stated_license(folder: Path) -> dict[str, str] | None:
    """`license`, `license_name` and `license_link` in the front matter of a folder's README.md; None without any.

    Raises:
        CheckpointError: If README.md cannot be read, or is too large for a text.
    """
    card = folder / CARD
    if not card.is_file():
        return None
    front = _FRONT_MATTER.match(_read(card))
    lines = [] if front is None else _LINE.findall(front[1].decode("utf-8", "replace"))
    return {key: value.strip() for key, _, value in lines} or None


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except TooLargeError as exc:
        raise CheckpointError(f"{path} is too large for a license", where=path, hint="move it away") from exc
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror}", where=path) from exc
