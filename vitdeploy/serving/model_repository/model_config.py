"""Configuration of an artifact for Triton Inference Server: a ModelConfig in protobuf's text format.

Fields and rules are from triton-inference-server/common, `protobuf/model_config.proto`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.errors import UsageError, check_count
from vitdeploy.specs import Precision, read_range
from vitdeploy.system.cpu import MOST_THREADS
from vitdeploy.trt.options import DEFAULT_BATCH

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.specs import AxisRange, TensorSpec

LABELS = "labels.txt"
LABELED_OUTPUT = "logits"
_THREADS = "intra_op_thread_count"  # of Triton's onnxruntime backend
_SIZES = ("height", "width")  # images per batch; an engine has its profiles' ranges
_ANY_SIZE = 256  # warm-up size of an axis of any size


class TritonBackend(NamedTuple):
    """One of Triton's backends.

    Attributes:
        name: Triton's backend name.
        platform: Triton's platform name.
        model_file: Model file in a version's folder.
    """

    name: str
    platform: str
    model_file: str


# By artifact format.
TRITON_BACKENDS = {
    "onnx": TritonBackend("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    "tensorrt": TritonBackend("tensorrt", "tensorrt_plan", "model.plan"),
}
_KINDS = {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}
_TYPES = {
    "bool": "TYPE_BOOL",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    **{f"{sign}int{bits}": f"TYPE_{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class Word(str):
    """A keyword of the schema, written without quotes."""

    __slots__ = ()


def triton_backend(artifact_format: str) -> TritonBackend:
    """The backend for a format.

    Raises:
        UsageError: If there is none.
    """
    if artifact_format == "openvino":
        raise UsageError(
            "Triton's openvino backend cannot pin the inference precision: it has HINT_BF16 alone, and computes in "
            "bfloat16 by itself on CPUs that have it", what="artifact", expected=tuple(TRITON_BACKENDS),
            found=artifact_format, hint="export to onnx",
        )  # fmt: skip
    if artifact_format not in TRITON_BACKENDS:
        instead = "tensorrt" if artifact_format == "tensorrt-rtx" else "onnx"
        raise UsageError(
            f"no backend of Triton takes {artifact_format}; it takes {' or '.join(TRITON_BACKENDS)}", what="artifact",
            expected=tuple(TRITON_BACKENDS), found=artifact_format,
            hint=f"export to {instead}",
        )  # fmt: skip
    return TRITON_BACKENDS[artifact_format]


def model_config(
    artifact: Artifact,
    name: str,
    *,
    labeled: bool,
    max_batch_size: int | None = None,
    device: str | None = None,
    threads: int = 0,
) -> str:
    """The content of a `config.pbtxt`.

    Requests are batched on arrival, without delay. Each instance is warmed up at batch 1 and at the largest batch, with
    zeros of the artifact's optimal size.

    Args:
        artifact: Artifact to serve.
        name: Name of the model and its folder.
        labeled: True if the file `LABELS` has the class names of `LABELED_OUTPUT`.
        max_batch_size: Largest batch size. Default: an engine's largest, and for ONNX the default largest of an engine.
        device: "cpu" or "cuda". Default: "cuda" for an engine and for fp16, "cpu" for an artifact quantized for CPUs,
            else the server's GPUs if it has any.
        threads: Threads inside an operator on the CPU, for ONNX. Default: ONNX Runtime's own, one per physical core,
            whatever the cgroup quota of the server.

    Raises:
        UsageError: If Triton cannot serve it, or not with these settings.
    """
    backend = triton_backend(artifact.format)
    _check_artifact(artifact)
    profiles = _profiles(artifact)
    limit = checked_batch_size(artifact, max_batch_size)
    check_count("threads", threads, least=0, most=MOST_THREADS)
    if threads and backend.name != "onnxruntime":
        raise UsageError(
            f"threads apply to ONNX alone, and {artifact.name} is an engine", what="threads", found=threads,
            hint="leave them out",
        )  # fmt: skip
    # The only case in which Triton's documentation recommends them. A batch of 1 is always allowed, and never
    # preferred.
    optima = {profile.optimum for profile in profiles if 1 < profile.optimum <= limit}
    preferred = sorted(optima) if len(profiles) > 1 else []
    batching = {"preferred_batch_size": preferred} if preferred else {}
    group: dict[str, Any] = {"count": 1, "kind": Word(_kind(artifact, device))}
    count = len(profiles) * max(len(artifact.options.get(axis, [0])) for axis in _SIZES)
    if count > 1:  # without a named profile, Triton uses only the first
        group["profile"] = [str(index) for index in range(count)]
    config: dict[str, Any] = {
        "name": name,
        "platform": backend.platform,
        "backend": backend.name,
        "max_batch_size": limit,
        "input": [tensor_field(spec) for spec in artifact.inputs],
        "output": [
            tensor_field(spec) | ({"label_filename": LABELS} if labeled and spec.name == LABELED_OUTPUT else {})
            for spec in artifact.outputs
        ],
        "instance_group": [group],
        **({"dynamic_batching": batching} if limit > 1 else {}),
        "model_warmup": [_warmup(artifact, size) for size in sorted({1, *preferred, limit})],
        **({"parameters": [{"key": _THREADS, "value": {"string_value": str(threads)}}]} if threads else {}),
    }
    return text_format(config)


def text_format(message: Mapping[str, Any]) -> str:
    """A message in protobuf's text format."""
    return "".join(f"{line}\n" for line in _lines(message))


