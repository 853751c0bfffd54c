"""Graphs that give statistics of another graph's values, to be run on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class MeasuredGraph:
    """A copy of a float32 graph with other outputs.

    Attributes:
        model: It takes what the graph takes.
        names: By the name of each output, the name of the value that it is computed from.
    """

    model: ir.Model
    names: Mapping[str, str]


def measured_graph(
    model: ir.Model,
    values: Iterable[ir.Value],
    statistic: Callable[[ir.Graph, ir.Value], ir.Value] = lambda _, value: value,
) -> MeasuredGraph:
    """A copy of a graph that gives a statistic of each value, computed by nodes that are added to the copy.

    Args:
        model: In float32; it stays as it is.
        values: Inputs of the graph, or outputs of its nodes.
        statistic: Adds the nodes; by default the value itself is given.
    """
    twin = model.clone()
    graph = twin.graph
    by_name = {value.name: value for value in (*graph.inputs, *(value for node in graph for value in node.outputs))}
    graph.outputs.clear()
    names = {}
    for index, value in enumerate(dict.fromkeys(values)):
        source = statistic(graph, by_name[value.name])
        node = ir.node("Identity", [source])
        graph.append(node)
        output = node.outputs[0]
        output.name, output.type, output.shape = f"value_{index}", ir.TensorType(ir.DataType.FLOAT), source.shape
        names[output.name] = str(value.name)
        graph.outputs.append(output)
    return MeasuredGraph(twin, names)


def largest_magnitude(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """() the largest magnitude of a value; a statistic of `measured_graph`."""
    absolute = ir.node("Abs", [value])
    largest = ir.node("ReduceMax", [absolute.outputs[0]], {"keepdims": 0})
    graph.extend([absolute, largest])
    largest.outputs[0].type, largest.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    return largest.outputs[0]
