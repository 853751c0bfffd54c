"""Write a result to a file that is not part of the assessed bundle or data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.files.output_files import write_output

if TYPE_CHECKING:
    import os


def write_result(path: str | os.PathLike[str], content: bytes, *results: Any) -> None:
    """Write the content made from results atomically; replaces an existing file.

    UsageError for a file of a result's bundle, data or baseline; OutputError if it cannot be written.
    """
    for result in results:
        inputs = {f"the {name}": getattr(result, name, None) for name in ("data", "gallery", "baseline")}
        check_outputs({"the report": path}, inputs, bundle=getattr(result, "bundle", None))
    write_output(Path(path), content)
