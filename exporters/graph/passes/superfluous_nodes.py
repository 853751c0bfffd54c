"""Leave out operators that change nothing, and do with one what takes several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import IdentityEliminationPass
from onnxscript.rewriter import rewrite

if TYPE_CHECKING:
    import onnx_ir as ir


def drop_superfluous_nodes(model: ir.Model) -> None:
    """Apply onnxscript's default rules, in place, and drop Identity.

    Adding 0, multiplying by 1 and casting to the same type go; transpositions, slices, reshapes and casts in a row
    become one; a convolution takes the Pad before it, and loses a bias of zeros. Not applied where a value in between
    has another use, or is an output.
    """
    rewrite(model)
    if not any(node.op_type == "Identity" and _joins_outputs(node) for node in model.graph):
        IdentityEliminationPass()(model)


def _joins_outputs(node: ir.Node) -> bool:
    """Whether one value is two outputs, which would both get one name."""
    value = node.inputs[0]
    return value is not None and value.is_graph_output() and node.outputs[0].is_graph_output()
