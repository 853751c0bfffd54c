"""The user's folder for what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """`VITDEPLOY_CACHE`, or "vitdeploy" in the system's folder for what can be made again."""
    named = os.environ.get("VITDEPLOY_CACHE")
    if named:
        return Path(named)
    system = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(system) / "vitdeploy"
