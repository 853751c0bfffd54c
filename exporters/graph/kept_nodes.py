"""The nodes that a person names to stay in float32: by node, by layer or by part."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.initializers import labels_of
from vitdeploy.exporters.graph.onnx_file import without_weights
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.naming.layer_names import layer_name, normalized_name, readable_name
from vitdeploy.exporters.naming.parts import nodes_by_part

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    import onnx_ir as ir


def kept_nodes(keep: Collection[str], model: ir.Model, nodes: Sequence[ir.Node], problem: str) -> tuple[str, ...]:
    """The nodes that names stand for, in the order of the graph, by the names of their first outputs.

    A name is that of a node; else of a layer, by its weights ("layers.3.mlp.fc1") or in words ("block 3, MLP, fc1");
    else of a part ("layers.3" or "block 3"). Case and blanks do not count.

    Args:
        keep: The names.
        model: In float32.
        nodes: Those of the model that can be kept.
        problem: The message, with {} for the names that stand for none.

    Raises:
        UsageError: If a name stands for no node.
    """
    if not keep:
        return ()
    own = {name_of(node): name_of(node) for node in nodes}
    if own.keys() >= set(keep):
        return tuple(name for name in own if name in set(keep))
    named = _nodes_by_name(model, nodes)
    chosen: set[str] = set()
    unknown = []
    for name in keep:
        if name in own:
            chosen.add(name)
        elif (key := normalized_name(name)) in named:
            chosen.update(named[key])
        else:
            unknown.append(name)
    if unknown:
        near = difflib.get_close_matches(normalized_name(unknown[0]), named, n=1)
        meant = f"did you mean '{near[0].replace(',', ', ')}'? " if near else ""
        raise UsageError(
            problem.format(", ".join(f"'{name}'" for name in unknown)[:80]), what="keep_fp32", found=tuple(unknown),
            hint=f"{meant}vitdeploy debug sensitivity and debug bisect print the names of a model's layers",
        )  # fmt: skip
    return tuple(name for name in own if name in chosen)


def _nodes_by_name(model: ir.Model, nodes: Sequence[ir.Node]) -> dict[str, list[str]]:
    """The nodes of each layer and part, by its normalized names; a layer goes before a part of the same name."""
    graph = without_weights(model).graph
    weights = {str(value.name) for value in model.graph.initializers.values()}
    inputs = {value.name for value in graph.input} - weights
    part_of = {node.output[0]: part for part, members in nodes_by_part(graph.node, inputs).items() for node in members}
    labels = labels_of(model.graph)
    by_layer: dict[str, list[str]] = {}
    by_part: dict[str, list[str]] = {}
    for node in map(name_of, nodes):
        part, label = part_of[node], labels.get(node)
        for name in {layer_name(node, part, label), label or node}:
            by_layer.setdefault(normalized_name(name), []).append(node)
        for name in {part, readable_name(part)}:
            by_part.setdefault(normalized_name(name), []).append(node)
    return {**by_part, **by_layer}
