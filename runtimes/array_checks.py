"""Check names, types and shapes of arrays against a runtime's inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from vitdeploy.errors import UsageError
from vitdeploy.specs import TensorSpec


class Array(Protocol):
    """Attributes of an array, from any library, that are checked."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def check_names(what: str, arrays: object, specs: Iterable[TensorSpec]) -> None:
    """Raise UsageError unless there is exactly one array for each tensor.

    Args:
        what: "inputs" or "outputs", for the message.
        specs: Expected tensors.
    """
    names = [spec.name for spec in specs]
    if not isinstance(arrays, Mapping):
        raise UsageError(
            f"expected arrays by name ({', '.join(names)}), got {type(arrays).__name__}", what=what, expected=names
        )
    if set(arrays) != set(names):
        given = list(arrays)
        raise UsageError(
            f"the model has {what} {', '.join(names)}, got {', '.join(map(str, given)) or 'none'}",
            what=what, expected=names, found=given,
        )  # fmt: skip


def check_array(spec: TensorSpec, array: Array, sizes: dict[str, int], hint: str) -> None:
    """Raise UsageError unless an array fits its specification and is not empty.

    Args:
        sizes: Sizes of dynamic axes by name; updated with the array's sizes for new names.
        hint: End of the message.
    """
    fits = array.dtype == np.dtype(spec.dtype) and len(array.shape) == len(spec.shape) and all(array.shape)
    for want, got in zip(spec.shape, array.shape, strict=False):
        fits = fits and got == (sizes.setdefault(want, got) if isinstance(want, str) else want)
    if not fits:
        free = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise UsageError(
            f"expected {spec}, got {array.dtype} {array.shape}{f' with {free}' if free else ''}",
            what=spec.name, expected=spec, found=(str(array.dtype), tuple(array.shape)), hint=hint,
        )  # fmt: skip
