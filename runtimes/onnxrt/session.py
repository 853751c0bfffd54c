"""Open an ONNX Runtime session on the requested execution providers, or fail."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from vitdeploy.errors import BundleError, DeviceError, check_utf_8, first_line
from vitdeploy.files.opened import OpenedFile
from vitdeploy.system.exhaustion import check_exhaustion
from vitdeploy.system.quiet import is_quiet, onnxruntime_severity

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
INSTEAD_OF_CPU = "export it with --opset 18, install a newer onnxruntime-gpu, or choose device cpu"
_GPU_PACKAGE = "pip install 'vitdeploy[onnxruntime-gpu]' in place of onnxruntime"
_NEEDED = {
    CUDA: f"{_GPU_PACKAGE}, and the CUDA and cuDNN that it was built for",
    TENSORRT: f"{_GPU_PACKAGE}, and the CUDA and TensorRT that it was built for (pip install 'vitdeploy[tensorrt]')",
}
# It drops a Relu before QuantizeLinear to float8, whose lowest value is negative; measured with 1.32.0.
_WRONG_RULES = ["ReluQuantRewrite"]


if is_quiet():
    ort.set_default_logger_severity(onnxruntime_severity())  # for messages outside a session


def check_built(providers: Sequence[str]) -> None:
    """Raise DeviceError unless onnxruntime was built with every provider; load NVIDIA's libraries."""
    if not {CUDA, TENSORRT}.isdisjoint(providers):
        _preload_libraries()  # first: some builds list a provider only once it is loaded
    available = ort.get_available_providers()
    for name in providers:
        if name not in available:
            raise DeviceError(
                f"this onnxruntime was built without {name}, it has {', '.join(available)}",
                what="providers", expected=available, found=name, hint=_install((name,)),
            )  # fmt: skip


def _install(providers: Iterable[str]) -> str | None:
    """Packages that the providers need; None if unknown."""
    return "; ".join(_NEEDED[name] for name in providers if name in _NEEDED) or None


def open_session(
    file: OpenedFile,
    options: ort.SessionOptions,
    providers: tuple[str, ...],
    provider_options: Mapping[str, Mapping[str, Any]],
    beside: tuple[str, ...],
) -> ort.InferenceSession:
    """Open a session on exactly these providers, without a fallback.

    Args:
        providers: Requested providers, in order of preference.
        provider_options: Provider options, by provider.
        beside: Additional providers that may fail to start.

    Raises:
        DeviceError: If a provider is not available, or does not run the model.
        UsageError: If the path is not UTF-8.
        BundleError: If the file is missing or not a model.
    """
    path, names = file.path, ", ".join(providers)
    check_built(providers)
    if not Path(file.handle).is_file():
        raise BundleError(f"{path} is no ONNX file: no such file", where=path, expected="an ONNX file")
    check_utf_8("onnxruntime", file.handle)
    requested = [
        (name, {key: str(value) for key, value in provider_options.get(name, {}).items()})
        for name in (*providers, *beside)
    ]
    try:
        session = ort.InferenceSession(
            file.handle, options, providers=requested, enable_fallback=False, disabled_optimizers=_WRONG_RULES
        )
    except ort.capi.onnxruntime_pybind11_state.NotImplemented as exc:
        reason = file.named(first_line(exc))
        raise DeviceError(
            f"{path} has an operator that {names} of onnxruntime {ort.__version__} does not implement: {reason}",
            what="providers", where=path, found=reason, hint="choose another device or precision",
        ) from exc  # fmt: skip
    except _LOAD_ERRORS as exc:
        reason = file.named(first_line(exc))
        if providers != (CPU,):
            hint = INSTEAD_OF_CPU if "CPU EP" in str(exc) else None
            raise DeviceError(
                f"{path} does not load on {names}: {reason}", what="providers", where=path, found=reason, hint=hint
            ) from exc
        if not isinstance(exc, _MODEL_ERRORS):
            check_exhaustion(exc, f"loading {path}")
        raise BundleError(
            f"{path} is no model that onnxruntime {ort.__version__} loads: {reason}", where=path, found=reason
        ) from exc
    session.disable_fallback()  # for failed runs, to the CPU: old versions do not know the keyword above
    # ONNX Runtime drops a provider that fails to start, and appends its CPU provider.
    started = session.get_providers()
    if tuple(started[: len(providers)]) != providers:
        advice = _install(name for name in providers if name not in started)
        raise DeviceError(
            f"onnxruntime started {', '.join(started)} instead of {names}",
            what="providers", where=path, expected=providers, found=started,
            hint=f"see its log above{f'; {advice}' if advice else ''}",
        )  # fmt: skip
    return session


@functools.cache
def _preload_libraries() -> None:
    """Load CUDA and cuDNN from NVIDIA's Python packages, which onnxruntime does not search by itself.

    It prints missing libraries. They matter only if the provider does not start, which is then an error.
    """
    preload = getattr(ort, "preload_dlls", None)  # since 1.21
    if preload is not None:
        with contextlib.redirect_stdout(io.StringIO()):
            preload()


def _ort_errors() -> tuple[type[Exception], ...]:
    """Exception types of onnxruntime's C++ core; their only common base class is Exception."""
    state = ort.capi.onnxruntime_pybind11_state
    names = ("EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoModel",
             "NoSuchFile", "NotFound", "NotImplemented", "RuntimeException")  # fmt: skip
    return tuple(getattr(state, name) for name in names if hasattr(state, name))


# Those that quote a model.
_MODEL_ERRORS: tuple[type[Exception], ...] = (
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
)
ENGINE_ERRORS: tuple[type[Exception], ...] = (RuntimeError, ValueError, *_ort_errors())
_LOAD_ERRORS: tuple[type[Exception], ...] = (MemoryError, *ENGINE_ERRORS)
