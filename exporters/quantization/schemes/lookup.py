"""Table of the quantization schemes, by precision and target."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError
from vitdeploy.exporters.quantization.schemes.dynamic_int8 import DynamicInt8
from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8
from vitdeploy.exporters.quantization.schemes.tensorrt_fp8 import TensorRTFp8
from vitdeploy.exporters.quantization.schemes.tensorrt_int8 import TensorRTInt8
from vitdeploy.specs import ExportSpec, Precision

if TYPE_CHECKING:
    from vitdeploy.exporters.quantization.schemes.scheme import Scheme

# The default comes first; without calibration images, the first that needs none.
SCHEMES: dict[tuple[Precision, str], tuple[Scheme, ...]] = {
    (Precision.INT8, "cpu"): (StaticInt8(), DynamicInt8()),
    (Precision.INT8, "tensorrt"): (TensorRTInt8(),),
    (Precision.FP8, "tensorrt"): (TensorRTFp8(),),
}


def scheme_for(spec: ExportSpec, *, calibrated: bool) -> Scheme:
    """The scheme of an int8 or fp8 artifact.

    Args:
        calibrated: True with calibration images.

    Raises:
        UsageError: If there is no such scheme, or it needs calibration images, or lacks one of the options.
    """
    precision = spec.precision
    targets = [known for of, known in SCHEMES if of is precision]
    target = targets[0] if spec.target is None else spec.target
    if target not in targets:
        raise UsageError(
            f"{precision} has no target {target!r:.80}; choose {' or '.join(targets)}",
            what="target", expected=tuple(targets), found=target,
        )  # fmt: skip
    schemes = {scheme.name: scheme for scheme in SCHEMES[precision, target]}
    if spec.scheme not in (None, *schemes):
        raise UsageError(
            f"{precision} for {target} has no scheme {spec.scheme!r:.80}",
            what="scheme", expected=tuple(schemes), found=spec.scheme,
            hint=f"choose {' or '.join(schemes)}" if len(schemes) > 1 else "leave it out: there is one",
        )  # fmt: skip
    allowed = [*schemes.values()] if spec.scheme is None else [schemes[spec.scheme]]
    scheme = next((scheme for scheme in allowed if calibrated or scheme.static is None), None)
    if scheme is None:
        raise UsageError(
            f"{precision} for {target} ({allowed[0].name}) needs calibration images", what="calibration_data",
            hint="add --calibration-data with a folder of some 512 images like those in production",
        )  # fmt: skip
    if scheme.static is None and spec.calibration is not None:
        raise UsageError(
            f"a calibration method needs fixed ranges, which the scheme {scheme.name} does not have",
            what="calibration", found=spec.calibration, hint="leave it out",
        )  # fmt: skip
    if isinstance(scheme, TensorRTInt8) and spec.pixels.dtype == "uint8":
        return dataclasses.replace(scheme, quantize_patches=False)  # bytes would lose a bit to the sign
    if not spec.reduce_range:
        return scheme
    if not isinstance(scheme, (StaticInt8, DynamicInt8)):
        raise UsageError(
            f"reduce_range needs int8 for a CPU, got {precision} for {target}",
            what="reduce_range", found=target, hint="leave it out",
        )  # fmt: skip
    return dataclasses.replace(scheme, reduce_range=True)
