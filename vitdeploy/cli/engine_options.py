"""The options of `vitdeploy export` that are of engines: their names, defaults and help."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli.output import PATH
from vitdeploy.errors import UsageError
from vitdeploy.exporters import EXPORTERS
from vitdeploy.specs import read_range
from vitdeploy.trt.options import (
    DEFAULT_BATCH,
    HARDWARE_COMPATIBILITY,
    LARGEST_WORKSPACE_MIB,
    EngineOptions,
    colons,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from vitdeploy.specs import AxisRange

_DEFAULTS = EngineOptions()


def once(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:  # noqa: ARG001
    """Each of the values of an option that may be repeated, the first time that it is typed."""
    return tuple(dict.fromkeys(values))


def _batch(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    return tuple(_range(value) for value in once(ctx, param, values))


def _range(value: str) -> AxisRange:
    try:
        return read_range(value)
    except UsageError as exc:
        raise click.BadParameter(
            f"batch must be MIN:OPT:MAX, such as 1:8:32, with minimum <= optimum <= maximum, or one number, "
            f"got {value!r:.80}"
        ) from exc


def image_size(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:  # noqa: ARG001
    """(height, width), or three of them, of what is typed."""
    if value is None:
        return None
    sizes = [re.fullmatch("([1-9][0-9]{0,4})(?:x([1-9][0-9]{0,4}))?", size) for size in value.split(":")]
    pairs = [(int(size[1]), int(size[2] or size[1])) for size in sizes if size is not None]
    if len(pairs) != len(sizes) or len(pairs) not in (1, 3):
        raise click.BadParameter(
            f"must be HEIGHTxWIDTH in pixels, such as 384x512, or one number, or MIN:OPT:MAX of these, got {value!r}"
        )
    if any(list(edges) != sorted(edges) for edges in zip(*pairs, strict=True)):
        raise click.BadParameter(f"must be MIN:OPT:MAX, none smaller than the one before, got {value!r:.80}")
    return pairs[0] if len(pairs) == 1 else tuple(pairs)


def _image_sizes(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Any:
    sizes = [image_size(ctx, param, value) for value in values]
    return tuple((each,) * 3 if isinstance(each[0], int) else each for each in sizes)


# By the field of `EngineOptions`. A value that is not given is None, or empty: only what is given is an engine's.
_OPTIONS = {
    "batch": click.option(
        "--batch", multiple=True, metavar="MIN:OPT:MAX", callback=_batch,
        help=f"Of an engine: sizes of batches; once for each profile.  [default: {colons(DEFAULT_BATCH)}]",
    ),
    "image_sizes": click.option(
        "--engine-size", "image_sizes", multiple=True, metavar="MIN:OPT:MAX", callback=_image_sizes,
        help="Of an engine: sizes of images within those of the ONNX artifact, or with --embed-resize of decoded ones, "
        "such as 32x32:480x640:1080x1920; once for each profile.  [default: those of --image-size]",
    ),
    "workspace_mib": click.option(
        "--workspace-mib", type=click.IntRange(1, LARGEST_WORKSPACE_MIB), metavar="MIB",
        help="Device memory for the builder's scratch.  [default: all]",
    ),
    "optimization_level": click.option(
        "--optimization-level", type=click.IntRange(0, 5),
        help=f"How long the builder searches.  [default: {_DEFAULTS.optimization_level}]",
    ),
    "tf32": click.option(
        "--tf32", is_flag=True, default=None, help="Round products of float32 to 11 bits; off by default."
    ),
    "timing_cache": click.option(
        "--timing-cache", type=PATH,
        help="tensorrt: file of measured kernels, reused.  [default: beside the bundle]",
    ),
    "version_compatible": click.option(
        "--version-compatible", is_flag=True, default=None,
        help="tensorrt: for later versions too, as its support matrix says; off by default.",
    ),
    "hardware_compatibility": click.option(
        "--hardware-compatibility", type=click.Choice(HARDWARE_COMPATIBILITY),
        help=f"tensorrt: the GPUs beside the one that it is built on.  [default: {_DEFAULTS.hardware_compatibility}]",
    ),
    "compute_capabilities": click.option(
        "--compute-capability", "compute_capabilities", multiple=True, metavar="N.N", callback=once,
        help="tensorrt-rtx: of the GPUs, such as 8.9; may be repeated.  [default: the library's portable ones]",
    ),
    "refit": click.option(
        "--refit", is_flag=True, default=None, help="Let the engine's weights be changed; off by default."
    ),
    "strip_weights": click.option(
        "--strip-weights", is_flag=True, default=None,
        help="Write the engine without weights, to be given those of the ONNX artifact; off by default.",
    ),
}  # fmt: skip


def engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of engines, which the command gets as `engine`: an `EngineOptions`, or None where none is given.

    They are refused where none of the command's `formats` is an engine.
    """

    @functools.wraps(command)
    def with_engine(**arguments: Any) -> Any:
        values = {name: arguments.pop(name) for name in _OPTIONS}
        given = {name: value for name, value in values.items() if value not in (None, ())}
        _check_formats(given, arguments["formats"])
        return command(engine=EngineOptions(**given) if given else None, **arguments)

    decorated: Callable[..., Any] = with_engine
    for option in reversed(_OPTIONS.values()):
        decorated = option(decorated)
    return decorated


def _check_formats(given: Iterable[str], formats: Sequence[str]) -> None:
    engines = [name for name, exporter in EXPORTERS.items() if exporter.made_from is not None]
    typed = {param.name: param.opts[0] for param in click.get_current_context().command.params}
    wrong = [str(typed[name]) for name in given]
    if wrong and not set(engines).intersection(formats):
        raise UsageError(
            f"what is of an engine is not for {' or '.join(formats)}, got {', '.join(wrong)}; leave it out, "
            f"or export to {' or '.join(engines)}"
        )
