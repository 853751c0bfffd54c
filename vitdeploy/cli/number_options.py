"""The ranges of the numbers that options take, so that nonsense is refused before any work.

Percentages have one form: "0.5%" is 0.005 wherever a share is asked for, and 0.5 where percent or points are.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from vitdeploy.specs import MOST_A_BATCH, OPSETS

if TYPE_CHECKING:
    from click import ParamType as ParamType
else:

    class ParamType(click.ParamType):
        """click's, which is generic since 8.4."""

        def __class_getitem__(cls, _: object) -> type[ParamType]:
            return cls


COUNT = click.IntRange(1, 2**31 - 1)  # of images, classes, runs
TURNS = click.IntRange(1, 100_000)  # which are timed one by one
BATCH_SIZE = click.IntRange(1, MOST_A_BATCH)
SEED = click.IntRange(0, 2**63 - 1)
OPSET = click.IntRange(OPSETS.start, OPSETS.stop - 1)


class Tolerance(ParamType[float]):
    """A finite share from 0 up."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            self.fail(f"expected a finite number from 0 up, such as 1e-4 or 0.01%, got {text!r:.80}", param, ctx)
        return number


def number_or_text(value: str) -> float | str:
    """A number, or a text such as "99%", which a rule of the gate reads."""
    try:
        return float(value)
    except ValueError:
        return value
