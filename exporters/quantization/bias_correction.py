"""Bias correction: preserve the mean result of products whose weights are rounded to 8 bits."""

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
    """Add to each bias the loss in the product's mean that is caused by rounding its weights, in place.

    The correction is mean(x) (W - rounded W), with the mean over calibration images: Nagel et al. 2019, "Data-Free
    Quantization Through Weight Equalization and Bias Correction", arXiv:1906.04721, section 4.2, with measured means.
    No node is added; a product without a bias is unchanged.

    Args:
        model: Model in float32, smoothed.
        scheme: Scheme that rounds the weights.
        products: Nodes that will compute in 8 bits.
        means: Mean of each input channel, (C,), by activation name.
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
    """Give `add` a corrected bias, with a new name, as input `index`."""
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
    """Corrected biases of a graph, by the first output's name of their Add nodes."""
    return {
        name_of(node): value.const_value
        for node in graph
        for value in node.inputs
        if is_weight(value) and value.const_value is not None and str(value.name).rstrip("_").endswith(CORRECTED)
    }
