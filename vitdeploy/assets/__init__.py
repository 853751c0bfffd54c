"""The embedded default checkpoint, and labelled images that its training never saw."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).resolve().parent


def default_checkpoint() -> Path:
    """A Hugging Face folder: a small Vision Transformer for 32x32 images of handwritten digits (see its README.md)."""
    return _FOLDER / "vit-tiny-digits"


def held_out_images() -> Path:
    """450 PNG images for `default_checkpoint`, one folder per class, named after its label."""
    return _FOLDER / "held-out"
