"""Write vectors and the paths of their images as parquet, one row group at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitdeploy.batch.cell_text import as_utf_8, path_as_utf_8

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_GROUP_BYTES = 32 * 1024**2


def write_parquet(vectors: Path, target: Path, names: Sequence[str], errors: Mapping[int, str]) -> None:
    """Write the columns `path`, `vector` (D float32, or null) and `error` (null unless an image could not be read).

    Args:
        vectors: A `.npy` file of (N, D) float32.
        target: The file to write.
        names: Path of each of N images.
        errors: Why images could not be read, by row.

    Raises:
        OSError: If it cannot be written.
    """
    array = np.load(vectors, mmap_mode="r")
    count, width = array.shape
    schema = pa.schema({"path": pa.string(), "vector": pa.list_(pa.float32(), width), "error": pa.string()})
    rows = max(1, _GROUP_BYTES // (4 * width))
    with pq.ParquetWriter(target, schema) as writer:
        for start in range(0, count, rows):
            part = np.ascontiguousarray(array[start : start + rows])
            messages = [as_utf_8(errors[row]) if row in errors else None for row in range(start, start + len(part))]
            failed = pa.array([message is not None for message in messages])
            columns = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), width, mask=failed)
            paths = pa.array(map(path_as_utf_8, names[start : start + len(part)]), pa.string())
            table = pa.table([paths, columns, pa.array(messages, pa.string())], schema=schema)
            writer.write_table(table, row_group_size=rows)
