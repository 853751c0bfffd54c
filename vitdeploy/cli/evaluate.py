"""`vitdeploy evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import Choice, command, option
from vitdeploy.cli.number_options import BATCH_SIZE, COUNT, NEIGHBOURS, SEED
from vitdeploy.cli.output import (
    PATH,
    backends_option,
    device_option,
    image_limit_option,
    json_option,
    measured_title,
    print_table,
    print_tables,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.reports import Reports, conclude_with, report_options
from vitdeploy.cli.table import details_option
from vitdeploy.errors import UsageError
from vitdeploy.specs import POOLS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation
    from vitdeploy.assess.evaluate.evaluate import Evaluation


_EMBEDDINGS = "Embeddings"  # heading in the help


@command(
    examples=(
        "evaluate vit --data photos",
        "evaluate vit --data labels.csv --backend onnxruntime --limit 1000",
        "evaluate vit --data photos --resume work --html accuracy.html",
        "evaluate features --data queries --gallery photos --neighbours 10",
    )
)
@click.argument("bundle", type=PATH)
@option(
    "--data", required=True, type=PATH,
    help="A folder per class, a .csv or .tsv of images and labels, or a Hub dataset's .parquet files.",
)  # fmt: skip
@backends_option("Default: the reference (torch) and every artifact.")
@option("--batch-size", default=32, show_default=True, type=BATCH_SIZE, help="Images per batch.")
@device_option
@option("--limit", type=COUNT, help="Maximum number of images, sampled with --seed.")
@option("--seed", default=0, show_default=True, type=SEED, help="Seed for sampling with --limit.")
@option("--resume", type=PATH, help="Log finished batches to this file, and resume from it (classifiers only).")
@option("--per-class", is_flag=True, help="Also print the accuracy of each class.")
@option("--confusion", is_flag=True, help="Also print which classes are confused.")
@option("--gallery", type=PATH, group=_EMBEDDINGS, help="Labelled images to search, like --data. Default: "
        "leave-one-out, all other images of --data.")  # fmt: skip
@option("--neighbours", type=NEIGHBOURS, group=_EMBEDDINGS, help="Nearest neighbours that vote.  [default: 5]")
@option("--pool", type=Choice(POOLS), group=_EMBEDDINGS, help="Pooling of the vectors. Default: the artifact's own.")
@report_options("html", "markdown")
@image_limit_option
@details_option
@json_option
def evaluate(
    bundle: str,
    per_class: bool,
    confusion: bool,
    resume: str | None,
    gallery: str | None,
    neighbours: int | None,
    pool: str | None,
    reports: Reports,
    as_json: bool,
    **options: Any,
) -> None:
    """Measure the accuracy of BUNDLE on labelled images, with all backends in one pass.

    Labels are the model's class names (or one synonym of a comma-separated name), WordNet ids of ImageNet classes, or
    indices if the data has no names. Exits with 3 if a backend could not run.

    A feature extractor is measured by its nearest neighbours, by cosine similarity: accuracy of a kNN classifier, and
    recall at 1, 5 and 10. Its classes are those of the data.
    """
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.specs import Task

    given = {"gallery": gallery, "neighbours": neighbours, "pool": pool}
    searches: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if Bundle.open(bundle).manifest.task == Task.FEATURES:
        from vitdeploy.assess.evaluate.embeddings import evaluate_embeddings

        _check_unused({"resume": resume}, "a classifier", "vitdeploy embed --output resumes")
        with CommandProgress("images") as progress:
            found = evaluate_embeddings(bundle, progress=progress, **searches, **options)
        conclude_with(found, lambda _: _print_embeddings(found, per_class, confusion), as_json, reports)
    from vitdeploy.assess.evaluate.evaluate import evaluate as evaluate_bundle

    _check_unused(searches, f"a model for {Task.FEATURES}", "leave it out")
    with CommandProgress("images") as progress:
        result = evaluate_bundle(bundle, progress=progress, resume=resume, **options)
    conclude_with(result, lambda _: _print_evaluation(result, per_class, confusion), as_json, reports)


def _check_unused(given: Mapping[str, object], needed: str, hint: str) -> None:
    for name, value in given.items():
        if value is not None:
            raise UsageError(f"--{name} applies to {needed} only", what=f"--{name}", found=value, hint=hint)


def _print_evaluation(result: Evaluation, per_class: bool, confusion: bool) -> None:
    from vitdeploy.assess.report.tables import tables

    matched = result.settings["labels_matched"]
    title = f"{result.bundle} on {len(result.images)} images of {result.data}, labels matched {matched}"
    print_tables(measured_title(title, result.status), tables(result))
    _print_classes(result, "Top-1 accuracy of each class", per_class, confusion)


def _print_embeddings(result: EmbeddingEvaluation, per_class: bool, confusion: bool) -> None:
    from vitdeploy.assess.report.tables import tables

    title = f"{result.bundle} on {len(result.images)} images of {result.data}, {result.method}"
    print_tables(measured_title(title, result.status), tables(result))
    _print_classes(result, "kNN accuracy of each class", per_class, confusion)


def _print_classes(result: Evaluation | EmbeddingEvaluation, title: str, per_class: bool, confusion: bool) -> None:
    labelled: Any = result
    ran = [run for run in labelled.results if run.skipped is None]
    heads = [f"{run.artifact} on {run.backend}" for run in ran]
    if per_class and ran:
        of_class = [labelled.per_class(run) for run in ran]
        rows = [(name, *(str(accuracies[name]) for accuracies in of_class)) for name in of_class[0]]
        print_table(f"\n{title}", ("class", *heads), rows)
    if confusion and ran:
        confused = [{(label, best): count for label, best, count in labelled.confused(run)} for run in ran]
        pairs = {pair for counts in confused for pair in counts}
        most_first = sorted(pairs, key=lambda pair: (-max(counts.get(pair, 0) for counts in confused), pair))
        rows = [(*pair, *(str(counts.get(pair, 0)) for counts in confused)) for pair in most_first]
        print_table("\nImages taken for another class", ("class", "taken for", *heads), rows)
