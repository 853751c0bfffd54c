"""The folders in which vitdeploy and the Hub keep what can be made or downloaded again."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from vitdeploy.files.user_cache import user_cache


@dataclasses.dataclass(frozen=True)
class Cache:
    """One cache.

    Attributes:
        content: in a few words.
        folder: None for a user without home.
        size_bytes: of all files, 0 where the folder is not there.
        variable: the environment variable that moves it.
    """

    content: str
    folder: Path | None
    size_bytes: int
    variable: str

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "folder": None if self.folder is None else str(self.folder)}


def caches() -> tuple[Cache, ...]:
    """That of vitdeploy, and that of the Hub where huggingface_hub is installed."""
    own = Cache("compiled kernels and engines", user_cache(), _size(user_cache()), "VITDEPLOY_CACHE")
    try:
        from huggingface_hub.constants import HF_HUB_CACHE
    except ModuleNotFoundError:
        return (own,)
    hub = Path(HF_HUB_CACHE).expanduser()
    return own, Cache("downloads from the Hub", hub, _size(hub), "HF_HUB_CACHE")


def _size(folder: Path | None) -> int:
    """Of the files below a folder, without those that links lead to."""
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
