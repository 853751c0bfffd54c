"""Weights and an image for the golden files of several libraries."""

from __future__ import annotations

import sklearn.datasets
import torch
from PIL import Image


def spread(model: torch.nn.Module, seed: int) -> None:
    """Draw every weight so that each of them shows in the result; float16 holds all of them exactly."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        scale = weight[0].numel() ** -0.5 if weight.ndim >= 2 else 0.3
        values = scale * torch.randn(weight.shape, generator=generator) + (weight.ndim == 1 and name.endswith("weight"))
        with torch.no_grad():
            weight.copy_(values.half())


def photograph() -> Image.Image:
    """A photograph of odd sides: 601 x 427 pixels."""
    return Image.fromarray(sklearn.datasets.load_sample_images().images[0]).crop((0, 0, 601, 427))
