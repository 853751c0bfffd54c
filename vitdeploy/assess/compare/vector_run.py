"""Vectors of many images, by artifact and by the reference; other outputs are discarded."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from vitdeploy.assess.metrics.features import Nearness, TokenVector, nearness, vectors
from vitdeploy.assess.runs.reference import Batches, rows_not_finite, run_batches, run_reference
from vitdeploy.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from vitdeploy.assess.data.dataset import LabelledData
    from vitdeploy.assess.data.image_set import ImageSet
    from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
    from vitdeploy.assess.runs.targets import Selected
    from vitdeploy.system.progress import Progress


@dataclasses.dataclass(frozen=True)
class VectorRun:
    """The vectors of one artifact on one backend.

    Attributes:
        artifact: Name, such as "onnx-int8".
        backend: Backend that ran it; "" if no backend of this version runs it.
        precision: Precision of the artifact.
        nearness: See `vitdeploy.assess.metrics.features.nearness`; empty if the backend was skipped.
        not_finite: Number of images with NaN or infinite values.
        engine: Short name of the engine that ran; "" if skipped.
        skipped: Reason why it could not run; None if it ran.
    """

    artifact: str
    backend: str
    precision: str
    nearness: tuple[Nearness, ...] = ()
    not_finite: int = 0
    engine: str = ""
    skipped: str | None = None

    @property
    def name(self) -> str:
        return f"{self.backend} {self.precision}"

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "nearness": [near.to_dict() for near in self.nearness]}


def run_vectors(
    runtimes: OpenRuntimes,
    data: LabelledData | ImageSet,
    selection: Sequence[Selected],
    batch_size: int,
    progress: Progress,
) -> dict[Selected, VectorRun]:
    """Run the reference and the artifacts on every image; UnavailableError if the reference cannot run."""
    batches = Batches(runtimes.processor, _Files(data), batch_size)
    by_name = {artifact.name: artifact for artifact in runtimes.bundle.manifest.artifacts}
    token = TokenVector.of_dict(runtimes.bundle.read_config().model)
    given_by = {choice.artifact: [spec.name for spec in by_name[choice.artifact].outputs] for choice in selection}

    def batch_vectors(outputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Vectors of a batch; their selection depends on the artifact's other outputs."""
        kept: dict[str, np.ndarray] = {}
        for names in given_by.values():
            kept |= vectors({name: outputs[name] for name in names}, token)
        return kept

    names = tuple(dict.fromkeys(itertools.chain.from_iterable(given_by.values())))
    progress.step(f"running the reference on {len(data)} images")
    wanted, _ = run_reference(runtimes, batches, names, keep=batch_vectors)
    runs = {}
    for selected in selection:
        progress.step(f"running {selected} on {len(data)} images")
        try:
            with runtimes.open(selected) as runtime:
                given = run_batches(runtime, batches.feeds(runtime), keep=lambda outputs: vectors(outputs, token))
                engine = str(runtime.details["engine"])
        except UnavailableError as exc:
            runs[selected] = VectorRun(*selected, skipped=str(exc))
            continue
        near = nearness({name: wanted[name] for name in given}, given)
        runs[selected] = VectorRun(*selected, near, int(rows_not_finite(given).sum()), engine)
    return runs


def images_sha256(data: LabelledData | ImageSet) -> str:
    """SHA-256 of the images' names and bytes."""
    digest = hashlib.sha256()
    for position, name in enumerate(data.names):
        digest.update(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest())
        digest.update(hashlib.sha256(data.load(position)).digest())
    return digest.hexdigest()


class _Files(Sequence[bytes]):
    """Image files, each read on access."""

    def __init__(self, data: LabelledData | ImageSet) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        if isinstance(index, slice):
            return [self._data.load(position) for position in range(*index.indices(len(self)))]
        return self._data.load(index)
