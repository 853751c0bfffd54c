"""The columns of `BatchPredictor` as an Arrow table with nulls, for Ray Data and Spark's `mapInArrow`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from vitdeploy.serving.scale_out.batch_callable import ERROR

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_TYPES = {"label": pa.string(), "index": pa.int64(), "score": pa.float32(), "vector": pa.float32()}


def as_table(columns: Mapping[str, np.ndarray], results: Collection[str]) -> pa.Table:
    """A table in which the results of an image without any are null, and `error` is null in all other rows.

    A column (N, K) becomes a list of K in each row. The types do not depend on the rows.

    Args:
        columns: The result of a `BatchPredictor`.
        results: Names of the columns that it computed: `names` of its `rows`.
    """
    failed = columns[ERROR] != ""
    return pa.table(
        {
            **{
                name: _column(name, column, failed) if name in results else pa.array(column)
                for name, column in columns.items()
            },
            ERROR: pa.array(columns[ERROR], pa.string(), mask=~failed),
        }
    )


def _column(name: str, column: np.ndarray, failed: np.ndarray) -> Any:
    if column.ndim == 1:
        return pa.array(column, _TYPES[name], mask=failed)
    values = pa.array(np.ascontiguousarray(column).reshape(-1), _TYPES[name])
    return pa.FixedSizeListArray.from_arrays(values, column.shape[1], mask=pa.array(failed))
