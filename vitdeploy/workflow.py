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
from vitdeploy.assess.compare import attention_for, run_batches
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
    from collections.abc import Callable, Sequence

    from vitdeploy.assess.difference import Difference
    from vitdeploy.exporters import Exported
    from vitdeploy.models.vit import VisionTransformer
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.sources import Checkpoint

# Images by their index, in batches of 1, 2 and 7: alone, beside another, and beside several and itself again.
VALIDATION_IMAGES = 3
VALIDATION_BATCHES = ([0], [1, 2], [0, 1, 2, 0, 1, 2, 0])
OTHER_SIZE_BATCHES = ([0], [1, 2])  # where every image size is taken
_WEIGHTS = "model.safetensors"


def export(
    model: str | Path | None = None,
    *,
    to: str = "onnx",
    precision: str = "fp32",
    output: str | os.PathLike[str] | None = None,
    task: str | None = None,
    opset: int | None = None,
    outputs: Sequence[str] | None = None,
    image_size: int | tuple[int, int] | None = None,
    dynamic_image_size: bool = False,
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

    The artifact is compared with the reference on three images, in batches of 1, 2 and 7, and where it takes every
    image size, at a smaller and a larger one too. A bundle that exists at `output` keeps its other artifacts; on any
    failure it stays as it was.

    Args:
        model: a Hub id, a local folder of transformers or timm, or one of Google's `.npz` files.
        to: the format, "onnx".
        precision: the number format, "fp32".
        output: the bundle's folder; by default named after the model, in the working directory.
        task: a value of `vitdeploy.specs.Task`; by default what the checkpoint was made for.
        opset: ONNX opset, 18 to 23; 20 by default.
        outputs: what the artifact gives: names such as "logits"; "hidden_states" and "attentions" stand for those of
            all layers. By default the outputs of the task.
        image_size: (height, width), or one number for both, that the model is to take; by default what its image
            processor gives. Positions are interpolated by the family's rule, once.
        dynamic_image_size: whether the artifact takes images of every size from one patch up, interpolating positions
            itself; the image processor stays as it is.
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
    size = _image_size(image_size)
    if size is not None and dynamic_image_size:
        raise UsageError(f"export needs an image size or a dynamic one, got both: {image_size!r}; leave one out")
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
        hub_options: dict[str, Any] = {"revision": revision, "token": token, "cache_dir": cache_dir, "offline": offline}
        checkpoint = read_checkpoint(
            model, chosen_task, image_size=size, dynamic_image_size=dynamic_image_size, **hub_options
        )
    elif random_weights is not None:
        checkpoint = random_checkpoint(random_weights, chosen_task or Task.CLASSIFICATION, seed, image_size=size)
    else:
        raise UsageError("export needs a model, or random_weights")
    target = Path(Path(checkpoint.source.id).name if output is None else output).resolve()
    check_target(target)
    options = {"outputs": outputs, "dynamic_image_size": dynamic_image_size}
    pixel_values = _validation_images(checkpoint, images, dynamic_image_size=dynamic_image_size)
    with staged_folder(target) as staging:
        on_step(f"exporting to {to} {precision}")
        exported = write(checkpoint.model, staging, **options, **({} if opset is None else {"opset": opset}))
        # Files are written and hashed meanwhile; nothing is traced: torch's tracer changes what all threads see.
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(_reference_outputs, checkpoint.model, pixel_values, exported)
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
        if not all(np.isfinite(value).all() for values in expected for value in values.values()):
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


def _image_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(pair) != 2 or not all(type(edge) is int and edge > 0 for edge in pair):
        raise UsageError(f"image_size must be a positive integer or a pair of them (height, width), got {size!r}")
    return pair[0], pair[1]


def _validation_images(
    checkpoint: Checkpoint, images: str | os.PathLike[str] | None, *, dynamic_image_size: bool
) -> list[np.ndarray]:
    """The images to compare on, (N, 3, H, W), in each of the sizes to compare at."""
    config, processor = checkpoint.model.config, checkpoint.processor
    native = processor.output_size or config.image_size
    if images is None:
        sources: list[Any] = list(synthetic_images(VALIDATION_IMAGES, *native))
    else:
        files = image_files(images)
        sources = [files[index % len(files)] for index in range(VALIDATION_IMAGES)]
    sizes = [native]
    if dynamic_image_size:
        height, width = config.patch_size
        down, across = native[0] // height, native[1] // width
        # Neither square nor whole numbers of patches, as photographs are.
        sizes.append((max(down // 2, 1) * height, (across // 2 + 1) * width + width // 2))
        sizes.append(((down + 2) * height + height // 2, (across + 1) * width))
    return [processor.resized(*size)(sources) if dynamic_image_size else processor(sources) for size in sizes]


def _reference_outputs(
    model: VisionTransformer, pixel_values: list[np.ndarray], exported: Exported
) -> list[dict[str, np.ndarray]]:
    from vitdeploy.runtimes.pytorch import PyTorchRuntime

    names = [spec.name for spec in exported.outputs]
    dynamic = any(isinstance(axis, str) for axis in exported.inputs[0].shape[1:])
    twin = model.with_attention(attention_for(names))
    with PyTorchRuntime(twin, outputs=names, dynamic_image_size=dynamic) as runtime:
        return [runtime.run(feeds(runtime.inputs, pixels)) for pixels in pixel_values]


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
    pixel_values: list[np.ndarray],
    expected: list[dict[str, np.ndarray]],
    tolerance: float,
    images: object,
) -> Manifest:
    """The manifest of a bundle of one artifact, with the record of its agreement with the reference."""
    (artifact,) = bundle.manifest.artifacts
    with open_runtime(bundle, backend, precision=artifact.precision) as runtime:
        found = [
            _differences(runtime, pixels, want, OTHER_SIZE_BATCHES if index else VALIDATION_BATCHES)
            for index, (pixels, want) in enumerate(zip(pixel_values, expected, strict=True))
        ]
        engine = runtime.details["engine"]
    # Of each output, its difference at the image size where that is largest.
    differences = [max(of_one, key=lambda each: each.required_tolerance) for of_one in zip(*found, strict=True)]
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
        "image_sizes": [list(pixels.shape[2:]) for pixels in pixel_values],
        "pixel_values_sha256": fingerprint(*pixel_values),
        "tolerance": tolerance,
        "outputs": [_rounded(difference) for difference in differences],
    }
    return dataclasses.replace(bundle.manifest, artifacts=(dataclasses.replace(artifact, validation=validation),))


def _differences(
    runtime: Runtime, pixel_values: np.ndarray, expected: dict[str, np.ndarray], batches: Sequence[list[int]]
) -> tuple[Difference, ...]:
    """Each output, in batches of these images, against the reference's, which ran every image once."""
    arrays = feeds(runtime.inputs, pixel_values)
    outputs = run_batches(runtime, [{name: array[rows] for name, array in arrays.items()} for rows in batches])
    rows = list(itertools.chain(*batches))
    return compare_outputs({name: value[rows] for name, value in expected.items()}, outputs)


def _rounded(difference: Difference) -> dict[str, Any]:
    """Two digits: enough to judge by, and the same wherever the artifact's bytes are."""
    return {
        key: float(f"{value:.2g}") if isinstance(value, float) and key != "min_cosine" else value
        for key, value in difference.to_dict().items()
    }
