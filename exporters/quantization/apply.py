"""Quantize the graph of an export, and say for the manifest how."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from onnx_ir.passes.common import ShapeInferencePass

from vitdeploy.errors import UsageError
from vitdeploy.exporters.precision import name_of
from vitdeploy.exporters.quantization.calibration import calibrated_ranges
from vitdeploy.exporters.quantization.dynamic_int8 import DynamicInt8
from vitdeploy.exporters.quantization.methods import find_method
from vitdeploy.exporters.quantization.scheme import quantizable, quantize
from vitdeploy.exporters.quantization.schemes import find_scheme
from vitdeploy.exporters.quantization.static_int8 import StaticInt8
from vitdeploy.specs import Precision

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx_ir as ir

    from vitdeploy.exporters.quantization.calibration import CalibrationData
    from vitdeploy.exporters.quantization.number_format import Range
    from vitdeploy.exporters.quantization.scheme import Scheme
    from vitdeploy.specs import ExportSpec, PixelFormat

PRECISIONS = (Precision.INT8, Precision.FP8)
WANTED_IMAGES = 512
# No wider than the whole, nor worse where values lie far apart: a cut-off must lower the error to be chosen.
DEFAULT_METHOD = "mse"


def scheme_for(spec: ExportSpec, *, calibrated: bool) -> Scheme | None:
    """How the graph is to compute in 8 bits; None where it is not to.

    Raises:
        UsageError: there is no such scheme, or it needs images, or has no such option.
    """
    if spec.precision not in PRECISIONS:
        return None
    find_method(spec.calibration or DEFAULT_METHOD)
    scheme = find_scheme(spec.precision, spec.target, spec.scheme, calibrated=calibrated, wanted_images=WANTED_IMAGES)
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
    pixels: PixelFormat,
    folder: Path,
) -> dict[str, Any]:
    """Quantize a float32 graph in place; see `calibrated_ranges` for the arguments.

    Returns:
        What was done, for the manifest.

    Raises:
        UsageError: there is nothing to quantize, or no such node to keep.
        CheckFailedError: a value is not finite on the images.
    """
    ShapeInferencePass()(model)
    done: dict[str, Any] = {"target": scheme.target, "scheme": scheme.name}
    if spec.reduce_range:
        done["reduce_range"] = True
    ranges: Mapping[str, Range] = {}
    nodes = quantizable(model, scheme)
    names = list(map(name_of, nodes))
    if scheme.static is not None and data is not None:
        method = find_method(spec.calibration or DEFAULT_METHOD)
        taken = [value for value in (node.inputs[0] for node in nodes) if value is not None]
        ranges = calibrated_ranges(model, taken, scheme.static, method, data, pixels, folder)
        done |= {
            "calibration": str(method),
            "calibration_images": data.count,
            "calibration_sha256": data.sha256,
        }
    quantized = set(quantize(model, scheme, ranges, spec.keep_fp32))
    return {
        **done,
        "quantized_nodes": len(quantized),
        "float32_nodes": [name for name in names if name not in quantized],
    }
