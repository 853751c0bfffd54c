"""`vitdeploy evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.number_options import BATCH_SIZE, COUNT, SEED
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

if TYPE_CHECKING:
    from vitdeploy.assess.evaluate.evaluate import Evaluation


@command(
    examples=(
        "evaluate vit --data photos",
        "evaluate vit --data labels.csv --backend onnxruntime --limit 1000",
        "evaluate vit --data photos --resume work --html accuracy.html",
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
@option("--resume", type=PATH, help="Log finished batches to this file, and resume from it.")
@option("--per-class", is_flag=True, help="Also print the accuracy of each class.")
@option("--confusion", is_flag=True, help="Also print which classes are confused.")
@report_options("html", "markdown")
@image_limit_option
@details_option
@json_option
def evaluate(bundle: str, per_class: bool, confusion: bool, reports: Reports, as_json: bool, **options: Any) -> None:
    """Measure the accuracy of BUNDLE on labelled images, with all backends in one pass.

    Labels are the model's class names (or one synonym of a comma-separated name), WordNet ids of ImageNet classes, or
    indices if the data has no names. Exits with 3 if a backend could not run.
    """
    from vitdeploy.assess.evaluate.evaluate import evaluate as evaluate_bundle

    with CommandProgress("images") as progress:
        result = evaluate_bundle(bundle, progress=progress, **options)
    conclude_with(result, lambda _: _print_evaluation(result, per_class, confusion), as_json, reports)


def _print_evaluation(result: Evaluation, per_class: bool, confusion: bool) -> None:
    from vitdeploy.assess.report.tables import tables

    matched = result.settings["labels_matched"]
    title = f"{result.bundle} on {len(result.images)} images of {result.data}, labels matched {matched}"
    print_tables(measured_title(title, result.status), tables(result))
    ran = [run for run in result.results if run.skipped is None]
    heads = [f"{run.artifact} on {run.backend}" for run in ran]
    if per_class and ran:
        of_class = [result.per_class(run) for run in ran]
        rows = [(name, *(str(accuracies[name]) for accuracies in of_class)) for name in of_class[0]]
        print_table("\nTop-1 accuracy of each class", ("class", *heads), rows)
    if confusion and ran:
        confused = [{(label, best): count for label, best, count in result.confused(run)} for run in ran]
        pairs = {pair for counts in confused for pair in counts}
        most_first = sorted(pairs, key=lambda pair: (-max(counts.get(pair, 0) for counts in confused), pair))
        rows = [(*pair, *(str(counts.get(pair, 0)) for counts in confused)) for pair in most_first]
        print_table("\nImages taken for another class", ("class", "taken for", *heads), rows)
