"""Images and an opened bundle that the tests of jobs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from image_files import twelve_digits

import vitdeploy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.predictor import Predictor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return twelve_digits(tmp_path / "images")


@pytest.fixture(scope="module")
def bundle(digits: Bundle) -> Bundle:
    return digits


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Iterator[Predictor]:
    with vitdeploy.load(bundle.path) as opened:
        yield opened


@pytest.fixture
def reads_nothing_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are read when their batch is due, not while another one runs."""
    monkeypatch.setattr("vitdeploy.batch.image_job.BATCHES_AHEAD", 0)
