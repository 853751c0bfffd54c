"""One way to quantize a graph, tried out on copies of it."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from vitdeploy.exporters.graph.onnx_file import write_onnx
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.graph.variants import Variants
from vitdeploy.exporters.quantization.bias_correction import correct_biases
from vitdeploy.exporters.quantization.candidates import labels_of
from vitdeploy.exporters.quantization.ranges.calibration import calibrated_ranges
from vitdeploy.exporters.quantization.ranges.extremes import channel_extremes
from vitdeploy.exporters.quantization.ranges.methods import METHODS
from vitdeploy.exporters.quantization.schemes.scheme import quantizable, quantize
from vitdeploy.exporters.quantization.smoothing_places import find_places

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.number_format import NumberFormat, Range
    from vitdeploy.exporters.quantization.ranges.calibration import CalibrationData, MeasuredImages
    from vitdeploy.exporters.quantization.ranges.extremes import Extremes
    from vitdeploy.exporters.quantization.schemes.scheme import Scheme
    from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant
    from vitdeploy.specs import PixelFormat

MINMAX = "minmax"


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A way to quantize a graph.

    Attributes:
        scheme: how it computes.
        ranges: a method of `vitdeploy.exporters.quantization.ranges.methods`; None where the graph measures them.
        smooth: what is done before; None for nothing.
        margin: how much wider than what was seen "minmax" is, as a share of it.
    """

    scheme: Scheme
    ranges: str | None
    smooth: SmoothQuant | None
    margin: float = 0

    def __str__(self) -> str:
        smooth = "no smoothing"
        if self.smooth is not None:
            smooth = f"smoothing {self.smooth.strength:g}{'' if self.smooth.multiply else ' without Mul'}"
        margin = f"{self.ranges} + {self.margin:.0%}" if self.margin else self.ranges
        return ", ".join(filter(None, (self.scheme.name, margin, smooth)))


class Activations:
    """A graph, and what is known of its activations; what must be measured is measured when it is first needed.

    Args:
        model: in float32, with shapes.
        data: images to measure on; None where there are none.
        pixels: what the graph takes.
        folder: where copies of the graph may lie meanwhile.
    """

    def __init__(self, model: ir.Model, data: CalibrationData | None, pixels: PixelFormat, folder: Path) -> None:
        self.model, self.data, self.pixels, self.folder = model, data, pixels, folder
        self._extremes: dict[tuple[str, ...], dict[str, Extremes]] = {}

    def extremes(self, scheme: Scheme, *, whole: bool) -> Mapping[str, Extremes]:
        """Of all that the scheme quantizes, by name; on the images of the choice too, or not."""
        if self.data is None:
            raise TypeError("activations must be measured on images")
        first = self._of(self.data.ranges, scheme)
        if not (whole and self.data.held_out):
            return first
        second = self._of(self.data.choice, scheme)
        return {name: each.joined(second[name]) for name, each in first.items()}

    def _of(self, images: MeasuredImages, scheme: Scheme) -> Mapping[str, Extremes]:
        values, data = _taken(self.model, scheme), self.data
        key = (images.sha256, *(str(value.name) for value in values))
        if key not in self._extremes:
            cached = None if data is None else data.cache
            found = channel_extremes(self.model, values, images, cached, self.pixels, self.folder)
            self._extremes[key] = found
        return self._extremes[key]

    def ranges(self, model: ir.Model, scheme: Scheme, number_format: NumberFormat, method: str) -> Mapping[str, Range]:
        """Of what the scheme quantizes in a copy that was smoothed, by a histogram."""
        if self.data is None:
            raise TypeError("activations must be measured on images")
        values = _taken(model, scheme)
        return calibrated_ranges(model, values, number_format, METHODS[method], self.data, self.pixels, self.folder)


class Trial:
    """A recipe for a graph.

    Args:
        recipe: what is done.
        activations: the graph, and what is known of it.
        keep: nodes that stay in float32 in any case, by the names of their first outputs.
        whole: whether activations are measured on the images of the choice too.
    """

    def __init__(self, recipe: Recipe, activations: Activations, keep: Collection[str], *, whole: bool) -> None:
        self.recipe, self._activations, self._keep, self._whole = recipe, activations, frozenset(keep), whole

    @functools.cached_property
    def variants(self) -> Variants:
        """With more nodes in float32 than those that are kept in any case."""
        nodes = quantizable(self._activations.model, self.recipe.scheme)
        nodes = [node for node in nodes if name_of(node) not in self._keep]
        return Variants(tuple(map(name_of, nodes)), self._write, labels_of(nodes))

    def smoothed(self, kept: Collection[str] = ()) -> tuple[str, ...]:
        """The kinds of places that are smoothed, with more nodes in float32; see `Place`."""
        smooth, kept = self.recipe.smooth, {*kept, *self._keep}
        if smooth is None:
            return ()
        extremes = self._activations.extremes(self.recipe.scheme, whole=False)
        places = [place for place in find_places(self._activations.model) if place.name in extremes]
        return tuple(sorted({place.kind for place in places if smooth.divides(place, kept)}))

    def apply(self, model: ir.Model, kept: Collection[str]) -> None:
        """Quantize, in place, the graph that it was made with, or a copy of it; these stay in float32."""
        scheme, smooth, method = self.recipe.scheme, self.recipe.smooth, self.recipe.ranges
        measured = self._activations.data is not None
        # Measured before the graph may change that they are measured of.
        extremes = self._activations.extremes(scheme, whole=self._whole) if measured else {}
        ranges = self._from_histograms
        divided = {} if smooth is None else smooth.smooth(model, extremes, kept)
        if method == MINMAX:
            margin = self.recipe.margin
            ranges = {name: each.range_of(margin=margin) for name, each in extremes.items()}
            ranges |= {name: extremes[of].range_of(scales, margin) for name, (of, scales) in divided.items()}
        if extremes:
            means = {name: each.mean for name, each in extremes.items()}
            means |= {name: extremes[of].mean / scales for name, (of, scales) in divided.items()}
            nodes = [node for node in quantizable(model, scheme) if name_of(node) not in kept]
            correct_biases(model, scheme, nodes, means)
        quantize(model, scheme, ranges, kept)

    def _write(self, kept: Collection[str], path: Path) -> None:
        twin = self._activations.model.clone()
        self.apply(twin, {*kept, *self._keep})
        write_onnx(twin, path)

    @functools.cached_property
    def _from_histograms(self) -> Mapping[str, Range]:
        scheme, ranges = self.recipe.scheme, self.recipe.ranges
        if scheme.static is None or ranges in (None, MINMAX):
            return {}
        twin = self._activations.model.clone()
        if self.recipe.smooth is not None:
            self.recipe.smooth.smooth(twin, self._activations.extremes(scheme, whole=self._whole))
        return self._activations.ranges(twin, scheme, scheme.static, str(ranges))


def _taken(model: ir.Model, scheme: Scheme) -> list[ir.Value]:
    """The activations that a scheme quantizes, each once."""
    taken = (node.inputs[0] for node in quantizable(model, scheme))
    return list(dict.fromkeys(value for value in taken if value is not None))
