"""Run an OpenVINO or an ONNX artifact with OpenVINO, without torch and ONNX Runtime."""

from __future__ import annotations

import contextlib
import ctypes
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import BundleError, DeviceError, VitDeployError
from vitdeploy.files.opened import OpenedFile
from vitdeploy.runtimes import formats_of
from vitdeploy.runtimes.base import Runtime
from vitdeploy.runtimes.options import parse_device
from vitdeploy.runtimes.ov.batches import run_images
from vitdeploy.runtimes.ov.model import ENGINE_ERRORS, PRECISIONS, ModelFile, open_model, reasons
from vitdeploy.runtimes.ov.options import DEFAULTS, OpenVINOOptions
from vitdeploy.specs import TensorSpec
from vitdeploy.system.telemetry import without_reporter

with without_reporter():
    import openvino as ov

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.runtimes.device_arrays import DeviceArray

_DTYPES = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "boolean": "bool",
    **{f"{sign}{bits}": f"{kind}int{bits}" for sign, kind in (("i", ""), ("u", "u")) for bits in (8, 16, 32, 64)},
}


class OpenVINORuntime(Runtime):
    """A model that OpenVINO runs on the CPU in the artifact's precision, or does not open.

    Raises:
        DeviceError: If this CPU or this OpenVINO cannot run the model in its precision.
        BundleError: If a file cannot be loaded.
    """

    backend = "openvino"
    options_type = OpenVINOOptions
    _fork_advice = ", or open it with inference_threads=1"

    def __init__(self, source: ModelFile, options: OpenVINOOptions = DEFAULTS) -> None:
        super().__init__()
        model = open_model(source, options)
        self._compiled, self._one_image, self.threads = model.compiled, model.one_image, model.threads
        path = source.file.path
        self.inputs = _specs(path, self._compiled.inputs, source.inputs, model.one_image)
        self.outputs = _specs(path, self._compiled.outputs, source.outputs, model.one_image)
        self.details = {
            "engine": f"openvino {ov.__version__}",
            "device": "cpu",
            "device_name": model.device_name,
            "inference_precision": source.precision,
            "computes_in": model.computes_in,
            "hint": options.hint,
            "streams": self._compiled.get_property("NUM_STREAMS"),
            "one_image_a_run": model.one_image,
            "inference_threads": model.threads.count,
            "threads_reason": model.threads.reason,
            "pinning": options.pinning,
            "memory_map": options.memory_map,
        }

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: OpenVINOOptions, *, precision: str, device: str) -> Self:
        if parse_device(device)[0] != "cpu":
            raise DeviceError(
                f"the openvino backend runs on the CPU, got device {device!r}",
                what="device", found=device, hint="give cpu",
            )  # fmt: skip
        artifact = bundle.artifact(formats_of(cls.backend), precision)
        with bundle.opened_artifact(artifact) as files:
            return cls(_model_file(artifact, files), options)

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        x, y = (TensorSpec(name, "float32", (2, 2)) for name in "xy")
        with resources.as_file(resources.files("vitdeploy.runtimes") / "probe.onnx") as path:
            try:
                with cls(ModelFile(OpenedFile.of(path), (x,), (y,))) as runtime:
                    runtime.run({"x": np.ones((2, 2), np.float32)})
            except VitDeployError as exc:
                return {"cpu": str(exc)}
        return {"cpu": None}

    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = [np.require(feeds[spec.name], requirements=("C", "A", "W")) for spec in self.inputs]
        if self._one_image:
            shapes = {spec: (len(arrays[0]), *map(int, spec.shape[1:])) for spec in self.outputs}  # only batches vary
            results = {spec.name: np.empty(shape, spec.dtype) for spec, shape in shapes.items()}
            with _device_errors():
                run_images(self._compiled, arrays, list(results.values()))
            return results
        request = self._compiled.create_infer_request()  # one per call: threads must not share a request
        _infer(request, arrays)
        return {spec.name: request.get_output_tensor(index).data.copy() for index, spec in enumerate(self.outputs)}

    def _run_device(self, arrays: Mapping[str, DeviceArray]) -> None:
        given, results = ([_as_numpy(arrays[spec.name]) for spec in specs] for specs in (self.inputs, self.outputs))
        if self._one_image:
            with _device_errors():
                run_images(self._compiled, given, results)
            return
        request = self._compiled.create_infer_request()
        for index, array in enumerate(results):
            request.set_output_tensor(index, ov.Tensor(array, shared_memory=True))
        _infer(request, given)

    def _lost_in_fork(self) -> str | None:
        if self.details["inference_threads"] == 1:
            return None  # the caller's thread does all the work
        return "OpenVINO's threads are not in this process"

    def _close(self) -> None:
        del self._compiled


