"""The columns that are computed for images, predictions or vectors, and one image's result as JSON."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vitdeploy.batch.cell_text import as_utf_8
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import NotFiniteError, check_count
from vitdeploy.predictor import batch_size_for
from vitdeploy.specs import Pool
from vitdeploy.system.argument_types import check_fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vitdeploy.predictor import Prediction, Predictor

Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Labels:
    """Predictions: the columns `label`, `index` and `score`, (N,) for one prediction per image, (N, K) for more.

    Attributes:
        top_k: Classes per image, K, best first. A regression has all its outputs, in their order.
    """

    top_k: int = 1
    names: ClassVar[tuple[str, ...]] = ("label", "index", "score")

    def __post_init__(self) -> None:
        check_count("top_k", self.top_k)

    def empty(self, predictor: Predictor, count: int) -> Columns:
        """Columns of `count` rows without results."""
        classes = predictor.classes_asked(None if predictor.problem_type is ProblemType.REGRESSION else self.top_k)
        shape = (count,) if classes == 1 else (count, classes)
        return {
            "label": np.full(shape, "", object), "index": np.full(shape, -1, np.int64),
            "score": np.full(shape, np.nan, np.float32),
        }  # fmt: skip

    def compute(self, predictor: Predictor, pixel_values: np.ndarray) -> np.ndarray:
        """Logits (N, num_labels)."""
        return predictor.logits(pixel_values)

    def put(self, columns: Columns, rows: np.ndarray, logits: np.ndarray, predictor: Predictor) -> None:
        """Write the results of finite logits into these rows."""
        for row, best in zip(rows, self._best(predictor, logits), strict=True):
            for name, column in columns.items():
                values = [getattr(prediction, name) for prediction in best]
                column[row] = values[0] if column.ndim == 1 else values

    def answer(self, predictor: Predictor, logits: np.ndarray) -> dict[str, Any]:
        """The result of one image's finite logits, (num_labels,), as JSON."""
        return {"predictions": [prediction.to_dict() for prediction in self._best(predictor, logits[None])[0]]}

    def _best(self, predictor: Predictor, logits: np.ndarray) -> list[list[Prediction]]:
        """Predictions whose labels Arrow and JSON can encode."""
        return [
            [dataclasses.replace(prediction, label=as_utf_8(prediction.label)) for prediction in best]
            for best in predictor.best(logits, self.top_k)
        ]


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Embeddings: the column `vector`, (N, D) float32; see `Predictor.embed` for the options."""

    pool: Pool | None = None
    normalize: bool = False
    names: ClassVar[tuple[str, ...]] = ("vector",)

    def __post_init__(self) -> None:
        check_fields(self)

    def empty(self, predictor: Predictor, count: int) -> Columns:
        """Columns of `count` rows without results."""
        return {"vector": np.full((count, predictor.pooling(self.pool).width), np.nan, np.float32)}

    def compute(self, predictor: Predictor, pixel_values: np.ndarray) -> np.ndarray:
        """Vectors (N, D)."""
        outputs = predictor.runtime.run({"pixel_values": pixel_values})
        return predictor.pooling(self.pool)(outputs, normalize=self.normalize)

    def put(self, columns: Columns, rows: np.ndarray, vectors: np.ndarray, _: Predictor) -> None:
        """Write finite vectors into these rows."""
        columns["vector"][rows] = vectors

    def answer(self, _: Predictor, vector: np.ndarray) -> dict[str, Any]:
        """The result of one image's finite vector, (D,), as JSON."""
        return {"vector": vector.tolist()}


def rows_of(
    predictor: Predictor, rows: Labels | Vectors, pixels: Sequence[np.ndarray]
) -> list[dict[str, Any] | NotFiniteError]:
    """The result of each image as JSON, or the reason why there is none; pixels have one shape, (1, ...)."""
    size = batch_size_for(predictor.processor, predictor.runtime, len(pixels))
    parts = (pixels[start : start + size] for start in range(0, len(pixels), size))
    values = [row for part in parts for row in rows.compute(predictor, np.concatenate(part))]
    problem = "the model gives NaN or infinite values for this image"
    return [rows.answer(predictor, row) if np.isfinite(row).all() else NotFiniteError(problem) for row in values]
