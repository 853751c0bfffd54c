"""Which nodes of a bundle's graph must stay in float32 for a lower precision to pass."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.bisect import smallest_kept
from vitdeploy.assess.compare import Batches, run_batches, run_reference
from vitdeploy.assess.difference import compare_outputs, default_tolerance
from vitdeploy.assess.samples import image_files, images_for
from vitdeploy.bundle import Bundle
from vitdeploy.errors import UsageError
from vitdeploy.predictor import load_processor
from vitdeploy.specs import PixelStage, Precision
from vitdeploy.tables import load_target

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Mapping, Sequence

    import numpy as np

    from vitdeploy.assess.onnx_reader import Loaded
    from vitdeploy.exporters.variants import Variants
    from vitdeploy.manifest import Artifact
    from vitdeploy.processor import ImageProcessor

PRECISIONS = ("fp16", "bf16", "int8", "fp8")
_QUANTIZED = (Precision.INT8, Precision.FP8)
MAX_IMAGES = 16  # every set of nodes runs on all of them
MAX_RUNS = 200
_WHAT, _EXTRA, _PACKAGE = "compare --bisect", "export", "onnx"


@dataclasses.dataclass(frozen=True)
class KeptNode:
    """A node that must stay in float32.

    Attributes:
        name: of its first output, which is its name for `vitdeploy.export(keep_fp32=...)`.
        op_type: its operator.
        part: "embeddings", "layers.0" ..., "head".
    """

    name: str
    op_type: str
    part: str


@dataclasses.dataclass(frozen=True)
class Bisection:
    """Which nodes must stay in float32.

    An error is the largest difference from the reference, relative to the output's largest value, of any output;
    infinite where a value is not finite.

    Attributes:
        bundle: the folder.
        precision: what the other nodes compute in.
        images: how many were compared.
        synthetic: whether they were made up, none having been given.
        tolerance: the largest error that passes.
        candidates: how many nodes could be kept.
        kept: those that must be, in the order of the graph; none where the precision passes by itself, and none
            where not even float32 passes.
        error_without: with none of them kept. What the exporter keeps in any case always is: LayerNormalization and
            Softmax, and the nodes whose weights come near the largest that the precision holds.
        error: with `kept`; with everything kept, where even that does not pass.
        runs: how many sets of nodes were run.
        minimal: whether it was shown that none of `kept` can be left out; else the runs were used up.
    """

    bundle: str
    precision: str
    images: int
    synthetic: bool
    tolerance: float
    candidates: int
    kept: tuple[KeptNode, ...]
    error_without: float
    error: float
    runs: int
    minimal: bool

    @property
    def status(self) -> str:
        """The outcome: "passed" where `kept` makes it pass, or nothing need be kept; "failed" where nothing does."""
        return "passed" if self.error <= self.tolerance else "failed"

    @property
    def summary(self) -> str:
        """What was found, in a sentence."""
        if self.status == "failed":
            return (
                f"even float32 differs from the reference by {self.error:.2g}, and {self.tolerance:g} is allowed: the "
                f"fault is not {self.precision}; see vitdeploy compare"
            )
        if not self.kept:
            return f"{self.precision} passes with none of its {self.candidates} nodes kept in float32"
        smallest = "none of which can be left out" if self.minimal else f"the best of {self.runs} runs; fewer may do"
        return (
            f"{self.precision} passes with {len(self.kept)} of its {self.candidates} nodes kept in float32, {smallest}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "status": self.status, "summary": self.summary}


def bisect(
    bundle: str | os.PathLike[str] | Bundle,
    precision: str = "fp16",
    *,
    images: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    batch_size: int = 8,
    max_images: int = MAX_IMAGES,
    max_runs: int = MAX_RUNS,
    on_step: Callable[[str], None] = lambda _: None,
) -> Bisection:
    """Find a smallest set of nodes that must stay in float32 for an ONNX artifact to equal the reference.

    For fp16 and bf16 the nodes are those of the bundle's `onnx-fp32`, which is rewritten as `export` does it, but that
    no node is kept for what was observed; every rounding is done, also those that ONNX Runtime leaves out on a CPU. For
    int8 and fp8 they are those of the bundle's artifact, made from its `onnx-fp32`. What "smallest" means, and how many
    runs it takes, is said at `vitdeploy.assess.bisect.smallest_kept`.

    Args:
        bundle: the bundle or its folder.
        precision: "fp16", "bf16", "int8" or "fp8".
        images: a folder; at most `max_images` of the images below it are compared, at even distances. By default
            seeded synthetic ones are.
        tolerance: largest difference allowed, relative to each output's largest value; by default by precision.
        batch_size: images that run together, from 1 up.
        max_images: from 1 up.
        max_runs: sets of nodes to run at most, from 2 up.
        on_step: called with what is being done.

    Raises:
        BundleError: the bundle is absent or was altered, or holds no valid ONNX model.
        UsageError: the bundle has not the artifacts that are needed, or an argument is not what it must be.
        ImageError: an image cannot be read.
        MissingDependencyError: torch, which runs the reference, or onnx is not installed.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    if precision not in PRECISIONS:
        raise UsageError(f"precision to bisect must be one of {', '.join(PRECISIONS)}, got {precision!r:.80}")
    if batch_size < 1 or max_images < 1 or (tolerance is not None and not 0 <= tolerance < math.inf):
        raise UsageError(
            f"batch_size and max_images must be at least 1 and tolerance a finite number from 0 up, "
            f"got {batch_size}, {max_images} and {tolerance}"
        )
    source = bundle.artifact("onnx", Precision.FP32)
    artifact = _lower(bundle, source, precision)
    allowed = default_tolerance(artifact) if tolerance is None else tolerance
    float_path, *_ = bundle.verified(source.files)
    loaded = _loaded(float_path)
    variants = _variants(bundle, artifact, float_path)
    candidates = _in_parts(loaded, variants.nodes)
    groups = [list(nodes) for _, nodes in itertools.groupby(candidates, key=lambda node: node.part)]
    processor = load_processor(bundle)
    chosen = _images(processor, images, max_images)
    on_step(f"running the reference on {len(chosen)} images")
    batches = Batches(processor, chosen, batch_size)
    expected, _ = run_reference(bundle, batches, tuple(spec.name for spec in artifact.outputs))
    given = list(batches.feeds(artifact))
    count = itertools.count(1)
    with tempfile.TemporaryDirectory() as scratch:

        def evaluate(kept: frozenset[str]) -> float:
            error = _error(variants, kept, Path(scratch, "variant.onnx"), given, expected)
            on_step(f"run {next(count)}: {len(kept)} of {len(candidates)} nodes in float32, difference {error:.2e}")
            return error

        found = smallest_kept([[node.name for node in group] for group in groups], evaluate, allowed, max_runs)
    return Bisection(
        bundle=str(bundle.path),
        precision=precision,
        images=len(chosen),
        synthetic=images is None,
        tolerance=allowed,
        candidates=len(candidates),
        kept=tuple(node for node in candidates if node.name in found.kept) if found.error <= allowed else (),
        error_without=found.error_without,
        error=found.error,
        runs=found.runs,
        minimal=found.minimal,
    )


