"""Accuracy of settings, or their similarity with the reference, each in the process of its own options."""

from __future__ import annotations

import dataclasses
import os
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from vitdeploy.assess.benchmark.setting import Setting
from vitdeploy.assess.benchmark.timer import Job
from vitdeploy.assess.benchmark.worker import worker
from vitdeploy.assess.data.dataset import LabelledData, open_data
from vitdeploy.assess.data.image_set import ImageSet, open_images
from vitdeploy.assess.evaluate.evaluate import single_labels
from vitdeploy.assess.metrics.accuracy import Accuracy, best_classes
from vitdeploy.assess.metrics.features import LOGITS, nearness
from vitdeploy.assess.metrics.pareto import Quality
from vitdeploy.assess.runs.targets import REFERENCE, Selected, reference_backend
from vitdeploy.errors import UnavailableError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.system.progress import Progress

MOST_SIMILAR = 64  # images for the similarity with the reference
_AT_A_TIME = 32  # images that are sent to a process

Size: TypeAlias = "tuple[int, int] | None"
Vectors: TypeAlias = "Mapping[Size, Mapping[str, NDArray[Any]]]"


@dataclasses.dataclass(frozen=True)
class Qualities:
    """Quality by setting and image size, and what was measured, in a line."""

    by_setting: Mapping[tuple[Setting, Size], Quality]
    text: str


def open_source(
    bundle: Bundle, data: str | os.PathLike[str] | None, images: str | os.PathLike[str] | None, limit: int | None
) -> LabelledData | ImageSet | None:
    """Images to measure accuracy on, with labels, or similarity, without; None for neither.

    Raises:
        UsageError: If there are labels, and the model is not a single-label classifier.
        InputError: If the images cannot be read, or the labels do not fit the model.
    """
    if data is not None:
        return open_data(data, single_labels(bundle, "benchmark --data")).subset(limit)
    return None if images is None else open_images(images).subset(min(MOST_SIMILAR, limit or MOST_SIMILAR))


def measure_quality(
    bundle: Bundle,
    settings: Sequence[Setting],
    sizes: Sequence[Size],
    source: LabelledData | ImageSet,
    *,
    device: str,
    progress: Progress,
) -> Qualities:
    """Run every setting on the images, one process after the other, and compare with labels and the reference.

    Settings that differ in their number of threads alone are run once. Those that cannot run are left out: timing them
    gives the reason.
    """
    backend = reference_backend()
    reference = Setting(Selected(REFERENCE, backend, "fp32"))
    has_reference = bundle.manifest.has_reference
    apart = list(dict.fromkeys(dataclasses.replace(setting, threads=0) for setting in settings))
    vectors: dict[Setting, Vectors] = {}
    reasons: dict[Setting, str] = {}
    for setting in dict.fromkeys([*([reference] if has_reference else []), *apart]):
        progress.step(f"running {setting} on {len(source)} images")
        try:
            vectors[setting] = _vectors(Job(bundle, setting, device, (), any_size=any(sizes)), sizes, source, progress)
        except (UnavailableError, UsageError) as exc:
            reasons[setting] = str(exc)
    wanted = vectors.get(reference)
    labelled = isinstance(source, LabelledData)
    if wanted is None and not labelled:
        reason = reasons.get(reference, "the bundle was packed without the reference")
        return Qualities({}, f"similarity was not measured: {reason}")
    targets = source.targets if isinstance(source, LabelledData) else None
    found = {
        (setting, size): _quality(vectors[alone][size], None if wanted is None else wanted.get(size), targets)
        for setting in settings
        for alone in [dataclasses.replace(setting, threads=0)]
        for size in vectors.get(alone, ())
    }
    measure = "top-1 accuracy" if labelled else "mean cosine with the reference"
    return Qualities(found, f"{measure} on {len(source)} images of {source.source}")


def _vectors(
    job: Job, sizes: Iterable[Size], source: LabelledData | ImageSet, progress: Progress
) -> dict[Size, dict[str, NDArray[Any]]]:
    """Vectors (N, D) of the images, by size and output."""
    found: dict[Size, dict[str, NDArray[Any]]] = {}
    with worker(job) as ask:
        ask("open")
        for size in sizes:
            parts = []
            for start in range(0, len(source), _AT_A_TIME):
                end = min(start + _AT_A_TIME, len(source))
                files = tuple(source.load(position) for position in range(start, end))
                parts.append(ask("vectors", files, size))
                progress.advance(end, len(source))
            found[size] = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return found


def _quality(
    given: Mapping[str, NDArray[Any]], wanted: Mapping[str, NDArray[Any]] | None, targets: NDArray[np.int32] | None
) -> Quality:
    best = best_classes(given[LOGITS], 1)[0][:, 0] if LOGITS in given else None
    count = len(next(iter(given.values())))
    top1 = None if best is None or targets is None else _share(best == targets)
    if wanted is None:
        return Quality(count, top1)
    common = {name: wanted[name] for name in given if name in wanted}
    near = nearness(common, {name: given[name] for name in common}, search=False)
    agreement = None
    if best is not None and LOGITS in wanted:
        agreement = _share((best == best_classes(wanted[LOGITS], 1)[0][:, 0]) & (best >= 0))
    return Quality(count, top1, agreement, min((item.mean_cosine for item in near), default=None))


def _share(right: NDArray[np.bool_]) -> Accuracy:
    return Accuracy(int(right.sum()), len(right))
