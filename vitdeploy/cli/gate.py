"""`vitdeploy gate`."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import command, option
from vitdeploy.cli.number_options import BATCH_SIZE, NEIGHBOURS
from vitdeploy.cli.output import (
    PATH,
    backends_option,
    device_option,
    image_limit_option,
    json_option,
    print_table,
    print_text,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.reports import Reports, conclude_with, report_options
from vitdeploy.cli.table import by_reason
from vitdeploy.cli.value_options import as_typed
from vitdeploy.errors import UsageError

if TYPE_CHECKING:
    from vitdeploy.assess.gate.gate import GateResult

rule = functools.partial(option, group="Rules")


@command(
    examples=(
        "gate vit --data photos --min-agreement 99%",
        "gate vit --data photos --baseline baseline.json --update",
        "gate vit --data photos --baseline baseline.json --junit gate.xml",
    )
)
@click.argument("bundle", type=PATH)
@option(
    "--data",
    required=True,
    type=PATH,
    help="Labelled images, as for `vitdeploy evaluate`; a folder of images for a model without classes, unless a rule "
    "is about kNN accuracy or recall.",
)
@option("--baseline", type=PATH, help="JSON file of an accepted evaluation of the same images.")
@option("--update", is_flag=True, help="Write a new baseline if all other checks pass.")
@rule("--rules", type=PATH, help="TOML file with these rules, such as min_accuracy = 0.98; flags override it.")
@rule("--min-accuracy", metavar="SHARE", help="Smallest top-1 accuracy on the images, such as 98%.")
@rule("--max-drop", metavar="SHARE", help="Largest loss of top-1 accuracy (or kNN accuracy) against the baseline. "
              "Default: the smallest drop that the images can detect.")  # fmt: skip
@rule("--min-knn-accuracy", metavar="SHARE", help="Smallest accuracy of the nearest neighbours' vote (feature "
              "extractors, on labelled images).")  # fmt: skip
@rule("--min-recall-at-1", metavar="SHARE", help="Smallest share of images whose nearest neighbour has their class.")
@rule("--min-recall-at-5", metavar="SHARE", help="The same for one of the five nearest neighbours.")
@rule("--min-recall-at-10", metavar="SHARE", help="The same for one of the ten nearest neighbours.")
@rule("--max-recall-drop", metavar="SHARE", help="Largest loss of these recalls against the baseline. Default: as for "
              "--max-drop.")  # fmt: skip
@rule("--min-agreement", metavar="SHARE", help="Smallest share of images with the reference's top-1 class.")
@rule("--min-cosine", metavar="SHARE", help="Smallest cosine similarity with the reference (5th percentile "
              "over the images), such as 0.99.")  # fmt: skip
@rule("--min-neighbour-agreement", metavar="SHARE", help="Smallest share of images with the reference's "
              "nearest neighbour (models without classes).")  # fmt: skip
@rule("--max-difference", metavar="SHARE", help="Largest difference from the reference's outputs, relative "
              "to their largest value. Default: the precision's tolerance.")  # fmt: skip
@rule("--max-layer-difference", metavar="SHARE", help="Largest difference of a layer's output (see debug "
              "layers). Default: half precision only.")  # fmt: skip
@rule("--max-latency-ratio", metavar="RATIO", help="Largest median latency per image, relative to --latency-against.")
@rule("--latency-against", metavar="BACKEND:PRECISION", help="Latency reference. Default: torch:fp32.")
@rule("--max-size", metavar="BYTES", help='Largest size of an artifact\'s files, such as "12.5 MB".')
@option("--gallery", type=PATH, help="Labelled images to search for neighbours, as for `vitdeploy evaluate`.")
@option("--neighbours", type=NEIGHBOURS, help="Nearest neighbours that vote. Default: the baseline's, or 5.")
@backends_option("Default: the reference (torch) and every artifact.")
@option("--batch-size", default=32, show_default=True, type=BATCH_SIZE, help="Images per batch.")
@device_option
@report_options("html", "markdown", "junit")
@image_limit_option
@json_option
def gate(
    bundle: str,
    data: str,
    baseline: str | None,
    update: bool,
    rules: str | None,
    gallery: str | None,
    neighbours: int | None,
    backends: tuple[str, ...] | None,
    batch_size: int,
    device: str,
    reports: Reports,
    as_json: bool,
    **flags: Any,
) -> None:
    """Check every artifact of BUNDLE against rules and an accepted baseline.

    Without rules, outputs must be finite and within the precision's tolerance of the reference. A quantized model
    without classes is judged by cosine similarity. With a baseline, labels and image processor must be unchanged, and
    accuracy must not drop.

    Exits with 1 if a check failed, with 2 if there are too few images for a rule, with 3 if a check was skipped or an
    artifact is not in the baseline, and with 4 if the baseline is missing or has other images.
    """
    from vitdeploy.assess.gate.gate import gate as gate_bundle
    from vitdeploy.assess.gate.rules import GateRules, Rules, read_rules

    given = {name: value for name, value in flags.items() if value is not None}
    held = GateRules() if rules is None else read_rules(rules)
    try:
        held = held.with_(Rules(**given))
        with CommandProgress("images") as progress:
            result = gate_bundle(
                bundle, data=data, baseline=baseline, rules=held, update=update, backends=backends,
                gallery=gallery, neighbours=neighbours, batch_size=batch_size, device=device, progress=progress,
            )  # fmt: skip
    except UsageError as exc:
        raise as_typed(exc, {name: f"--{name.replace('_', '-')}" for name in given}) from exc
    conclude_with(result, _print_checks, as_json, reports)


def _print_checks(result: GateResult) -> None:
    judged = {"passed", "failed"}
    rows = [
        (check.status, check.rule, check.subject, check.message if check.status in judged else "")
        for check in result.checks
    ]
    others = [
        (f"{check.rule} of {check.subject}", f"{check.status}: {check.message}")
        for check in result.checks
        if check.status not in judged
    ]
    title = f"{result.bundle} on {result.images} images of {result.data}: {result.status}"
    print_table(title, ("status", "rule", "subject", "result"), rows, by_reason(others))
    if result.changes:
        print_text("\nSince the baseline:\n" + "\n".join(f"  {line}" for line in result.changes))
    if result.updated:
        print_text(f"\nWritten: {result.baseline}")
