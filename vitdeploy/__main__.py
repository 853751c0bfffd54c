"""`python -m vitdeploy`."""

import contextlib
import sys
from pathlib import Path

from vitdeploy.cli import main

if __name__ == "__main__":
    # Python puts the working directory first, where a folder with a library's name (triton, of models) hides it.
    with contextlib.suppress(FileNotFoundError):  # the folder is gone, or Python put nothing first
        if Path(sys.path[0]) == Path.cwd():
            del sys.path[0]
    main()
