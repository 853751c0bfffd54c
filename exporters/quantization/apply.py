"""Quantize the graph of an export, and say for the manifest how."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.errors import UsageError
from vitdeploy.exporters.graph.precision import name_of
from vitdeploy.exporters.quantization.ranges.methods import check_method
from vitdeploy.exporters.quantization.schemes.dynamic_int8 import DynamicInt8
from vitdeploy.exporters.quantization.schemes.lookup import find_scheme
from vitdeploy.exporters.quantization.schemes.scheme import check_kept, quantizable
from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8
from vitdeploy.exporters.quantization.schemes.tensorrt_int8 import TensorRTInt8
from vitdeploy.exporters.quantization.search import MARGIN, Search, smoothing_of
from vitdeploy.exporters.quantization.smoothing_places import find_places
from vitdeploy.exporters.quantization.trial import MINMAX, Activations, Recipe, Trial
from vitdeploy.specs import QUANTIZED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence
    from pathlib import Path

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.choice import Choose, Closeness
    from vitdeploy.exporters.quantization.ranges.calibration import CalibrationData
    from vitdeploy.exporters.quantization.schemes.scheme import Scheme
    from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant
    from vitdeploy.specs import ExportSpec, PixelFormat

WANTED_IMAGES = 512


def scheme_for(spec: ExportSpec, *, calibrated: bool) -> Scheme | None:
    """How the graph is to compute in 8 bits; None where it is not to.

    Raises:
        UsageError: there is no such scheme, or it needs images, or has no such option.
    """
    if spec.precision not in QUANTIZED:
        return None
    check_method(spec.calibration)
    scheme = find_scheme(spec.precision, spec.target, spec.scheme, calibrated=calibrated, wanted_images=WANTED_IMAGES)
    if scheme.static is None and spec.calibration is not None:
        raise UsageError(
            f"calibration is of fixed ranges, got {spec.calibration} with the scheme {scheme.name}; leave it out"
        )
    if spec.rest is not None and scheme.target != "tensorrt":
        raise UsageError(f"rest is of int8 and fp8 for tensorrt, got {spec.rest} for {scheme.target}; leave it out")
    if isinstance(scheme, TensorRTInt8) and spec.pixels.dtype == "uint8":
        scheme = dataclasses.replace(scheme, quantize_patches=False)  # bytes would lose a bit to the sign
    if not spec.reduce_range:
        return scheme
    if not isinstance(scheme, (StaticInt8, DynamicInt8)):
        raise UsageError(f"reduce_range is of int8 on a CPU, got {spec.precision} for {scheme.target}; leave it out")
    return dataclasses.replace(scheme, reduce_range=True)


def apply_scheme(
    model: ir.Model,
    scheme: Scheme,
    spec: ExportSpec,
    data: CalibrationData | None,
    choose: Choose | None,
    pixels: PixelFormat,
    folder: Path,
) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Quantize a float32 graph in place.

    Args:
        model: the graph.
        scheme: how; where `spec` names none, another one is taken if it is much nearer to the reference.
        spec: what the artifact is to be.
        data: images to measure activations on; None where there are none.
        choose: measures candidates, and which nodes stay in float32; None for the first candidate, and what `spec`
            keeps.
        pixels: what the graph takes.
        folder: where copies of the graph may lie meanwhile.

    Returns:
        What was done, and what was measured to choose it, for the manifest.

    Raises:
        UsageError: there is nothing to quantize, or no such node to keep.
        CheckFailedError: a value is not finite on the images, or nothing that could be chosen is accurate enough.
    """
    ShapeInferencePass()(model)
    check_kept(model, scheme, spec.keep_fp32)
    names = list(map(name_of, quantizable(model, scheme)))
    if len(set(spec.keep_fp32)) == len(names):
        raise UsageError(
            f"{spec.precision} must have a node in 8 bits, got all {len(names)} to keep in float32; export to fp32"
        )
    activations = Activations(model, data, pixels, folder)

    def trial(recipe: Recipe) -> Trial:
        return Trial(recipe, activations, spec.keep_fp32, whole=False)

    def measure(of: Trial) -> Closeness:
        if choose is None:
            raise TypeError("candidates must be measured")
        one_by_one = of.recipe.scheme.static is None
        return choose.closeness(str(of.recipe), of.variants, pixels, folder, one_by_one=one_by_one)

    search = Search(trial, measure)
    smoothing, others = _smoothing(model, spec, data), _others(spec, scheme, data)
    ranges = None if scheme.static is None else MINMAX if spec.calibration in (None, "auto") else spec.calibration
    # Of few images as of smoothing: what no image tells, a margin may as well harm.
    apart = data is not None and data.held_out
    margin = MARGIN if ranges is not None and apart and spec.calibration in (None, "auto") else 0
    if choose is None:
        compared = Recipe(scheme, ranges, smoothing[0], margin)
    else:
        # A histogram takes a pass over all images for each smoothing, the choice's too; the extremes are there.
        known = None if ranges is None else MINMAX
        compared = search.best(scheme, () if choose.bounded else others, smoothing, known, margin)
    recipe = compared if compared.scheme.static is None else dataclasses.replace(compared, ranges=ranges)
    chosen = Trial(recipe, activations, spec.keep_fp32, whole=True)
    measured: Mapping[str, Any] = search.record(compared)
    kept = frozenset(spec.keep_fp32)
    if choose is not None and choose.bounded:
        found = choose.kept(chosen.variants, pixels, folder)
        kept, measured = kept.union(found.nodes), {**measured, **found.record}
    done = _done(chosen, spec, data, kept)
    chosen.apply(model, kept)
    done["quantized_nodes"] = len(names) - len(kept)
    done["float32_nodes"] = [name for name in names if name in kept]
    return done, measured


