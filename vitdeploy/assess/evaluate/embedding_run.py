"""The run of one backend of a feature extractor over labelled images, and the classes of their neighbours."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.evaluate.open_run import OpenRun
from vitdeploy.assess.metrics.neighbours import neighbourhood
from vitdeploy.errors import UsageError
from vitdeploy.models.layers.pooling import Pooling

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from vitdeploy.assess.data.loader import Prepared
    from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
    from vitdeploy.assess.runs.targets import Selected
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.specs import Pool


@dataclasses.dataclass(frozen=True, eq=False)
class Neighbours:
    """The classes of every image's neighbours, by the vectors of one backend.

    Attributes:
        artifact: Name, such as "onnx-fp32"; "reference" for the torch reference.
        backend: Backend that ran it; "" if no backend of this version runs it.
        precision: Precision of the artifact.
        classes: Class by vote of the k nearest neighbours, (N,) int32; -1 for non-finite values.
        ranks: Rank of the nearest neighbour of the image's class, (N,) int32; see `Neighbourhood`.
        width: Length of the vectors.
        not_finite: Number of images with non-finite values; they count as wrong.
        details: Engine, device, settings and pooling that ran.
        skipped: Reason why it could not run, with empty arrays; None if it ran.
    """

    artifact: str
    backend: str
    precision: str
    classes: NDArray[np.int32]
    ranks: NDArray[np.int32]
    width: int = 0
    not_finite: int = 0
    details: dict[str, Any] = dataclasses.field(default_factory=dict)
    skipped: str | None = None

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"


class EmbeddingRun(OpenRun):
    """A backend and its vectors so far, 4 N D bytes for N images and D values each.

    Args:
        selected: Artifact and backend to run.
        runtimes: Runtimes of its bundle.
        count: Number of images.
        pool: Pooling; see `vitdeploy.predictor.Predictor.embed`.

    Raises:
        BundleError: If a file was altered, or the artifact does not fit the processor.
        UsageError: If the backend has no such precision.
    """

    def __init__(self, selected: Selected, runtimes: OpenRuntimes, count: int, pool: Pool | None) -> None:
        self._pool, self._count = pool, count
        self._pooling: Pooling | None = None
        self._vectors = np.empty((0, 0), np.float32)
        super().__init__(selected, runtimes)

    def _prepare(self, runtime: Runtime) -> None:
        config = self._runtimes.bundle.read_config().model
        try:
            self._pooling = Pooling.choose(config, runtime.outputs, self._pool)
        except UsageError as exc:  # another artifact may have the outputs
            self._skip(str(exc))
            return
        super()._prepare(runtime)
        self._vectors = np.full((self._count, self._pooling.width), np.nan, np.float32)

    def run(self, images: Sequence[Prepared], first: int) -> None:
        """Embed images, of which `first` is the first position."""
        pooling = self._pooling
        if pooling is not None:
            vectors = self.rows(images, pooling)
            if vectors is not None:
                self._vectors[first : first + len(vectors)] = vectors

    def neighbours(
        self, targets: NDArray[np.int32], count: int, gallery: NDArray[np.int32] | None = None
    ) -> Neighbours:
        """Search the neighbours of the first images: all of them with leave-one-out, else among the gallery, the rest.

        Args:
            targets: Class of each query, (N,).
            count: Number of voting neighbours.
            gallery: Class of each gallery image, whose vectors follow the queries'; None for leave-one-out.
        """
        artifact, backend, precision = self.selected
        if self.skipped is not None or self._pooling is None:
            none = np.empty(0, np.int32)
            return Neighbours(artifact, backend, precision, none, none, skipped=self.skipped)
        queries, others = self._vectors[: len(targets)], self._vectors[len(targets) :]
        found = neighbourhood(queries, targets, count, None if gallery is None else (others, gallery))
        details = {**self._details, "pool": self._pooling.pool or self._pooling.output}
        not_finite = int((~np.isfinite(queries).all(axis=1)).sum())
        return Neighbours(
            artifact, backend, precision, found.classes, found.ranks, self._pooling.width, not_finite, details
        )
