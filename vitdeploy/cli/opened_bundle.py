"""Options that open a bundle with one backend, from a folder or the Hub."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from vitdeploy.cli import synonyms
from vitdeploy.cli.command import option
from vitdeploy.cli.output import PATH, one_line, read_device
from vitdeploy.runtimes import BACKENDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitdeploy.predictor import Predictor

_OPTIONS = (
    option(
        "--backend",
        type=click.Choice(list(BACKENDS)),
        metavar="NAME",
        help=f"One of {', '.join(BACKENDS)}. Default: the one that runs the artifact.",
    ),
    option(
        "--precision",
        callback=lambda _context, _option, name: synonyms.PRECISIONS.get(name, name),
        help="Precision of the artifact. Default: the tuned choice, or the only one; of several, ONNX first, then "
        "fp32.",
    ),
    option("--device", callback=read_device, help="cpu, cuda or cuda:1. Default: cpu; cuda for an engine."),
    option("--public-key", type=PATH, help="PEM file of the key that must have signed the bundle; see sign."),
    option("--revision", group="Hub", help="Branch, tag or commit of a bundle on the Hub."),
    option(
        "--token", envvar="HF_TOKEN", group="Hub", help="Hub token, for a private or gated bundle.  [env: HF_TOKEN]"
    ),
)


def opening_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `open_predictor`."""
    return functools.reduce(lambda decorated, add: add(decorated), reversed(_OPTIONS), function)


def open_predictor(bundle: str, **options: Any) -> Predictor:
    """Open a bundle; a note about its tuned choice is printed as one line."""
    import warnings

    from vitdeploy.delivery.loading import load
    from vitdeploy.runtimes.choice import TunedElsewhereWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TunedElsewhereWarning)
        predictor = load(bundle, **options)
    tuned = predictor.details.get("tuned")
    if tuned is not None and tuned["note"] is not None:
        click.echo(f"Note: {one_line(bundle)}: {one_line(tuned['note'])}", err=True)
    return predictor
