"""Tune a bundle: make artifacts, measure their accuracy, race their settings, and record the fastest one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vitdeploy.assess.benchmark.tuning import Tuning
from vitdeploy.assess.environment.machine import machine
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.staging import check_target
from vitdeploy.errors import UsageError, shown
from vitdeploy.exporting.options import MaxDrop, MinAgreement, MinCosine
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import check_reference
from vitdeploy.runtimes.choice import engine_version
from vitdeploy.system.argument_types import typed
from vitdeploy.system.processor import processor_identity
from vitdeploy.system.progress import SILENT, Progress
from vitdeploy.tuning.accuracy import AccuracyMeter
from vitdeploy.tuning.artifacts import Maker
from vitdeploy.tuning.budget import Budget
from vitdeploy.tuning.candidates import ARTIFACTS
from vitdeploy.tuning.data import TuningData
from vitdeploy.tuning.decision import hold_final, hold_race
from vitdeploy.tuning.field import RACE, Entry, Field
from vitdeploy.tuning.race.clock import Clock, RememberingClock, WorkerClock
from vitdeploy.tuning.race.trial import Trial
from vitdeploy.tuning.record import record_choice
from vitdeploy.tuning.request import MAX_BATCH, TIME_LIMIT_S, Target, TuneRequest
from vitdeploy.tuning.variant import Variant
from vitdeploy.tuning.working_folder import WorkingFolder

_REFERENCE_SHARE = 0.05  # of the time limit, for the reference on the held-out images


@typed
def tune(
    bundle: str | os.PathLike[str] | Bundle,
    *,
    data: str | os.PathLike[str],
    accuracy: MaxDrop | MinAgreement | MinCosine,
    target: str = "latency",
    max_batch: int = MAX_BATCH,
    time_limit: float = TIME_LIMIT_S,
    keep: Sequence[str] = (),
    keep_work: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Tuning:
    """Find the fastest artifact, backend, options and batch size on this machine that keep the accuracy; record them.

    Candidates are the bundle's artifacts, and those that can be made and can be fast here: int8 and bf16 for the
    engines that are installed. An artifact of the bundle is never replaced. int8 is calibrated on a part of the images;
    the accuracy of every candidate is measured on others. The settings of those that meet the bound take turns, from
    image files to outputs, until the slower ones are known; a final with new processes decides. The chosen artifact,
    the choice and its evidence (`tuning.json`) are added to the bundle in one commit, and `vitdeploy.load` opens it.

    A killed run goes on from its working folder, "BUNDLE.tune". Timing processes are spawned, so a script that calls
    this needs the usual `if __name__ == "__main__":`.

    Args:
        bundle: The bundle or its folder, with the reference's weights.
        data: Images similar to production images, as for `evaluate`; labelled for MaxDrop. At least 32.
        accuracy: Bound on the held-out images.
        target: "latency", the median of one image; "throughput", images per second at the best batch size; or
            "p99:20ms", the same with a bound on the 99th percentile of a batch.
        max_batch: Largest batch size to try, except for latency.
        time_limit: Seconds. What is left out for want of time is told in `Tuning.notes`.
        keep: Names of further artifacts to add, such as "onnx-int8", if they meet the bound.
        keep_work: Keep the working folder after success.
        seed: Seed for sampling images and for the order of turns.
        progress: Receives each step.

    Returns:
        The result; its status is "failed" if no candidate meets the bound, and nothing is recorded.

    Raises:
        UsageError: If an argument is invalid, or the bound does not fit the model.
        InputError: If there are too few images, or no labels for MaxDrop.
        NoReferenceError: If the bundle was packed without the reference's weights.
        UnavailableError: If torch or an exporter's library is not installed.
        BundleError: If the bundle or a file of it is missing or altered.
        OutputError: If the bundle or the working folder cannot be written.
    """
    request = TuneRequest(accuracy, Target.parse(target), max_batch, time_limit, tuple(keep), keep_work, seed)
    opened = Bundle.of(bundle)
    check_reference(opened)
    opened.verify()  # an artifact that does not open later is its engine's problem
    check_target(opened.path)
    present = [artifact.name for artifact in opened.manifest.artifacts]
    for name in request.keep:
        if name not in ARTIFACTS or name in present:
            problem = f"{opened.path} has {name} already" if name in present else f"tune makes no {shown(name)}"
            raise UsageError(
                problem, what="keep", expected=ARTIFACTS, found=name, hint=f"name one of {', '.join(ARTIFACTS)}"
            )
    with WorkingFolder.beside(opened.path) as work:
        result = _tune(opened, data, request, work, Budget(time_limit), progress)
        if result.status == "passed" and not keep_work:
            work.remove()
    return result


def _tune(
    bundle: Bundle,
    path: str | os.PathLike[str],
    request: TuneRequest,
    work: WorkingFolder,
    budget: Budget,
    progress: Progress,
    clock: Clock | None = None,
) -> Tuning:
    """See `tune`; `clock` replaces the timing processes."""
    processor, labels = load_processor(bundle), bundle.read_config().labels
    data = TuningData.open(path, processor, request.accuracy, labels, request.seed, progress)
    calibration = data.write_calibration(work)
    meter = AccuracyMeter(bundle, data, request.accuracy, work, _REFERENCE_SHARE * request.time_limit)
    notes = []
    if len(meter.data.held_out.images) < len(data.held_out.images):
        counts = f"{len(meter.data.held_out.images)} of {len(data.held_out.images)} held-out images"
        notes.append(f"accuracy is measured on {counts}, because of the time limit")
    data = meter.data
    here = processor_identity()
    sizes = request.target.batch_sizes(request.max_batch)
    images = data.encoded(sizes[-1])
    identity = [here, machine(), data.held_out.sha256(), str(request.target), request.seed]
    remembering = RememberingClock(clock or WorkerClock(images), work, identity)
    maker = Maker(bundle, work, calibration, data.calibration.sha256(), request.accuracy)
    with remembering.session(RACE) as session:
        field = Field(bundle, maker, meter, session, sizes, budget, progress)
        field.fill()
        race = hold_race(field, session, request, budget, progress)
    contest = hold_final(bundle, field, race, remembering, request, budget, progress)
    kept = {name: _to_keep(field.entries, name) for name in request.keep}
    if contest.winner is not None:
        notes += [f"{name} is not kept: none is known to meet the bound" for name in kept if kept[name] is None]
    result = Tuning(
        bundle=str(bundle.path),
        processor=bundle.manifest.processor,
        left_out=data.left_out,
        settings={
            "accuracy": str(request.accuracy),
            "target": str(request.target),
            "max_batch": request.max_batch,
            "time_limit": request.time_limit,
            "seed": request.seed,
            "resumed": work.resumed,
        },
        data=data.to_dict(),
        machine=machine() | here,
        candidates=(*(entry.candidate() for entry in field.entries), *field.left_out),
        timed=contest.timed,
        usual=contest.usual,
        gain=contest.gain,
        notes=(*notes, *field.notes, *contest.notes),
        seconds=budget.spent_s,
    )
    if contest.winner is not None:
        progress.step("writing the bundle")
        _record(bundle, contest.winner, [entry.variant for entry in kept.values() if entry], here, result)
    return result


def _record(
    bundle: Bundle,
    winner: Trial,
    kept: Sequence[Variant],
    here: dict[str, str],
    result: Tuning,
) -> None:
    """Add the chosen artifact, the artifacts to keep, the choice and its evidence to the bundle."""
    variant, setting = winner.variant, winner.setting
    added = [variant] if variant.is_new else []
    added += [other for other in kept if other.artifact.name != variant.artifact.name]
    evidence = {name: value for name, value in result.to_dict().items() if name not in ("bundle", "left_out")}
    evidence["data"] = {**result.data, "source": Path(result.data["source"]).name}  # a bundle is published
    record_choice(
        bundle,
        variant,
        added,
        backend=winner.backend,
        options=setting.all_options,
        batch_size=winner.batch_size,
        machine=here | {"engine": engine_version(winner.backend)},
        evidence=evidence,
    )


def _to_keep(entries: Sequence[Entry], name: str) -> Entry | None:
    """The fastest entry of an artifact's name that meets the bound, though it may be too slow for the race."""
    fit = [entry for entry in entries if entry.variant.artifact.name == name and entry.is_accurate]
    return min(fit, key=lambda entry: entry.ms, default=None)
