"""Engines: the ONNX artifact of a bundle, built for a GPU, and proven where there is one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import __version__
from vitdeploy.assess.difference import default_tolerance
from vitdeploy.assess.proof import prove, reference_outputs, samples
from vitdeploy.atomic import exclusive, staged_folder, write_file
from vitdeploy.bundle import Bundle, commit, link
from vitdeploy.engine_options import BATCH, EngineOptions, reach, read_range
from vitdeploy.errors import UnavailableError, UsageError
from vitdeploy.exporters import EXPORTERS
from vitdeploy.manifest import MANIFEST, Artifact, FileRecord, Manifest
from vitdeploy.predictor import load_processor
from vitdeploy.runtimes import open_runtime
from vitdeploy.specs import AxisRange, ExportSpec, PixelStage, Precision, Task
from vitdeploy.tables import load_target

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping

    from vitdeploy.assess.proof import Sample
    from vitdeploy.engine_options import Bounds
    from vitdeploy.runtimes.base import Runtime

NOT_RUN = "not yet run on a GPU"


@dataclasses.dataclass(frozen=True)
class ProofRequest:
    """How an engine is to be compared with the reference.

    Attributes:
        images: a folder of images; None for synthetic ones.
        tolerance: largest difference allowed, relative to each output's largest value; None for the precision's.
    """

    images: str | os.PathLike[str] | None = None
    tolerance: float | None = None


def is_pending(artifact: Artifact) -> bool:
    """Whether an engine was built, and has not been compared with the reference."""
    return artifact.validation.get("status") == NOT_RUN


def add_engine(
    bundle: Bundle,
    to: str,
    precision: str,
    options: EngineOptions,
    *,
    sizes: Bounds | None = None,
    proof: ProofRequest = ProofRequest(),
    on_step: Callable[[str], None] = lambda _: None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Bundle:
    """Build an engine from the bundle's ONNX artifact of a precision, and keep both.

    Where there is a GPU that runs it, the engine is compared with the reference, and kept only if it is the same model.
    Elsewhere the manifest says that it has not run yet; see `prove_engines`.

    Args:
        bundle: the bundle; it stays as it is on any failure.
        to: "tensorrt" or "tensorrt-rtx".
        precision: of the ONNX artifact, and so of the engine.
        options: of the builder.
        sizes: the smallest, the usual and the largest (height, width), where the artifact takes several; by default
            its own limits.
        proof: how to compare.
        on_step: called with what is being done.
        on_progress: called with how much of the build is done, and of how much.

    Raises:
        UsageError: an option is not what it must be, or not the library's; or there is no such ONNX artifact, or it
            cannot be an engine's.
        UnavailableError: the library is not installed, or needs a GPU that is not there.
        CheckFailedError: it refuses the graph, or the engine is another model; nothing was written.
        OutputError: the bundle cannot be written.
    """
    from vitdeploy.exporters.engine_build import EngineRequest

    exporter = EXPORTERS[to]
    source = bundle.artifact(str(exporter.made_from), precision)
    if source.options.get("target") == "cpu":
        raise UsageError(
            f"an engine needs an ONNX artifact that was quantized for TensorRT, {source.name} of {bundle.path} was for "
            f"a CPU; export the model to another output, with --to {to}, which makes one"
        )
    onnx, *_ = bundle.verified(source.files)
    options.check_pixels(source.pixels)
    axes = _limits(source, sizes, options)
    profiles = options.profiles(source.inputs, axes)
    path = bundle.path.resolve()
    name = f"{to}-{precision}"
    cache = path.with_name(f"{path.name}.{to}.timing-cache")
    request = EngineRequest(
        library=to,
        onnx=onnx,
        precision=precision,
        inputs=source.inputs,
        outputs=source.outputs,
        profiles=profiles,
        options=options,
        timing_cache=cache if options.timing_cache is None else Path(options.timing_cache),
        log=path.with_name(f"{path.name}.{name}.log"),
        on_progress=on_progress,
    )
    on_step(f"building {to} {precision}")
    build = load_target(exporter.target, f"exporting to {to}", "export")
    with staged_folder(path) as staging:
        built = build(request, staging, f"{to}/model_{precision}.engine")
        artifact = Artifact(
            format=to,
            precision=precision,
            files=tuple(FileRecord.of(staging, file) for file in built.files),
            inputs=built.inputs,
            outputs=built.outputs,
            pixels=source.pixels,
            axes=reach(profiles),
            options={**built.options, "onnx_sha256": [file.sha256 for file in source.files]},
            tools={"vitdeploy": __version__, **built.tools},
            validation={},
            hardware=built.hardware,
        )
        allowed = default_tolerance(artifact) if proof.tolerance is None else proof.tolerance
        pending = {
            "status": NOT_RUN,
            "images": "none",
            "engine": _engine(artifact),
            "tolerance": allowed,
            "outputs": [],
        }
        artifact = dataclasses.replace(artifact, validation=pending)
        manifest = dataclasses.replace(bundle.manifest, artifacts=(artifact, source))
        for file in source.files:  # of which a stripped engine takes its weights
            (staging / file.path).parent.mkdir(parents=True, exist_ok=True)
            link(bundle.path / file.path, staging / file.path)
        try:
            runtime = _open(Bundle(staging, manifest), artifact)
        except UnavailableError as exc:
            on_step(f"{name} was {NOT_RUN}: {exc}")
        else:
            validation = _proven(runtime, artifact, bundle, proof, on_step)
            artifact = dataclasses.replace(artifact, validation=validation)
        on_step("writing the bundle")
        return commit(staging, path, dataclasses.replace(manifest, artifacts=(artifact, source)))


def prove_engines(
    bundle: Bundle,
    *,
    proof: ProofRequest = ProofRequest(),
    on_step: Callable[[str], None] = lambda _: None,
) -> tuple[Bundle, tuple[str, ...]]:
    """Compare every engine that was not run yet with the reference, on the machine that is to run them.

    Args:
        bundle: the bundle; its manifest is written again.
        proof: how to compare; the tolerance is by default that of the export.
        on_step: called with what is being done.

    Returns:
        The bundle, and the names of the engines that were proven.

    Raises:
        UnavailableError: an engine cannot run here.
        CheckFailedError: one differs from the reference; nothing was written.
        OutputError: the manifest cannot be written.
    """
    found: dict[str, Artifact] = {}
    for artifact in filter(is_pending, bundle.manifest.artifacts):
        allowed = float(artifact.validation["tolerance"]) if proof.tolerance is None else proof.tolerance
        asked = dataclasses.replace(proof, tolerance=allowed)
        validation = _proven(_open(bundle, artifact), artifact, bundle, asked, on_step)
        found[artifact.name] = dataclasses.replace(artifact, validation=validation)
    if found:
        with exclusive(bundle.path.resolve()):
            now = Bundle.open(bundle.path)
            bundle = Bundle(bundle.path, _with(now.manifest, found))
            write_file(bundle.path / MANIFEST, bundle.manifest.to_json().encode())
    return bundle, tuple(found)


def _with(manifest: Manifest, proven: Mapping[str, Artifact]) -> Manifest:
    """The manifest as it is now, with what was proven of the very files that it names."""
    artifacts = [
        proven[each.name] if each.name in proven and proven[each.name].files == each.files else each
        for each in manifest.artifacts
    ]
    return dataclasses.replace(manifest, artifacts=tuple(artifacts))


def _limits(source: Artifact, sizes: Bounds | None, options: EngineOptions) -> dict[str, AxisRange]:
    """The image sizes that an engine is to take, within those of its ONNX artifact."""
    axes = {name: each for name, each in source.axes.items() if name != BATCH}
    if sizes is None:
        return {**axes, **options.decoded_axes(source.pixels, source.inputs[0])}
    if not axes:
        raise UsageError(
            f"image sizes from and to are for an ONNX artifact that interpolates positions, {source.name} does not"
        )
    for (name, every), smallest, usual, largest in zip(axes.items(), *sizes, strict=True):
        if smallest not in every or largest not in every:
            raise UsageError(f"{name} must be {every} in {source.name}, got {smallest}:{usual}:{largest}")
        axes[name] = AxisRange(smallest, usual, largest)
    return axes


def _open(bundle: Bundle, artifact: Artifact) -> Runtime:
    return open_runtime(bundle, EXPORTERS[artifact.format].backend, precision=artifact.precision)


def _proven(
    engine: Runtime, artifact: Artifact, of: Bundle, proof: ProofRequest, on_step: Callable[[str], None]
) -> dict[str, Any]:
    """The record of a comparison with the reference.

    Args:
        engine: is closed.
        artifact: what it runs.
        of: where the reference is.
        proof: how to compare; with a tolerance.
        on_step: called with what is being done.
    """
    with engine as runtime:
        on_step(f"comparing {artifact.name} with the reference")
        images, expected = _reference(of, artifact, proof)
        allowed = default_tolerance(artifact) if proof.tolerance is None else proof.tolerance
        record = prove(runtime, artifact.name, images, expected, allowed)
        device = runtime.details["device"]
    return {"images": "synthetic" if proof.images is None else "given", **record, "device": device}


def _reference(bundle: Bundle, artifact: Artifact, proof: ProofRequest) -> tuple[list[Sample], list[dict[str, Any]]]:
    """Images in every size and number that the engine has limits for, and what the reference gives for them."""
    from vitdeploy.models.checkpoint import load_model
    from vitdeploy.models.config import ViTConfig

    weights = [path for path in bundle.verified(bundle.manifest.files) if path.suffix == ".safetensors"]
    model = load_model(ViTConfig.from_pretrained(bundle.path), weights, Task(bundle.manifest.task))
    axes = {name: each for name, each in artifact.axes.items() if name != BATCH}
    images = samples(model, load_processor(bundle), axes, artifact.pixels.stage, proof.images)
    spec = ExportSpec(
        precision=Precision(artifact.precision),
        outputs=tuple(output.name for output in artifact.outputs),
        dynamic_image_size=bool(axes) and artifact.pixels.stage is not PixelStage.DECODED,
    )
    ranges = [read_range(text) for text in artifact.options["batch"]]
    counts = sorted({size for each in ranges for size in (each.minimum, each.optimum, each.maximum or each.optimum)})
    images = [
        dataclasses.replace(sample, batches=[[index % len(sample.images) for index in range(n)] for n in counts])
        for sample in images
    ]
    return images, reference_outputs(model, images, spec)


def _engine(artifact: Artifact) -> str:
    """The library and its version, as a runtime's details have it."""
    return " ".join(next(item for item in artifact.tools.items() if item[0] != "vitdeploy"))
