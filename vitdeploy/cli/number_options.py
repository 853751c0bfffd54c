"""Ranges of numeric options, checked before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from vitdeploy.errors import UsageError
from vitdeploy.specs import MOST_A_BATCH, MOST_NEIGHBOURS
from vitdeploy.system.shares import read_slowdown, read_tolerance

if TYPE_CHECKING:
    from collections.abc import Callable

    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """click's type, which is generic since 8.4."""

        def __class_getitem__(cls, _: object) -> type[ParamType]:
            return cls


COUNT = click.IntRange(1, 2**31 - 1)  # of images, classes, runs
TURNS = click.IntRange(1, 100_000)  # timed one by one
BATCH_SIZE = click.IntRange(1, MOST_A_BATCH)
NEIGHBOURS = click.IntRange(1, MOST_NEIGHBOURS)
SEED = click.IntRange(0, 2**63 - 1)


class ShareOption(ParamType[float]):
    """A share, by a function of `vitdeploy.system.shares`."""

    name = "share"

    def __init__(self, read: Callable[[object], float]) -> None:
        self._read = read

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return self._read(value)
        except UsageError as exc:
            self.fail(str(exc).removeprefix(f"{exc.what} "), param, ctx)  # click names the option


TOLERANCE = ShareOption(read_tolerance)
SLOWDOWN = ShareOption(read_slowdown)