def _lower(bundle: Bundle, source: Artifact, precision: str) -> Artifact:
    """What is to pass: the quantized artifact, or what `export` would make in half precision."""
    if source.pixels.stage is PixelStage.DECODED or "optimize" in source.options:
        raise UsageError(
            f"{bundle.path} must hold a portable onnx-fp32 that takes resized images to bisect; export it to another "
            f"folder without --embed-resize and --optimize"
        )
    if precision in _QUANTIZED:
        artifact = bundle.artifact("onnx", precision)
        if "rest" in artifact.options:
            raise UsageError(
                f"{artifact.name} must compute in float32 but for 8 bits to bisect, computes in "
                f"{artifact.options['rest']}; export it to another folder without --rest"
            )
        return artifact
    return dataclasses.replace(source, precision=precision)


def _variants(bundle: Bundle, artifact: Artifact, float_path: Path) -> Variants:
    from vitdeploy.assess.onnx_reader import valid_onnx

    variants: Variants
    if artifact.precision in _QUANTIZED:
        make = load_target("vitdeploy.exporters.quantized_variants:quantized_variants", _WHAT, _EXTRA, _PACKAGE)
        path, *_ = bundle.verified(artifact.files)
        _loaded(path)
        with valid_onnx(path):
            variants = make(path, float_path)
    else:
        make = load_target("vitdeploy.exporters.variants:half_variants", _WHAT, _EXTRA, _PACKAGE)
        with valid_onnx(float_path):  # weights in a file of their own are read only here
            variants = make(float_path, Precision(artifact.precision))
    return variants


def _loaded(path: Path) -> Loaded:
    found: Loaded = load_target("vitdeploy.assess.onnx_reader:load_onnx", _WHAT, _EXTRA, _PACKAGE)(path)
    return found


def _in_parts(loaded: Loaded, names: Collection[str]) -> list[KeptNode]:
    """The nodes of these names, part by part."""
    from vitdeploy.assess.onnx_parts import nodes_by_part

    return [
        KeptNode(node.output[0], node.op_type, part)
        for part, nodes in nodes_by_part(loaded.model.graph.node, loaded.inputs).items()
        for node in nodes
        if node.output[0] in names
    ]


def _images(processor: ImageProcessor, folder: str | os.PathLike[str] | None, most: int) -> Sequence[Any]:
    if folder is None:
        return images_for(processor, most)
    files = image_files(folder)
    count = min(most, len(files))
    return [files[index * len(files) // count] for index in range(count)]


def _error(
    variants: Variants,
    kept: frozenset[str],
    path: Path,
    batches: Sequence[Mapping[str, np.ndarray]],
    expected: Mapping[str, np.ndarray],
) -> float:
    """Of the variant that keeps these nodes."""
    from vitdeploy.runtimes.onnxrt import OnnxRuntime

    variants.write(kept, path)
    with OnnxRuntime(path) as runtime:
        found = run_batches(runtime, batches)
    differences = compare_outputs(expected, found)
    return max(difference.max_relative if difference.finite else math.inf for difference in differences)
