"""Graphs that compute statistics of another graph's values on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping

import onnx_ir as ir


@dataclasses.dataclass(frozen=True)
class MeasuredGraph:
    """A copy of a float32 graph with other outputs.

    Attributes:
        model: Model with the graph's inputs.
        names: Name of the measured value, by output name.
    """

    model: ir.Model
    names: Mapping[str, str]


def measured_graph(
    model: ir.Model,
    values: Iterable[ir.Value],
    statistic: Callable[[ir.Graph, ir.Value], ir.Value] = lambda _, value: value,
) -> MeasuredGraph:
    """A copy of a graph whose outputs are a statistic of each value, computed by added nodes.

    Args:
        model: Model in float32; unchanged.
        values: Inputs of the graph, or outputs of its nodes.
        statistic: Adds the nodes. Default: the value itself.
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
    """The largest magnitude of a value, (); a statistic for `measured_graph`."""
    absolute = ir.node("Abs", [value])
    largest = ir.node("ReduceMax", [absolute.outputs[0]], {"keepdims": 0})
    graph.extend([absolute, largest])
    largest.outputs[0].type, largest.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([])
    return largest.outputs[0]
