"""The columns of `BatchPredictor` as an Arrow table with nulls, for Ray Data and Spark's `mapInArrow`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vitdeploy.serving.scale_out.batch_callable import ERROR

if TYPE_CHECKING:
    from collections.abc import Mapping

_TYPES = {"label": pa.string(), "index": pa.int64(), "score": pa.float32(), "vector": pa.float32()}


def as_table(columns: Mapping[str, np.ndarray]) -> pa.Table:
    """A table in which the columns of an image without a result are null, and `error` is null in all other rows.

    A column (N, K) becomes a list of K in each row. The types do not depend on the rows.
    """
    failed = columns[ERROR] != ""
    return pa.table(
        {
            name: pa.array(column, pa.string(), mask=~failed) if name == ERROR else _column(name, column, failed)
            for name, column in columns.items()
        }
    )


def _column(name: str, column: np.ndarray, failed: np.ndarray) -> Any:
    if name not in _TYPES:
        return pa.array(column)
    if column.ndim == 1:
        return pa.array(column, _TYPES[name], mask=failed)
    values = pa.array(np.ascontiguousarray(column).reshape(-1), _TYPES[name])
    return pa.FixedSizeListArray.from_arrays(values, column.shape[1], mask=pa.array(failed))
