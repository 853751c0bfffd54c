"""Files that this process may not read, also where root runs the tests."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NOBODY = 65534


@contextlib.contextmanager
def forbidden(*paths: Path) -> Iterator[None]:
    """Nothing may be done with these files and folders in this block.

    Root may do anything, and is another user meanwhile, for whom only the working directory, made readable, is open:
    give relative paths below it.
    """
    modes = {path: path.stat().st_mode for path in paths}
    for path in paths:
        path.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
        os.chmod(".", 0o755)  # noqa: PTH101  (a path of pathlib would be looked up from the root)
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        if is_root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)
