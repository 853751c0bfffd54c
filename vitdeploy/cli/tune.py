"""`vitdeploy tune`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.number_options import BATCH_SIZE, SEED, ParamType
from vitdeploy.cli.output import PATH, image_limit_option, json_option, print_table, print_tables, print_text
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.reports import Reports, conclude_with, report_options
from vitdeploy.cli.table import details_option
from vitdeploy.cli.value_options import as_typed
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_UNITS = {"": 1.0, "s": 1.0, "min": 60.0, "h": 3600.0}
_BOUNDS = ("min_agreement", "max_drop", "min_cosine")


class Duration(ParamType[float]):
    """Seconds, or a number with a unit: 90, 90s, 5min, 1h."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(s|min|h|)", str(value))
        if match is None:
            self.fail(f"{value!r:.80} is not a duration such as 90s or 5min", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


def _bound(name: str, text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return option(f"--{name}", metavar="SHARE", group="Accuracy bound", help=text)


@command(
    examples=(
        "tune vit --data photos --min-agreement 99%",
        "tune vit --data photos --max-drop 0.5% --target throughput",
        "tune vit --data photos --min-cosine 0.99 --target p99:20ms",
    )
)
@click.argument("bundle", type=PATH)
@option("--data", required=True, type=PATH, help="Images similar to production images, as for `vitdeploy evaluate`; "
                                                 "labelled for --max-drop. At least 32.")  # fmt: skip
@_bound("min-agreement", "Smallest share of images with the reference's top-1 class.")
@_bound("max-drop", "Largest loss of top-1 accuracy on labelled images against the reference, such as 0.5%.")
@_bound("min-cosine", "Smallest cosine similarity with the reference (5th percentile over images).")
@option("--target", default="latency", show_default=True, metavar="TARGET",
        help="latency (one image), throughput (images per second), or p99:20ms: throughput with a bound on the "
             "99th percentile of a batch's latency.")  # fmt: skip
@option("--max-batch", default=32, show_default=True, type=BATCH_SIZE, help="Largest batch size; latency uses 1.")
@option("--time-limit", default="5min", show_default=True, type=Duration(), help="Time limit, such as 90s or 5min.")
@option("--keep", multiple=True, metavar="ARTIFACT", help="Further artifact to add, such as onnx-int8, if it meets the "
                                                          "bound; repeatable.")  # fmt: skip
@option("--keep-work", is_flag=True, help="Keep the working folder, BUNDLE.tune, after success.")
@option("--seed", default=0, show_default=True, type=SEED, help="Seed for sampling images and for the order of turns.")
@report_options("html", "markdown")
@image_limit_option
@details_option
@json_option
def tune(bundle: str, reports: Reports, as_json: bool, **options: Any) -> None:
    """Find the fastest setting of BUNDLE on this machine that keeps the accuracy, and record it in BUNDLE.

    Artifacts that are missing and can be fast here are made: int8 and bf16 for the installed engines. Their accuracy is
    measured on images that nothing was calibrated on. The settings of those that meet the bound take turns, from image
    files to outputs. `vitdeploy predict` and `vitdeploy.load` then open the chosen one. A killed run goes on where it
    stopped.

    Exits with 1 if no artifact meets the bound, with 3 if nothing could be timed, and with 4 if there are too few
    images or no labels.
    """
    from vitdeploy.tuning.tune import tune as tune_bundle

    try:
        accuracy = _accuracy({name: options.pop(name) for name in _BOUNDS})
        with CommandProgress("images") as progress:
            result = tune_bundle(bundle, accuracy=accuracy, progress=progress, **options)
    except UsageError as exc:
        raise as_typed(exc, {name: f"--{name.replace('_', '-')}" for name in (*_BOUNDS, *options)}) from exc

    def print_result(_: object) -> None:
        from vitdeploy.assess.report.tables import tables

        first, *others = tables(result)
        print_table(f"{bundle}: {result.summary}", first.columns, first.rows, first.notes)
        print_tables("", others)
        print_text(f"{result.seconds:.0f} s, on {result.machine['cpu']}, {result.machine['cpus']} CPUs")

    conclude_with(result, print_result, as_json, reports)


def _accuracy(given: Mapping[str, str | None]) -> Any:
    """The bound; UsageError unless exactly one is given."""
    from vitdeploy.exporting.options import MaxDrop, MinAgreement, MinCosine

    kinds = {"min_agreement": MinAgreement, "max_drop": MaxDrop, "min_cosine": MinCosine}
    bounds = {name: value for name, value in given.items() if value is not None}
    if len(bounds) != 1:
        flags = " or ".join(f"--{name.replace('_', '-')}" for name in kinds)
        problem = "an accuracy bound is missing" if not bounds else "only one accuracy bound can be given"
        raise UsageError(problem, what="accuracy", expected=tuple(kinds), found=tuple(bounds), hint=f"give {flags}")
    ((name, value),) = bounds.items()
    return kinds[name](value)
