"""Runtimes: one interface (numpy in, numpy out) over every engine that runs an artifact."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.errors import BundleChangedError, BundleError, UsageError, shown
from vitdeploy.specs import PixelStage
from vitdeploy.system.imports import load_target

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.runtimes.base import Runtime


class Backend(NamedTuple):
    """One row of the table of backends.

    Attributes:
        target: "module:class" of the runtime.
        artifact_format: the format that it runs; None for the reference, which every bundle holds.
        extra: the extra of vitdeploy that installs its engine.
        package: the engine's import name.
        device: what it runs on where none is asked for.
        by_default: whether artifacts of its format are assessed with it where no backend is named.
    """

    target: str
    artifact_format: str | None
    extra: str
    package: str
    device: str = "cpu"
    by_default: bool = True


BACKENDS: dict[str, Backend] = {
    "torch": Backend("vitdeploy.runtimes.pytorch:PyTorchRuntime", None, "torch", "torch"),
    "torchscript": Backend("vitdeploy.runtimes.torchscript:TorchScriptRuntime", "torchscript", "torch", "torch"),
    "onnxruntime": Backend("vitdeploy.runtimes.onnxrt:OnnxRuntime", "onnx", "onnxruntime", "onnxruntime"),
    "onnxruntime-tensorrt": Backend(
        "vitdeploy.runtimes.onnxrt_tensorrt:TensorRTOnnxRuntime",
        "onnx",
        "onnxruntime-gpu",
        "onnxruntime",
        "cuda",
        by_default=False,
    ),
    "tensorrt": Backend("vitdeploy.runtimes.engine.trt:TensorRTRuntime", "tensorrt", "tensorrt", "tensorrt", "cuda"),
    "tensorrt-rtx": Backend(
        "vitdeploy.runtimes.engine.trt_rtx:TensorRTRTXRuntime", "tensorrt-rtx", "tensorrt-rtx", "tensorrt_rtx", "cuda"
    ),
}


def runtime_class(backend: str) -> type[Runtime]:
    """The class behind a backend's name.

    Raises:
        UsageError: there is no such backend.
        MissingDependencyError: its engine is not installed.
        UnavailableError: its engine is installed, and does not load.
    """
    if backend not in BACKENDS:
        raise UsageError(f"a backend must be one of {', '.join(BACKENDS)}, got {shown(backend)}")
    row = BACKENDS[backend]
    cls: type[Runtime] = load_target(row.target, f"the {backend} backend", row.extra, row.package)
    return cls


def open_runtime(
    bundle: Bundle, backend: str, *, precision: str = "fp32", device: str | None = None, **options: Any
) -> Runtime:
    """Open a bundle's artifact with a backend; what is opened is what was verified.

    Where an export has replaced the bundle since it was opened, by one of the same model, the new artifact is opened.

    Args:
        bundle: the bundle.
        backend: a name of `BACKENDS`.
        precision: of the artifact; for torch, of the weights and activations.
        device: "cpu", "cuda" or "cuda:1"; by default the backend's own: "cuda" where TensorRT runs, else "cpu".
        options: of the runtime's constructor.

    Raises:
        UsageError: unknown backend, precision, device or option.
        UnavailableError: the engine is not installed, or does not load.
        DeviceError: the device cannot be had.
        BundleError: a file is missing or altered, or is not what the manifest says.
    """
    from vitdeploy.bundle.retry import MOST_TRIES  # not with the table above, which the command line's help shows

    for _ in range(MOST_TRIES - 1):
        try:
            return open_recorded(bundle, backend, precision=precision, device=device, **options)
        except BundleChangedError:
            bundle = bundle.reopened()
    return open_recorded(bundle, backend, precision=precision, device=device, **options)


def open_recorded(
    bundle: Bundle, backend: str, *, precision: str = "fp32", device: str | None = None, **options: Any
) -> Runtime:
    """`open_runtime` of the very artifact that `bundle.manifest` records.

    Raises:
        BundleChangedError: the bundle was replaced since.
        UsageError, UnavailableError, BundleError: as `open_runtime`.
    """
    cls = runtime_class(backend)
    device = BACKENDS[backend].device if device is None else device
    runtime = cls.from_bundle(bundle, precision=precision, device=device, **options)
    runtime.precision = precision
    artifact_format = BACKENDS[backend].artifact_format
    if artifact_format is not None:
        artifact = bundle.artifact(artifact_format, precision)
        if (runtime.inputs, runtime.outputs) != (artifact.inputs, artifact.outputs):
            runtime.close()
            raise BundleError(
                f"{bundle.path / artifact.files[0].path} must take and give what the manifest says, "
                f"takes {', '.join(map(str, runtime.inputs))} and gives {', '.join(map(str, runtime.outputs))}; "
                f"export the bundle again"
            )
        runtime.pixels, runtime.axes = artifact.pixels, {**artifact.axes, **runtime.axes}
        if artifact.pixels.stage is PixelStage.DECODED:
            from vitdeploy.images.processor import ImageProcessor

            processor = ImageProcessor.from_files(bundle.path, bundle.read_config().files)
            runtime.size_problem = processor.embedded_problem
    return runtime
