"""Quantize the graph of an export, and say for the manifest how."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.errors import UsageError
from vitdeploy.exporters.precision import name_of
from vitdeploy.exporters.quantization.choice import Candidate
from vitdeploy.exporters.quantization.dynamic_int8 import DynamicInt8
from vitdeploy.exporters.quantization.methods import find_method
from vitdeploy.exporters.quantization.scheme import check_kept, quantizable
from vitdeploy.exporters.quantization.schemes import find_scheme
from vitdeploy.exporters.quantization.smooth_quant import SmoothQuant, smoothable
from vitdeploy.exporters.quantization.static_int8 import StaticInt8
from vitdeploy.exporters.quantization.tensorrt_int8 import TensorRTInt8
from vitdeploy.exporters.quantization.trial import DEFAULT_METHOD, Trial
from vitdeploy.specs import QUANTIZED

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.calibration import CalibrationData
    from vitdeploy.exporters.quantization.choice import Choose
    from vitdeploy.exporters.quantization.scheme import Scheme
    from vitdeploy.specs import ExportSpec, PixelFormat

WANTED_IMAGES = 512


def scheme_for(spec: ExportSpec, *, calibrated: bool) -> Scheme | None:
    """How the graph is to compute in 8 bits; None where it is not to.

    Raises:
        UsageError: there is no such scheme, or it needs images, or has no such option.
    """
    if spec.precision not in QUANTIZED:
        return None
    find_method(spec.calibration or DEFAULT_METHOD)
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
        scheme: how.
        spec: what the artifact is to be.
        data: images to measure activations on; None where there are none.
        choose: which of several graphs is taken, and what stays in float32; None for the first, and what `spec` keeps.
        pixels: what the graph takes.
        folder: where copies of the graph may lie meanwhile.

    Returns:
        What was done, and what was measured to choose it, for the manifest.

    Raises:
        UsageError: there is nothing to quantize, or no such node to keep.
        CheckFailedError: a value is not finite on the images, or nothing that could be chosen is accurate enough.
    """
    ShapeInferencePass()(model)
    done: dict[str, Any] = {"target": scheme.target, "scheme": scheme.name}
    if spec.rest is not None:
        done["rest"] = str(spec.rest)
    if spec.reduce_range:
        done["reduce_range"] = True
    if scheme.static is not None and data is not None:
        done |= {
            "calibration": str(find_method(spec.calibration or DEFAULT_METHOD)),
            "calibration_images": data.count,
            "calibration_sha256": data.sha256,
        }
    check_kept(model, scheme, spec.keep_fp32)
    names = list(map(name_of, quantizable(model, scheme)))
    if len(set(spec.keep_fp32)) == len(names):
        raise UsageError(
            f"{spec.precision} must have a node in 8 bits, got all {len(names)} to keep in float32; export to fp32"
        )
    differing = {name_of(node) for value in smoothable(model) for node, _ in value.uses()}
    trials = {
        trial.name: trial
        for trial in (
            Trial(model, scheme, spec, smooth, data, pixels, folder)
            for smooth in _smoothing(spec, differing.difference(spec.keep_fp32), calibrated=data is not None)
        )
    }
    chosen, kept = next(iter(trials)), frozenset(spec.keep_fp32)
    measured: Mapping[str, Any] = {}
    if choose is not None:
        choice = choose([Candidate(name, trial.variants, differing) for name, trial in trials.items()], pixels, folder)
        chosen, kept = choice.candidate, kept.union(choice.kept)
        measured = choice.record
    trial = trials[chosen]
    if trial.smooth is not None:
        done["smooth_quant"] = trial.smooth.strength
    trial.apply(model, kept)
    done["quantized_nodes"] = len(names) - len(kept)
    done["float32_nodes"] = [name for name in names if name in kept]
    return done, measured


def _smoothing(spec: ExportSpec, smoothed: Collection[str], *, calibrated: bool) -> tuple[SmoothQuant | None, ...]:
    """What is to be tried, for the nodes that take what can be smoothed; the first where the other is not better."""
    asked = spec.smooth_quant
    if asked == "off" or (asked == "auto" and not (calibrated and smoothed)):
        return (None,)
    if not calibrated:
        raise UsageError(
            f"smooth_quant needs images to measure activations on, got none with {asked}; give calibration_data "
            f"(--calibration-data)"
        )
    if not smoothed:
        raise UsageError(
            f"smooth_quant needs a LayerNormalization whose result products with weights in 8 bits alone take, the "
            f"graph has none for {asked}; leave it out"
        )
    return (None, SmoothQuant()) if asked == "auto" else (SmoothQuant(float(asked)),)
