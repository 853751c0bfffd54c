"""Load an engine, refit it with weights, and check its input and output tensors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitdeploy.errors import BundleError, DeviceError, OtherHardwareError
from vitdeploy.runtimes.engine.compatibility import ProfileShapes
from vitdeploy.runtimes.engine.file import EngineFile
from vitdeploy.specs import TensorSpec
from vitdeploy.trt.library import last_of, make_runtime


def open_engine(library: Any, backend: str, file: EngineFile, logger: Any) -> tuple[Any, Any]:
    """Load an engine from a file, with its weights; return the library's runtime and the engine.

    Raises:
        OtherHardwareError: If it was built for another GPU.
        DeviceError: If it does not load, or refuses the weights.
        BundleError: If its tensors differ from the specification.
    """
    runtime = make_runtime(library, backend, logger)
    if file.host_code:
        runtime.engine_host_code_allowed = True
    engine = _load(library, runtime, backend, file, logger.errors)
    if file.weights is not None:
        refitter = library.Refitter(engine, logger)
        refused = why_refused(library, refitter, file.weights, logger)
        if refused is not None or not refitter.refit_cuda_engine():
            reason = refused or last_of(logger.errors)
            raise DeviceError(
                f"{file.path} does not take the weights of {file.weights}: {reason}",
                what="weights", where=file.path, found=reason, hint="build it again",
            )  # fmt: skip
    for specs, kind in ((file.inputs, library.TensorIOMode.INPUT), (file.outputs, library.TensorIOMode.OUTPUT)):
        _check_tensors(library, engine, file.path, specs, kind)
    return runtime, engine


def make_config(library: Any, engine: Any, *, cuda_graphs: bool, specialization: str | None) -> tuple[Any, bool]:
    """The configuration of contexts; and True if the caller must capture CUDA graphs."""
    config = engine.create_runtime_config()
    # A context with memory of its own reserves enough for the largest shape of all profiles.
    config.set_execution_context_allocation_strategy(library.ExecutionContextAllocationStrategy.USER_MANAGED)
    captures = cuda_graphs and not hasattr(config, "cuda_graph_strategy")
    if cuda_graphs and not captures:  # the library records graphs itself
        config.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    if specialization is not None:
        strategies = library.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = getattr(strategies, specialization.upper())
    return config, captures


def why_refused(library: Any, refitter: Any, onnx: Path, logger: Any) -> str | None:
    """Reason why an engine refuses the weights of an ONNX file; None if `refitter` accepted them.

    The engine keeps its old weights until `refitter.refit_cuda_engine` is called.
    """
    parser = library.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)):
        why = parser.get_error(0).desc() if parser.num_errors else last_of(logger.errors)
        return f"{' '.join(why.split()):.300}"
    missing = refitter.get_missing_weights()
    return f"it lacks {', '.join(missing):.300}" if missing else None


def _load(library: Any, runtime: Any, backend: str, file: EngineFile, errors: Sequence[str]) -> Any:
    content = file.path.read_bytes() if file.content is None else file.content
    if hasattr(runtime, "get_engine_validity"):
        validity, reasons = runtime.get_engine_validity(content[: runtime.engine_header_size])
        if validity == library.EngineValidity.INVALID:
            bits = library.EngineInvalidityDiagnostics.__members__.items()
            reason = ", ".join(name for name, bit in bits if int(bit) & reasons) or last_of(errors)
            other_gpu = int(library.EngineInvalidityDiagnostics.UNSUPPORTED_CC) & reasons
            error = OtherHardwareError if other_gpu else DeviceError
            raise error(
                f"{file.path} is not an engine for this GPU and library: {reason}",
                what=backend, where=file.path, found=reason, hint="build it again",
            )  # fmt: skip
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        reason = last_of(errors)
        raise DeviceError(
            f"{backend} cannot load {file.path}: {reason}",
            what=backend, where=file.path, found=reason, hint="build it again",
        )  # fmt: skip
    return engine


def _check_tensors(library: Any, engine: Any, path: Path, specs: Sequence[TensorSpec], kind: Any) -> None:
    """Raise BundleError unless the tensors of a kind match the specifications, except for the names of axes."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    actual = {
        name: (np.dtype(library.nptype(engine.get_tensor_dtype(name))), tuple(engine.get_tensor_shape(name)))
        for name in names
        if engine.get_tensor_mode(name) == kind
    }
    stated = {
        spec.name: (np.dtype(spec.dtype), tuple(axis if isinstance(axis, int) else -1 for axis in spec.shape))
        for spec in specs
    }
    if actual != stated:
        raise BundleError(
            f"{path} differs from its manifest: it has {actual} instead of {stated}",
            what="inputs and outputs", where=path, expected=stated, found=actual, hint="build it again",
        )  # fmt: skip


def profiles_of(engine: Any, inputs: Sequence[TensorSpec]) -> list[ProfileShapes]:
    """Minimum, optimum and maximum shape of each input, by profile."""
    profiles: list[ProfileShapes] = []
    for index in range(engine.num_optimization_profiles):
        shapes = {spec.name: engine.get_tensor_profile_shape(spec.name, index) for spec in inputs}
        profiles.append({name: (tuple(low), tuple(best), tuple(high)) for name, (low, best, high) in shapes.items()})
    return profiles
