"""Leave out what no output needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

if TYPE_CHECKING:
    import onnx_ir as ir


def drop_dead_code(model: ir.Model) -> None:
    """Drop the nodes, weights and operator sets that no output of the graph is made from, in place.

    Inputs stay, used or not: they are what the caller gives.
    """
    RemoveUnusedNodesPass()(model)
    RemoveUnusedOpsetsPass()(model)
