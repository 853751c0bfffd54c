"""Mixed-precision search: keep as few layers of a quantized graph in float32 as an accuracy bound allows."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.debug.quantization_error import opened_variant, sensitivities
from vitdeploy.assess.debug.search import Measure, search_by_sensitivity
from vitdeploy.errors import CheckFailedError
from vitdeploy.exporting.quantization.candidate_search import ChoiceImages, rounded

if TYPE_CHECKING:
    from vitdeploy.exporters.graph.variants import Variants
    from vitdeploy.exporting.quantization.accuracy_target import AccuracyTarget
    from vitdeploy.system.progress import Progress

_NAMED = 8  # layers in a message


def keep_layers(
    variants: Variants,
    target: AccuracyTarget,
    images: ChoiceImages,
    progress: Progress,
    inference_precision: str | None = None,
) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Find the layers that must stay in float32, the most sensitive ones first.

    Args:
        images: Images for measuring the layers' sensitivity, in ONNX Runtime.
        inference_precision: The accuracy is measured in OpenVINO in this precision; None for ONNX Runtime.

    Returns:
        The nodes, named by their first outputs, and the measurements for the manifest.

    Raises:
        CheckFailedError: If no mix is accurate enough, even with a single node in 8 bits.
    """
    labels, count = variants.labels, len(variants.nodes)
    layer_effects: dict[str, float] = {}
    runs = itertools.count(1)

    def rank() -> list[str]:
        progress.step(f"measuring how much each of {count} layers matters")
        errors = images.errors(variants)
        layer_effects.update(sensitivities(variants, lambda kept: errors.error(variants, kept), progress))
        return sorted(layer_effects, key=lambda node: -layer_effects[node])

    def measure(kept: frozenset[str]) -> Measure:
        with opened_variant(variants, kept, images.folder, images.pixels, inference_precision) as runtime:
            accuracy: Measure = target.measure(runtime)
        progress.step(f"run {next(runs)}: {len(kept)} of {count} layers in float32, {accuracy}")
        return accuracy

    result = search_by_sensitivity(rank, measure, target.reached_by)
    if not result.enough:
        low = [labels.get(node, node) for node in variants.nodes if node not in result.kept]
        names = ", ".join(low[:_NAMED]) + (f" and {len(low) - _NAMED} more" if len(low) > _NAMED else "")
        raise CheckFailedError(
            f"8 bits do not reach {target}: the best is {result.accuracy}, with {len(result.kept)} of {count} layers "
            f"in float32 and {names} in 8 bits; with none in float32 it is {result.without}",
            what="accuracy", expected=str(target.bound), found=str(result.accuracy),
            hint="loosen the bound, or choose fp16; nothing was written",
        )  # fmt: skip
    return result.kept, {
        "kept_layers": [labels.get(node, node) for node in result.kept],
        "layer_effects": {labels.get(node, node): rounded(error) for node, error in layer_effects.items()},
        **target.record_without(result.without),
        "runs": result.runs,
        "minimal": result.minimal,
    }
