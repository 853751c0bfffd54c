"""The user's folder for what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path | None:
    """`VITDEPLOY_CACHE`, or "vitdeploy" in the system's folder for such files; None for a user without home.

    XDG_CACHE_HOME and the home count where they are absolute, as the XDG base directory specification wants: from
    another working directory, a relative one would be another folder.
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
    except RuntimeError:  # no HOME, and no entry in the system's list of users, as in many containers
        return None
    return home / ".cache" / "vitdeploy" if home.is_absolute() else None
