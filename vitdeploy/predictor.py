"""Images in, labelled predictions out: image processor, runtime and labels behind one call."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.bundle.scores import ProblemType, default_problem_type
from vitdeploy.errors import BundleError, NotFiniteError, UsageError, check_count, shown, typed_line
from vitdeploy.images.open import image_name
from vitdeploy.images.processor import ImageProcessor, as_batch
from vitdeploy.runtimes.choice import choose_opening, open_choice
from vitdeploy.runtimes.fit import check_classes, check_fit
from vitdeploy.runtimes.warmed_shapes import WarmedShape, warm
from vitdeploy.specs import MOST_A_BATCH, POOLS, PixelStage, Pool, Precision, Task
from vitdeploy.system.argument_types import check_type, typed
from vitdeploy.system.closing import ClosedOnExit
from vitdeploy.system.forks import ThreadPool

if TYPE_CHECKING:
    from vitdeploy.bundle.manifest import Artifact
    from vitdeploy.images.open import ImageSource
    from vitdeploy.models.layers.pooling import Pooling
    from vitdeploy.runtimes.base import Runtime

DEFAULT_TOP_K, DEFAULT_BATCH_SIZE = 5, 8


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One class or output of the model for one image.

    Attributes:
        label: Name of the class or output.
        index: Position in the logits.
        score: Probability, 0 to 1; for a regression, the model's raw value.
    """

    label: str
    index: int
    score: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Predictor(ClosedOnExit):
    """A bundle opened with one backend. A context manager; `predict` and `embed` are thread-safe.

    Raises:
        UsageError: If the problem type is unknown.

    Attributes:
        processor: Turns images into the runtime's input.
        runtime: Runs the artifact.
        readers: Threads that read images; they end with `close`.
        labels: Class names, in the order of the logits.
        problem_type: How logits become scores. Default, as in transformers' pipeline if `config.json` states none:
            sigmoid for one label, softmax for more.
        config: Content of the model's `config.json`; empty for a predictor assembled from parts without it.
        fingerprint: SHA-256 of the checksums of the files in use; None for a predictor assembled from parts.
        batch_size: Images per run unless `predict` or `embed` is told otherwise: 8, or that of the tuned choice in use.
        details: The bundle, its commit on the Hub, task, backend, precision, the other artifacts that could have been
            opened, and the files in use; for a tuned bundle, `tuned`: its choice, whether it is in use, and how this
            machine differs from the one measured. Empty for a predictor assembled from parts.
    """

    def __init__(
        self,
        processor: ImageProcessor,
        runtime: Runtime,
        labels: Sequence[str],
        problem_type: ProblemType | str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        config: Mapping[str, Any] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        self.processor = processor
        self.runtime = runtime
        self.labels = tuple(labels)
        self.problem_type = _problem_type(problem_type, len(self.labels))
        self.details = dict(details or {})
        self.config = dict(config or {})
        self.fingerprint = fingerprint
        self.readers = ThreadPool("vitdeploy-read")
        tuned = self.details.get("tuned")
        self.batch_size: int = tuned["batch_size"] if tuned and tuned["in_use"] else DEFAULT_BATCH_SIZE

    def predict(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        top_k: int | None = None,
        batch_size: int | None = None,
    ) -> list[list[Prediction]]:
        """Predict the top classes of each image, best first; or a regression's values, in the order of its outputs.

        Scores equal those of transformers' image-classification pipeline: softmax of the logits; sigmoid for
        multi-label models and for models with one output; the logits themselves for a regression.

        Args:
            images: See `ImageProcessor`; an empty list gives no predictions.
            top_k: Classes per image, at least 1. Default: 5, or all if there are fewer. Not for a regression.
            batch_size: Images per run, at least 1. Default: the attribute of that name.

        Raises:
            UsageError: If the model is not a classifier, or an argument is invalid.
            ImageError: If an image cannot be read.
            NotFiniteError: If the logits of an image are NaN or infinite.
        """
        top_k = self.classes_asked(top_k)
        predictions: list[list[Prediction]] = []
        for part, start, pixel_values in self._batches(images, batch_size):
            logits = self.logits(pixel_values)
            self.check_finite("logits", logits, part, start)
            predictions.extend(self.best(logits, top_k))
        return predictions

    def classes_asked(self, top_k: int | None) -> int:
        """Number of predictions per image for the `top_k` of `predict`; raises UsageError as `predict`."""
        names = [spec.name for spec in self.runtime.outputs]
        if "logits" not in names:
            raise UsageError(
                f"predict needs logits, the outputs of this model are {', '.join(names)}",
                what="outputs", expected="logits", found=names, hint="call runtime.run",
            )  # fmt: skip
        if not self.labels:
            raise UsageError("predict needs class names, this model has none", what="labels", hint="call runtime.run")
        if self.problem_type is ProblemType.REGRESSION:
            if top_k is None:
                return len(self.labels)
            hint = "leave it out for all values"
            raise UsageError("top_k ranks classes, this model is a regression", what="top_k", found=top_k, hint=hint)
        top_k = DEFAULT_TOP_K if top_k is None else top_k
        check_count("top_k", top_k)
        return min(top_k, len(self.labels))

    def best(self, logits: np.ndarray, top_k: int) -> list[list[Prediction]]:
        """The result of `predict` for logits, (N, num_labels) float32 and finite."""
        rows = zip(*(values.tolist() for values in self.problem_type.best(logits, top_k)), strict=True)
        return [
            [Prediction(self.labels[index], index, score) for index, score in zip(indices, scores, strict=True)]
            for indices, scores in rows
        ]

    def embed(
        self,
        images: ImageSource | Sequence[ImageSource],
        *,
        pool: Pool | None = None,
        normalize: bool = False,
        batch_size: int | None = None,
    ) -> np.ndarray:
        """Compute one vector per image: (N, D) float32, in the order of the images.

        The vectors are those that the bundle was exported with. Of one without a pooling, they are the artifact's
        `image_embeds` if it has them, else its `pooler_output`, else the family's pooling of its `last_hidden_state`,
        which is computed here; see docs/reference/models.md.

        Args:
            images: See `ImageProcessor`; an empty list gives (0, D).
            pool: Another pooling: "cls", "mean", "cls+mean", "pooler" or "projection".
            normalize: Divide each vector by its L2 norm; a zero vector stays zero. A bundle exported with `normalize`
                has normalized vectors of its own pooling in any case.
            batch_size: Images per run, at least 1. Default: the attribute of that name.

        Raises:
            UsageError: If the artifact has no features or not those of the pooling, or an argument is invalid.
            ImageError: If an image cannot be read.
            NotFiniteError: If the vector of an image is NaN or infinite.
        """
        pooling = self.pooling(pool)
        check_type("normalize", normalize, bool)
        vectors = [np.empty((0, pooling.width), np.float32)]
        for part, start, pixel_values in self._batches(images, batch_size):
            pooled = pooling(self.runtime.run({"pixel_values": pixel_values}), normalize=normalize)
            self.check_finite(pooling.output, pooled, part, start)
            vectors.append(pooled)
        return np.concatenate(vectors)

    def warm_up(
        self,
        batch_sizes: Sequence[int] | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        *,
        callers: int = 1,
    ) -> tuple[WarmedShape, ...]:
        """Preprocess and run every batch size with every image size once, so that the first request is not slow.

        Args:
            batch_sizes: Images per run. Default: 1 and the attribute `batch_size`, within the artifact's limits.
            image_sizes: (height, width) of the model's input. Default: the image processor's output size.
            callers: Threads of the application that call at a time. With more than one, each shape then runs that many
                times at once, so that memory has the size that it keeps.

        Returns:
            The seconds of each first run, in the order of the arguments.

        Raises:
            UsageError: If the artifact does not take one of the shapes; nothing has run then.
            DeviceError: If the engine failed, for example out of memory.
        """
        usual = batch_size_for(self.processor, self.runtime, self.batch_size)
        return warm(
            self.runtime, self.processor, batch_sizes, image_sizes, callers=callers, usual=usual, pool=self.readers
        )

    def pooling(self, pool: Pool | None = None) -> Pooling:
        """The step from this artifact's outputs to the vectors of `embed`.

        Raises:
            UsageError: As `embed`, with the command that exports an artifact which has them.
        """
        from vitdeploy.models.layers.pooling import Pooling  # not needed for predictions

        try:
            return Pooling.choose(self.config, self.runtime.outputs, pool)
        except UsageError as exc:
            if "bundle" not in self.details or pool not in (None, *POOLS):
                raise
            wanted = () if pool is None else ("--pool", pool)
            line = typed_line("export", self.details["bundle"], "--task", Task.FEATURES, *wanted, "-o", "DIR")
            hint = f"export another artifact: {line}"
            raise UsageError(str(exc), what=exc.what, expected=exc.expected, found=exc.found, hint=hint) from exc

    def _batches(
        self, images: ImageSource | Sequence[ImageSource], batch_size: int | None
    ) -> Iterator[tuple[Sequence[ImageSource], int, np.ndarray]]:
        """Yield parts of the images, the index of the first, and the runtime's input."""
        batch_size = self.batch_size if batch_size is None else batch_size
        check_count("batch_size", batch_size)
        batch_size = batch_size_for(self.processor, self.runtime, batch_size)
        batch = as_batch(images)
        for start in range(0, len(batch), batch_size):
            part = batch[start : start + batch_size]
            yield part, start, self.processor(part, pixels=self.runtime.pixels, first_index=start, pool=self.readers)

    def logits(self, pixel_values: np.ndarray) -> np.ndarray:
        """Run preprocessed images in the runtime's format, (N, ...) -> (N, num_labels) float32, finite or not."""
        return self.runtime.run({"pixel_values": pixel_values})["logits"].astype(np.float32, copy=False)

    def close(self) -> None:
        """Close the runtime after the runs in progress, and end the threads that read images."""
        self.runtime.close()
        self.readers.close()

    def __repr__(self) -> str:
        commit = f"@{self.details['revision'][:7]}" if "revision" in self.details else ""
        named = [repr(f"{self.details['bundle']}{commit}"), self.details["task"]] if self.details else []
        labels = f"{len(self.labels)} labels" if self.labels else "no labels"
        return f"<Predictor {self.runtime.brief}: {', '.join([*named, labels])}>"

    def check_finite(self, output: str, values: np.ndarray, images: Sequence[ImageSource], first_index: int) -> None:
        """Raise NotFiniteError if values (N, D) of an output have NaN or infinite ones; it names their images."""
        rows = np.flatnonzero(~np.isfinite(values).all(axis=1)).tolist()
        if rows:
            names = [image_name(images[row], default=f"images[{first_index + row}]") for row in rows]
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            hint = "compare it with the reference"
            if "bundle" in self.details:
                hint += f": {typed_line('compare', self.details['bundle'])}"
            if self.runtime.precision not in (None, Precision.FP32):
                hint = f"try fp32 instead of {self.runtime.precision}, and {hint}"
            problem = f"the model gives NaN or infinite {output} for {names[0]}{others}"
            raise NotFiniteError(problem, what=output, found=names, hint=hint)


def _problem_type(given: ProblemType | str | None, num_labels: int) -> ProblemType:
    if given is None:
        return default_problem_type(num_labels)
    try:
        return ProblemType(given)
    except ValueError as exc:
        known = [str(kind) for kind in ProblemType]
        problem = f"unknown problem_type {shown(given, 80)}, expected one of {', '.join(known)}"
        raise UsageError(problem, what="problem_type", expected=known, found=given) from exc


@typed
@retry_if_changed
def load(
    path: str | os.PathLike[str],
    *,
    backend: str | None = None,
    precision: str | None = None,
    artifact: str | None = None,
    device: str | None = None,
    public_key: str | os.PathLike[str] | None = None,
    beside_decoding: bool = False,
    **options: Any,
) -> Predictor:
    """Open a bundle's folder for prediction: `vitdeploy.load`, which has the same arguments, without the Hub."""
    bundle = Bundle.open(path, public_key=public_key)
    config, processor = bundle.read_config(), load_processor(bundle)
    labels, problem_type = config.labels, config.problem_type
    chosen = choose_opening(
        bundle, backend, precision, device, options, artifact=artifact, beside_decoding=beside_decoding
    )
    opened = open_choice(chosen, device)
    runtime, opening = opened.runtime, opened.opening
    try:
        check_fit(bundle, processor, runtime)
        if labels and any(spec.name == "logits" for spec in runtime.outputs):
            check_classes(bundle, labels, runtime)
    except BundleError:
        runtime.close()
        raise
    files = [record.path for record in opening.records]
    details = {
        "bundle": str(path), "task": bundle.manifest.task, "backend": opening.backend, "precision": opening.precision,
        "other_artifacts": opening.others, "files": files, **({} if opened.tuned is None else {"tuned": opened.tuned}),
    }  # fmt: skip
    return Predictor(
        processor, runtime, labels, problem_type, details=details, config=config.model, fingerprint=opening.fingerprint
    )


def load_processor(bundle: Bundle) -> ImageProcessor:
    """The image processor of a bundle, from verified files.

    Raises:
        BundleError: If a file is missing, altered, or unknown to the manifest.
    """
    return ImageProcessor.from_files(bundle.path, bundle.read_config().files)


def check_batch_size(size: int) -> None:
    """Raise UsageError unless the batch size is valid."""
    check_count("batch_size", size, most=MOST_A_BATCH)


def batch_size_for(processor: ImageProcessor, of: Runtime | Artifact, wanted: int) -> int:
    """`wanted`, or the largest batch of an engine; 1 if preprocessed images keep different sizes."""
    if of.pixels.stage is PixelStage.DECODED or processor.output_size is None:
        return 1
    axis = of.inputs[0].shape[0]
    limit = of.axes[axis].maximum if isinstance(axis, str) and axis in of.axes else None
    return wanted if limit is None else min(wanted, limit)
