"""Ranges of activations on disk, by the content that they were measured from."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

from vitdeploy.atomic import write_file
from vitdeploy.errors import OutputError
from vitdeploy.exporters.quantization.number_format import Range
from vitdeploy.user_cache import user_cache

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping
    from pathlib import Path

_LARGEST = 3.4028234663852886e38  # that a float32 has, which they are ranges of
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
            if not self.path.is_file():
                return None
            data = json.loads(self.path.read_text(encoding="utf-8"))
            found = {name: Range(float(data[name][0]), float(data[name][1])) for name in names}
        except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError):
            return None
        whole = all(each.lowest <= each.highest and each.magnitude <= _LARGEST for each in found.values())
        return found if whole and len(data) == len(found) else None

    def write(self, ranges: Mapping[str, Range]) -> None:
        """Keep them, whole or not at all."""
        text = json.dumps({name: dataclasses.astuple(each) for name, each in ranges.items()}, indent=1)
        with contextlib.suppress(OutputError):  # a full or read-only disk costs time alone
            write_file(self.path, text.encode())


def default_folder() -> Path:
    """In the user's cache."""
    return user_cache() / "ranges"
