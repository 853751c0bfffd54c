"""Compute once what is made of constants."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from onnxscript.optimizer import fold_constants as fold

from vitdeploy.exporters.graph.initializers import TRANSPOSED

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

_NO_LIMIT = sys.maxsize


def fold_constants(model: ir.Model) -> None:
    """Replace each node whose inputs are all known, weights among them, by its result, in place.

    A size of an image or a batch is known where its axis is fixed. Not applied to what a free axis takes part in, and
    to operators that draw random numbers. A weight that was transposed keeps its name, with ".transposed" behind it.
    """
    named = dict(_transposed(model.graph))
    # Without a limit, or the position table, which holds the class token, would be put together at every run.
    fold(model, onnx_shape_inference=True, input_size_limit=_NO_LIMIT, output_size_limit=_NO_LIMIT)
    for before, name in named.items():
        weight = model.graph.initializers.get(before)
        if weight is not None and name not in model.graph.initializers:
            weight.name = name


def _transposed(graph: ir.Graph) -> Iterator[tuple[str, str]]:
    """The name of a folded transposed weight, and its new name."""
    for node in graph:
        source = node.inputs[0] if node.op_type == "Transpose" else None
        if source is not None and source.is_initializer():
            yield str(node.outputs[0].name), f"{source.name}{TRANSPOSED}"
