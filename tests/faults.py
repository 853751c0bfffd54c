"""Faults planted in a copy of a bundle, whose manifest then vouches for them."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import onnx
from onnx import numpy_helper

from bundles import sign_again
from vitdeploy.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def perturbed_layer(bundle: Bundle, folder: Path, share: float = 0.01) -> Bundle:
    """The largest weight of the ONNX graph, a layer's, is larger by this share."""
    shutil.copytree(bundle.path, folder)
    path = folder / bundle.manifest.artifacts[0].files[0].path
    model = onnx.load(path)
    weight = max(model.graph.initializer, key=lambda each: numpy_helper.to_array(each).size)
    array = numpy_helper.to_array(weight)
    weight.CopyFrom(numpy_helper.from_array((array * (1 + share)).astype(array.dtype), weight.name))
    onnx.save(model, path)
    return sign_again(Bundle.open(folder))


def shifted_labels(bundle: Bundle, folder: Path) -> Bundle:
    """Each class has the name of the next."""

    def shift(config: dict[str, Any]) -> None:
        names = [config["id2label"][str(index)] for index in range(len(config["id2label"]))]
        config["id2label"] = {str(index): name for index, name in enumerate([*names[1:], names[0]])}
        config["label2id"] = {name: int(index) for index, name in config["id2label"].items()}

    return _edited(bundle, folder, "config.json", shift)


def swapped_normalization(bundle: Bundle, folder: Path) -> Bundle:
    """The image processor has ImageNet's mean and deviation, the one in the place of the other."""

    def swap(config: dict[str, Any]) -> None:  # the digits' own are 0.5 and 0.5, which to swap changes nothing
        config["image_mean"], config["image_std"] = [0.229, 0.224, 0.225], [0.485, 0.456, 0.406]

    return _edited(bundle, folder, "preprocessor_config.json", swap)


def _edited(bundle: Bundle, folder: Path, name: str, edit: Callable[[dict[str, Any]], None]) -> Bundle:
    shutil.copytree(bundle.path, folder)
    config = json.loads((folder / name).read_text(encoding="utf-8"))
    edit(config)
    (folder / name).write_text(json.dumps(config), encoding="utf-8")
    return sign_again(Bundle.open(folder))
