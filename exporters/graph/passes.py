"""Rewrites of a graph, each keeping what it computes, its inputs and its outputs."""

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
    """Replace each node whose inputs are all known, weights among them, by its result, in place.

    A size of an image or a batch is known where its axis is fixed. Not applied to what a free axis takes part in, and
    to operators that draw random numbers. A weight that was transposed keeps its name, with ".transposed" behind it.
    """
    transposed = [node for node in model.graph if node.op_type == "Transpose"]
    named = {
        str(node.outputs[0].name): f"{source.name}{TRANSPOSED}"
        for node in transposed
        if (source := node.inputs[0]) is not None and source.is_initializer()
    }
    # Without a limit, or the position table, which holds the class token, would be put together at every run.
    fold(model, onnx_shape_inference=True, input_size_limit=sys.maxsize, output_size_limit=sys.maxsize)
    for before, name in named.items():
        weight = model.graph.initializers.get(before)
        if weight is not None and name not in model.graph.initializers:
            weight.name = name


def drop_superfluous_nodes(model: ir.Model) -> None:
    """Apply onnxscript's default rules, in place, and drop Identity.

    Adding 0, multiplying by 1 and casting to the same type go; transpositions, slices, reshapes and casts in a row
    become one; a convolution takes the Pad before it, and loses a bias of zeros. Not applied where a value in between
    has another use, or is an output.
    """
    rewrite(model)
    outputs = set(model.graph.outputs)
    identities = [node for node in model.graph if node.op_type == "Identity"]
    if not any(outputs.issuperset((*node.inputs, *node.outputs)) for node in identities):  # which would get one name
        common.IdentityEliminationPass()(model)


def drop_dead_code(model: ir.Model) -> None:
    """Drop the nodes, weights and operator sets that no output of the graph is made from, in place.

    Inputs stay, used or not: they are what the caller gives.
    """
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)


def merge_duplicated_constants(model: ir.Model) -> None:
    """Make Constant nodes initializers, and one of those that have the same type, shape and content, in place.

    Not applied to floating-point tensors of one axis and more: weights are among them, and a weight keeps its name and
    its place even where it equals that of another layer, as fresh biases do. What layers share in torch is one
    initializer from the start.
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
    """Merge nodes that have the same operator, attributes and inputs, in place.

    Not applied to operators that draw random numbers, nor to those with graphs inside.
    """
    common.CommonSubexpressionEliminationPass()(model)


# In the order in which they run: each leaves work for the next.
PASSES: tuple[Callable[[ir.Model], None], ...] = (
    fold_constants,
    drop_superfluous_nodes,
    drop_dead_code,
    merge_duplicated_constants,
    merge_repeated_nodes,
)


def simplify(model: ir.Model) -> None:
    """Run every pass, in place. The graph stays portable: operators of ONNX alone."""
    for change in PASSES:
        change(model)