def _check_artifact(artifact: Artifact) -> None:
    if artifact.options.get("target") == "tensorrt":
        raise UsageError(
            f"{artifact.name} was quantized for TensorRT, and Triton's onnxruntime backend runs it as if it were not",
            what="artifact", expected="cpu", found="tensorrt",
            hint="export it with --target cpu, or build an engine with --to tensorrt",
        )  # fmt: skip
    if artifact.format == "onnx" and artifact.precision == Precision.BF16:
        raise UsageError(
            f"{artifact.name} runs nowhere in Triton's onnxruntime backend, whose providers lack kernels for bfloat16",
            what="artifact", found="bf16", hint="build an engine with --to tensorrt, or export fp16",
        )  # fmt: skip
    if artifact.options.get("strip_weights") is True:
        raise UsageError(
            f"{artifact.name} was written without weights, which Triton needs",
            what="artifact", found="strip_weights", hint="build it again without --strip-weights",
        )  # fmt: skip
    specs = (*artifact.inputs, *artifact.outputs)
    for spec in specs:
        if len(spec.shape) < 2 or not isinstance(spec.shape[0], str) or spec.shape[0] != specs[0].shape[0]:
            raise UsageError(
                f"Triton cannot batch along the first axis of {spec} of {artifact.name}",
                what=spec.name, found=spec.shape, hint="export it again",
            )  # fmt: skip
        if spec.dtype not in _TYPES:
            raise UsageError(
                f"Triton has {', '.join(_TYPES)}, got {spec}",
                what=spec.name, expected=tuple(_TYPES), found=spec.dtype, hint="export it with another --io-dtype",
            )  # fmt: skip


def checked_batch_size(artifact: Artifact, asked: int | None) -> int:
    """The largest batch: `asked`, or an engine's, or a default; UsageError if the artifact takes not all from 1 up."""
    profiles = _profiles(artifact)
    if asked is not None:
        check_count("max_batch_size", asked, most=2**31 - 1)
    if not profiles:
        return asked or DEFAULT_BATCH.maximum or DEFAULT_BATCH.optimum
    largest = max(profile.maximum or profile.optimum for profile in profiles)
    limit = largest if asked is None else asked
    if limit > largest:
        raise UsageError(
            f"{artifact.name} was built for batches of at most {largest}, got max_batch_size {limit}",
            what="max_batch_size", expected=largest, found=limit,
        )  # fmt: skip
    # Triton has no smallest batch: it sends whatever is waiting, from one request up.
    for size in range(1, limit + 1):
        if not any(size in profile for profile in profiles):
            raise UsageError(
                f"{artifact.name} takes no batch of {size}, and Triton sends every size from 1 to {limit}",
                what="batch", expected=limit, found=size,
                hint=f"build it with --batch 1:{min(DEFAULT_BATCH.optimum, limit)}:{limit}",
            )  # fmt: skip
    return limit


def _profiles(artifact: Artifact) -> list[AxisRange]:
    """An engine's ranges of batch sizes."""
    return [read_range(text) for text in artifact.options.get("batch", ())]


def _kind(artifact: Artifact, device: str | None) -> str:
    if device is not None and device not in _KINDS:
        raise UsageError(
            f"a Triton model runs on {' or '.join(_KINDS)}, got device {device!r:.80}",
            what="device", expected=tuple(_KINDS), found=device,
        )  # fmt: skip
    if artifact.format != "onnx":
        if device == "cpu":
            raise UsageError(
                f"{artifact.name} runs on an NVIDIA GPU alone, got device 'cpu'",
                what="device", found=device, hint="leave it out",
            )  # fmt: skip
        return "KIND_GPU"
    if device is not None:
        return _KINDS[device]
    if artifact.options.get("target") == "cpu":
        return "KIND_CPU"
    return "KIND_GPU" if artifact.precision == Precision.FP16 else "KIND_AUTO"


def tensor_field(spec: TensorSpec) -> dict[str, Any]:
    """An input or output of a configuration."""
    dims = [axis if isinstance(axis, int) else -1 for axis in spec.shape[1:]]
    return {"name": spec.name, "data_type": Word(_TYPES[spec.dtype]), "dims": dims}


def _warmup(artifact: Artifact, size: int) -> dict[str, Any]:
    """A sample of one image that Triton repeats; zeros, because random bytes may not be valid numbers."""
    inputs = []
    for spec in artifact.inputs:
        dims = [_usual(axis, artifact.axes) for axis in spec.shape[1:]]
        value = {"data_type": Word(_TYPES[spec.dtype]), "dims": dims, "zero_data": True}
        inputs.append({"key": spec.name, "value": value})
    return {"name": f"batch of {size}", "batch_size": size, "inputs": inputs}


def _usual(axis: int | str, axes: Mapping[str, AxisRange]) -> int:
    if isinstance(axis, int):
        return axis
    return axes[axis].optimum if axis in axes else _ANY_SIZE


def _lines(message: Mapping[str, Any], indent: str = "") -> list[str]:
    """A message in protobuf's text format, a field per line; a list of messages is a repeated field."""
    lines = []
    for name, value in message.items():
        messages = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
        for content in messages:
            if isinstance(content, dict):
                lines += [f"{indent}{name} {{", *_lines(content, f"{indent}  "), f"{indent}}}"]
            else:
                lines.append(f"{indent}{name}: {_scalar(content)}")
    return lines


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalar, value))}]"
    if isinstance(value, Word):
        return value
    if isinstance(value, str):
        return '"' + re.sub(r"[^ !#-\[\]-~]", lambda x: "".join(f"\\{byte:03o}" for byte in x[0].encode()), value) + '"'
    return str(value).lower()  # integers and booleans
