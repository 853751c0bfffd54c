"""Images for the jobs."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from vitdeploy.assets import held_out_images

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve images in two folders."""
    for index, file in enumerate(sorted(held_out_images().rglob("*.png"))[::40][:12]):
        (tmp_path / "images" / f"{index % 2}").mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "images" / f"{index % 2}" / f"{index:02}.png")
    return tmp_path / "images"
