"""How far the variants of a graph are from the reference, on the same few images."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.assess.compare import run_batches
from vitdeploy.assess.samples import feeds

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from vitdeploy.exporters.variants import Variants


class Yardstick:
    """Runs variants of a graph.

    Args:
        pixel_values: batches of images, as the graph takes them.
        expected: what the reference gives for all of them, (N, ...) by output.
    """

    def __init__(self, pixel_values: Sequence[np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
        self._pixel_values, self._expected = pixel_values, expected

    def error(self, variants: Variants, kept: Collection[str]) -> float:
        """The relative error of the variant that keeps these nodes in float32; see `relative_error`."""
        from vitdeploy.runtimes.onnxrt import OnnxRuntime

        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, "variant.onnx")
            variants.write(kept, path)
            with OnnxRuntime(path, allow_spinning=False) as runtime:
                batches: list[dict[str, Any]] = [feeds(runtime.inputs, pixels) for pixels in self._pixel_values]
                return relative_error(self._expected, run_batches(runtime, batches))


def relative_error(expected: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> float:
    """The length of the difference over the length of what is expected, of all images together.

    That is the square root of the inverse of the signal-to-quantization-noise ratio; of several outputs the largest.

    Args:
        expected: arrays (N, ...) by name.
        found: the same.

    Returns:
        From 0 up; infinite where a value is not finite.
    """
    errors = []
    for name, want in expected.items():
        wanted, difference = np.float64(want), np.float64(found[name]) - np.float64(want)
        error = float(np.linalg.norm(difference) / max(np.linalg.norm(wanted), np.finfo(np.float64).tiny))
        errors.append(error if np.isfinite(error) else np.inf)
    return max(errors)


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
