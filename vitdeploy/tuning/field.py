"""The field: every variant on every backend, with its pace and its accuracy."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vitdeploy.assess.benchmark.tuning import BoundedAccuracy, Candidate
from vitdeploy.errors import BundleError, UnavailableError
from vitdeploy.runtimes.choice import engine_version
from vitdeploy.tuning.artifacts import Maker, NotMadeError
from vitdeploy.tuning.budget import TimeIsUpError
from vitdeploy.tuning.candidates import bounded, recipes
from vitdeploy.tuning.race.scores import Scores
from vitdeploy.tuning.race.trial import Trial, trials_of
from vitdeploy.tuning.variant import Variant, backends_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vitdeploy.assess.benchmark.tuning import CandidateStatus
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.system.progress import Progress
    from vitdeploy.tuning.accuracy import AccuracyMeter
    from vitdeploy.tuning.budget import Budget
    from vitdeploy.tuning.candidates import Recipe
    from vitdeploy.tuning.race.clock import Session

# Shares of the time limit after which no further work of a kind begins; the rest is for the race and the final.
MAKING, MEASURING, LAST_MEASURING = 0.45, 0.55, 0.8
FAR = 2.0  # a variant whose pace is slower than an accurate one's by this factor does not race
_LATE_FAR = 1.3  # the same once the time for measuring accuracy is over
_NO_TIME = "the time limit was reached"
RACE = "race"  # the session of the pace and of the race
TURNS = 2  # of the pace: a single one on a busy machine may be several times off
PACES = 2 * TURNS  # rounds of the session before those of the race: of all entries, and of those of mixed precision


@dataclasses.dataclass(eq=False)
class Entry:
    """A variant on a backend.

    Attributes:
        pace: Its turns with default options at the smallest batch size; None if it did not run.
        accuracy: By batch size; several only if an image's outputs depend on the others in its batch.
        problem: Why it cannot be chosen, except its accuracy; None if it can.
    """

    variant: Variant
    backend: str
    trial: Trial
    pace: Scores | None = None
    accuracy: dict[int, BoundedAccuracy] = dataclasses.field(default_factory=dict)
    problem: str | None = None

    @property
    def is_accurate(self) -> bool:
        """True if it meets the bound, at one batch size at least."""
        return any(accuracy.met for accuracy in self.accuracy.values())

    @property
    def meets_bound(self) -> bool:
        return self.problem is None and self.is_accurate

    def accuracy_of(self, trial: Trial) -> BoundedAccuracy | None:
        """Accuracy in a trial of it; None if it was not measured at that batch size."""
        if self.variant.depends_on_batch:
            return self.accuracy.get(trial.images_together)
        return next(iter(self.accuracy.values()), None)

    @property
    def ms(self) -> float:
        return float("inf") if self.pace is None else self.pace.ms

    def candidate(self) -> Candidate:
        """Its row in the result."""
        worst = min(self.accuracy.values(), key=lambda accuracy: (accuracy.met, accuracy.value), default=None)
        status: CandidateStatus = "not measured"
        if worst is not None:
            status = "met" if self.is_accurate else "missed"
        variant = self.variant
        return Candidate(
            variant.name, variant.artifact.name, self.backend, variant.is_new, status, worst, self.problem,
            variant.size_bytes,
        )  # fmt: skip


class Field:
    """Entries, and what is not among them.

    Args:
        bundle: The bundle.
        maker: Makes artifacts.
        meter: Measures accuracy.
        session: Times the pace.
        batch_sizes: Batch sizes to try, the smallest first.
        budget: The time limit.
        progress: Receives each step.

    Attributes:
        entries: Variants that can run here, by backend.
        left_out: Artifacts that were not made, or have no backend.
        notes: What was left out for want of time.
    """

    def __init__(
        self,
        bundle: Bundle,
        maker: Maker,
        meter: AccuracyMeter,
        session: Session,
        batch_sizes: Sequence[int],
        budget: Budget,
        progress: Progress,
    ) -> None:
        self._bundle, self._maker, self._meter, self._session = bundle, maker, meter, session
        self._batch_sizes, self._budget, self._progress = batch_sizes, budget, progress
        self.entries: list[Entry] = []
        self.left_out: list[Candidate] = []
        self.notes: list[str] = []
        self._recipes: dict[Variant, Recipe] = {}

    def fill(self) -> None:
        """Enter the bundle's artifacts and those that can be made; measure their pace and their accuracy."""
        for artifact in self._bundle.manifest.artifacts:
            self._enter(Variant.of(self._bundle, artifact))
        to_make, reasons = recipes(self._bundle.manifest)
        self.left_out += [
            Candidate(recipe.name, recipe.artifact, "", True, "left out", reason=reason)
            for recipe, reason in reasons.items()
        ]
        self._make(to_make)
        self._measure(self.entries, 0)
        missed = [
            recipe
            for variant, recipe in self._recipes.items()
            if not any(entry.meets_bound for entry in self.entries if entry.variant is variant)
        ]
        before = len(self.entries)
        self._make(bounded(missed))
        self._measure(self.entries[before:], TURNS)

    def trials(self, entry: Entry) -> list[Trial]:
        """Trials of an entry that meet the bound."""
        trials = trials_of(entry.variant, entry.backend, self._batch_sizes)
        return [trial for trial in trials if (accuracy := entry.accuracy_of(trial)) is not None and accuracy.met]

    def accuracy_of(self, trial: Trial) -> BoundedAccuracy | None:
        """See `Entry.accuracy_of`."""
        same = (item for item in self.entries if item.variant is trial.variant and item.backend == trial.backend)
        entry = next(same, None)
        return None if entry is None else entry.accuracy_of(trial)

    def racing(self) -> list[Entry]:
        """Entries that meet the bound and are not far slower than the fastest of them; the others get a problem."""
        fit = sorted((entry for entry in self.entries if entry.meets_bound), key=lambda entry: entry.ms)
        for entry in fit[1:]:
            if _least_ratio(entry, fit[0]) > FAR:
                ratio = entry.ms / fit[0].ms
                entry.problem = f"{ratio:.2f} times the time of {fit[0].trial} in the first turns"
        return [entry for entry in fit if entry.problem is None]

    def _enter(self, variant: Variant) -> None:
        backends = backends_for(variant.artifact)
        if not backends:
            self._leave_out(variant, "", "it does not run on a CPU")
        for backend in backends:
            try:
                engine_version(backend)
            except UnavailableError as exc:
                self._leave_out(variant, backend, str(exc))
                continue
            trials = trials_of(variant, backend, self._batch_sizes, [{}])
            if trials:
                self.entries.append(Entry(variant, backend, trials[0]))
            else:
                self._leave_out(variant, backend, f"it takes no batch size of {self._batch_sizes}")

    def _leave_out(self, variant: Variant, backend: str, reason: str) -> None:
        self.left_out.append(
            Candidate(variant.name, variant.artifact.name, backend, variant.is_new, "left out", reason=reason)
        )

    def _make(self, to_make: Iterable[Recipe]) -> None:
        late = []
        limited = self._budget.progress(self._progress, MAKING)
        for recipe in to_make:
            try:
                variant = self._maker.make(recipe, limited)
            except NotMadeError as exc:
                row = Candidate(recipe.name, recipe.artifact, "", True, "not made", reason=str(exc))
                self.left_out.append(row)
            except TimeIsUpError:
                late.append(recipe.name)
                self.left_out.append(Candidate(recipe.name, recipe.artifact, "", True, "left out", reason=_NO_TIME))
            else:
                self._recipes[variant] = recipe
                self._enter(variant)
        if late:
            self.notes.append(f"not made, because the time limit was near: {', '.join(late)}")

    def _measure(self, entries: Sequence[Entry], number: int) -> None:
        """Measure the pace of entries, and then their accuracy, the fastest first."""
        if not entries:
            return
        self._progress.step(f"timing {len(entries)} candidates")
        for turn in range(number, number + TURNS):
            order = [entry for entry in (entries if turn % 2 else reversed(entries)) if entry.problem is None]
            times = self._session.round(turn, [entry.trial for entry in order])
            for entry in order:
                if entry.trial in times:
                    entry.pace = entry.pace or Scores(entry.trial.batch_size)
                    entry.pace.add(RACE, turn, times[entry.trial])
                else:
                    entry.problem = self._session.problems[entry.trial]
        for entry in sorted(entries, key=lambda entry: entry.ms):
            if entry.problem is None:
                self._measure_accuracy(entry)

    def _measure_accuracy(self, entry: Entry) -> None:
        fastest = min((other for other in self.entries if other.meets_bound), key=lambda other: other.ms, default=None)
        if fastest is not None and not self._budget.has(MEASURING):
            ratio = entry.ms / fastest.ms
            if ratio > _LATE_FAR or not self._budget.has(LAST_MEASURING):
                entry.problem = (
                    f"accuracy not measured, because the time limit was near: {ratio:.2f} times the time of "
                    f"{fastest.trial}, which meets the bound"
                )
                self.notes.append(f"{entry.variant.name} on {entry.backend}: {entry.problem}")
                return
        self._progress.step(f"measuring the accuracy of {entry.variant.name} on {entry.backend}")
        sizes = self._batch_sizes if entry.variant.depends_on_batch else self._batch_sizes[:1]
        try:
            for size in sizes:
                if entry.accuracy and not self._budget.has(MEASURING):
                    late = f"{entry.variant.name} on {entry.backend} was not measured at batch size {size} and above"
                    self.notes.append(f"{late}, because the time limit was near")
                    break
                entry.accuracy[size] = self._meter.measure(entry.variant, entry.backend, size)
        except (UnavailableError, BundleError) as exc:  # the bundle is verified: the engine does not load the file
            entry.problem = str(exc)


def _least_ratio(entry: Entry, fastest: Entry) -> float:
    """The smallest ratio of the times of two entries in rounds that they share; of their medians without any."""
    if entry.pace is None or fastest.pace is None:
        return entry.ms / fastest.ms
    shared = [value for ratios in entry.pace.ratios(fastest.pace) for value in ratios]
    return min(shared, default=entry.ms / fastest.ms)
