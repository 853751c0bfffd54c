"""How far the variants of a graph are from the reference, on the same few images."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from vitdeploy.assess.difference import RelativeError, has_own_scales
from vitdeploy.assess.samples import feeds
from vitdeploy.scores import ProblemType

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    import numpy as np

    from vitdeploy.exporters.variants import Variants
    from vitdeploy.runtimes.onnxrt import OnnxRuntime
    from vitdeploy.specs import PixelFormat


class Yardstick:
    """Runs variants of a graph, and holds of them no more than what one batch gives.

    Args:
        pixel_values: batches of images, as the graph takes them.
        expected: what the reference gives for all of them, (N, ...), by the names of the outputs that count.
        folder: where a graph may lie meanwhile; the system's for temporary files by default.
        problem_type: of the model.
    """

    def __init__(
        self,
        pixel_values: Sequence[np.ndarray],
        expected: Mapping[str, np.ndarray],
        folder: Path | None = None,
        problem_type: ProblemType = ProblemType.SINGLE_LABEL,
    ) -> None:
        self._pixel_values, self._expected, self._folder = pixel_values, expected, folder
        self._problem_type = problem_type

    def error(self, variants: Variants, kept: Collection[str]) -> float:
        """The relative error of the variant that keeps these nodes in float32.

        See `RelativeError`; of all images together. Of several outputs, and of a regression's values, it is the
        largest.

        Returns:
            From 0 up; infinite where a value is not finite.
        """
        errors = {name: RelativeError(has_own_scales(name, self._problem_type)) for name in self._expected}
        with opened_variant(variants, kept, self._folder) as runtime:
            first = 0
            for pixels in self._pixel_values:
                outputs = runtime.run(feeds(runtime.inputs, pixels))
                rows = slice(first, first := first + len(pixels))
                for name, wanted in self._expected.items():
                    errors[name].add(wanted[rows], outputs[name])
        return max(error.value for error in errors.values())


@contextlib.contextmanager
def opened_variant(
    variants: Variants, kept: Collection[str], folder: Path | None, pixels: PixelFormat | None = None
) -> Iterator[OnnxRuntime]:
    """The variant that keeps these nodes in float32, in ONNX Runtime.

    Args:
        variants: of a graph.
        kept: the nodes.
        folder: where its file lies meanwhile; None for the system's for temporary files.
        pixels: what it takes for an image; by default what the image processor gives.
    """
    from vitdeploy.runtimes.onnxrt import OnnxRuntime

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        path = Path(scratch, "variant.onnx")
        variants.write(kept, path)
        with OnnxRuntime(path, allow_spinning=False) as runtime:
            if pixels is not None:
                runtime.pixels = pixels
            yield runtime


def effects(
    variants: Variants,
    error: Callable[[frozenset[str]], float],
    on_layer: Callable[[int, int], None],
    layers: Mapping[str, Collection[str]] | None = None,
) -> dict[str, float]:
    """The error with one layer alone in the lower precision, for each: how sensitive the outputs are to it.

    Args:
        variants: the nodes.
        error: of the variant that keeps these nodes in float32.
        on_layer: called with the number of layers that are done, and of all.
        layers: the nodes of each, by its name; by default each node is one.
    """
    if layers is None:
        layers = {node: (node,) for node in variants.nodes}
    found = {}
    everything = frozenset(variants.nodes)
    for done, (layer, nodes) in enumerate(layers.items(), 1):
        found[layer] = error(everything.difference(nodes))
        on_layer(done, len(layers))
    return found
