"""What goes into a model and what comes out, by name, type and shape."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task, TensorSpec

if TYPE_CHECKING:
    from vitdeploy.models.config import ViTConfig

BATCH_AXIS = "batch"


def input_specs(config: ViTConfig, task: Task) -> tuple[TensorSpec, ...]:
    """`pixel_values` (batch, C, H, W) and, for masked image modeling, a boolean `bool_masked_pos` (batch, patches)."""
    pixels = TensorSpec("pixel_values", "float32", (BATCH_AXIS, config.num_channels, *config.image_size))
    if task is not Task.MASKED_IMAGE_MODELING:
        return (pixels,)
    return pixels, TensorSpec("bool_masked_pos", "bool", (BATCH_AXIS, config.num_patches))


def example_inputs(config: ViTConfig, task: Task, batch_size: int, device: str = "cpu") -> tuple[torch.Tensor, ...]:
    """Zeros of the shapes that `input_specs` states."""
    return tuple(
        torch.zeros(batch_size, *spec.shape[1:], dtype=getattr(torch, spec.dtype), device=device)  # type: ignore[arg-type]
        for spec in input_specs(config, task)
    )


def output_specs(model: VisionTransformer) -> tuple[TensorSpec, ...]:
    """The model's outputs, always float32; found by running its shapes alone, on torch's meta device.

    Without its layers, which change no shape.
    """
    config = dataclasses.replace(model.config, num_hidden_layers=0)
    with torch.device("meta"):
        pooler = getattr(model.head, "pooler", None) is not None
        twin = VisionTransformer(config, model.task, pooler=pooler).eval()
        outputs = twin(*example_inputs(model.config, model.task, batch_size=1, device="meta"))
    return tuple(TensorSpec(name, "float32", (BATCH_AXIS, *value.shape[1:])) for name, value in outputs.items())
