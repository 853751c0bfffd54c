"""Image processors for the checkpoints of tests, which transformers and we write without one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812

from vitdeploy.images.processor import ImageProcessor

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from PIL import Image

_MODES = {2: "bilinear", 3: "bicubic"}
# Of unrounded pixels before the normalization, 1 % of a gray level: torch computes a filter's weights in float32.
UNROUNDED_TOLERANCE = 5e-5


def write_processor(folder: Path, size: tuple[int, int], name: str = "ViTImageProcessor") -> None:
    """Write a preprocessor_config.json of that class's defaults, for images of (height, width)."""
    processor = ImageProcessor.from_dict({"image_processor_type": name}).resized(*size)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor.to_dict()), encoding="utf-8")


def unrounded_pixels(images: Sequence[Image.Image], processor: ImageProcessor) -> np.ndarray:
    """Pixels (N, 3, H, W) of DINOv3ViTImageProcessor, by the torch operators that torchvision calls for it."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (processor.image_mean, processor.image_std))
    found = []
    for image in images:
        planes = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) * processor.rescale_factor
        size, mode = processor.size.of(image.height, image.width), _MODES[processor.resample]
        resized = F.interpolate(planes[None], size, mode=mode, align_corners=False, antialias=True)[0]
        found.append((resized - mean) / std)
    return torch.stack(found).numpy()
