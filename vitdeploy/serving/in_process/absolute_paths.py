"""Paths for `vitdeploy.load` that do not depend on the working directory, which a later opening may not share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.system.argument_types import check_type


def absolute(path: str | os.PathLike[str], options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The bundle's path and the options of `vitdeploy.load`, with absolute paths; links stay links.

    Raises:
        UsageError: If one is no path.
    """
    paths = {"path": path}
    if options.get("public_key") is not None:
        paths["public_key"] = options["public_key"]
    for name, given in paths.items():
        check_type(name, given, str | os.PathLike[str])
        paths[name] = str(Path(given).absolute())
    return str(paths.pop("path")), {**options, **paths}
