"""Eliminate common subexpressions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import CommonSubexpressionEliminationPass

if TYPE_CHECKING:
    import onnx_ir as ir


def merge_repeated_nodes(model: ir.Model) -> None:
    """Merge nodes that have the same operator, attributes and inputs, in place.

    Not applied to operators that draw random numbers, nor to those with graphs inside.
    """
    CommonSubexpressionEliminationPass()(model)
