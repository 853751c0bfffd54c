"""Correct the biases behind products in 8 bits, so that rounded weights keep the mean of their results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from vitdeploy.exporters.graph.initializers import CORRECTED, register
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.quantization.schemes.scheme import Scheme
from vitdeploy.exporters.quantization.smoothing_places import array_of, bias_of, is_weight, weight_of
from vitdeploy.exporters.quantization.weights import rounded_matrix


def correct_biases(
    model: ir.Model, scheme: Scheme, products: Iterable[ir.Node], means: Mapping[str, NDArray[np.float32]]
) -> None:
    """Add to each bias what the rounding of weights takes from the mean of the product, in place.

    It is mean(x) (W - rounded W), for the mean x of the calibration images: Nagel et al. 2019, "Data-Free
    Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.2, with measured means.
    Nothing is added to the graph; a product without a bias stays as it is.

    Args:
        model: In float32, smoothed.
        scheme: How weights are rounded.
        products: The nodes that are to compute in 8 bits.
        means: (C,) the mean of each channel of what they take, by name.
    """
    for product in products:
        value, found = product.inputs[0], bias_of(product)
        mean = None if value is None else means.get(str(value.name))
        if mean is None or found is None or product.op_type != "MatMul":
            continue
        weights = array_of(weight_of(product))
        if mean.shape != weights.shape[:1]:
            continue
        lost = mean.astype(np.float64) @ (
            weights - rounded_matrix(weights, scheme.weight, per_channel=scheme.per_channel)
        )
        add, index = found
        before = add.inputs[index]
        if not is_weight(before) or array_of(before).shape != lost.shape:
            continue
        set_bias(model.graph, add, index, ir.Tensor((array_of(before) + lost).astype(np.float32)))


def set_bias(graph: ir.Graph, add: ir.Node, index: int, corrected: ir.TensorProtocol) -> None:
    """Make `add` take a corrected bias, under a name of its own, for its input `index`."""
    before = add.inputs[index]
    if before is None:
        raise TypeError(f"{add} must add a bias")
    name = f"{before.name}{CORRECTED}"
    while name in graph.initializers:
        name += "_"
    add.replace_input_with(index, register(graph, name, corrected))
    if not before.uses():
        del graph.initializers[str(before.name)]


def recorded_biases(graph: ir.Graph) -> dict[str, ir.TensorProtocol]:
    """The corrected biases of a graph, by the names of the first outputs of the Add nodes that take them."""
    return {
        name_of(node): value.const_value
        for node in graph
        for value in node.inputs
        if is_weight(value) and value.const_value is not None and str(value.name).rstrip("_").endswith(CORRECTED)
    }
