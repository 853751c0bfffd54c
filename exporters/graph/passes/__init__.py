"""Rewrites of a graph, one a file, each keeping what it computes, its inputs and its outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.exporters.graph.passes.constant_folding import fold_constants
from vitdeploy.exporters.graph.passes.dead_code import drop_dead_code
from vitdeploy.exporters.graph.passes.duplicated_constants import merge_duplicated_constants
from vitdeploy.exporters.graph.passes.repeated_nodes import merge_repeated_nodes
from vitdeploy.exporters.graph.passes.superfluous_nodes import drop_superfluous_nodes

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx_ir as ir

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
    for rewrite in PASSES:
        rewrite(model)
