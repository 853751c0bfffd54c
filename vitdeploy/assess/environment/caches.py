"""Cache folders of vitdeploy and of the Hub."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from vitdeploy.files.user_cache import user_cache


@dataclasses.dataclass(frozen=True)
class Cache:
    """A cache folder.

    Attributes:
        content: Short description.
        folder: Path; None for a user without a home folder.
        size_bytes: Size of all files; 0 if the folder does not exist.
        variable: Environment variable that moves it.
    """

    content: str
    folder: Path | None
    size_bytes: int
    variable: str

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "folder": None if self.folder is None else str(self.folder)}


def caches() -> tuple[Cache, ...]:
    """The cache of vitdeploy, and of the Hub if huggingface_hub is installed."""
    own = Cache("compiled kernels and engines", user_cache(), _size(user_cache()), "VITDEPLOY_CACHE")
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ModuleNotFoundError:
        return (own,)
    hub = Path(HF_HUB_CACHE).expanduser()
    return own, Cache("downloads from the Hub", hub, _size(hub), "HF_HUB_CACHE")


def _size(folder: Path | None) -> int:
    """Size of the files below a folder, not following links."""
    if folder is None:
        return 0
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).lstat().st_size
            except OSError:  # removed meanwhile
                continue
    return total
