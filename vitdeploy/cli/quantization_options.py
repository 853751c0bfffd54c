"""The options of `vitdeploy export` for int8 and fp8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.output import PATH

if TYPE_CHECKING:
    from collections.abc import Callable

_TARGETS = ("cpu", "tensorrt")
_SCHEMES = ("static", "dynamic")
_METHODS = ("minmax", "entropy", "percentile", "mse")


def quantization_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that have the names of `vitdeploy.export`'s arguments, and `no_calibration_cache`."""
    options = (
        click.option("--target", type=click.Choice(_TARGETS), help="Of int8 and fp8: what is to run the graph."),
        click.option(
            "--scheme", type=click.Choice(_SCHEMES), help="Of int8 on a CPU; static by default where there are images."
        ),
        click.option(
            "--reduce-range", is_flag=True, help="Of int8 on a CPU: 7 bits for weights, for x86 without VNNI."
        ),
        click.option("--calibration-data", type=PATH, help="Of int8 and fp8: a folder of images like those to come."),
        click.option(
            "--calibration", type=click.Choice(_METHODS), help="How ranges are chosen from these; mse by default."
        ),
        click.option("--calibration-images", type=click.IntRange(min=1), help="How many, at most; 512 by default."),
        click.option("--calibration-cache", type=PATH, help="Where ranges are kept; the user's by default."),
        click.option("--no-calibration-cache", is_flag=True, help="Keep no ranges, and use none."),
    )
    for option in reversed(options):
        command = option(command)
    return command
