"""`vitdeploy tune` against an exhaustive measurement of every setting that meets the bound.

The bundle of a model is tuned. Then all settings of all candidates that meet the bound are timed in turns, in several
sessions of new processes: what tune dropped in its race is measured as often as what it kept. The choice must be the
fastest there, or not be slower with confidence.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import parser, record

import vitdeploy
from vitdeploy.assets import default_checkpoint, held_out_images
from vitdeploy.predictor import load_processor
from vitdeploy.system.progress import SILENT
from vitdeploy.tuning.artifacts import Maker, NotMadeError
from vitdeploy.tuning.budget import Budget
from vitdeploy.tuning.candidates import bounded, recipes
from vitdeploy.tuning.data import TuningData
from vitdeploy.tuning.race.clock import WorkerClock
from vitdeploy.tuning.race.final import Final, run_final
from vitdeploy.tuning.race.trial import Trial, trials_of
from vitdeploy.tuning.request import Target
from vitdeploy.tuning.variant import Variant
from vitdeploy.tuning.working_folder import WorkingFolder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from vitdeploy.assess.benchmark.tuning import TimedSetting, Tuning
    from vitdeploy.bundle.bundle import Bundle

_MOST_ALIVE = 24


def _arguments() -> argparse.Namespace:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--model",
        type=_folder_or_preset,
        help="folder of a model, or a preset with random weights; default: the embedded",
    )
    arguments.add_argument("--data", type=Path, help="images; default: those of the embedded model")
    arguments.add_argument("--min-agreement", help="bound on the share of images with the same class")
    arguments.add_argument("--min-cosine", default="0.99", help="bound on the cosine, without the other")
    arguments.add_argument("--target", default="latency", help="latency, throughput or p99:TIME")
    arguments.add_argument("--max-batch", type=int, default=8, help="largest batch size")
    arguments.add_argument("--time-limit", type=int, default=300, help="seconds of tune")
    arguments.add_argument("--sessions", type=int, default=3, help="sessions of the exhaustive measurement")
    arguments.add_argument("--rounds", type=int, default=5, help="rounds of each")
    arguments.add_argument("--folder", type=Path, help="keep the bundle and the working folder here, and go on from it")
    return arguments.parse_args()


def _folder_or_preset(name: str) -> Path | str:
    return Path(name) if Path(name).exists() else name


def main() -> None:
    arguments = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        bundle = _bundle(arguments, (arguments.folder or Path(temporary)) / "bundle")
        data = arguments.data or held_out_images()
        bound = (
            vitdeploy.MinCosine(arguments.min_cosine)
            if arguments.min_agreement is None
            else vitdeploy.MinAgreement(arguments.min_agreement)
        )
        begin = time.monotonic()
        tuned = vitdeploy.tune(
            bundle, data=data, accuracy=bound, target=arguments.target, max_batch=arguments.max_batch,
            time_limit=float(arguments.time_limit), keep_work=True,
        )  # fmt: skip
        seconds = time.monotonic() - begin
        if tuned.chosen is None:
            raise SystemExit(tuned.summary)
        images = TuningData.open(data, load_processor(bundle), bound, bundle.read_config().labels, 0, SILENT)
        with WorkingFolder.beside(bundle.path) as work:
            maker = Maker(bundle, work, images.write_calibration(work), images.calibration.sha256(), bound)
            trials = list(_trials(bundle, maker, tuned, Target.parse(arguments.target), arguments.max_batch))
            clock = WorkerClock(images.encoded(arguments.max_batch), _MOST_ALIVE)
            final = run_final(
                clock, trials, Target.parse(arguments.target), budget=Budget(math.inf), seed=1, progress=SILENT,
                sessions=arguments.sessions, rounds=arguments.rounds,
            )  # fmt: skip
    record(
        arguments, {"seconds": seconds, "summary": tuned.summary, "notes": list(tuned.notes), **_result(tuned, final)}
    )


def _bundle(arguments: argparse.Namespace, output: Path) -> Bundle:
    """The untuned bundle of the model."""
    if isinstance(arguments.model, str):
        return vitdeploy.export(output=output, source=vitdeploy.SourceOptions(random_weights=arguments.model))
    return vitdeploy.export(arguments.model or default_checkpoint(), output=output)


def _trials(bundle: Bundle, maker: Maker, tuned: Tuning, target: Target, max_batch: int) -> Iterator[Trial]:
    """Every setting of every candidate that meets the bound."""
    made, _ = recipes(bundle.manifest)
    variants = {artifact.name: Variant.of(bundle, artifact) for artifact in bundle.manifest.artifacts}
    for recipe in (*made, *bounded(made)):
        if recipe.name in {candidate.variant for candidate in tuned.candidates if candidate.status == "met"}:
            try:
                variants[recipe.name] = maker.make(recipe, SILENT)
            except NotMadeError as exc:
                raise SystemExit(f"{recipe.name} was made, and is not now: {exc}") from exc
    for candidate in tuned.candidates:
        if candidate.status == "met":
            yield from trials_of(variants[candidate.variant], candidate.backend, target.batch_sizes(max_batch))


def _result(tuned: Tuning, final: Final) -> dict[str, Any]:
    """All settings by their exhaustive time, and the place of the choice among them."""
    ranked = sorted(final.scores, key=lambda trial: final.scores[trial].interval.estimate)
    chosen = next(trial for trial in ranked if tuned.chosen is not None and _is_of(trial, tuned.chosen))
    ratio = final.scores[chosen].ratio(final.scores[ranked[0]]) if chosen is not ranked[0] else None
    return {
        "settings": [
            {
                "setting": str(trial),
                "ms": final.scores[trial].interval.estimate,
                "ratio": final.scores[trial].ratio(final.scores[ranked[0]]).estimate,
                "chosen": trial is chosen,
            }
            for trial in ranked
        ],
        "place": ranked.index(chosen) + 1,
        "chosen_over_fastest": {"estimate": 1.0, "low": 1.0, "high": 1.0} if ratio is None else ratio._asdict(),
        "is_fastest_or_within_interval": ratio is None or ratio.low <= 1,
    }


def _is_of(trial: Trial, row: TimedSetting) -> bool:
    setting = trial.variant.name, trial.backend, trial.setting.all_options, trial.batch_size
    return setting == (row.variant, row.backend, row.options, row.batch_size)


if __name__ == "__main__":
    main()
