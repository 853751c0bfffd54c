"""SmoothQuant: move activation outliers into the weights before a graph is quantized."""

from __future__ import annotations

import dataclasses
import operator
from typing import TYPE_CHECKING

import numpy as np

from vitdeploy.exporters.graph.initializers import SMOOTHED
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.quantization.smoothing_places import NORM, array_of, find_places, is_weight

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import onnx_ir as ir
    from numpy.typing import NDArray

    from vitdeploy.exporters.quantization.ranges.extremes import Extremes
    from vitdeploy.exporters.quantization.smoothing_places import Place

_KIND = operator.attrgetter("kind")


@dataclasses.dataclass(frozen=True)
class SmoothQuant:
    """Divide each channel of an activation by s, and multiply the corresponding rows of weights by the same s.

    s = magnitude^strength / max|weights|^(1 - strength) per channel: Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438,
    equation 4, with one strength for all places, see `Place`. The computation is unchanged. Divided LayerNormalizations
    and value projections cost nothing. The Mul before an MLP's second product costs a pass over its input, so it can be
    left out.

    The paper's magnitude of an activation is max|activation|. Here it is sqrt(max|activation| * rms(activation)), see
    `Extremes.magnitudes`: a channel that is large on a few tokens only, as after a GELU, no longer makes the weights of
    its row large for all tokens. Measured on DINOv2 ViT-S/14 (static int8, one strength of 0.65, cosine of the pooled
    output; photographs left out in four folds): mean 0.99936, 5th percentile 0.9987 instead of 0.99909 and 0.9976; rms
    alone 0.99909 and 0.9981; the mean over images of each image's maximum 0.99901 and 0.9979.

    s has 16 significant bits, so that it can be recovered exactly from the float32 values that it divided:
    `recorded_scales`.

    Attributes:
        strength: Migration strength, the paper's alpha: from 0, which evens out the weights, to 1, which evens out the
            activation. The paper recommends 0.5.
        multiply: True to smooth places that need a Mul.
    """

    strength: float = 0.5
    multiply: bool = True

    def smooth(
        self, model: ir.Model, extremes: Mapping[str, Extremes], kept: Collection[str] = ()
    ) -> dict[str, tuple[str, NDArray[np.float32]]]:
        """Rewrite a graph in place.

        Args:
            model: Model in float32, with shapes.
            extremes: Extremes of the activations at the smoothed places, by name.
            kept: Products that stay float32, named by their first outputs; a Mul only for them is omitted.

        Returns:
            The original activation and its divisors, (C,), by new activation name.
        """
        divided = {}
        for place in sorted(find_places(model), key=_KIND):  # values before the norm before them
            if place.name in extremes and self.divides(place, kept):
                scales = self._scales(extremes[place.name].magnitudes, place.rows())
                divided[place.divide(model.graph, scales)] = place.name, scales
        return divided

    def kinds(self, model: ir.Model, extremes: Mapping[str, Extremes], kept: Collection[str] = ()) -> tuple[str, ...]:
        """Kinds of places that `smooth` divides, sorted; see `Place`."""
        places = [place for place in find_places(model) if place.name in extremes]
        return tuple(sorted({place.kind for place in places if self.divides(place, kept)}))

    def divides(self, place: Place, kept: Collection[str]) -> bool:
        """True if a place is smoothed when these products stay float32."""
        return not idle(place, kept) and (self.multiply or place.kind != "mlp")

    def _scales(self, of_activation: NDArray[np.float32], of_weights: NDArray[np.float32]) -> NDArray[np.float32]:
        """The scales s, (C,); 1 for a channel or weights of zeros, or if s is not a float32."""
        usual = (of_activation > 0) & (of_weights > 0)
        scales = np.ones(of_activation.shape)
        a, w = of_activation[usual].astype(np.float64), of_weights[usual].astype(np.float64)
        scales[usual] = a**self.strength / w ** (1 - self.strength)
        limits = np.finfo(np.float32)
        held = (scales >= limits.tiny) & (scales <= 1 / limits.tiny)
        return _short(np.where(held, scales, 1))


def idle(place: Place, kept: Collection[str]) -> bool:
    """True if a place needs a Mul only for products that stay float32."""
    return place.kind == "mlp" and all(name_of(each) in kept for each in place.products)


