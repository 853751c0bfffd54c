"""Image processors for the checkpoints of tests, which transformers and we write without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from vitdeploy.images.processor import ImageProcessor

if TYPE_CHECKING:
    from pathlib import Path


def write_processor(folder: Path, size: tuple[int, int], name: str = "ViTImageProcessor") -> None:
    """Write a preprocessor_config.json of that class's defaults, for images of (height, width)."""
    processor = ImageProcessor.from_dict({"image_processor_type": name}).resized(*size)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.to_dict()), encoding="utf-8")
