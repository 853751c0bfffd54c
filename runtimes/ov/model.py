"""Open a model with OpenVINO so that nothing but its artifact decides the numbers that it gives."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

from vitdeploy.errors import BundleError, DeviceError, check_utf_8, first_line
from vitdeploy.files.opened import OpenedFile
from vitdeploy.runtimes.ov.layout import rewrite
from vitdeploy.runtimes.ov.options import OpenVINOOptions
from vitdeploy.specs import TensorSpec
from vitdeploy.system.cpu import ThreadCount, session_threads
from vitdeploy.system.exhaustion import check_exhaustion
from vitdeploy.system.imports import openvino_core
from vitdeploy.system.telemetry import without_reporter

with without_reporter():
    import openvino as ov

DEVICE = "CPU"
ENGINE_ERRORS = (RuntimeError, ValueError, TypeError, MemoryError)  # OpenVINO's C++ exceptions in Python
VERSION = ov.__version__.partition("-")[0]
PRECISIONS = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}
_XML = b"<?xml"
_LACKING = re.compile("No conversion rule found for|Unsupported operation|does not support the following")  # operators
_BRANCHES = frozenset({"If", "Loop", "TensorIterator"})
# Types that float32 layers are not to compute in, as the names of the runtime graph's precisions.
_LOWER = frozenset({"bf16", "f16"})
_FLOATING_OR_QUANTIZED = _LOWER | {"f32", "i8", "u8"}
_MOVING = frozenset({"Const", "Convert", "Input", "Output", "Reorder"})  # layers that only move or convert values


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A model's file and tensors.

    Attributes:
        file: An IR's .xml file, or an .onnx file with its external data beside it.
        inputs: Input specifications; OpenVINO does not name dynamic axes.
        weights: An IR's .bin file.
        precision: A key of `PRECISIONS`: element type that floating-point layers compute in, unless the graph itself
            has bfloat16 tensors.
    """

    file: OpenedFile
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    weights: OpenedFile | None = None
    precision: str = "f32"


@dataclasses.dataclass(frozen=True)
class OpenModel:
    """A compiled model.

    Attributes:
        one_image: True if the model takes one image a run, whatever the artifact's batch size.
        computes_in: Element types that its layers compute in.
    """

    compiled: Any
    one_image: bool
    device_name: str
    threads: ThreadCount
    computes_in: list[str]


def open_model(source: ModelFile, options: OpenVINOOptions) -> OpenModel:
    """Read and compile a model for the CPU.

    Raises:
        DeviceError: If the CPU or this OpenVINO cannot run the model in its precision.
        UsageError: If the path is not UTF-8.
        BundleError: If a file is missing or is no model.
    """
    core, path = openvino_core(), source.file.path
    model = _read(core, source, options)
    _check_operators(model, path)
    has_bf16 = any(output.get_element_type() == ov.Type.bf16 for node in model.get_ops() for output in node.outputs())
    if (has_bf16 or source.precision == "bf16") and "BF16" not in core.get_property(
        DEVICE, "OPTIMIZATION_CAPABILITIES"
    ):
        raise DeviceError(
            f"{path} computes in bfloat16, which this CPU does not, so that OpenVINO would compute in float32",
            what="precision", where=path, found="bf16", hint="open another precision",
        )  # fmt: skip
    asked = session_threads(options.inference_threads, variable=None)
    pinned = {
        "INFERENCE_PRECISION_HINT": PRECISIONS[
            source.precision
        ],  # by default bfloat16 or float16, where the CPU has it
        "EXECUTION_MODE_HINT": ov.properties.hint.ExecutionMode.ACCURACY,
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,  # else 8-bit weights alone make their layers' activations 8-bit as well
        "CPU_DENORMALS_OPTIMIZATION": False,
        "ENABLE_CPU_PINNING": options.pinning,
    }
    properties = pinned | {
        "PERFORMANCE_HINT": options.hint.upper(),
        **({"NUM_STREAMS": options.streams} if options.streams else {}),
        **({"INFERENCE_NUM_THREADS": asked.count} if asked.count else {}),
    }
    try:
        one_image = rewrite(model)
        compiled = core.compile_model(model, DEVICE, properties)
    except ENGINE_ERRORS as exc:
        raise _refusal(exc, source) from exc
    for name, value in pinned.items():
        if compiled.get_property(name) != value:
            raise DeviceError(
                f"OpenVINO {VERSION} opened {path} with {name} {compiled.get_property(name)} instead of {value}",
                what=name, where=path, expected=str(value), found=str(compiled.get_property(name)),
            )  # fmt: skip
    computes_in = _computes_in(compiled)
    if source.precision == "f32" and not has_bf16 and not _LOWER.isdisjoint(computes_in):
        raise DeviceError(
            f"OpenVINO {VERSION} computes layers of {path} in {', '.join(computes_in)} instead of float32",
            what="precision", where=path, expected="f32", found=computes_in,
        )  # fmt: skip
    device_name = core.get_property(DEVICE, "FULL_DEVICE_NAME")
    return OpenModel(compiled, one_image, device_name, _threads(compiled, asked), computes_in)