def _others(spec: ExportSpec, scheme: Scheme, data: CalibrationData | None) -> Sequence[Scheme]:
    """The schemes that may be taken instead: the dynamic one, where nothing that was asked for needs fixed ranges."""
    free = spec.scheme is None and spec.calibration in (None, "auto") and data is not None and data.held_out
    return (DynamicInt8(reduce_range=scheme.reduce_range),) if free and isinstance(scheme, StaticInt8) else ()


def _smoothing(model: ir.Model, spec: ExportSpec, data: CalibrationData | None) -> Sequence[SmoothQuant | None]:
    """What is tried: without images to choose by, nothing, as what suits few images may harm all others."""
    asked, keep = spec.smooth_quant, spec.keep_fp32
    places = [place for place in find_places(model) if not all(name_of(product) in keep for product in place.products)]
    if asked not in ("off", "auto"):
        if data is None:
            raise UsageError(
                f"smooth_quant {asked} needs images to measure activations on; give calibration_data "
                f"(--calibration-data)"
            )
        if not places:
            raise UsageError(
                f"smooth_quant {asked} has nothing to smooth: no activation is taken by products in 8 bits alone; "
                f"leave it out"
            )
    return smoothing_of(asked, possible=data is not None and data.held_out and bool(places))


def _done(chosen: Trial, spec: ExportSpec, data: CalibrationData | None, kept: Collection[str]) -> dict[str, Any]:
    """What is done, for the manifest."""
    recipe = chosen.recipe
    done: dict[str, Any] = {"target": recipe.scheme.target, "scheme": recipe.scheme.name}
    if spec.rest is not None:
        done["rest"] = str(spec.rest)
    if spec.reduce_range:
        done["reduce_range"] = True
    if recipe.ranges is not None and data is not None:
        done |= {
            "calibration": recipe.ranges,
            "calibration_images": data.count,
            "calibration_sha256": data.sha256,
        }
    if recipe.margin:
        done["calibration_margin"] = recipe.margin
    if recipe.smooth is not None:
        done |= {"smooth_quant": recipe.smooth.strength, "smooth_quant_places": list(chosen.smoothed(kept))}
    return done
