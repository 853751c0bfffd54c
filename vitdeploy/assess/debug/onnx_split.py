"""Split an ONNX graph, so that every layer starts from given states instead of the previous layer's."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from onnx import TensorProto, helper

from vitdeploy.assess.debug.layers import GIVEN, MADE, SplitArtifact
from vitdeploy.assess.inspection.onnx_reader import load_onnx, valid_onnx
from vitdeploy.errors import UnavailableError
from vitdeploy.exporters.naming.parts import CONVERSIONS, nodes_by_part
from vitdeploy.files.opened import OpenedFile
from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact

_PLAIN = "export it without --optimize"


@contextlib.contextmanager
def open_split(bundle: Bundle, artifact: Artifact) -> Iterator[SplitArtifact]:
    """Open a copy of an ONNX artifact whose layers start from given states; see `split_layers`.

    Raises:
        BundleError: If a file was altered, or is not a valid ONNX model.
        UnavailableError: If the graph's layers cannot be identified, or it cannot run here.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "layers.onnx"
        with bundle.opened_artifact(artifact) as (source, *_):
            load_onnx(source)
            layers = split_layers(source, path)
        with OnnxRuntime(path) as runtime:
            yield SplitArtifact(layers, runtime.run)


def split_layers(source: Path | OpenedFile, target: Path) -> int:
    """Write a copy of a graph in which hidden states are inputs and outputs of every layer and of the head.

    Layer i has the float32 input `GIVEN`i (N, tokens, hidden) and the float32 output `MADE`i+1, which has fewer tokens
    if the last layer computes only those that the head reads; `MADE`0 is the embeddings' output. The graph's inputs and
    outputs stay; its outputs are computed from the last given state. A layer
    ends with the last Add of its part (see `nodes_by_part`), the sum of its two branches.

    Args:
        source: The .onnx file, with external data beside it.
        target: The file to write, with external data beside it if the source has any.

    Returns:
        The number of layers.

    Raises:
        UnavailableError: If the graph's layers cannot be identified, for example because operators are fused across
            them.
    """
    file = OpenedFile.of(source)
    external = onnx.load(file.handle, load_external_data=False)
    has_data = any(tensor.data_location == TensorProto.EXTERNAL for tensor in external.graph.initializer)
    with valid_onnx(file):
        model = onnx.load(file.handle) if has_data else external
    graph = model.graph
    states = hidden_states(graph, file.path)
    types = {value.name: value.type.tensor_type.elem_type for value in _typed_values(external)}
    ends: list[onnx.NodeProto] = []
    starts: list[onnx.NodeProto] = []
    for index, state in enumerate(states):
        given = f"{GIVEN}{index}"
        for node in graph.node:
            for position, name in enumerate(node.input):
                if name == state:
                    node.input[position] = f"{given}.cast"
        starts.append(helper.make_node("Cast", [given], [f"{given}.cast"], to=types[state]))
        ends.append(helper.make_node("Cast", [state], [f"{MADE}{index}"], to=TensorProto.FLOAT))
        for values, name in ((graph.input, given), (graph.output, f"{MADE}{index}")):
            axes = ("batch", f"{name}.tokens", "hidden")
            values.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, axes))
    nodes = [*starts, *graph.node, *ends]
    del graph.node[:]
    del graph.value_info[:]  # the head may have been given fewer tokens
    graph.node.extend(nodes)
    onnx.save(model, target, save_as_external_data=has_data)
    return len(states) - 1


def hidden_states(graph: onnx.GraphProto, source: Path) -> list[str]:
    """Tensors of the hidden states, before the first layer and after each; UnavailableError if there are none."""
    weights = {tensor.name for tensor in graph.initializer}
    parts = nodes_by_part(graph.node, {value.name for value in graph.input} - weights)
    layers: list[Sequence[onnx.NodeProto]] = []
    while f"layers.{len(layers)}" in parts:
        layers.append(parts[f"layers.{len(layers)}"])
    ends = [_end(nodes) for nodes in layers]
    if not layers or not all(ends):
        count = sum(end is not None for end in ends)
        raise UnavailableError(
            f"the layers of {source} cannot be told apart: {count} of {len(layers)} end with an Add",
            where=source, expected=len(layers), found=count, hint=_PLAIN,
        )  # fmt: skip
    first = _start(graph.node, layers[0])
    if first is None:
        raise UnavailableError(f"the first layer of {source} has no LayerNormalization", where=source, hint=_PLAIN)
    return [first, *(end for end in ends if end)]


def _start(nodes: Iterable[onnx.NodeProto], layer: Sequence[onnx.NodeProto]) -> str | None:
    """Input of a layer's first norm, before conversions."""
    value = next((node.input[0] for node in layer if node.op_type == "LayerNormalization"), None)
    conversions = {node.output[0]: node.input[0] for node in nodes if node.op_type in CONVERSIONS}
    while value in conversions:
        value = conversions[value]
    return value


def _end(layer: Sequence[onnx.NodeProto]) -> str | None:
    """Output of a layer's last Add, if no other node of the layer uses it."""
    sums = [node.output[0] for node in layer if node.op_type == "Add"][-1:]
    outputs = set(sums)
    for node in layer:
        if not outputs.isdisjoint(node.input):
            if node.op_type not in CONVERSIONS:
                return None
            outputs.update(node.output)
    return next(iter(sums), None)


def _typed_values(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    return [*graph.value_info, *graph.output, *graph.input]
