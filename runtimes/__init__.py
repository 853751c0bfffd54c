"""Runtimes: one interface (numpy in, numpy out) over every engine that runs an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.errors import BundleChangedError, BundleError, NoReferenceError, UsageError, shown
from vitdeploy.specs import PixelStage
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.runtimes.options import RuntimeOptions


class Backend(NamedTuple):
    """One backend.

    Attributes:
        target: "module:class" of the runtime.
        artifact_formats: Artifact formats that it runs, the preferred first: of two artifacts in the same precision, it
            opens that one. Empty for the reference, which every bundle has unless it was packed.
        extra: vitdeploy extra that installs its engine.
        threads_option: Runtime option that sets the number of CPU threads; "" if the number belongs to the process,
            None if it cannot be set.
        by_default: True if artifacts of its first format are assessed with it unless backends are named.
    """

    target: str
    artifact_formats: tuple[str, ...]
    extra: str
    package: str
    device: str = "cpu"
    threads_option: str | None = None
    by_default: bool = True


BACKENDS: dict[str, Backend] = {
    "torch": Backend("vitdeploy.runtimes.pytorch:PyTorchRuntime", (), "torch", "torch", threads_option=""),
    "torchscript": Backend(
        "vitdeploy.runtimes.torchscript:TorchScriptRuntime", ("torchscript",), "torch", "torch", threads_option=""
    ),
    "onnxruntime": Backend(
        "vitdeploy.runtimes.onnxrt.runtime:OnnxRuntime",
        ("onnx",),
        "onnxruntime",
        "onnxruntime",
        threads_option="intra_op_threads",
    ),
    "onnxruntime-tensorrt": Backend(
        "vitdeploy.runtimes.onnxrt.tensorrt_provider:TensorRTOnnxRuntime",
        ("onnx",),
        "onnxruntime-gpu",
        "onnxruntime",
        "cuda",
        threads_option="intra_op_threads",
        by_default=False,
    ),
    "openvino": Backend(
        "vitdeploy.runtimes.ov.runtime:OpenVINORuntime",
        ("openvino", "onnx"),
        "openvino",
        "openvino",
        threads_option="inference_threads",
    ),
    "tensorrt": Backend("vitdeploy.runtimes.engine.trt:TensorRTRuntime", ("tensorrt",), "tensorrt", "tensorrt", "cuda"),
    "tensorrt-rtx": Backend(
        "vitdeploy.runtimes.engine.trt_rtx:TensorRTRTXRuntime",
        ("tensorrt-rtx",),
        "tensorrt-rtx",
        "tensorrt_rtx",
        "cuda",
    ),
}

# Options of a backend beside other work: spinning idle threads would take cores from image decoding and from the next
# backend.
BESIDE_OTHERS: dict[str, dict[str, Any]] = {"onnxruntime": {"allow_spinning": False}}


def runtime_class(backend: str) -> type[Runtime]:
    """The runtime class of a backend.

    Raises:
        UsageError: If there is no such backend.
        MissingDependencyError: If its engine is not installed.
        UnavailableError: If its engine is installed but does not load.
    """
    row = _row(backend)
    cls: type[Runtime] = load_target(row.target, f"the {backend} backend", row.extra, row.package)
    return cls


def formats_of(backend: str) -> tuple[str, ...]:
    """The formats that a backend runs, the preferred first; UsageError if there is no such backend."""
    return _row(backend).artifact_formats


def check_reference(bundle: Bundle) -> None:
    """Raise NoReferenceError if a bundle was packed without the reference's weights."""
    if bundle.manifest.has_reference:
        return
    source = bundle.manifest.source
    again = f", made by: {bundle.export_line()}" if source.revision else ""
    raise NoReferenceError(
        f"{bundle.path} was packed without the weights of its reference, {source}",
        what="reference", where=bundle.path, expected=tuple(bundle.manifest.weights),
        hint=f"use the bundle that it was packed from{again}; or compare with its outputs: --save-golden there, "
        "--golden here",
    )  # fmt: skip


def _row(backend: str) -> Backend:
    if backend not in BACKENDS:
        raise UsageError(
            f"unknown backend {shown(backend)}, expected one of {', '.join(BACKENDS)}",
            what="backend", expected=tuple(BACKENDS), found=backend,
        )  # fmt: skip
    return BACKENDS[backend]


def open_runtime(
    bundle: Bundle,
    backend: str,
    options: RuntimeOptions | Mapping[str, Any] | None = None,
    *,
    precision: str = "fp32",
    device: str | None = None,
) -> Runtime:
    """Open a bundle's artifact with a backend; exactly the verified bytes are opened.

    If an export has since replaced the bundle with one of the same model, the new artifact is opened.

    Args:
        backend: A name of `BACKENDS`.
        options: The `options_type` of the backend's runtime, or its fields by name.
        precision: Precision of the artifact; for torch, of the weights and activations.
        device: "cpu", "cuda" or "cuda:1". Default: "cuda" for TensorRT backends, else "cpu".

    Raises:
        UsageError: If the backend, precision, device or an option is unknown.
        UnavailableError: If the engine is not installed, or does not load.
        DeviceError: If the device is not available.
        BundleError: If a file is missing or altered, or contradicts the manifest.
    """
    from vitdeploy.bundle.retry import MOST_TRIES  # not in the table above, which the command line's help shows

    for _ in range(MOST_TRIES - 1):
        try:
            return open_recorded(bundle, backend, options, precision=precision, device=device)
        except BundleChangedError:
            bundle = bundle.reopened()
    return open_recorded(bundle, backend, options, precision=precision, device=device)


def open_recorded(
    bundle: Bundle,
    backend: str,
    options: RuntimeOptions | Mapping[str, Any] | None = None,
    *,
    precision: str = "fp32",
    device: str | None = None,
) -> Runtime:
    """As `open_runtime`, but only the artifact that `bundle.manifest` records.

    Raises:
        BundleChangedError: If the bundle has been replaced.
        NoReferenceError: If the reference is requested, and the bundle was packed without its weights.
        UsageError, UnavailableError, BundleError: As `open_runtime`.
    """
    row = _row(backend)
    if not row.artifact_formats:
        check_reference(bundle)  # before the check for torch, which would not help
    cls = runtime_class(backend)
    value = cls.options_type.of(backend, options)
    runtime = cls.from_bundle(bundle, value, precision=precision, device=row.device if device is None else device)
    runtime.precision = precision
    if row.artifact_formats:
        artifact = bundle.artifact(row.artifact_formats, precision)
        if (runtime.inputs, runtime.outputs) != (artifact.inputs, artifact.outputs):
            runtime.close()
            path = bundle.path / artifact.files[0].path
            raise BundleError(
                f"{path} differs from the manifest: it takes {', '.join(map(str, runtime.inputs))} and gives "
                f"{', '.join(map(str, runtime.outputs))}",
                what="inputs and outputs", where=path, expected=(artifact.inputs, artifact.outputs),
                found=(runtime.inputs, runtime.outputs), hint="export the bundle again",
            )  # fmt: skip
        runtime.pixels, runtime.axes = artifact.pixels, {**artifact.axes, **runtime.axes}
        if artifact.pixels.stage is PixelStage.DECODED:
            from vitdeploy.images.processor import ImageProcessor

            processor = ImageProcessor.from_files(bundle.path, bundle.read_config().files)
            runtime.size_problem = processor.embedded_problem
    return runtime