def recorded_scales(model: ir.Model, smoothed: ir.Model) -> dict[str, NDArray[np.float32]]:
    """Scales, (C,), with which a graph's places were smoothed before quantization, by place name.

    They are recovered from both graphs: from the scale or the bias of a LayerNormalization, from the largest weight in
    each column of the value projection, which 8 bits represent exactly, and from the factors of a Mul.

    Args:
        model: Source of `smoothed`, in float32, with shapes. It is smoothed here.
        smoothed: Graph with the same value names.
    """
    recorded = {}
    makers = {str(value.name): node for node in smoothed.graph for value in node.outputs}
    for place in sorted(find_places(model), key=_KIND, reverse=True):
        find = {"layer_norm": _of_norm, "attention": _of_values, "mlp": _of_factors}[place.kind]
        scales = find(place, makers)
        if scales is not None:
            recorded[place.name] = _short(scales)
            place.divide(model.graph, recorded[place.name])
    return recorded


def _short(scales: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rounded to 16 significant bits."""
    fraction, exponent = np.frexp(scales)
    return np.asarray(np.ldexp(np.rint(np.ldexp(fraction, 16)), exponent - 16), np.float32)


def _of_norm(place: Place, makers: Mapping[str, ir.Node]) -> NDArray[np.float32] | None:
    """From a LayerNormalization: the larger of scale and bias in a channel has less rounding."""
    before, after = place.value.producer(), makers.get(place.name)
    if before is None or after is None or after.op_type != NORM or not all(map(is_weight, after.inputs[1:])):
        return None
    old, new = (np.stack([array_of(each) for each in norm.inputs[1:] if is_weight(each)]) for norm in (before, after))
    return None if old.shape != new.shape or np.array_equal(old, new) else _ratio(old, new)


def _of_values(place: Place, makers: Mapping[str, ir.Node]) -> NDArray[np.float32] | None:
    """From the columns of the projection, if the names of the activation's users indicate smoothing.

    For a column of zeros, the bias is used; other columns' biases may be corrected for rounded weights.
    """
    before, add = place.values_projection, place.values_bias
    weights = [_written_weight(makers.get(name_of(each))) for each in place.products]
    if before is None or not all(weight is not None and SMOOTHED in str(weight[0].name) for weight in weights):
        return None
    old, new = (_written_weight(node) for node in (before, makers.get(name_of(before))))
    if old is None or new is None:
        return None
    olds, news = [old[1]], [new[1]]
    if add is not None and name_of(add) in makers:
        for found, node in ((olds, add), (news, makers[name_of(add)])):
            found.extend(np.where(old[1] > 0, 0, array_of(each)) for each in node.inputs if is_weight(each))
    return _ratio(np.stack(olds), np.stack(news)) if len(olds) == len(news) else None


def _written_weight(node: ir.Node | None) -> tuple[ir.Value, NDArray[np.float32]] | None:
    """The weight of a product, in float32 or in 8 bits, and the largest magnitude of each column, (C,)."""
    if node is None:
        return None
    scale: ir.Value | None = None
    if node.op_type == "Mul":  # of an integer product, with the scales of its factors
        scales = node.inputs[1].producer() if node.inputs[1] is not None else None
        cast = node.inputs[0].producer() if node.inputs[0] is not None else None
        source = None if cast is None or cast.inputs[0] is None else cast.inputs[0].producer()
        if scales is None or source is None or source.op_type != "MatMulInteger":
            return None
        weight, scale = source.inputs[1], next((each for each in scales.inputs if is_weight(each)), None)
    else:
        weight = node.inputs[1] if len(node.inputs) > 1 else None
        maker = None if weight is None else weight.producer()
        if maker is not None and maker.op_type == "DequantizeLinear":
            weight, scale = maker.inputs[0], maker.inputs[1]
    if not is_weight(weight) or (scale is not None and not is_weight(scale)):
        return None
    largest = np.abs(array_of(weight).astype(np.float32)).max(axis=0)
    return weight, np.asarray(largest if scale is None else largest * array_of(scale))


def _of_factors(place: Place, makers: Mapping[str, ir.Node]) -> NDArray[np.float32] | None:
    node = makers.get(f"{place.name}{SMOOTHED}")
    factors = None if node is None else next((each for each in node.inputs if is_weight(each)), None)
    return None if factors is None else (1 / array_of(factors).astype(np.float64)).astype(np.float32)


def _ratio(old: NDArray[np.float32], new: NDArray[np.float32]) -> NDArray[np.float32]:
    """The divisors, (C,), that turned `old` (k, C) into `new`; 1 if undetermined."""
    larger = np.abs(old).argmax(axis=0)[None]
    of, by = (np.take_along_axis(each, larger, axis=0)[0].astype(np.float64) for each in (old, new))
    return np.asarray(np.divide(of, by, out=np.ones_like(of), where=by != 0), np.float32)
