"""Trace the reference model to an ONNX graph in float32."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import nn

from vitdeploy._version import __version__
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporters.graph.initializers import ROTARY
from vitdeploy.exporters.graph.onnx_layers import name_layer, repeat_first_layer, repeat_nodes
from vitdeploy.exporters.graph.passes import simplify
from vitdeploy.models.layers.dense import FEATURES, RAW_FEATURES, dense_features
from vitdeploy.models.signature import Served, head_outputs
from vitdeploy.specs import PixelFormat, PixelStage, TensorSpec
from vitdeploy.system.forks import with_threads

_WRAPPER = "model."  # prefix of the model's weight names in `Served`
_LAYER = _WRAPPER + "layers.{}."
_LAST_STATE = "last_hidden_state"
_TRACED_MAPS = {True: f"{FEATURES}.0", False: f"{RAW_FEATURES}.0"}  # by normalization


def trace_layers(served: Served, opset: int) -> ir.Model:
    """The simplified graph of a model: only the first layer is traced, and repeated for the others.

    The last layer is traced, too, if it need not compute every token: see `leading_tokens`. Dense features are traced
    for the first state, and repeated. Layers that no output depends on are omitted.
    """
    twin = served.model.with_attention("eager").eval()
    tokens = leading_tokens(served)
    layers = twin.layers[: served.num_layers]
    twin.layers = layers[:1] if tokens is None else nn.ModuleList((layers[0], layers[-1]))
    maps = dense_features((spec.name for spec in served.outputs), twin.config)
    twin.config = dataclasses.replace(twin.config, feature_norm="all")
    head = head_outputs(twin) if served.num_layers is None else ()
    names = [name for name in head if tokens is None or name != _LAST_STATE]
    names += ["hidden_states.0", *dict.fromkeys(_TRACED_MAPS[dense.normalized] for dense in maps.values())]
    if layers:
        names += ["hidden_states.1", "attentions.0"]
    if tokens is not None:
        names += ["hidden_states.2"]
    few_layers = Served(
        twin,
        names,
        dynamic_image_size=served.dynamic_image_size,
        pixels=traced_pixels(served),
        last_tokens=tokens,
    )
    exported = traced(few_layers.eval(), opset)
    graph = exported.graph
    _name_rotation(graph)
    values = dict(zip(names, graph.outputs, strict=True))
    if tokens is not None:
        layers = layers[:-1]
        name_layer(
            graph, values["hidden_states.1"], values["hidden_states.2"], _LAYER.format(1), _LAYER.format(len(layers))
        )
    weights = list(graph.initializers.values())
    if layers:
        values |= _repeated(graph, layers, values)
    traced_maps = {name: values[_TRACED_MAPS[dense.normalized]] for name, dense in maps.items()}
    for name, result in traced_maps.items():
        state = values[f"hidden_states.{maps[name].layer}"]
        values[name] = repeat_nodes(graph, values["hidden_states.0"], result, state, f"{name}.")
    _set_outputs(graph, [(spec.name, values[spec.name]) for spec in served.outputs])
    simplify(exported)
    _name_axes(graph.outputs, served.outputs)
    ClearMetadataAndDocStringPass()(exported)  # references to this machine's files
    exported.metadata_props.clear()
    forget(weight for weight in weights if not weight.is_initializer())
    for weight in list(graph.initializers.values()):
        weight.name = (weight.name or "").removeprefix(_WRAPPER)
    graph.name = "vision-transformer"
    exported.producer_name, exported.producer_version = "vitdeploy", __version__
    return exported


def _name_rotation(graph: ir.Graph) -> None:
    """Name the cosines and sines of the rotary positions; no other part of a model computes any."""
    for node in graph:
        if node.op_type in ("Cos", "Sin"):
            node.outputs[0].name = f"{ROTARY}{node.op_type.lower()}"


def leading_tokens(served: Served) -> int | None:
    """Number of first tokens of the last layer that the outputs depend on; None for all.

    A head that reads the class token alone makes most of the last layer superfluous: the query, the output projection
    and the MLP of every other token, 6 % of ViT-B. Not applied to a model with a single layer, which is the first too.
    """
    depth = len(served.model.layers)
    names = [spec.name for spec in served.outputs]
    whole = {_LAST_STATE, f"hidden_states.{depth}", f"attentions.{depth - 1}"}
    whole |= {name for name, dense in dense_features(names, served.model.config).items() if dense.layer == depth}
    if depth < 2 or served.num_layers is not None or not whole.isdisjoint(names):
        return None
    tokens: int | None = served.model.head.leading_tokens
    return tokens


def forget(weights: Iterable[ir.Value]) -> None:
    """Release the weights' values: onnxscript's rules keep a reference to the last graph, and so to the whole model."""
    for weight in weights:
        weight.const_value = None


@with_threads
def traced(asked: Served, opset: int) -> ir.Model:
    """Trace every layer of a model with torch; the graph is not simplified."""
    with _quiet():
        program = torch.onnx.export(
            asked,
            # a batch of 1 would be traced as a constant
            asked.example_inputs(batch_size=2),
            input_names=[spec.name for spec in asked.inputs],
            output_names=[spec.name for spec in asked.outputs],
            dynamic_shapes=_dynamic_shapes(asked),
            opset_version=opset,
            dynamo=True,
            optimize=False,
            external_data=False,
            verbose=False,
        )
    if program is None:  # only if torch writes the file itself
        raise CheckFailedError("torch's exporter returned no program; please report this model", what="graph")
    for value in program.model.graph.outputs:  # these may no longer be outputs, but would keep them alive
        value.metadata_props.clear()
    return program.model


def traced_pixels(served: Served) -> PixelFormat:
    """Input image format of the traced graph; io_dtype is applied later."""
    return PixelFormat() if served.pixels.stage is PixelStage.NORMALIZED else served.pixels


def _dynamic_shapes(served: Served) -> tuple[dict[int, Any], ...]:
    """Dynamic axes of each input.

    Each axis is named once: the exporter detects equal axes, and warns about equal names.
    """
    named: set[str] = set()
    shapes: list[dict[int, Any]] = []
    for spec in served.inputs:
        free = {index: axis for index, axis in enumerate(spec.shape) if isinstance(axis, str)}
        dim = torch.export.Dim
        shapes.append({index: dim.DYNAMIC if axis in named else dim(axis) for index, axis in free.items()})
        named.update(free.values())
    return tuple(shapes)


def _repeated(graph: ir.Graph, layers: nn.ModuleList, values: dict[str, ir.Value]) -> dict[str, ir.Value]:
    """Repeat the traced layer; hidden states and attention weights of all layers, by name."""
    results = values["hidden_states.1"], values["attentions.0"]
    states = repeat_first_layer(graph, layers, values["hidden_states.0"], results, _LAYER)
    named = {f"hidden_states.{index}": hidden for index, (hidden, _) in enumerate(states, 1)}
    head = {name: states[-1][0] for name, value in values.items() if value is results[0]}  # an encoder without a norm
    return head | named | {f"attentions.{index}": weights for index, (_, weights) in enumerate(states)}


def _set_outputs(graph: ir.Graph, outputs: list[tuple[str, ir.Value]]) -> None:
    """Set the named outputs of `graph`."""
    graph.outputs.clear()
    for name, output in outputs:
        value = output
        if output.is_graph_output():  # two names for one value
            node = ir.node("Identity", [output])
            graph.append(node)
            value = node.outputs[0]
            value.type, value.shape = output.type, output.shape
        value.name = name
        graph.outputs.append(value)


def _name_axes(values: Sequence[ir.Value], specs: Sequence[TensorSpec]) -> None:
    """Name the outputs' dynamic axes by their specifications; other traced axes stay, and are checked later."""
    for value, spec in zip(values, specs, strict=True):
        if value.shape is not None and len(value.shape) == len(spec.shape):
            axes = zip(value.shape, spec.shape, strict=True)
            value.shape = ir.Shape(
                [want if isinstance(want, str) and not isinstance(got, int) else got for got, want in axes]
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter, which logs a deprecated call and an unneeded package."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\).*", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
