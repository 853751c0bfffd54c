"""Which scheme of quantization serves a precision on a target."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.errors import UsageError
from vitdeploy.exporters.quantization.schemes.dynamic_int8 import DynamicInt8
from vitdeploy.exporters.quantization.schemes.static_int8 import StaticInt8
from vitdeploy.exporters.quantization.schemes.tensorrt_fp8 import TensorRTFp8
from vitdeploy.exporters.quantization.schemes.tensorrt_int8 import TensorRTInt8
from vitdeploy.specs import Precision

if TYPE_CHECKING:
    from vitdeploy.exporters.quantization.schemes.scheme import Scheme

# By precision and target: the one to be taken first, and with images first the one that uses them.
SCHEMES: dict[tuple[Precision, str], tuple[Scheme, ...]] = {
    (Precision.INT8, "cpu"): (StaticInt8(), DynamicInt8()),
    (Precision.INT8, "tensorrt"): (TensorRTInt8(),),
    (Precision.FP8, "tensorrt"): (TensorRTFp8(),),
}


def find_scheme(
    precision: Precision, target: str | None, name: str | None, *, calibrated: bool, wanted_images: int
) -> Scheme:
    """The scheme that is asked for, or the best one for what is there.

    Args:
        precision: int8 or fp8.
        target: what is to run the graph; by default the first that has the precision.
        name: of the scheme; by default the first that can be made.
        calibrated: whether there are images to calibrate on.
        wanted_images: how many there should be, for what is told where they lack.

    Raises:
        UsageError: there is none, or it needs images.
    """
    targets = [known for of, known in SCHEMES if of is precision]
    chosen = targets[0] if target is None else target
    if chosen not in targets:
        raise UsageError(f"target for {precision} must be {' or '.join(targets)}, got {target!r:.80}")
    schemes = SCHEMES[precision, chosen]
    if name is not None:
        known = {scheme.name: scheme for scheme in schemes}
        if name not in known:
            raise UsageError(f"scheme for {precision} on {chosen} must be {' or '.join(known)}, got {name!r:.80}")
        schemes = (known[name],)
    if not calibrated:
        static = schemes[0]
        schemes = tuple(scheme for scheme in schemes if scheme.static is None)
        if not schemes:
            raise UsageError(
                f"{precision} for {chosen} ({static.name}) needs images to measure activations on, got none; give "
                f"calibration_data (--calibration-data), a folder with some {wanted_images} images like those to come"
            )
    return schemes[0]
