"""Build an engine for a GPU from a bundle's ONNX artifact, and validate it if a GPU is present."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy._version import __version__
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.kept_files import link
from vitdeploy.bundle.manifest import Artifact, FileRecord
from vitdeploy.bundle.output_paths import check_outputs
from vitdeploy.bundle.staging import commit
from vitdeploy.errors import (
    BundleError,
    CheckFailedError,
    DeviceError,
    OtherHardwareError,
    UnavailableError,
    UsageError,
    readable,
)
from vitdeploy.exporters import EXPORTERS
from vitdeploy.exporting.engine_validation import NOT_RUN, open_engine, pending, validate_engine
from vitdeploy.files.atomic import staged_folder
from vitdeploy.specs import EMBEDDING_KEYS
from vitdeploy.system.imports import load_target
from vitdeploy.system.progress import SILENT, Progress
from vitdeploy.trt.gpu import find_gpu
from vitdeploy.trt.options import EngineOptions, reach

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitdeploy.exporting.options import ValidationOptions


def add_engine(
    bundle: Bundle,
    to: str,
    precision: str,
    options: EngineOptions,
    *,
    validation: ValidationOptions,
    progress: Progress = SILENT,
) -> Bundle:
    """Build an engine from the bundle's ONNX artifact of the same precision, and store it beside that.

    On a machine whose GPU runs it, the engine is compared with the reference and stored only if it passes. Elsewhere
    the manifest records that it has not run yet; see `validate_engines`.

    Args:
        bundle: The bundle, unchanged on failure.
        to: "tensorrt" or "tensorrt-rtx".

    Raises:
        UsageError: If an option is invalid or not supported by the library, or the ONNX artifact is missing or cannot
            become an engine.
        UnavailableError: If the library is not installed, or needs a GPU that this machine lacks.
        CheckFailedError: If the library refuses the graph, or the engine differs from the reference or fails on this
            GPU. Nothing was written.
        OutputError: If the bundle cannot be written.
    """
    from vitdeploy.exporters.engine.build import EngineRequest

    exporter = EXPORTERS[to]
    source = bundle.artifact(str(exporter.made_from), precision)
    if source.options.get("target") == "cpu":
        raise UsageError(
            f"{source.name} of {bundle.path} was quantized for a CPU, and {to} needs one for TensorRT",
            what="target", where=bundle.path, expected="tensorrt", found="cpu",
            hint=f"export the model to another output, with --to {to}",
        )  # fmt: skip
    profiles = options.profiles(source.inputs, source.pixels, source.axes)
    path = bundle.path.resolve()
    name = f"{to}-{precision}"
    cache = path.with_name(f"{path.name}.{to}.timing-cache")
    log = path.with_name(f"{path.name}.{name}.log")
    timing_cache = cache if options.timing_cache is None else Path(options.timing_cache)
    check_outputs({"the builder's log": log, "the timing cache": timing_cache}, {}, bundle=path)
    progress.step(f"building {to} {precision}")
    build = load_target(exporter.target, f"exporting to {to}", "export")
    with staged_folder(path) as staging, contextlib.ExitStack() as stack:
        onnx = stack.enter_context(_linked(bundle, source, staging))
        for config in bundle.read_config().files:  # a runtime that takes decoded images has the processor's limits
            link(path / config, staging / config)
        request = EngineRequest(
            library=to,
            onnx=onnx,
            precision=precision,
            inputs=source.inputs,
            outputs=source.outputs,
            profiles=profiles,
            options=options,
            timing_cache=timing_cache,
            log=log,
            progress=progress,
        )
        built = build(request, staging, f"{to}/model_{precision}.engine")
        artifact = Artifact(
            format=to,
            precision=precision,
            files=tuple(FileRecord.of(staging, file) for file in built.files),
            inputs=built.inputs,
            outputs=built.outputs,
            pixels=source.pixels,
            axes=reach(profiles),
            options={
                **built.options,
                "onnx_sha256": [file.sha256 for file in source.files],
                **{name: source.options[name] for name in EMBEDDING_KEYS if name in source.options},
            },
            tools={"vitdeploy": __version__, **built.tools},
            validation={},
            hardware=built.hardware,
        )
        artifact = dataclasses.replace(artifact, validation=pending(artifact, validation))
        manifest = dataclasses.replace(bundle.manifest, artifacts=(artifact, source))
        staged = Bundle(staging, manifest)
        artifact = _proven(staged, artifact, bundle, validation, progress)
        progress.step("writing the bundle")
        stack.close()
        with staged.opened(source.files):  # the commit
            pass
        return commit(staging, path, dataclasses.replace(manifest, artifacts=(artifact,)), made_from=source)


@contextlib.contextmanager
def _linked(bundle: Bundle, artifact: Artifact, folder: Path) -> Iterator[Path]:
    """Hard-link an artifact's files into a folder, so that replacing them has no effect here; yield the main file."""
    for file in artifact.files:
        (folder / file.path).parent.mkdir(parents=True, exist_ok=True)
        with readable(bundle.path / file.path, "a file of the bundle"):
            link(bundle.path / file.path, folder / file.path)
    try:
        with Bundle(folder, bundle.manifest).opened_artifact(artifact) as (first, *_):
            yield first.path
    except BundleError as exc:  # the bundle's files, hard-linked here
        error = exc.with_message(str(exc).replace(str(folder), str(bundle.path)))
        error.where = str(exc.where).replace(str(folder), str(bundle.path))
        raise error from exc


def _proven(
    staged: Bundle, engine: Artifact, bundle: Bundle, validation: ValidationOptions, progress: Progress
) -> Artifact:
    """The engine after comparison with the reference, if this machine has the GPU it was built for.

    Raises:
        CheckFailedError: If it fails there, or differs from the reference.
    """
    why: UnavailableError
    try:
        gpu = find_gpu()
    except UnavailableError as exc:
        why = exc
    else:
        try:
            record = validate_engine(open_engine(staged, engine), engine, bundle, validation, progress)
            return dataclasses.replace(engine, validation=record)
        except OtherHardwareError as exc:
            why = exc
        except DeviceError as exc:
            raise CheckFailedError(
                f"{engine.name} does not run on {gpu.name}: {exc}; nothing was written",
                what=engine.name,
                where=gpu.name,
            ) from exc
    progress.step(f"{engine.name} was {NOT_RUN}: {why}")
    return engine
