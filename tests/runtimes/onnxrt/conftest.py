"""A bundle that the tests of a module share."""

from __future__ import annotations

from pathlib import Path

import pytest
from bundles import write_bundle

from vitdeploy.bundle.bundle import Bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def model_file(bundle: Bundle) -> Path:
    return bundle.path / "onnx" / "model.onnx"
