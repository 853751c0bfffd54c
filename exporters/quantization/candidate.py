"""Quantization candidates: ways to quantize a graph, given measurements of its activations."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vitdeploy.exporters.graph.initializers import labels_of
from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.graph.variants import Variants
from vitdeploy.exporters.quantization.bias_correction import correct_biases
from vitdeploy.exporters.quantization.schemes.scheme import quantizable

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.number_format import Range
    from vitdeploy.exporters.quantization.ranges.extremes import Extremes
    from vitdeploy.exporters.quantization.schemes.scheme import Scheme
    from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant

MINMAX = "minmax"


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to quantize a graph.

    Attributes:
        method: Calibration method, see `vitdeploy.exporters.quantization.ranges.methods`; None for dynamic ranges.
        smooth: SmoothQuant before quantization; None for none.
        margin: Fraction by which "minmax" ranges exceed the observed ones.
    """

    scheme: Scheme
    method: str | None = None
    smooth: SmoothQuant | None = None
    margin: float = 0

    def __str__(self) -> str:
        smooth = "no smoothing"
        if self.smooth is not None:
            smooth = f"smoothing {self.smooth.strength:g}{'' if self.smooth.multiply else ' without Mul'}"
        margin = f"{self.method} + {self.margin:.0%}" if self.margin else self.method
        return ", ".join(filter(None, (self.scheme.name, margin, smooth)))


@dataclasses.dataclass(frozen=True)
class Activations:
    """Measurements of the activations that a candidate quantizes, by name; empty without images.

    Attributes:
        extremes: Extremes in the float32 graph.
        ranges: Ranges in the smoothed graph, from histograms; empty for "minmax", whose ranges come from the extremes.
    """

    extremes: Mapping[str, Extremes] = dataclasses.field(default_factory=dict)
    ranges: Mapping[str, Range] = dataclasses.field(default_factory=dict)


def activations_of(model: ir.Model, scheme: Scheme) -> list[ir.Value]:
    inputs = (node.inputs[0] for node in quantizable(model, scheme))
    return list(dict.fromkeys(value for value in inputs if value is not None))


def quantize(
    model: ir.Model, candidate: Candidate, activations: Activations, keep: Collection[str] = ()
) -> tuple[str, ...]:
    """Quantize a graph in place.

    Args:
        model: Model in float32, with shapes.
        activations: Measurements on the same graph.
        keep: Nodes that stay in float32, named by their first outputs.

    Returns:
        The nodes that compute in 8 bits, named by their first outputs.

    Raises:
        UsageError: If there is no node to quantize, or a node to keep does not exist.
    """
    scheme, smooth, extremes = candidate.scheme, candidate.smooth, activations.extremes
    nodes = quantizable(model, scheme, keep)
    divided = {} if smooth is None else smooth.smooth(model, extremes, keep)
    if candidate.method == MINMAX:
        margin = candidate.margin
        ranges = {name: seen.range_of(margin=margin) for name, seen in extremes.items()}
        ranges |= {name: extremes[of].range_of(scales, margin) for name, (of, scales) in divided.items()}
    else:
        ranges = dict(activations.ranges)
    if extremes:
        means = {name: seen.mean for name, seen in extremes.items()}
        means |= {name: extremes[of].mean / scales for name, (of, scales) in divided.items()}
        correct_biases(model, scheme, nodes, means)
    names = tuple(map(name_of, nodes))
    scheme.write(model, nodes, ranges)
    return names


def variants_of(model: ir.Model, candidate: Candidate, activations: Activations, keep: Collection[str]) -> Variants:
    """Variants of the quantized graph with more nodes in float32 than `keep`; `model` is unchanged."""

    def write(kept: Collection[str], path: Path) -> None:
        twin = model.clone()
        quantize(twin, candidate, activations, {*kept, *keep})
        write_onnx(twin, path)

    nodes = quantizable(model, candidate.scheme, keep)
    return Variants(tuple(map(name_of, nodes)), write, labels_of(nodes))
