"""Faults to plant in a bundle, each signed again so that the bundle opens: what a check of the model must find."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from bundles import sign_again
from onnx import numpy_helper

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.exporters.naming.parts import nodes_by_part

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

Part = Literal["attention", "mlp"]
_ATTENTION_MATRICES = 4  # of the queries, keys, values and the output; those of the MLP come after


def copy_of(bundle: Bundle, folder: Path) -> Bundle:
    """One that may be spoilt."""
    shutil.copytree(bundle.path, folder)
    return Bundle.open(folder)


def perturb_layer(
    bundle: Bundle, layer: int, *, part: Part | None = None, precision: str = "fp32", share: float = 0.01, seed: int = 0
) -> Bundle:
    """Multiply every weight matrix of one layer in an ONNX artifact by 1 + `share` times a standard normal draw.

    Args:
        bundle: A copy that may be spoilt.
        layer: Its index, from 0.
        part: The attention's matrices or the MLP's alone; both by default.
        precision: Of the artifact.
        share: The perturbation, as a share of each weight.
        seed: Of the draw.
    """
    path = bundle.path / bundle.artifact("onnx", precision).files[0].path
    model = onnx.load(path)
    generator = np.random.default_rng(seed)
    weights_of = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = nodes_by_part(model.graph.node, {value.name for value in model.graph.input})[f"layers.{layer}"]
    found = [weights_of[node.input[1]] for node in nodes if node.op_type == "MatMul" and node.input[1] in weights_of]
    assert len(found) > _ATTENTION_MATRICES, f"layer {layer} must have its matrices, has {len(found)}"
    chosen = {"attention": found[:_ATTENTION_MATRICES], "mlp": found[_ATTENTION_MATRICES:], None: found}[part]
    for tensor in chosen:
        weights = numpy_helper.to_array(tensor)
        noise = generator.standard_normal(weights.shape)
        spoilt = (weights.astype(np.float64) * (1 + share * noise)).astype(weights.dtype)
        tensor.CopyFrom(numpy_helper.from_array(spoilt, tensor.name))
    onnx.save(model, path)
    return sign_again(bundle)


def shift_labels(bundle: Bundle) -> Bundle:
    """Give each class the name of the next one, in config.json."""

    def shift(config: dict[str, Any]) -> None:
        names = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
        config["id2label"] = {str(index): name for index, name in enumerate(names[1:] + names[:1])}
        config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}

    return _edit(bundle, "config.json", shift)


def swap_normalization(bundle: Bundle) -> Bundle:
    """Take the mean for the deviation in preprocessor_config.json; ImageNet's, where the model's own are equal."""

    def swap(config: dict[str, Any]) -> None:
        mean, std = config["image_mean"], config["image_std"]
        if mean == std:
            mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        config["image_mean"], config["image_std"] = std, mean

    return _edit(bundle, "preprocessor_config.json", swap)


def _edit(bundle: Bundle, name: str, change: Callable[[dict[str, Any]], None]) -> Bundle:
    path = bundle.path / name
    config = json.loads(path.read_text(encoding="utf-8"))
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    return sign_again(bundle)
