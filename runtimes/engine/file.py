"""A bundle's engine, after the compatibility check and before a library opens it."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleError
from vitdeploy.runtimes.engine.cache import default_cache
from vitdeploy.runtimes.engine.compatibility import check_hardware, check_version, rebuild_line
from vitdeploy.specs import TensorSpec
from vitdeploy.trt.gpu import find_gpu
from vitdeploy.trt.library import LIBRARIES, compiles_on_target


@dataclasses.dataclass(frozen=True)
class EngineFile:
    """An engine and its tensors. Loading an engine can run code: open only verified files.

    Attributes:
        inputs: Input specifications; an engine does not name its axes.
        content: File content, if already read.
        weights: ONNX file with the weights of a weight-stripped engine.
        host_code: True if the engine includes a runtime of its version, which may then run.
        takes_weights: True if it was built for refitting (`EngineRuntime.refit`).
        cache: Default file for its compiled kernels, disposable.
    """

    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    content: bytes | None = None
    weights: Path | None = None
    host_code: bool = False
    takes_weights: bool = False
    cache: Path | None = None


@contextlib.contextmanager
def opened_engine(
    bundle: Bundle, backend: str, precision: str, library: Any, index: int | None
) -> Iterator[EngineFile]:
    """Open the engine of that precision, and its weights for the duration of the block.

    Args:
        backend: Library name, which is the artifact's format.
        index: GPU index; None for the first.

    Raises:
        UnavailableError: If the engine was built for another system, version or GPU, or the GPU is not available.
        BundleError: If a file was altered, or is missing.
    """
    artifact = bundle.artifact(backend, precision)
    (record,) = artifact.files
    path, content = bundle.path / record.path, bundle.read(record)  # can run code: read once
    check_version(bundle, artifact, LIBRARIES[backend].package, library.__version__)
    gpu = find_gpu(index)
    check_hardware(bundle, artifact, gpu)
    engine = EngineFile(
        path, artifact.inputs, artifact.outputs, content,
        host_code=artifact.options.get("version_compatible") is True,
        takes_weights=artifact.options.get("refit") is True,
        cache=default_cache(backend, record, library.__version__, gpu) if compiles_on_target(library) else None,
    )  # fmt: skip
    if artifact.options.get("strip_weights") is not True:
        yield engine
        return
    source, built_from = bundle.artifact("onnx", precision), artifact.options.get("onnx_sha256")
    if [file.sha256 for file in source.files] != built_from:
        raise BundleError(
            f"{path} has no weights of its own, and the ONNX artifact that it was built from is another one now",
            what=source.name, where=path, expected=built_from,
            hint=f"build it again: {rebuild_line(bundle, artifact)}",
        )  # fmt: skip
    with bundle.opened_artifact(source, by_name=True) as (onnx, *_):
        yield dataclasses.replace(engine, weights=onnx.path)
