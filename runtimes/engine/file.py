"""The engine of a bundle, held to this machine before a library opens it."""

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
    """An engine and its tensors. Loading one can run code: open only files that are verified.

    Attributes:
        inputs: That it takes; an engine does not name its axes.
        content: Of the file, where it was read already.
        weights: The ONNX file of an engine that was written without weights.
        host_code: Whether the engine brings a runtime of its own version, which may then run.
        takes_weights: Whether it was built to be given other weights (`EngineRuntime.refit`).
        cache: The file for its compiled kernels where the caller names none; it may be replaced, or left unwritten.
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
    """The engine of that precision, and its weights as long as the block lasts.

    Args:
        backend: The library's name, which is the artifact's format.
        index: Of the GPU; None for the first.

    Raises:
        UnavailableError: If the engine was built for another system, version or GPU, or the GPU cannot be had.
        BundleError: If a file was altered, or is missing.
    """
    artifact = bundle.artifact(backend, precision)
    (record,) = artifact.files
    path, content = bundle.path / record.path, bundle.read(record)  # it can run code: read once
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
