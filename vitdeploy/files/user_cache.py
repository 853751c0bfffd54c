"""The user's cache folder."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """`VITDEPLOY_CACHE`, or "vitdeploy" in the system's cache folder; None for a user without a home folder.

    XDG_CACHE_HOME and the home folder are ignored unless absolute, as the XDG base directory specification requires: a
    relative path would depend on the working directory.
    """
    named = os.environ.get("VITDEPLOY_CACHE")
    if named:
        return Path(named)
    for variable in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        system = Path(os.environ.get(variable) or "")
        if system.is_absolute():
            return system / "vitdeploy"
    try:
        home = Path.home()
    except RuntimeError:  # neither HOME nor an entry in the user database, as in many containers
        return None
    return home / ".cache" / "vitdeploy" if home.is_absolute() else None
