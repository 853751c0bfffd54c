"""The options of `vitdeploy export` for int8 and fp8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.number_options import COUNT
from vitdeploy.cli.output import PATH

if TYPE_CHECKING:
    from collections.abc import Callable

_TARGETS = ("cpu", "tensorrt")
_SCHEMES = ("static", "dynamic")
_METHODS = ("auto", "minmax", "entropy", "percentile", "mse")


def _smooth_quant(ctx: click.Context, param: click.Parameter, value: str | None) -> str | float | None:  # noqa: ARG001
    return value if value in (None, "auto", "off") else _number(value, "auto, off or a number from 0 to 1")


def _points(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001
    return None if value is None else _number(value.removesuffix("%"), "points of accuracy, such as 0.5%")


def _share(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001
    if value is None:
        return None
    number = _number(value.removesuffix("%"), "a share such as 0.99 or 99%")
    return number / 100 if value.endswith("%") else number


def _number(text: str, wanted: str) -> float:
    try:
        return float(text)
    except ValueError as exc:
        raise click.BadParameter(f"must be {wanted}, got {text!r}") from exc


def quantization_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options that have the names of `vitdeploy.export`'s arguments, and `no_calibration_cache`."""
    options = (
        click.option(
            "--target", type=click.Choice(_TARGETS), help="Of int8 and fp8: what is to run the graph; by --to."
        ),
        click.option(
            "--scheme",
            type=click.Choice(_SCHEMES),
            help="int8 on a CPU. Default: static with images, unless dynamic has half of its error.",
        ),
        click.option(
            "--reduce-range", is_flag=True, help="Of int8 on a CPU: 7 bits for weights, for x86 without VNNI."
        ),
        click.option(
            "--rest", type=click.Choice(["fp16"]), help="Of 8 bits for TensorRT: of all that is not; fp32 by default."
        ),
        click.option("--calibration-data", type=PATH, help="Of int8 and fp8: a folder of images like those to come."),
        click.option(
            "--calibration",
            type=click.Choice(_METHODS),
            help="Calibration method. Default: auto, the least error on held-out images.",
        ),
        click.option("--calibration-images", type=COUNT, help="How many, at most; 512 by default."),
        click.option("--calibration-cache", type=PATH, help="Where ranges are kept; the user's by default."),
        click.option(
            "--smooth-quant",
            metavar="auto|off|STRENGTH",
            callback=_smooth_quant,
            help="Move outliers of activations into weights: as measured, never, or with a strength of 0 to 1.",
        ),
        click.option(
            "--max-drop",
            metavar="POINTS%",
            callback=_points,
            help="Of int8 and fp8: points of top-1 accuracy that may go, such as 0.5%; layers stay float32 for it.",
        ),
        click.option(
            "--min-agreement",
            metavar="SHARE",
            callback=_share,
            help="The same by agreement with the reference, such as 0.99 or 99%; no labels needed.",
        ),
        click.option(
            "--min-cosine",
            metavar="SHARE",
            callback=_share,
            help="The same by cosine similarity with the reference (5th percentile over images), such as 0.99 or 99%.",
        ),
        click.option(
            "--accuracy-data",
            type=PATH,
            help="The images on which --max-drop, --min-agreement and --min-cosine are measured; those of the "
            "calibration by default.",
        ),
        click.option("--no-calibration-cache", is_flag=True, help="Keep no ranges, and use none."),
    )
    for option in reversed(options):
        command = option(command)
    return command
