"""Write a result to a file, which must be none of those that the result is of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.files.output_files import write_output

if TYPE_CHECKING:
    import os


def write_result(path: str | os.PathLike[str], content: bytes, *results: Any) -> None:
    """Write what was made of results; a file that exists is replaced whole or not at all.

    UsageError for part of a bundle or data of a result, or its baseline; OutputError where none can be written.
    """
    for result in results:
        inputs = {f"the {name}": getattr(result, name, None) for name in ("data", "baseline")}
        check_outputs({"the report": path}, inputs, bundle=getattr(result, "bundle", None))
    write_output(Path(path), content)
