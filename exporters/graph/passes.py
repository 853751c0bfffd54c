"""Graph rewrites that preserve the computation, the inputs and the outputs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from onnx_ir.passes import common
from onnxscript.optimizer import fold_constants as fold
from onnxscript.rewriter import rewrite

from vitdeploy.exporters.graph.initializers import TRANSPOSED

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir


def fold_constants(model: ir.Model) -> None:
    """Replace each node with constant inputs, weights included, by its result, in place.

    An image or batch size is constant if its axis is fixed. Not applied to values that depend on a dynamic axis, or to
    random operators. A transposed weight keeps its name, with the suffix ".transposed".
    """
    transposed = [node for node in model.graph if node.op_type == "Transpose"]
    named = {
        str(node.outputs[0].name): f"{source.name}{TRANSPOSED}"
        for node in transposed
        if (source := node.inputs[0]) is not None and source.is_initializer()
    }
    # Without a limit: otherwise the position table, which holds the class token, would be assembled in every run.
    fold(model, onnx_shape_inference=True, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    for before, name in named.items():
        weight = model.graph.initializers.get(before)
        if weight is not None and name not in model.graph.initializers:
            weight.name = name


def drop_superfluous_nodes(model: ir.Model) -> None:
    """Apply onnxscript's default rules, in place, and drop Identity.

    Additions of 0, multiplications by 1 and casts to the same type are removed; consecutive transpositions, slices,
    reshapes and casts become one; a convolution absorbs the Pad before it, and loses an all-zero bias. Not applied if a
    value in between has another use, or is an output.
    """
    rewrite(model)
    outputs = set(model.graph.outputs)
    identities = [node for node in model.graph if node.op_type == "Identity"]
    if not any(outputs.issuperset((*node.inputs, *node.outputs)) for node in identities):  # both would get one name
        common.IdentityEliminationPass()(model)


def drop_dead_code(model: ir.Model) -> None:
    """Drop nodes, weights and operator sets that no output depends on, in place.

    Unused inputs stay: callers pass them.
    """
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def merge_duplicated_constants(model: ir.Model) -> None:
    """Turn Constant nodes into initializers, merged if type, shape and content are equal, in place.

    Not applied to floating-point tensors with one axis or more, which include weights: a weight keeps its name and
    place even if it equals another layer's, as new biases do. Weights shared in torch are one initializer from the
    start.
    """
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    initializers = model.graph.initializers
    weights = {
        name: value
        for name, value in initializers.items()
        if value.dtype is None or value.shape is None or (value.dtype.is_floating_point() and len(value.shape) > 0)
    }
    for name in weights:
        del initializers[name]
    common.DeduplicateInitializersPass()(model)
    constants = dict(initializers)
    initializers.clear()
    initializers.update(weights | constants)


def merge_repeated_nodes(model: ir.Model) -> None:
    """Eliminate common subexpressions in place: merge nodes with the same operator, attributes and inputs.

    Not applied to random operators, or to those with subgraphs.
    """
    common.CommonSubexpressionEliminationPass()(model)


# In execution order: each leaves work for the next.
PASSES: tuple[Callable[[ir.Model], None], ...] = (
    fold_constants,
    drop_superfluous_nodes,
    drop_dead_code,
    merge_duplicated_constants,
    merge_repeated_nodes,
)


def simplify(model: ir.Model) -> None:
    """Run every pass, in place. The graph stays portable: standard ONNX operators only."""
    for change in PASSES:
        change(model)
