"""Compute once what is made of constants."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from onnxscript.optimizer import fold_constants as fold

if TYPE_CHECKING:
    import onnx_ir as ir

_NO_LIMIT = sys.maxsize


def fold_constants(model: ir.Model) -> None:
    """Replace each node whose inputs are all known, weights among them, by its result, in place.

    A size of an image or a batch is known where its axis is fixed. Not applied to what a free axis takes part in, and
    to operators that draw random numbers.
    """
    # Without a limit, or the position table, which holds the class token, would be put together at every run.
    fold(model, onnx_shape_inference=True, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