def _infer(request: Any, arrays: Sequence[np.ndarray]) -> None:
    """Run once on arrays for the inputs, in their order, which the request does not keep alive."""
    with _device_errors():
        for index, array in enumerate(arrays):
            request.set_input_tensor(index, ov.Tensor(array, shared_memory=True))
        request.infer()


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    try:
        yield
    except ENGINE_ERRORS as exc:
        reason = reasons(exc)[0]
        raise DeviceError(f"openvino failed to run the model: {reason}", what="openvino", found=reason) from exc


def _model_file(artifact: Artifact, files: Sequence[OpenedFile]) -> ModelFile:
    """The opened files of an artifact; BundleError unless they are those of its format."""
    tensors = artifact.inputs, artifact.outputs
    if artifact.format != "openvino":
        return ModelFile(files[0], *tensors)
    precision = artifact.options.get("inference_precision")
    suffixes = [file.path.suffix for file in files]
    for what, found, expected in (
        ("inference_precision", precision, tuple(PRECISIONS)),
        ("files", suffixes, ([".xml", ".bin"],)),
    ):
        if found not in expected:
            raise BundleError(
                f"{artifact.name} has the {what} {found}, expected {' or '.join(map(str, expected))}",
                what=what, where=files[0].path, expected=expected, found=found, hint="export the bundle again",
            )  # fmt: skip
    return ModelFile(files[0], *tensors, weights=files[1], precision=str(precision))


def _specs(path: Path, ports: Sequence[Any], stated: Sequence[TensorSpec], one_image: bool) -> tuple[TensorSpec, ...]:
    """The tensors of a model's ports; the artifact states the names of dynamic axes, and which of its names one has."""
    expected = [*stated, *[None] * len(ports)]
    return tuple(_spec(path, port, spec, one_image) for port, spec in zip(ports, expected, strict=False))


def _spec(path: Path, port: Any, stated: TensorSpec | None, one_image: bool) -> TensorSpec:
    names, kind, axes = port.get_names(), port.get_element_type().get_type_name(), list(port.get_partial_shape())
    if one_image:
        axes[0] = ov.Dimension.dynamic()  # as before `fix_to_one_image`
    name = stated.name if stated and stated.name in names else min(names, default="")
    if kind not in _DTYPES:
        raise BundleError(f"{path}: '{name}' has type {kind}, which numpy lacks", what=name, where=path, found=kind)
    known = (
        stated.shape if stated and len(stated.shape) == len(axes) else [f"{name}.{axis}" for axis in range(len(axes))]
    )
    shape = (known_axis if axis.is_dynamic else axis.get_length() for axis, known_axis in zip(axes, known, strict=True))
    return TensorSpec(name, _DTYPES[kind], tuple(shape))


def _as_numpy(array: DeviceArray) -> np.ndarray:
    """A view of an array's memory."""
    size = array.dtype.itemsize * int(np.prod(array.shape))
    memory = (ctypes.c_uint8 * size).from_address(array.address)
    return np.ndarray(array.shape, array.dtype, memoryview(memory))