def _read(core: Any, source: ModelFile, options: OpenVINOOptions) -> Any:
    """The model of files that are an IR or ONNX by their content too: OpenVINO has more formats, and looks for them."""
    file, weights = source.file, source.weights
    for opened in (file, *([weights] if weights else [])):
        check_utf_8("openvino", opened.handle)
        if not Path(opened.handle).is_file():
            raise BundleError(f"{opened.path} not found", where=opened.path, expected="a file")
    with Path(file.handle).open("rb") as stream:
        if (stream.read(len(_XML)) == _XML) != (weights is not None):
            kind = "an OpenVINO model" if weights else "an ONNX model"
            raise BundleError(f"{file.path} is not {kind}", where=file.path, expected=kind, hint="export it again")
    try:
        return core.read_model(file.handle, weights and weights.handle, {"ENABLE_MMAP": options.memory_map})
    except ENGINE_ERRORS as exc:
        raise _refusal(exc, source) from exc


def _check_operators(model: Any, path: Path) -> None:
    """Refuse operators that OpenVINO computes otherwise than ONNX defines them, as measured with 2026.4.

    Interpolate ignores `antialias`: smaller sizes differ by as much as the values. The first run of a model with
    branches gives other values than the later ones, NaN among them.
    """
    found = sorted(
        {
            node.get_type_name()
            for node in model.get_ops()
            if node.get_type_name() in _BRANCHES
            or (node.get_type_name() == "Interpolate" and node.get_attributes().get("antialias"))
        }
    )
    if found:
        raise DeviceError(
            f"OpenVINO does not compute {', '.join(found)} of {path} as ONNX defines it",
            what="openvino", where=path, found=found,
            hint="open it with the onnxruntime backend, or export it without a resize in the graph",
        )  # fmt: skip


def _refusal(exc: Exception, source: ModelFile) -> BundleError | DeviceError:
    """The error for a model that OpenVINO does not open; ExhaustedError is raised."""
    path = source.file.path
    check_exhaustion(exc, f"loading {path}")
    lines = reasons(exc)
    lacking = [line for line in lines if _LACKING.search(line)]
    reason = source.file.named((lacking or lines)[0])
    if lacking:
        return DeviceError(
            f"OpenVINO {VERSION} does not run {path}: {reason}",
            what="openvino", where=path, found=reason, hint="choose another backend or precision",
        )  # fmt: skip
    return BundleError(f"{path} is no model that OpenVINO {VERSION} loads: {reason}", where=path, found=reason)


def reasons(exc: Exception) -> list[str]:
    """The lines of OpenVINO's message, without those that are places in its source; at least one line."""
    lines = [line.strip() for line in str(exc).splitlines() if not line.startswith(("Exception from", "Check '"))]
    return [line for line in lines if line] or [first_line(exc)]


def _computes_in(compiled: Any) -> list[str]:
    """Element types that layers compute in, without the integers of shapes."""
    layers = [layer for layer in compiled.get_runtime_model().get_ops() if not _only_moves(layer)]
    return sorted({_note(layer, "runtimePrecision") for layer in layers} & _FLOATING_OR_QUANTIZED)


def _only_moves(layer: Any) -> bool:
    """True also for a fused elementwise layer on float16 inputs: the type that OpenVINO notes is that of the inputs."""
    kind = _note(layer, "layerType")
    sources = {_note(value.get_node(), "layerType") for value in layer.input_values()}
    on_inputs = kind == "Subgraph" and sources - {"Const"} == {"Input"} and _note(layer, "runtimePrecision") == "f16"
    return kind in _MOVING or on_inputs


def _note(layer: Any, name: str) -> str:
    return str(layer.get_rt_info()[name].astype(str))


def _threads(compiled: Any, asked: ThreadCount) -> ThreadCount:
    count = compiled.get_property("INFERENCE_NUM_THREADS")
    if count == asked.count:
        return asked
    reason = f"OpenVINO's limit, {asked.count} asked for" if asked.count else asked.reason
    return ThreadCount(count, reason)
