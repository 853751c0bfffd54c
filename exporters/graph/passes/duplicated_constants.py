"""Keep one of constants that are equal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import DeduplicateInitializersPass, LiftConstantsToInitializersPass

if TYPE_CHECKING:
    import onnx_ir as ir


def merge_duplicated_constants(model: ir.Model) -> None:
    """Make Constant nodes initializers, and one of those that have the same type, shape and content, in place.

    Not applied to floating-point tensors of one axis and more: weights are among them, and a weight keeps its name and
    its place even where it equals that of another layer, as fresh biases do. What layers share in torch is one
    initializer from the start.
    """
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    initializers = model.graph.initializers
    weights = {name: value for name, value in initializers.items() if _may_be_a_weight(value)}
    for name in weights:
        del initializers[name]
    DeduplicateInitializersPass()(model)
    constants = dict(initializers)
    initializers.clear()
    initializers.update(weights | constants)


def _may_be_a_weight(value: ir.Value) -> bool:
    if value.dtype is None or value.shape is None:
        return True
    return value.dtype.is_floating_point() and len(value.shape) > 0
