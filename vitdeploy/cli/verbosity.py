"""Verbosity of a command: only errors with --quiet, each step and the causes of errors with --verbose."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

_QUIET, _VERBOSE = f"{__name__}.quiet", f"{__name__}.verbose"  # in the contexts' shared `meta`


def is_quiet() -> bool:
    """True if only errors, and requested JSON, are printed."""
    return _is_set(_QUIET)


def is_verbose() -> bool:
    """True if steps and the causes of errors are printed."""
    return _is_set(_VERBOSE)


def options() -> list[click.Option]:
    """New options `-q` and `-v` of a command."""
    return [
        click.Option(
            ["-q", "--quiet"], is_flag=True, expose_value=False, callback=_set_quiet, help="Print errors and JSON only."
        ),
        click.Option(
            ["-v", "--verbose"], is_flag=True, expose_value=False, callback=_set_verbose,
            help="Print each step, and the causes of an error.",
        ),
    ]  # fmt: skip


def _is_set(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(name))


def _set_quiet(context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        _set(context, _QUIET, _VERBOSE)
        context.with_resource(_no_notes())


def _set_verbose(context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given:
        _set(context, _VERBOSE, _QUIET)


def _set(context: click.Context, name: str, other: str) -> None:
    if context.meta.get(other):
        raise click.UsageError("--quiet and --verbose exclude each other; leave one out", context)
    context.meta[name] = True


@contextlib.contextmanager
def _no_notes() -> Iterator[None]:
    logger = logging.getLogger("vitdeploy")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
