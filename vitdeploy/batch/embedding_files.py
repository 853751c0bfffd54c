"""Files of embeddings: a `.npy` file with a table of paths beside it, or a parquet file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from vitdeploy.batch.cell_text import csv_writer
from vitdeploy.errors import UsageError
from vitdeploy.files.atomic import write_file
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

NPY, PARQUET = ".npy", ".parquet"


def names_file(output: Path) -> Path | None:
    """The table of paths beside a `.npy` file; None for parquet, which has a column of them.

    Raises:
        UsageError: If the output has another ending.
    """
    ending = output.suffix.lower()
    if ending not in (NPY, PARQUET):
        raise UsageError(
            f"embeddings are written to {NPY} or {PARQUET}, got {output.name!r:.80}", what="output",
            where=output, expected=(NPY, PARQUET), found=ending, hint="give the output one of these endings",
        )  # fmt: skip
    return output.with_suffix(".csv") if ending == NPY else None


def parquet_writer() -> Callable[..., None]:
    """The function that writes parquet; MissingDependencyError if pyarrow is not installed."""
    writer: Callable[..., None] = load_target(
        "vitdeploy.batch.embedding_parquet:write_parquet", "writing parquet files", "parquet", "pyarrow"
    )
    return writer


def write_names(table: Path, names: Sequence[str], errors: Mapping[int, str]) -> None:
    """Write the table: a path and an error, mostly empty, for each row of the vectors. Paths keep their bytes.

    Raises:
        OutputError: If it cannot be written.
    """
    text = io.StringIO()
    writer = csv_writer(text, names)
    writer.writerow(("path", "error"))
    writer.writerows((name, errors.get(row, "")) for row, name in enumerate(names))
    write_file(table, text.getvalue().encode("utf-8", "surrogateescape"))
