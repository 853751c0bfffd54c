"""Move outliers of activations into the weights that they are multiplied by, before a graph is quantized."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from vitdeploy.errors import UsageError
from vitdeploy.exporters.quantization.weights import register
from vitdeploy.exporters.weight_names import SMOOTHED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

_NORM = "LayerNormalization"


@dataclasses.dataclass(frozen=True)
class SmoothQuant:
    """Divide each channel of an activation by s, and multiply the rows of the weights that take it by the same s.

    s = max|activation|^strength / max|weights|^(1 - strength), a channel: Xiao et al. 2023, "SmoothQuant",
    arXiv:2211.10438, equation 4. The activation is what a LayerNormalization gives, whose scale and bias are divided,
    so that the graph has no more operators than before and computes the same.

    Attributes:
        strength: how much of the difference between channels moves into the weights: from 0, where theirs is evened
            out, to 1, where the activation's is. The paper's alpha; 0.5 is what it recommends.
    """

    strength: float = 0.5

    def __post_init__(self) -> None:
        if isinstance(self.strength, bool) or not 0 <= self.strength <= 1:
            raise UsageError(f"the strength of smooth_quant must be a number from 0 to 1, got {self.strength!r:.80}")

    def smooth(self, model: ir.Model, largest: Mapping[str, NDArray[np.float32]]) -> None:
        """Rewrite a graph in place.

        Args:
            model: in float32.
            largest: of some of `smoothable(model)`, by name, (C,) the largest magnitude of each channel.
        """
        for value in smoothable(model):
            if str(value.name) in largest:
                self._smooth(model.graph, value, largest[str(value.name)])

    def _smooth(self, graph: ir.Graph, value: ir.Value, largest: NDArray[np.float32]) -> None:
        weights = dict.fromkeys(_weight(node) for node, _ in value.uses())
        of_weights = np.max([np.abs(_array(weight)).max(axis=1) for weight in weights], axis=0)  # (C,)
        _divide(graph, value, self._scales(largest.astype(np.float64), of_weights.astype(np.float64)))

    def _scales(self, of_activation: NDArray[np.float64], of_weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """(C,) s; 1 where a channel, or what multiplies it, is nothing."""
        usual = (of_activation > 0) & (of_weights > 0)
        scales = np.ones_like(of_activation)
        scales[usual] = of_activation[usual] ** self.strength / of_weights[usual] ** (1 - self.strength)
        return scales


def smooth_alike(model: ir.Model, smoothed: ir.Model) -> None:
    """Rewrite a graph in place by the scales of another one, which was smoothed before it was quantized.

    What a LayerNormalization's scale and bias were divided by is told from both graphs; the larger of the two in a
    channel has the smaller rounding.

    Args:
        model: in float32; `smoothed` was made from it.
        smoothed: whose values have the same names. Where it was not smoothed, nothing is changed.
    """
    norms = {str(node.outputs[0].name): node for node in smoothed.graph if node.op_type == _NORM}
    for value in smoothable(model):
        before, after = value.producer(), norms.get(str(value.name))
        if before is None or after is None or not all(_is_weight(each) for each in after.inputs[1:]):
            continue
        old, new = (
            np.stack([_array(_given(each)) for each in norm.inputs[1:]]) for norm in (before, after)
        )  # (1|2, C)
        if old.shape == new.shape and not np.array_equal(old, new):
            larger = np.abs(old).argmax(axis=0)[None]
            of, by = (np.take_along_axis(each, larger, axis=0)[0].astype(np.float64) for each in (old, new))
            _divide(model.graph, value, np.divide(of, by, out=np.ones_like(of), where=by != 0))


def smoothable(model: ir.Model) -> list[ir.Value]:
    """What LayerNormalizations give to nothing but MatMul nodes with a weight, in the order of the graph."""
    return [node.outputs[0] for node in model.graph if node.op_type == _NORM and _is_smoothable(node)]


def _divide(graph: ir.Graph, value: ir.Value, scales: NDArray[np.float64]) -> None:
    """Divide what a LayerNormalization gives by (C,) scales, and multiply the rows of what it is multiplied by."""
    nodes = [node for node, _ in value.uses()]
    weights = list(dict.fromkeys(map(_weight, nodes)))
    norm = value.producer()
    if norm is None:
        raise TypeError(f"{value} must come from a {_NORM}")
    before = [*weights, *(each for each in norm.inputs[1:] if each is not None)]
    for index in range(1, len(norm.inputs)):
        norm.replace_input_with(index, _scaled(graph, norm.inputs[index], 1 / scales, value))
    smoothed = {weight: _scaled(graph, weight, scales[:, None], value) for weight in weights}
    for node in nodes:
        node.replace_input_with(1, smoothed[_weight(node)])
    for old in before:
        if not old.uses() and str(old.name) in graph.initializers:
            del graph.initializers[str(old.name)]


def _is_smoothable(norm: ir.Node) -> bool:
    value = norm.outputs[0]
    uses = [(node, index) for node, index in value.uses()]
    return (
        bool(uses)
        and not value.is_graph_output()
        and all(_is_weight(weight) for weight in norm.inputs[1:])
        and all(node.op_type == "MatMul" and index == 0 and _is_weight(node.inputs[1]) for node, index in uses)
        and all(len(_array(_weight(node)).shape) == 2 for node, _ in uses)
    )


def _is_weight(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer() and value.const_value is not None


def _weight(node: ir.Node) -> ir.Value:
    return _given(node.inputs[1])


def _given(value: ir.Value | None) -> ir.Value:
    if value is None:
        raise TypeError("an input that a node must have is left out")
    return value


def _array(value: ir.Value) -> NDArray[np.float32]:
    if value.const_value is None:
        raise TypeError(f"{value} must be known")
    return np.asarray(value.const_value.numpy())


def _scaled(graph: ir.Graph, weight: ir.Value | None, by: NDArray[np.float64], of: ir.Value) -> ir.Value:
    """A new initializer; computed when it is written, so that not all are in memory twice."""
    if weight is None or weight.const_value is None:
        raise TypeError(f"{weight} must be known")
    tensor = weight.const_value

    def content() -> ir.TensorProtocol:
        return ir.Tensor((tensor.numpy() * by).astype(np.float32))

    lazy = ir.LazyTensor(content, ir.DataType.FLOAT, ir.Shape(tensor.shape.numpy()))
    name = f"{weight.name}{SMOOTHED}"
    return register(graph, name if name not in graph.initializers else f"{name}_{of.name}", lazy)
