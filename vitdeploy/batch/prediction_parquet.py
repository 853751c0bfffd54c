"""Write predictions as parquet, one row group at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitdeploy.batch.cell_text import as_utf_8, path_as_utf_8
from vitdeploy.batch.prediction_files import rank_columns

if TYPE_CHECKING:
    from pathlib import Path

    from vitdeploy.batch.prediction_files import FinishedPredictions

_GROUP_BYTES = 32 * 1024**2
_PREDICTION_BYTES = 40  # of a label, an index and a score


def write_parquet(content: FinishedPredictions, target: Path) -> None:
    """Write the columns of `write_csv`: string `path`, `label` and `error`, int32 `index`, float32 `score`.

    The values of an image that could not be read are null; so is the error of any other.

    Raises:
        OSError: If it cannot be written.
    """
    ranks = content.ranks
    types = [pa.string(), pa.int32(), pa.float32()]
    columns = [column for rank in range(ranks) for column in zip(rank_columns(rank), types, strict=True)]
    schema = pa.schema([("path", pa.string()), *columns, ("error", pa.string())])
    labels = pa.array(map(as_utf_8, content.labels), pa.string())
    rows = max(1, _GROUP_BYTES // (_PREDICTION_BYTES * (ranks + 2)))
    with pq.ParquetWriter(target, schema) as writer:
        for part in content.parts(rows):
            failed = np.array([error is not None for error in part.errors])
            arrays = [pa.array(map(path_as_utf_8, part.names), pa.string())]
            for rank in range(ranks):
                indices = pa.array(part.indices[:, rank], pa.int32(), mask=failed)
                scores = pa.array(part.scores[:, rank], pa.float32(), mask=failed)
                arrays += [labels.take(indices), indices, scores]
            arrays.append(pa.array(part.errors, pa.string()))
            writer.write_table(pa.table(arrays, schema=schema), row_group_size=rows)
