"""Relative error of a graph's mixed-precision variants on a few images."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from vitdeploy.assess.data.images import feeds
from vitdeploy.assess.metrics.features import cosines
from vitdeploy.assess.metrics.outputs import RelativeError, has_own_scales
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.files.opened import OpenedFile

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from vitdeploy.exporters.graph.variants import Variants
    from vitdeploy.runtimes.base import Runtime
    from vitdeploy.specs import PixelFormat
    from vitdeploy.system.progress import Progress


class Closeness(NamedTuple):
    """Similarity of a graph's worst output to the reference's.

    Attributes:
        error: L2 norm of the difference over that of the expected output, over all images; 0 or more.
        mean_cosine: Mean cosine similarity over images; None for the logits of a regression, as is `p5_cosine`.
        p5_cosine: 5th percentile of the cosine similarity.
    """

    error: float
    mean_cosine: float | None
    p5_cosine: float | None


@dataclasses.dataclass(frozen=True, eq=False)
class VariantErrors:
    """Runs variants of a graph, and keeps the outputs of one batch only.

    Attributes:
        pixel_values: Batches in the graph's input format.
        expected: The reference's outputs for all of them, (N, ...), by name; only these outputs are compared.
        folder: Temporary folder for graphs. Default: the system's.
        problem_type: The model's problem type.
    """

    pixel_values: Sequence[np.ndarray]
    expected: Mapping[str, np.ndarray]
    folder: Path | None = None
    problem_type: ProblemType = ProblemType.SINGLE_LABEL

    def error(self, variants: Variants, kept: Collection[str]) -> float:
        """`RelativeError` of the variant with these nodes in float32, over all images.

        The largest over several outputs or a regression's values; infinite for non-finite values.
        """
        return max(sums.error.value for sums in self._sums(variants, kept, one_by_one=False).values())

    def closeness(self, variants: Variants, kept: Collection[str], *, one_by_one: bool) -> Closeness:
        """The relative error as in `error`, and the cosines, of the output with the largest error.

        With `one_by_one`, each image runs alone.
        """
        sums = self._sums(variants, kept, one_by_one=one_by_one)
        errors = {name: of_one.error.value for name, of_one in sums.items()}
        output = max(errors, key=errors.__getitem__)
        if has_own_scales(output, self.problem_type):
            return Closeness(errors[output], None, None)
        similarities = sums[output].cosines
        return Closeness(errors[output], float(np.mean(similarities)), float(np.percentile(similarities, 5)))

    def _sums(self, variants: Variants, kept: Collection[str], *, one_by_one: bool) -> dict[str, _Sums]:
        sums = {name: _Sums(RelativeError(has_own_scales(name, self.problem_type))) for name in self.expected}
        with opened_variant(variants, kept, self.folder) as runtime:
            first = 0
            for batch in self.pixel_values:
                for pixels in np.split(batch, len(batch)) if one_by_one else (batch,):
                    outputs = runtime.run(feeds(runtime.inputs, pixels))
                    rows = slice(first, first := first + len(pixels))
                    for name, wanted in self.expected.items():
                        sums[name].add(wanted[rows], outputs[name])
        return sums


@dataclasses.dataclass
class _Sums:
    """Sums over the images of one output."""

    error: RelativeError
    cosines: list[float] = dataclasses.field(default_factory=list)

    def add(self, wanted: np.ndarray, given: np.ndarray) -> None:
        """Add some images, (N, ...)."""
        self.error.add(wanted, given)
        self.cosines += cosines(wanted, given).tolist()


@contextlib.contextmanager
def opened_variant(
    variants: Variants,
    kept: Collection[str],
    folder: Path | None,
    pixels: PixelFormat | None = None,
    inference_precision: str | None = None,
) -> Iterator[Runtime]:
    """Open the variant with these nodes in float32, in ONNX Runtime, or in OpenVINO with an inference precision.

    `folder` is a temporary folder for its file, by default the system's; `pixels` is its input format, by default the
    image processor's output.
    """
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "variant.onnx")
        variants.write(kept, path)
        with _opened(path, inference_precision) as runtime:
            if pixels is not None:
                runtime.pixels = pixels
            yield runtime


def _opened(path: Path, inference_precision: str | None) -> Runtime:
    if inference_precision is not None:
        from vitdeploy.runtimes.ov.model import ModelFile
        from vitdeploy.runtimes.ov.runtime import OpenVINORuntime

        return OpenVINORuntime(ModelFile(OpenedFile.of(path), (), (), precision=inference_precision))
    from vitdeploy.runtimes.onnxrt.options import OnnxRuntimeOptions
    from vitdeploy.runtimes.onnxrt.runtime import OnnxRuntime

    return OnnxRuntime(path, OnnxRuntimeOptions(allow_spinning=False))


def sensitivities(
    variants: Variants,
    error: Callable[[frozenset[str]], float],
    progress: Progress,
    layers: Mapping[str, Collection[str]] | None = None,
) -> dict[str, float]:
    """Sensitivity of each layer: the error with that layer alone in the lower precision.

    `error` takes the nodes that stay in float32. `layers` maps layer names to nodes; by default, each node is a layer.
    """
    if layers is None:
        layers = {node: (node,) for node in variants.nodes}
    error_of = {}
    everything = frozenset(variants.nodes)
    for done, (layer, nodes) in enumerate(layers.items(), 1):
        error_of[layer] = error(everything.difference(nodes))
        progress.advance(done, len(layers))
    return error_of
