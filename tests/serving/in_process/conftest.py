"""Bundles that replace each other."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from bundles import sign_again, write_bundle

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def versions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of two good bundles, of other weights and image sizes, and of some that may not replace the first."""
    folder = tmp_path_factory.mktemp("versions")
    first = write_bundle(folder / "first").path
    second = write_bundle(folder / "second", image_size=(48, 48)).path
    names = "other labels", "not finite", "altered", "no manifest"
    labels, not_finite, altered, none = (shutil.copytree(second, folder / name) for name in names)
    config = json.loads((labels / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "cat", "1": "cow", "2": "newt"}, "label2id": {"cat": 0, "cow": 1, "newt": 2}}
    (labels / "config.json").write_text(json.dumps(config), encoding="utf-8")
    graph = onnx.load(not_finite / "onnx" / "model.onnx")
    for weight in graph.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) == 1:
            weight.CopyFrom(onnx.numpy_helper.from_array(np.full(weight.dims, np.nan, np.float32), weight.name))
    onnx.save(graph, not_finite / "onnx" / "model.onnx")
    for path in (labels, not_finite):
        sign_again(Bundle.open(path))
    with (altered / "onnx" / "model.onnx").open("ab") as file:
        file.write(b"\0")
    (none / "manifest.json").unlink()
    return {"first": first, "second": second, **dict(zip(names, (labels, not_finite, altered, none), strict=True))}


@pytest.fixture(scope="session")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bundle that gives features."""
    return write_bundle(tmp_path_factory.mktemp("features"), Task.FEATURES).path
