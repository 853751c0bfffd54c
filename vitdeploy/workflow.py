"""Export: checkpoint -> reference -> artifact -> proof -> bundle."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__
from vitdeploy.assess.compare import run_batches
from vitdeploy.assess.difference import DEFAULT_TOLERANCES, compare_outputs
from vitdeploy.assess.samples import feeds, fingerprint, image_files, synthetic_images
from vitdeploy.atomic import staged_folder
from vitdeploy.bundle import Bundle, check_target, commit
from vitdeploy.errors import CheckFailedError, CheckpointError, UsageError
from vitdeploy.exporters import export_function, find_exporter
from vitdeploy.manifest import Artifact, FileRecord, Manifest
from vitdeploy.runtimes import open_runtime
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Callable

    from vitdeploy.assess.difference import Difference
    from vitdeploy.exporters import Exported
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.processor import ImageProcessor

# Images by their index, in batches of 1, 2 and 7: alone, beside another, and beside several and itself again.
VALIDATION_IMAGES = 3
VALIDATION_BATCHES = ([0], [1, 2], [0, 1, 2, 0, 1, 2, 0])
_WEIGHTS = "model.safetensors"


def export(
    model: str | Path | None = None,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    output: str | os.PathLike[str] | None = None,
    task: str | None = None,
    opset: int | None = None,
    random_weights: str | None = None,
    seed: int = 0,
    images: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    offline: bool = False,
    on_step: Callable[[str], None] = lambda _: None,
) -> Bundle:
    """Export a checkpoint, prove that the artifact is the same model, and keep both in a bundle.

    The artifact is compared with the reference on three images, in batches of 1, 2 and 7. A bundle that exists at
    `output` keeps its other artifacts; on any failure it stays as it was.

    Args:
        model: a Hub id or a local folder.
        to: the format, "onnx".
        precision: the number format, "fp32".
        output: the bundle's folder; by default named after the model, in the working directory.
        task: a value of `vitdeploy.specs.Task`; by default what the checkpoint was made for.
        opset: ONNX opset, 18 to 23; 20 by default.
        random_weights: instead of `model`, an architecture such as "vit-base-patch16-224", with random weights.
        seed: of the random weights.
        images: a folder; the first three images below it are compared. By default three synthetic images are.
        tolerance: largest difference allowed, relative to each output's largest value; 1e-4 for fp32 by default.
        revision: branch, tag or commit on the Hub.
        token: for private and gated models.
        cache_dir: of the Hub's files; by default huggingface_hub's.
        offline: use the Hub's cache alone.
        on_step: called with what is being done.

    Raises:
        UsageError: an argument is not what it must be, or `output` holds something else.
        CheckpointError: the checkpoint cannot be used, or gives values that are not finite.
        HubError: the Hub cannot be reached.
        MissingDependencyError: a library is not installed.
        CheckFailedError: the artifact differs from the reference; nothing was written.
        OutputError: the bundle cannot be written.
    """
    exporter = find_exporter(to, precision)
    tolerance = DEFAULT_TOLERANCES[precision] if tolerance is None else tolerance
    if not 0 <= tolerance < math.inf:
        raise UsageError(f"tolerance must be a finite number from 0 up, got {tolerance}")
    if model is not None and random_weights is not None:
        raise UsageError(f"export needs a model or random_weights, got both: {model} and {random_weights}")
    if random_weights is not None and revision is not None:
        raise UsageError(f"revision is of a model on the Hub, got {revision!r} with random_weights; leave it out")
    chosen_task = _task(task)
    write = export_function(exporter)  # imports torch and onnx, or says what to install
    from vitdeploy.models.checkpoint import save_model
    from vitdeploy.sources import random_checkpoint, read_checkpoint

    if output is not None:
        if not os.fspath(output):
            raise UsageError("output must name a folder, got ''; leave it out for one named after the model")
        check_target(Path(output))
    on_step("reading the checkpoint")
    if model is not None:
        hub_options = {"revision": revision, "token": token, "cache_dir": cache_dir, "offline": offline}
        checkpoint = read_checkpoint(model, chosen_task, **hub_options)
    elif random_weights is not None:
        checkpoint = random_checkpoint(random_weights, chosen_task or Task.CLASSIFICATION, seed)
    else:
        raise UsageError("export needs a model, or random_weights")
    target = Path(Path(checkpoint.source.id).name if output is None else output).resolve()
    check_target(target)
    pixel_values = _validation_images(checkpoint.processor, images)
    with staged_folder(target) as staging:
        on_step(f"exporting to {to} {precision}")
        exported = write(checkpoint.model, staging, **({} if opset is None else {"opset": opset}))
        # Files are written and hashed meanwhile; nothing is traced: torch's tracer changes what all threads see.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(_reference_outputs, checkpoint.model, pixel_values)
            for name, content in checkpoint.files.items():
                (staging / name).write_bytes(content)
            save_model(checkpoint.model, staging / _WEIGHTS)
            names = sorted((*checkpoint.files, _WEIGHTS))
            manifest = Manifest(
                source=checkpoint.source,
                task=str(checkpoint.model.task),
                files=tuple(FileRecord.of(staging, name) for name in names),
                artifacts=(_artifact(staging, to, precision, exported),),
            )
            expected = running.result()
        if not all(np.isfinite(value).all() for value in expected.values()):
            raise CheckpointError(
                f"{manifest.source.id} must give finite values, gives others; "
                f"mend its weights, or the numbers of its image processor"
            )
        del checkpoint  # its weights, before the artifact's are loaded
        on_step(f"comparing {to} {precision} with the reference")
        manifest = _proven(Bundle(staging, manifest), exporter.backend, pixel_values, expected, tolerance, images)
        on_step("writing the bundle")
        return commit(staging, target, manifest)


def _task(name: str | None) -> Task | None:
    try:
        return None if name is None else Task(name)
    except ValueError as exc:
        raise UsageError(f"task must be one of {', '.join(Task)}, got {name!r}") from exc


def _validation_images(processor: ImageProcessor, images: str | os.PathLike[str] | None) -> np.ndarray:
    count = VALIDATION_IMAGES
    if images is None:
        return processor(synthetic_images(count, *(processor.output_size or ())))
    files = image_files(images)
    return processor([files[index % len(files)] for index in range(count)])


def _reference_outputs(model: VisionTransformer, pixel_values: np.ndarray) -> dict[str, np.ndarray]:
    from vitdeploy.runtimes.pytorch import PyTorchRuntime

    with PyTorchRuntime(model) as runtime:
        return runtime.run(feeds(runtime.inputs, pixel_values))


def _artifact(folder: Path, to: str, precision: str, exported: Exported) -> Artifact:
    return Artifact(
        format=to,
        precision=precision,
        files=tuple(FileRecord.of(folder, name) for name in exported.files),
        inputs=exported.inputs,
        outputs=exported.outputs,
        options=dict(exported.options),
        tools={"vitdeploy": __version__, **exported.tools},
        validation={},
    )


def _proven(
    bundle: Bundle,
    backend: str,
    pixel_values: np.ndarray,
    expected: dict[str, np.ndarray],
    tolerance: float,
    images: object,
) -> Manifest:
    """The manifest of a bundle of one artifact, with the record of its agreement with the reference."""
    (artifact,) = bundle.manifest.artifacts
    with open_runtime(bundle, backend, precision=artifact.precision) as runtime:
        arrays = feeds(runtime.inputs, pixel_values)
        batches = [{name: array[rows] for name, array in arrays.items()} for rows in VALIDATION_BATCHES]
        outputs = run_batches(runtime, batches)
        rows = list(itertools.chain(*VALIDATION_BATCHES))
        expected = {name: value[rows] for name, value in expected.items()}
        differences = compare_outputs(expected, outputs)
        engine = runtime.details["engine"]
    worst = max(differences, key=lambda difference: difference.required_tolerance)
    if not worst.within(tolerance):
        raise CheckFailedError(
            f"{artifact.name} must equal the reference within {tolerance:g} of the largest value of each output, "
            f"{worst.output} differs by {worst.max_relative:.3g} ({worst.max_abs:.3g} in all); "
            f"tolerance {worst.required_tolerance:g} would have passed; nothing was written"
        )
    validation = {
        "backend": backend,
        "engine": engine,
        "images": "synthetic" if images is None else "given",
        "batches": [len(rows) for rows in VALIDATION_BATCHES],
        "pixel_values_sha256": fingerprint(pixel_values),
        "tolerance": tolerance,
        "outputs": [_rounded(difference) for difference in differences],
    }
    return dataclasses.replace(bundle.manifest, artifacts=(dataclasses.replace(artifact, validation=validation),))


def _rounded(difference: Difference) -> dict[str, Any]:
    """Two digits: enough to judge by, and the same wherever the artifact's bytes are."""
    return {
        key: float(f"{value:.2g}") if isinstance(value, float) and key != "min_cosine" else value
        for key, value in difference.to_dict().items()
    }
