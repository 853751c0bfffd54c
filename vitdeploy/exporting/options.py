"""Export options other than the graph's: frozen values that validate themselves. None needs torch."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Literal

from vitdeploy.errors import UsageError, shown
from vitdeploy.files.user_cache import user_cache
from vitdeploy.images.processor_options import ProcessorOptions
from vitdeploy.sources.architectures.weights_options import WeightsFile
from vitdeploy.specs import SEEDS, Task
from vitdeploy.system.option_fields import check_options, described, option
from vitdeploy.system.shares import read_drop, read_share, read_tolerance

PathLike = str | os.PathLike[str]

TARGETS = ("cpu", "tensorrt")
SCHEMES = ("static", "dynamic")
_BOUND, _HUB = "Accuracy bound", "Hub"  # headings in the help
METHODS = ("auto", "minmax", "entropy", "percentile", "mse")


@described
@dataclasses.dataclass(frozen=True)
class Calibration:
    """Calibration images, on which activation ranges are measured.

    Ranges are measured on half of the images, candidates are compared on a quarter, and the artifact is judged on the
    last quarter. With fewer than 16 images, all are used for everything, and no candidates are compared.

    Raises:
        UsageError: If an option is invalid.
    """

    images: PathLike = option(
        dataclasses.MISSING,
        "Calibration images, similar to production images: a folder, or a data set as for vitdeploy evaluate.",
        path=True,
        typed="calibration_data",
    )
    method: str = option(
        "auto",
        "Calibration method; auto is minmax with a margin of 10%.",
        choices=METHODS,
        typed="calibration",
    )
    count: int = option(
        512, "Maximum number of images, sampled by name and seed.", limits=(1, 2**31 - 1),
        typed="calibration_images",
    )  # fmt: skip
    cache: PathLike | Literal[False] | None = option(
        None,
        "Cache folder for measured ranges, keyed by the content of images and model; in Python, False for none.",
        path=True,
        typed="calibration_cache",
        off="no_calibration_cache",
        unset="the user's cache folder",
    )
    seed: int = option(0, "Seed for sampling images.", limits=SEEDS, shared=True)

    def __post_init__(self) -> None:
        check_options(self, skip="cache" if self.cache is False else None)

    @property
    def cache_folder(self) -> Path | None:
        """The folder that caches measured ranges; None for no cache."""
        if self.cache is None:
            cache = user_cache()
            return None if cache is None else cache / "ranges"
        return None if self.cache is False else Path(self.cache)


@dataclasses.dataclass(frozen=True, init=False)
class MaxDrop:
    """Largest loss of top-1 accuracy on labelled images against the reference, such as 0.5%.

    Attributes:
        limit: Fraction, at least 0 and below 1; 0.005 and "0.5%" are equal.
    """

    limit: float

    def __init__(self, limit: float | str) -> None:
        object.__setattr__(self, "limit", read_drop(limit, "max_drop"))

    def __str__(self) -> str:
        return f"max_drop {100 * self.limit:.12g}%"


@dataclasses.dataclass(frozen=True, init=False)
class MinAgreement:
    """Smallest share of images with the reference's top-1 class, such as 99%; needs no labels.

    Attributes:
        limit: Fraction, above 0 and at most 1; 0.99 and "99%" are equal.
    """

    limit: float

    def __init__(self, limit: float | str) -> None:
        object.__setattr__(self, "limit", read_share(limit, "min_agreement"))

    def __str__(self) -> str:
        return f"min_agreement {self.limit:.12g}"


@dataclasses.dataclass(frozen=True, init=False)
class MinCosine:
    """Smallest cosine similarity with the reference (5th percentile over images), such as 0.99.

    It is measured on the pooled output and the class token (for a model without one, the mean of the patches), or on a
    classifier's logits.

    Attributes:
        limit: Cosine, above 0 and below 1; 0.99 and "99%" are equal.
    """

    limit: float

    def __init__(self, limit: float | str) -> None:
        expected = "a cosine above 0 and below 1, such as 0.99 or 99%"
        object.__setattr__(self, "limit", read_share(limit, "min_cosine", expected, lambda share: 0 < share < 1))

    def __str__(self) -> str:
        return f"min_cosine {self.limit:.12g}"


AccuracyBound = MaxDrop | MinAgreement | MinCosine


def check_bound(value: object) -> None:
    """Raise UsageError unless it is an accuracy bound."""
    if not isinstance(value, AccuracyBound):
        hint = "give MaxDrop, MinAgreement or MinCosine"
        raise UsageError(f"{shown(value, 80)} is no accuracy bound", what="accuracy", found=value, hint=hint)


@described
@dataclasses.dataclass(frozen=True)
class Quantization:
    """Options of quantization to int8 or fp8.

    With an accuracy bound, layers stay float32, the most sensitive first, until the bound holds and none of them is
    unnecessary. A quarter of its images is held out from the search, and the artifact must meet the bound on that
    quarter too. With fewer than 16 images, none is held out.

    Raises:
        UsageError: If an option is invalid, or requires another one.
    """

    calibration: Calibration | None = option(None, "Images to calibrate on.", nested=Calibration)
    target: str | None = option(
        None,
        "Runtime that the quantized graph is built for.",
        choices=TARGETS,
        unset="cpu for ONNX and OpenVINO int8, tensorrt for engines and fp8",
    )
    scheme: str | None = option(
        None,
        "int8 ranges on a CPU: from calibration images (static) or at run time (dynamic).",
        choices=SCHEMES,
        unset="dynamic without images; with images static, or dynamic if its error is less than half",
    )
    reduce_range: bool = option(
        False, "Quantize weights to 7 bits (int8 on a CPU); prevents overflow on x86 without VNNI."
    )
    rest: str | None = option(
        None,
        "Precision of the layers that are not quantized: fp16 for TensorRT, bf16 for OpenVINO.",
        choices=("fp16", "bf16"),
        unset="fp32",
    )
    smooth_quant: float | str = option(
        "auto",
        "SmoothQuant: auto applies it if it lowers the error; off, or a strength from 0 to 1.",
        metavar="auto|off|STRENGTH",
    )
    accuracy: AccuracyBound | None = option(
        None,
        "Accuracy bound; layers stay float32 to meet it.",
        group=_BOUND,
        variants={"max_drop": MaxDrop, "min_agreement": MinAgreement, "min_cosine": MinCosine},
    )
    accuracy_data: PathLike | None = option(
        None,
        "Images for measuring the accuracy bound.",
        path=True,
        unset="the calibration images",
        group=_BOUND,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if not isinstance(self.smooth_quant, str) or self.smooth_quant not in ("auto", "off"):
            expected = "auto, off or a number from 0 to 1"
            smooth = read_share(self.smooth_quant, "smooth_quant", expected, lambda share: 0 <= share <= 1)
            object.__setattr__(self, "smooth_quant", float(smooth))
            if self.calibration is None:
                raise UsageError("smooth_quant needs calibration images", what="smooth_quant", found=smooth)
        if self.accuracy is not None:
            check_bound(self.accuracy)
        if self.accuracy_data is not None and self.accuracy is None:
            raise UsageError(
                "accuracy_data needs an accuracy bound", what="accuracy_data", found=self.accuracy_data,
                hint="add max_drop, min_agreement or min_cosine",
            )  # fmt: skip
        if self.accuracy is not None and (self.calibration is None or self.scheme == "dynamic"):
            raise UsageError(
                f"{self.accuracy} needs fixed ranges", what="accuracy", found=self.scheme,
                hint="give calibration images, and leave the scheme dynamic out: its outputs depend on the batch",
            )  # fmt: skip

    @classmethod
    def of(cls, value: Quantization | PathLike | None) -> Quantization | None:
        """The value itself, or `Quantization` with a folder of calibration images."""
        return value if value is None or isinstance(value, Quantization) else cls(Calibration(value))


@described
@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """Options for reading a checkpoint.

    Raises:
        UsageError: If an option is invalid.
    """

    task: Task | str | None = option(
        None, "Task.", choices=tuple(task.value for task in Task), unset="the checkpoint's task"
    )
    class_embeddings: PathLike | None = option(
        None,
        "An .npz file of class embeddings, which make a zero-shot classifier of the model's image embeddings.",
        path=True,
    )
    random_weights: str | None = option(
        None, "Architecture with random weights, such as vit-base-patch16-224, instead of a model.", metavar="PRESET"
    )
    weights: WeightsFile | None = option(
        None, "Weights without a configuration, with the name of their architecture, instead of a model.",
        nested=WeightsFile,
    )  # fmt: skip
    seed: int = option(0, "Seed for random weights and for sampling calibration images.", limits=SEEDS)
    revision: str | None = option(None, "Branch, tag or commit on the Hub.", group=_HUB)
    token: str | None = option(
        None, "Hub token, for private and gated models.", envvar="HF_TOKEN", secret=True, group=_HUB
    )
    cache_dir: PathLike | None = option(
        None, "Cache folder for Hub files.", path=True, unset="huggingface_hub's", group=_HUB
    )
    offline: bool = option(False, "Use the Hub's cache only.", group=_HUB)
    processor: ProcessorOptions | None = option(
        None,
        "Replacement for the checkpoint's image processor, or settings; required if the checkpoint has none.",
        nested=ProcessorOptions,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.task is not None:
            object.__setattr__(self, "task", Task(self.task))
        for name in ("random_weights", "weights"):
            if getattr(self, name) is not None and self.revision is not None:
                raise UsageError(
                    f"revision applies to a model on the Hub, not to {name}, got {shown(self.revision, 80)}",
                    what="revision", found=self.revision, hint="leave it out",
                )  # fmt: skip
        if self.random_weights is not None and self.weights is not None:
            raise UsageError(
                "random_weights and weights exclude each other",
                what="weights", found=self.weights.path, hint="leave one out",
            )  # fmt: skip
        if self.class_embeddings is not None and self.task not in (None, Task.CLASSIFICATION):
            raise UsageError(
                f"class_embeddings make a classifier, and the task is {self.task}",
                what="task", expected=Task.CLASSIFICATION, found=self.task, hint="leave one of them out",
            )  # fmt: skip
        if self.class_embeddings is not None and self.random_weights is not None:
            raise UsageError(
                "class_embeddings apply to the model that they were made with, not to random_weights",
                what="class_embeddings", found=self.class_embeddings, hint="give a model",
            )  # fmt: skip


@described
@dataclasses.dataclass(frozen=True)
class ValidationOptions:
    """Options for comparing an artifact with the reference.

    Without a tolerance, int8 and fp8 are judged by the cosine similarity of each image's outputs; see
    `vitdeploy.assess.metrics.cosine_bound`.

    Raises:
        UsageError: If an option is invalid.
    """

    images: PathLike | None = option(
        None,
        "Image folder; the first three images are compared.",
        path=True,
        unset="synthetic images; for an engine, its calibration images",
    )
    tolerance: float | None = option(
        None,
        "Largest difference, relative to the largest value of each output.",
        unset="by precision",
        metavar="SHARE",
        read=read_tolerance,
    )

    def __post_init__(self) -> None:
        check_options(self)
        if self.tolerance is not None:
            object.__setattr__(self, "tolerance", read_tolerance(self.tolerance))
