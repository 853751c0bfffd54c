"""Accuracy of variants on held-out images, with the bound and the intervals of `vitdeploy export`."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.benchmark.tuning import BoundedAccuracy
from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.metrics.features import LOGITS, TokenVector, percentile
from vitdeploy.assess.runs.targets import reference_backend
from vitdeploy.exporting.options import MinCosine
from vitdeploy.exporting.quantization.calibration_images import BATCH
from vitdeploy.exporting.quantization.cosine_target import CosineTarget, check_cosine
from vitdeploy.exporting.quantization.top1_target import Top1Target
from vitdeploy.runtimes import BESIDE_OTHERS, open_recorded
from vitdeploy.runtimes.choice import engine_version

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.scores import ProblemType
    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.tuning.data import TuningData
    from vitdeploy.tuning.variant import Variant
    from vitdeploy.tuning.working_folder import WorkingFolder

FEWEST = 64  # held-out images, if there are as many: a 5th percentile needs some
_RESAMPLES = 1000
_PACE_RUNS = 3


class AccuracyMeter:
    """Measures variants against the reference, which runs once, and only if something is still unknown.

    Args:
        bundle: The bundle, with the reference's weights.
        data: Images; the first held-out ones are used.
        bound: The accuracy bound.
        work: Keeps what was measured.
        seconds: Time that the reference may take, which sets the number of images.
    """

    def __init__(
        self, bundle: Bundle, data: TuningData, bound: AccuracyBound, work: WorkingFolder, seconds: float
    ) -> None:
        config = bundle.read_config()
        self._bundle, self._bound, self._work = bundle, bound, work
        self._problem_type: ProblemType = config.problem_type
        self._token = TokenVector.of_dict(config.model)
        if isinstance(bound, MinCosine):
            check_cosine(bound, self._problem_type)
        key = ("images", bundle.manifest.reference, data.held_out.sha256(), seconds)
        count = work.recall(*key)
        if count is None:
            count = min(len(data.held_out.images), max(FEWEST, int(seconds / self._pace_s(data))))
            work.remember(count, *key)
        self.data = data.first(count)

    def measure(self, variant: Variant, backend: str, batch_size: int = 1) -> BoundedAccuracy:
        """The accuracy of a variant on a backend.

        Args:
            batch_size: Images per run, if an image's outputs depend on the others in its batch; else 8 are used.

        Raises:
            UnavailableError: If it cannot run here.
            UsageError: If the bound does not fit the model.
        """
        batch_size = batch_size if variant.depends_on_batch else BATCH
        sha256, engine = self.data.held_out.sha256(), engine_version(backend)
        key = (
            "accuracy",
            str(self._bound),
            self._bundle.manifest.reference,
            sha256,
            variant.sha256,
            engine,
            batch_size,
            self._token.name,
        )
        known = self._work.recall(*key)
        if known is not None:
            return BoundedAccuracy(**known)
        target, options = self._target, BESIDE_OTHERS.get(backend)
        with open_recorded(variant.bundle, backend, options, precision=variant.artifact.precision) as runtime:
            measured = _bounded(target, target.measure(runtime, batch_size), batch_size)
        self._work.remember(measured.to_dict(), *key)
        return measured

    @functools.cached_property
    def _target(self) -> Top1Target | CosineTarget:
        """The bound, with the reference's answers."""
        data = self.data
        if isinstance(self._bound, MinCosine):
            with self._reference() as reference:
                target = CosineTarget(self._bound, data.held_out, reference, self._token)
                target.wanted  # noqa: B018  (runs the reference, which is then closed)
                return target
        with self._reference() as reference:
            return Top1Target.of(self._bound, data.held_out, reference, self._problem_type, data.targets, BATCH)

    def _reference(self) -> Runtime:
        return open_recorded(self._bundle, reference_backend(), device="cpu")

    def _pace_s(self, data: TuningData) -> float:
        """Seconds of the reference for an image, in a batch."""
        times = []
        with self._reference() as reference:
            batch = next(data.first(BATCH).held_out.batches(BATCH, reference.pixels))[reference.pixels]
            for _ in range(_PACE_RUNS):
                begin = time.perf_counter()
                reference.run(feeds(reference.inputs, batch))
                times.append(time.perf_counter() - begin)
        return min(times) / len(batch)


def _bounded(target: Top1Target | CosineTarget, measured: Any, batch_size: int) -> BoundedAccuracy:
    bound, met = str(target.bound), target.met_by(measured)
    if isinstance(target, Top1Target):
        low, high = measured.interval
        return BoundedAccuracy(bound, met, measured.value, low, high, target.share, measured.total, LOGITS, batch_size)
    low, high = _percentile_interval(measured.cosines)
    near = measured.nearness
    return BoundedAccuracy(
        bound, met, near.p5_cosine, low, high, target.minimum, near.images, near.output, batch_size, measured.too_long
    )


def _percentile_interval(cosines: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the 5th percentile over images, cosines (N,)."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(cosines, (_RESAMPLES, len(cosines)))
    low, high = np.percentile([percentile(sample) for sample in drawn], (2.5, 97.5))
    return float(low), float(high)
