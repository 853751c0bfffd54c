"""`vitdeploy benchmark`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.core import ParameterSource

from vitdeploy.assess.benchmark.scenarios.options import Scenario
from vitdeploy.cli.command import command, option
from vitdeploy.cli.number_options import COUNT, SLOWDOWN, TURNS, ParamType
from vitdeploy.cli.output import (
    PATH,
    backends_option,
    device_option,
    image_limit_option,
    json_option,
    measured_title,
    print_tables,
)
from vitdeploy.cli.progress import CommandProgress
from vitdeploy.cli.reports import Reports, conclude_with, report_options
from vitdeploy.cli.table import details_option
from vitdeploy.cli.value_options import values_from_options
from vitdeploy.errors import UsageError
from vitdeploy.specs import read_image_size
from vitdeploy.system.cpu import MOST_THREADS

if TYPE_CHECKING:
    from collections.abc import Callable

_COMPARING = ("bundle", "after", "max_slowdown", "as_json", "details", "quiet", "verbose", "markdown")

_TURNS = ("image_sizes", "data", "limit", "processes", "rounds", "runs")  # options of measurements in turns


class Listed(ParamType[tuple[Any, ...]]):
    """Comma-separated values.

    Args:
        name: Form of the values, for the help.
        noun: Noun of the values with an example, for the error.
        read: Parses a value; ValueError or UsageError if it is invalid.
    """

    def __init__(self, name: str, noun: str, read: Callable[[str], Any]) -> None:
        self.name, self._noun, self._read = name, noun, read

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[Any, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(self._read(part.strip()) for part in str(value).split(","))
        except (ValueError, UsageError):
            self.fail(f"{value!r:.80} is not a list of {self._noun}", param, ctx)


def _batch_size(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,8}", text):
        raise ValueError(text)
    return int(text)


def _threads(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text, re.ASCII) or int(text) > MOST_THREADS:
        raise ValueError(text)
    return int(text)


def _image_size(text: str) -> Any:
    size = read_image_size(text)
    if not isinstance(size[0], int):
        raise ValueError(text)
    return size


@command(
    examples=(
        "benchmark vit --backend onnxruntime --batch-sizes 1,8,32 --threads 4",
        "benchmark vit --setting onnxruntime:int8,allow_spinning=false",
        "benchmark vit --backend onnxruntime --scenario server --p99 50ms",
        "benchmark before.json after.json --max-slowdown 5%",
    )
)
@click.argument("bundle", type=PATH, metavar="BUNDLE|BEFORE.json")
@click.argument("after", type=PATH, required=False, metavar="[AFTER.json]")
@option(
    "--batch-sizes",
    default="1,8",
    show_default=True,
    type=Listed("N,N,...", "batch sizes such as 1,8,32", _batch_size),
    help="Batch sizes.",
)
@backends_option("Default: the reference (torch) and every artifact.")
@option(
    "--setting",
    "settings",
    multiple=True,
    metavar="NAME[:PRECISION],OPTION=VALUE,...",
    help="Backend with run-time options, such as onnxruntime:int8,allow_spinning=false; repeatable. The first backend "
    "or setting is the base of the others.",
)
@device_option
@option(
    "--threads",
    default="0",
    type=Listed("N,N,...", f"numbers from 0 to {MOST_THREADS} such as 1,2,4", _threads),
    help="Threads of each backend; several numbers are timed each. Default (0): OMP_NUM_THREADS for torch, "
    "ORT_INTRA_OP_NUM_THREADS for ONNX Runtime; if unset, as many as CPU affinity, cgroup quota and cores allow.",
)
@option(
    "--image-sizes",
    default=(),
    type=Listed("HxW,HxW,...", "image sizes such as 224x224,384x384", _image_size),
    help="Image sizes, for artifacts of dynamic size.",
)
@option(
    "--images",
    type=PATH,
    help="Image folder, also for the mean cosine with the reference (without --data). Default: synthetic JPEG files.",
)
@option("--data", type=PATH, help="Labelled images, as for evaluate: also measure the accuracy of each setting.")
@option("--limit", type=COUNT, help="Most images for the accuracy, sampled. Default: all of --data, 64 of --images.")
@option("--processes", type=TURNS, help="Processes of each setting. Default: 5, or 3 or 4 where starts take long.")
@option(
    "--max-slowdown",
    type=SLOWDOWN,
    help="For two recorded results: exit with 1 if a setting is slower by more, and its interval excludes 1; with 3 if "
    "one has no interval, or is not in the second.",
)
@option("--rounds", default=10, show_default=True, type=TURNS, help="Rounds of each setting, over all processes.")
@option("--runs", default=10, show_default=True, type=TURNS, help="Timed runs per round.")
@values_from_options(scenario=Scenario)
@report_options("html", "markdown")
@image_limit_option
@details_option
@json_option
@click.pass_context
def benchmark(
    context: click.Context,
    /,
    bundle: str,
    after: str | None,
    max_slowdown: float | None,
    scenario: Scenario | None,
    reports: Reports,
    as_json: bool,
    **options: Any,
) -> None:
    """Time every artifact of BUNDLE and the reference, in turns, each in its own process.

    With BEFORE.json and AFTER.json, which are outputs of `benchmark --json`, compares these instead: two machines or
    two versions.

    Percentiles are latencies of the runtime on preprocessed images. Latency from image files is measured separately.
    With --scenario, each is measured under load instead, from image files to outputs, one after the other.

    Exits with 1 if a model returns NaN or infinite values or the bound of --p99 is missed, and with 3 if another
    measurement failed.
    """
    if after is not None or (bundle.endswith(".json") and not Path(bundle).is_dir()):
        _compare_recorded(context, bundle, after, max_slowdown, reports, as_json)
    if max_slowdown is not None:
        raise UsageError(
            "--max-slowdown needs two recorded results", what="max_slowdown", found=max_slowdown,
            hint="vitdeploy benchmark BEFORE.json AFTER.json --max-slowdown 5%",
        )  # fmt: skip
    if scenario is not None:
        _benchmark_scenario(context, bundle, scenario, reports, as_json, options)
    from vitdeploy.assess.benchmark.benchmark import benchmark as benchmark_bundle
    from vitdeploy.assess.report.tables import tables

    with CommandProgress("rounds") as progress:
        similarity = options["images"] is not None and options["data"] is None
        result = benchmark_bundle(bundle, similarity=similarity, progress=progress, **options)

    def print_result(_: object) -> None:
        title = f"{result.bundle} on {result.settings['device']}, preprocessed input unless a column says otherwise"
        print_tables(measured_title(title, result.status), tables(result))

    conclude_with(result, print_result, as_json, reports)


def _benchmark_scenario(
    context: click.Context, bundle: str, scenario: Scenario, reports: Reports, as_json: bool, options: dict[str, Any]
) -> NoReturn:
    from vitdeploy.assess.benchmark.scenarios.scenario_benchmark import benchmark_scenario
    from vitdeploy.assess.report.tables import tables

    given = [name for name in options if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    for name in _TURNS:
        if name in given:
            flag = f"--{name.replace('_', '-')}"
            problem = f"{flag} does not apply to --scenario"
            raise UsageError(problem, what=flag, found=options[name], hint="leave it out")
        del options[name]
    batch_sizes = options.pop("batch_sizes")
    with CommandProgress("replays") as progress:
        result = benchmark_scenario(
            bundle, scenario, batch_sizes=batch_sizes if "batch_sizes" in given else None, progress=progress, **options
        )

    def print_result(_: object) -> None:
        title = f"{result.bundle} on {result.settings['device']}, {scenario.name}"
        print_tables(measured_title(title, result.status), tables(result))

    conclude_with(result, print_result, as_json, reports)


def _compare_recorded(
    context: click.Context, before: str, after: str | None, max_slowdown: float | None, reports: Reports, as_json: bool
) -> NoReturn:
    from vitdeploy.assess.benchmark.comparison import compare_benchmarks
    from vitdeploy.assess.report.tables import tables

    if after is None:
        raise UsageError(
            f"{before} is one recorded result", what="after", where=before,
            hint="give a second one to compare, or a bundle to measure",
        )  # fmt: skip
    given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    measuring = [f"--{name.replace('_', '-')}" for name in given if name not in _COMPARING]
    if measuring:
        raise UsageError(
            f"{', '.join(measuring)}: only for a bundle, not for recorded results",
            what="options", found=measuring, hint="leave out",
        )  # fmt: skip
    result = compare_benchmarks(before, after, max_slowdown=max_slowdown)
    conclude_with(result, lambda _: print_tables(result.title, tables(result)), as_json, reports)
