"""The options of `vitdeploy export` for the image processor."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.errors import InputError
from vitdeploy.images.preprocessor_config import FILTERS, read_setting
from vitdeploy.images.processor_options import ProcessorOptions
from vitdeploy.specs import MODES

if TYPE_CHECKING:
    from collections.abc import Callable


def _number(text: str) -> float:
    """A number, or a fraction such as 1/255."""
    numerator, slash, denominator = text.partition("/")
    try:
        number = float(numerator) / float(denominator) if slash else float(text)
        read_setting("rescale_factor", number)  # neither NaN nor infinite
    except (InputError, ValueError, ZeroDivisionError) as exc:
        raise click.BadParameter(f"expected a number, got {text!r:.80}") from exc
    return number


def _channels(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:  # noqa: ARG001
    if value is None:
        return None
    numbers = [_number(part) for part in value.split(",")]
    if len(numbers) not in MODES:
        raise click.BadParameter(f"expected one number, or one for each of 1, 3 or 4 channels, got {value!r:.80}")
    return numbers[0] if len(numbers) == 1 else numbers


def _factor(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:  # noqa: ARG001
    return None if value is None else _number(value)


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:  # noqa: ARG001
    if value in (None, "off"):
        return None if value is None else False
    shortest = re.fullmatch("shortest:([1-9][0-9]{0,4})", value)
    if shortest is not None and param.name == "size":
        return {"shortest_edge": int(shortest[1])}
    size = re.fullmatch("([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", value)
    if size is None:
        forms = "HEIGHTxWIDTH, one number, " + ("shortest:N " if param.name == "size" else "") + "or off"
        raise click.BadParameter(f"expected {forms}, got {value!r:.80}")
    return int(size[1]), int(size[2] or size[1])


# By the field of `ProcessorOptions`.
_OPTIONS = {
    "source": click.option(
        "--processor", "source", metavar="FOLDER|ID[@REV]",
        help="Image processor of another folder, preprocessor_config.json or Hub id.  [default: the model's own]",
    ),
    "image_mean": click.option(
        "--image-mean", metavar="V[,V,V]", callback=_channels, help="Processor setting: mean of each channel."
    ),
    "image_std": click.option(
        "--image-std", metavar="V[,V,V]", callback=_channels,
        help="Processor setting: standard deviation of each channel.",
    ),
    "size": click.option(
        "--resize", "size", metavar="HxW|shortest:N|off", callback=_size,
        help="Processor setting: size that images are resized to; shortest:N keeps the aspect ratio.",
    ),
    "crop_size": click.option(
        "--crop-size", metavar="HxW|off", callback=_size, help="Processor setting: size of the center crop."
    ),
    "resample": click.option(
        "--resample", type=click.Choice(list(FILTERS)), help="Processor setting: filter of the resize."
    ),
    "rescale_factor": click.option(
        "--rescale-factor", metavar="V", callback=_factor,
        help="Processor setting: multiplies the bytes, such as 1/255.",
    ),
}  # fmt: skip


def processor_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the image processor, which the command gets as `processor`: a value, or None where none is given."""

    @functools.wraps(command)
    def with_processor(**arguments: Any) -> Any:
        values = {name: arguments.pop(name) for name in _OPTIONS}
        given = {name: value for name, value in values.items() if value is not None}
        return command(processor=ProcessorOptions(**given) if given else None, **arguments)

    decorated: Callable[..., Any] = with_processor
    for option in reversed(_OPTIONS.values()):
        decorated = option(decorated)
    return decorated
