"""Configuration of rotary positions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from vitdeploy.errors import UsageError, shown

RotaryCoordinates = Literal["centered", "index"]
RotaryPairs = Literal["halves", "neighbors"]


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions of the patches (RoPE, arXiv:2104.09864) along two axes.

    Queries and keys of patches are rotated in pairs of channels; half of the pairs by the patch's row, the other half
    by its column. Pair i of an axis is rotated by coordinate * theta ** (-4 i / head_dim).

    Attributes:
        coordinates: "centered": centers of the patches from -1 to 1 along each axis, in turns, as in DINOv3
            (arXiv:2508.10104); "index": indices of the patches, in radians, as in EVA-02 (arXiv:2303.11331).
        theta: Base of the frequencies.
        pairs: Channels of a pair: "halves" for i and i + head_dim / 2, "neighbors" for 2 i and 2 i + 1.
        reference_grid: (down, across) that indices are scaled to. Default: not scaled.
        offset: Added to indices, before they are scaled.
        columns_first: True if the first half of the pairs belongs to the column.

    Raises:
        UsageError: If a value is invalid.
    """

    coordinates: RotaryCoordinates = "centered"
    theta: float = 100.0
    pairs: RotaryPairs = "halves"
    reference_grid: tuple[int, int] | None = None
    offset: float = 0.0
    columns_first: bool = False

    def __post_init__(self) -> None:
        _check("rope_theta", self.theta, "a finite number above 0", valid=_is_positive(self.theta))
        for name, choices in (("coordinates", get_args(RotaryCoordinates)), ("pairs", get_args(RotaryPairs))):
            value = getattr(self, name)
            _check(name, value, " or ".join(choices), valid=value in choices)
        grid = self.reference_grid
        is_grid = isinstance(grid, tuple) and len(grid) == 2 and all(type(side) is int and side > 0 for side in grid)
        _check("reference_grid", grid, "a pair of integers above 0", valid=grid is None or is_grid)
        is_number = isinstance(self.offset, (int, float)) and not isinstance(self.offset, bool)
        _check("offset", self.offset, "a finite number", valid=is_number and math.isfinite(self.offset))
        _check("columns_first", self.columns_first, "true or false", valid=isinstance(self.columns_first, bool))

    @classmethod
    def from_dict(cls, data: object) -> Rotary:
        """Read the content of a config.json; its keys are the attributes.

        Raises:
            UsageError: If a value is invalid, or a key unknown.
        """
        keys = tuple(field.name for field in dataclasses.fields(cls))
        if not isinstance(data, Mapping) or not data.keys() <= set(keys):
            expected = f"an object with {', '.join(keys)}"
            raise UsageError(f"rotary is {shown(data)}, expected {expected}", what="rotary", found=data)
        grid = data.get("reference_grid")
        return cls(**{**data, "reference_grid": tuple(grid) if isinstance(grid, list) else grid})


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _check(what: str, value: Any, expected: str, *, valid: bool) -> None:
    if not valid:
        raise UsageError(f"{what} is {shown(value)}, expected {expected}", what=what, expected=expected, found=value)
