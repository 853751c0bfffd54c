"""Move finished vectors to their place: a `.npy` file with a table of paths beside it, or a parquet file."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError
from vitdeploy.files.atomic import move_file, write_file
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

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


def put_in_place(
    vectors: Path, output: Path, table: Path | None, names: Sequence[str], errors: Mapping[int, str]
) -> None:
    """Write the output of a finished job; existing files are replaced atomically.

    Args:
        vectors: The vectors, (N, D) float32, in a `.npy` file, which is moved if that is the output.
        output: The file to write.
        table: The table of paths; None to write parquet.
        names: Path of each of N images.
        errors: Why images could not be read, by row.

    Raises:
        OSError, OutputError: If a file cannot be written.
    """
    finished = vectors
    if table is None:
        finished = vectors.with_suffix(PARQUET)
        parquet_writer()(vectors, finished, list(map(_as_utf_8, names)), errors)
    else:
        write_file(table, _csv(names, errors))
    move_file(finished, output)


def _csv(names: Sequence[str], errors: Mapping[int, str]) -> bytes:
    """The table: a path and an error, mostly empty, for each row of the vectors. Paths keep their bytes."""
    text = io.StringIO()
    unquoted = any("\r" in name for name in names)  # Python before 3.13 does not quote it by itself
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if unquoted else csv.QUOTE_MINIMAL)
    writer.writerow(("path", "error"))
    writer.writerows((name, errors.get(row, "")) for row, name in enumerate(names))
    return text.getvalue().encode("utf-8", "surrogateescape")


def _as_utf_8(name: str) -> str:
    """A path for a format that has UTF-8 alone; other bytes are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
