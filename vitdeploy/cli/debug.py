"""`vitdeploy debug layers`, `bisect` and `sensitivity`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.command import Group, option
from vitdeploy.cli.number_options import BATCH_SIZE, COUNT, TOLERANCE
from vitdeploy.cli.output import (
    PATH,
    backends_option,
    image_limit_option,
    json_option,
    print_table,
    print_tables,
    print_text,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.reports import conclude_with, report_options
from vitdeploy.cli.table import by_reason
from vitdeploy.errors import InputError
from vitdeploy.files.json_text import strict_json
from vitdeploy.files.regular_file import read_regular

if TYPE_CHECKING:
    from vitdeploy.assess.debug.bisection import Bisection
    from vitdeploy.assess.debug.layer_results import LayerComparison
    from vitdeploy.assess.debug.sensitivity import Sensitivity
    from vitdeploy.cli.reports import Reports

_bundle = click.argument("bundle", type=PATH)
_images = option("--images", type=PATH, help="Image folder. Default: synthetic images.")
_tolerance = option("--tolerance", type=TOLERANCE, help="Largest relative difference. Default: by precision.")


@click.group(cls=Group, examples=("debug layers vit", "debug bisect vit --precision fp16"))
def debug() -> None:
    """Find the layers of an artifact that differ from the reference."""


@debug.command(
    short_help="Compare each layer with the reference's.",
    examples=("debug layers vit --images photos", "debug layers vit --backend onnxruntime:fp16 --html layers.html"),
)
@_bundle
@_images
@_tolerance
@backends_option("Default: every artifact.")
@option("--against", metavar="BACKEND:PRECISION", help="Artifact to compare with instead of the reference.")
@report_options("html", "markdown", "junit")
@image_limit_option
@json_option
def layers(bundle: str, reports: Reports, as_json: bool, **options: Any) -> None:
    """Compare each layer of BUNDLE's artifacts on the reference's hidden states.

    Prints the first layer that diverges. Exits with 1 if there is one, and with 3 if an artifact could not be compared.
    """
    from vitdeploy.assess.debug.layers import compare_layers

    with CommandProgress("images") as progress:
        result = compare_layers(bundle, progress=progress, **options)
    conclude_with(result, _print_layers, as_json, reports)


@debug.command(
    short_help="Find the nodes that must stay float32.",
    examples=("debug bisect vit --images photos", "debug bisect vit --precision int8 --json > nodes.json"),
)
@_bundle
@_images
@_tolerance
@option("--batch-size", default=8, show_default=True, type=BATCH_SIZE, help="Images per batch.")
@option("--precision", metavar="fp16|bf16|int8|fp8", default="fp16", show_default=True, help="Precision.")
@option("--max-images", default=16, show_default=True, type=COUNT, help="Maximum number of images.")
@option("--max-runs", default=200, show_default=True, type=click.IntRange(2, COUNT.max), help="Maximum number of runs.")
@image_limit_option
@json_option
def bisect(bundle: str, as_json: bool, **options: Any) -> None:
    """Find the nodes of BUNDLE's graph that must stay float32 for another precision to pass.

    `vitdeploy export --keep-fp32-from` reads the output of --json. Exits with 1 if not even float32 passes.
    """
    from vitdeploy.assess.debug.bisection import bisect as bisect_bundle

    with CommandProgress("images") as progress:
        result = bisect_bundle(bundle, progress=progress, **options)
    conclude_with(result, _print_bisection, as_json)


@debug.command(
    short_help="Measure the error that each layer alone adds.",
    examples=("debug sensitivity vit --images photos", "debug sensitivity vit --precision fp16 --html layers.html"),
)
@_bundle
@_images
@option("--precision", metavar="fp16|bf16|int8|fp8", default="int8", show_default=True, help="Precision.")
@option("--max-images", default=32, show_default=True, type=COUNT, help="Maximum number of images.")
@report_options("html", "markdown")
@image_limit_option
@json_option
def sensitivity(bundle: str, reports: Reports, as_json: bool, **options: Any) -> None:
    """Measure the error of BUNDLE's outputs with one layer at a time in a lower precision."""
    from vitdeploy.assess.debug.sensitivity import sensitivity as measure

    with CommandProgress("layers") as progress:
        result = measure(bundle, progress=progress, **options)
    conclude_with(result, _print_sensitivity, as_json, reports)


def kept_nodes(path: str) -> tuple[str, ...]:
    """Node names from a file of `debug bisect --json`; InputError for other content."""
    try:
        names = tuple(node["name"] for node in strict_json(read_regular(path))["kept"])
        if not all(isinstance(name, str) for name in names):
            raise TypeError("a name that is no text")
    except OSError as exc:
        raise InputError(f"cannot read {path}: {exc.strerror}", where=path) from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        hint = "name a file with what vitdeploy debug bisect --json printed"
        raise InputError(f"{path} has no list of nodes to keep", where=path, what="kept", hint=hint) from exc
    return names


def _print_layers(result: LayerComparison) -> None:
    from vitdeploy.exporters.naming.layer_names import readable_name

    rows: list[tuple[str, ...]] = []
    for item in result.results:
        if item.skipped is not None:
            rows.append((item.artifact, item.status))
        for part in item.parts:
            status = "passed" if part.worst.within(item.tolerance) else "failed"
            if part.part == item.first:
                status = "first that diverges"
            differences = f"{part.worst.max_relative:.2e}", f"{item.tolerance:g}", f"{part.worst.required_tolerance:g}"
            rows.append((item.artifact, status, readable_name(part.part), *differences))
    columns = ("artifact", "status", "part", "max relative", "tolerance", "would pass at")
    title = f"{result.bundle} layer by layer against {result.against}, {result.images_text}: {result.status}"
    skipped = [(item.artifact, f"skipped: {item.skipped}") for item in result.results if item.skipped is not None]
    print_table(title, columns, rows, by_reason(skipped))


def _print_bisection(result: Bisection) -> None:
    print_text(
        f"{result.bundle} in {result.precision} against the reference, {result.images_text}: {result.status}\n"
        f"{result.summary}\n"
        f"largest difference {result.error_without:.2e} without, {result.error:.2e} with them in float32; "
        f"tolerance {result.tolerance:g}; {result.runs} run{'' if result.runs == 1 else 's'}"
    )
    if result.kept:
        columns = ("layer, as --keep-fp32 takes it", "operator", "node")
        print_table("", columns, [(node.layer, node.op_type, node.name) for node in result.kept])


def _print_sensitivity(result: Sensitivity) -> None:
    print_text(f"{result.bundle} in {result.precision}, a layer at a time, {result.images_text}\n{result.summary}")
    from vitdeploy.assess.report.tables import tables

    print_tables("", tables(result))
