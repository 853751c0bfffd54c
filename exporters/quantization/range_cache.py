"""Ranges of activations on disk, by the content that they were measured from."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.exporters.quantization.number_format import Range

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

_VERSION = 1  # of how ranges are measured: another one reads nothing of what this one wrote


class RangeCache:
    """One file of ranges. What cannot be read, or written, is measured again.

    Args:
        folder: of all such files.
        parts: all that the ranges depend on.
    """

    def __init__(self, folder: Path, parts: Iterable[str]) -> None:
        key = hashlib.sha256(json.dumps([_VERSION, *parts]).encode()).hexdigest()
        self.path = folder / f"{key}.json"

    def read(self, names: Collection[str]) -> dict[str, Range] | None:
        """The ranges of these values; None where they are not all there."""
        try:
            data = json.loads(self.path.read_text(encoding="utf-8"))
            found = {name: Range(float(data[name][0]), float(data[name][1])) for name in names}
        except (OSError, ValueError, KeyError, TypeError, IndexError):
            return None
        whole = all(math.isfinite(each.magnitude) and each.lowest <= each.highest for each in found.values())
        return found if whole and len(data) == len(found) else None

    def write(self, ranges: Mapping[str, Range]) -> None:
        """Keep them, whole or not at all."""
        text = json.dumps({name: dataclasses.astuple(each) for name, each in ranges.items()}, indent=1)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, suffix=".part")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            Path(name).replace(self.path)
        except OSError:
            return  # a full or read-only disk costs time alone


def default_folder() -> Path:
    """The user's: `VITDEPLOY_CACHE`, or "vitdeploy" in the system's folder for what can be made again."""
    named = os.environ.get("VITDEPLOY_CACHE")
    if named:
        return Path(named) / "ranges"
    system = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(system) / "vitdeploy" / "ranges"


def digest(folder: Path) -> str:
    """SHA-256 of the content of the files in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                found.update(chunk)
    return found.hexdigest()
