"""An engine read from its file, held to what it must take and give, and given weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import BundleError, DeviceError, OtherHardwareError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from vitdeploy.runtimes.engine.compatibility import ProfileShapes
    from vitdeploy.specs import TensorSpec


def load_engine(library: Any, runtime: Any, content: bytes, path: Path, backend: str, errors: Sequence[str]) -> Any:
    """The engine in a file.

    Args:
        library: TensorRT or TensorRT-RTX.
        runtime: the library's.
        content: of the file.
        path: of the file, to be told.
        backend: the library's name, to be told.
        errors: what the library's logger keeps.

    Raises:
        OtherHardwareError: it was built for another GPU.
        DeviceError: it does not load.
    """
    if hasattr(runtime, "get_engine_validity"):
        validity, reasons = runtime.get_engine_validity(content[: runtime.engine_header_size])
        if validity == library.EngineValidity.INVALID:
            bits = library.EngineInvalidityDiagnostics.__members__.items()
            why = ", ".join(name for name, bit in bits if int(bit) & reasons)
            other_gpu = int(library.EngineInvalidityDiagnostics.UNSUPPORTED_CC) & reasons
            error = OtherHardwareError if other_gpu else DeviceError
            raise error(
                f"{path} must be an engine for this GPU and library, is not: {why or last_of(errors)}; build it again"
            )
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        raise DeviceError(f"{path} must load with {backend}: {last_of(errors)}; build it again")
    return engine


def why_refused(library: Any, refitter: Any, onnx: Path, logger: Any) -> str | None:
    """Why an engine does not take the weights of an ONNX file; None where `refitter` now has them for it.

    The engine has those before until `refitter.refit_cuda_engine` is called.
    """
    parser = library.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)):
        why = parser.get_error(0).desc() if parser.num_errors else last_of(logger.errors)
        return f"{' '.join(why.split()):.300}"
    missing = refitter.get_missing_weights()
    return f"it lacks {', '.join(missing):.300}" if missing else None


def check_tensors(
    library: Any, engine: Any, path: Path, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """Raise BundleError unless an engine takes and gives what is stated, but for the names of its axes."""
    mode = library.TensorIOMode
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    for specs, kind in ((inputs, mode.INPUT), (outputs, mode.OUTPUT)):
        found = {
            name: (np.dtype(library.nptype(engine.get_tensor_dtype(name))), tuple(engine.get_tensor_shape(name)))
            for name in names
            if engine.get_tensor_mode(name) == kind
        }
        want = {
            spec.name: (np.dtype(spec.dtype), tuple(axis if isinstance(axis, int) else -1 for axis in spec.shape))
            for spec in specs
        }
        if found != want:
            raise BundleError(f"{path} must take and give what its manifest says, {want}, has {found}; build it again")


def profiles_of(engine: Any, inputs: Sequence[TensorSpec]) -> list[ProfileShapes]:
    """The smallest, the best and the largest shape of each input, by profile."""
    found: list[ProfileShapes] = []
    for index in range(engine.num_optimization_profiles):
        shapes = {spec.name: engine.get_tensor_profile_shape(spec.name, index) for spec in inputs}
        found.append({name: (tuple(low), tuple(best), tuple(high)) for name, (low, best, high) in shapes.items()})
    return found


def last_of(errors: Sequence[str]) -> str:
    """What a library said last."""
    return errors[-1] if errors else "it does not say why"
