"""Checkpoints whose activations have outliers, and that compute what they did without."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file, save_file

if TYPE_CHECKING:
    from pathlib import Path

    Weights = dict[str, np.ndarray]

CHANNELS = 4  # that stand out, of each activation


def with_outliers(checkpoint: Path, folder: Path, factor: float, *, seed: int = 0) -> Path:
    """A copy of a ViT in transformers' layout with some channels scaled up, and the weights that take them down.

    Args:
        checkpoint: A folder.
        folder: Of the copy.
        factor: How far they stand out. Those of attention's values no LayerNormalization can take back.
        seed: Which channels.
    """
    shutil.copytree(checkpoint, folder)
    weights = load_file(folder / "model.safetensors")
    draw = np.random.default_rng(seed)
    for layer in sorted({name.split(".")[3] for name in weights if ".layer." in name}, key=int):
        prefix = f"vit.encoder.layer.{layer}."
        attention = f"{prefix}attention.attention."
        projections = [attention + name for name in ("query", "key", "value")]
        _scale(weights, draw, f"{prefix}layernorm_before", projections, factor)
        _scale(weights, draw, f"{prefix}layernorm_after", [f"{prefix}intermediate.dense"], factor)
        _scale(weights, draw, f"{attention}value", [f"{prefix}attention.output.dense"], factor)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def _scale(weights: Weights, draw: np.random.Generator, giving: str, taking: list[str], factor: float) -> None:
    channels = draw.choice(len(weights[f"{giving}.bias"]), CHANNELS, replace=False)
    for part in ("weight", "bias"):
        weights[f"{giving}.{part}"][channels] *= factor
    for name in taking:
        weights[f"{name}.weight"][:, channels] /= factor
