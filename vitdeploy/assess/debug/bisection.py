"""Delta debugging: find the nodes that must stay in float32 for a lower precision to pass."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import tempfile
from pathlib import Path
from typing import Any

from vitdeploy.assess.data.images import few_images
from vitdeploy.assess.debug.mixed_precision import GraphNode, LowerPrecision
from vitdeploy.assess.debug.search import delta_debug
from vitdeploy.assess.metrics.outputs import check_tolerance, compare_outputs, default_tolerance
from vitdeploy.assess.metrics.status import ImageAssessment
from vitdeploy.assess.runs.open_runtimes import OpenRuntimes
from vitdeploy.assess.runs.reference import ReferenceRun, run_batches
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.retry import retry_if_changed
from vitdeploy.errors import check_count, typed_line
from vitdeploy.predictor import check_batch_size
from vitdeploy.system.argument_types import typed
from vitdeploy.system.progress import SILENT, Progress

MAX_IMAGES = 16  # every set of nodes runs on all of them
MAX_RUNS = 200


@dataclasses.dataclass(frozen=True, repr=False)
class Bisection(ImageAssessment):
    """The nodes that must stay in float32.

    An error is the largest difference from the reference, relative to the output's largest value, over all outputs;
    infinite for non-finite values.

    Attributes:
        precision: Precision of the other nodes.
        tolerance: Largest error that passes.
        candidates: Number of nodes that can be kept.
        kept: Nodes that must be kept, in graph order; empty if the precision passes by itself, or if even float32
            fails.
        error_without: Error with none of them kept. Nodes that the exporter always keeps stay in float32:
            LayerNormalization, Softmax, and nodes with weights near the precision's largest value.
        error: Error with `kept`; with every node kept, if even that fails.
        runs: Number of node sets that ran.
        minimal: True if each of `kept` is proven necessary; False if the runs were used up first.
    """

    precision: str
    tolerance: float
    candidates: int
    kept: tuple[GraphNode, ...]
    error_without: float
    error: float
    runs: int
    minimal: bool

    @property
    def status(self) -> str:
        """Outcome, "passed" if it passes with `kept` or with no node kept; "failed" if nothing makes it pass."""
        return "passed" if self.error <= self.tolerance else "failed"

    @property
    def brief(self) -> str:
        """The result in a few words."""
        return (
            f"{self.status}, {len(self.kept)} of {self.candidates} nodes kept in float32, the others {self.precision}"
        )

    @property
    def summary(self) -> str:
        """The result as a sentence."""
        if self.status == "failed":
            return (
                f"even float32 differs from the reference by {self.error:.2g}, and {self.tolerance:g} is allowed: the "
                f"fault is not {self.precision}; see: {typed_line('compare', self.bundle)}"
            )
        if not self.kept:
            return f"{self.precision} passes with none of its {self.candidates} nodes kept in float32"
        smallest = "none of which can be left out" if self.minimal else f"the best of {self.runs} runs; fewer may do"
        return (
            f"{self.precision} passes with {len(self.kept)} of its {self.candidates} nodes kept in float32, {smallest}"
        )

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "status": self.status, "summary": self.summary}


@typed
@retry_if_changed
def bisect(
    bundle: str | os.PathLike[str] | Bundle,
    precision: str = "fp16",
    *,
    images: str | os.PathLike[str] | None = None,
    tolerance: float | None = None,
    batch_size: int = 8,
    max_images: int = MAX_IMAGES,
    max_runs: int = MAX_RUNS,
    progress: Progress = SILENT,
) -> Bisection:
    """Find a minimal set of nodes that must stay in float32 for an ONNX artifact to match the reference.

    See `vitdeploy.assess.debug.mixed_precision.LowerPrecision.of` for the choice of the graph, and
    `vitdeploy.assess.debug.search.delta_debug` for the meaning of "minimal" and the number of runs.

    Args:
        bundle: The bundle or its folder.
        precision: "fp16", "bf16", "int8" or "fp8".
        images: Folder, of which at most `max_images` evenly spaced images are compared. Default: seeded synthetic
            images.
        tolerance: Largest difference allowed, relative to each output's largest value. Default: by precision.
        batch_size: Images per run, at least 1.
        max_images: Maximum number of images, at least 1.
        max_runs: Maximum number of node sets to run, at least 2.
        progress: Receives each step and its progress.

    Raises:
        BundleError: If the bundle is missing or was altered, or its ONNX model is invalid.
        UsageError: If the bundle lacks a required artifact, or an argument is invalid.
        ImageError: If an image cannot be read.
        MissingDependencyError: If torch, which runs the reference, or onnx is not installed.
    """
    check_batch_size(batch_size)
    check_tolerance(tolerance)
    check_count("max_images", max_images)
    bundle = Bundle.of(bundle)
    lower = LowerPrecision.of(bundle, precision, "debug bisect")
    artifact, candidates = lower.artifact, lower.nodes
    allowed = default_tolerance(artifact) if tolerance is None else tolerance
    groups = [list(nodes) for _, nodes in itertools.groupby(candidates, key=lambda node: node.part)]
    runtimes = OpenRuntimes(bundle)
    sources = few_images(runtimes.processor, images, max_images)
    run = ReferenceRun.of(runtimes, sources, (spec.name for spec in artifact.outputs), progress, batch_size)
    feeds = list(run.batches.feeds(artifact))
    count = itertools.count(1)
    problem_type = bundle.read_config().problem_type
    with tempfile.TemporaryDirectory() as scratch:
        from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime

        def evaluate(kept: frozenset[str]) -> float:
            path = Path(scratch, "variant.onnx")
            lower.variants.write(kept, path)
            with OnnxRuntime(path) as runtime:
                outputs = run_batches(runtime, feeds)
            differences = compare_outputs(run.expected, outputs, problem_type=problem_type)
            error = max(difference.max_relative if difference.finite else math.inf for difference in differences)
            progress.step(
                f"run {next(count)}: {len(kept)} of {len(candidates)} nodes in float32, difference {error:.2e}"
            )
            return error

        smallest = delta_debug([[node.name for node in group] for group in groups], evaluate, allowed, max_runs)
    return Bisection(
        **run.assessment,
        precision=precision,
        tolerance=allowed,
        candidates=len(candidates),
        kept=tuple(node for node in candidates if node.name in smallest.kept) if smallest.error <= allowed else (),
        error_without=smallest.error_without,
        error=smallest.error,
        runs=smallest.runs,
        minimal=smallest.minimal,
    )
