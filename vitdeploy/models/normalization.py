"""A model that takes bytes: rescaling and normalization folded into its patch projection."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from vitdeploy.models.vit import VisionTransformer


@torch.no_grad()
def fold_normalization(model: VisionTransformer, scale: np.ndarray, offset: np.ndarray) -> VisionTransformer:
    """The same model for images that were neither rescaled nor normalized; other weights are shared.

    The projection is linear and without padding: with weights w and b, w (scale x + offset) + b = (w scale) x + (b +
    sum of w offset), at every patch. Both are computed in float64.

    Args:
        model: Model that takes scale * x + offset.
        scale: Factor per channel, (C,) float64.
        offset: Offset per channel, (C,) float64.
    """
    name = "embeddings.patch_embeddings.projection."
    shared = [parameter for key, parameter in model.named_parameters() if not key.startswith(name)]
    folded = copy.deepcopy(model, memo={id(parameter): parameter for parameter in shared})
    projection = folded.embeddings.patch_embeddings.get_submodule("projection")
    assert isinstance(projection, nn.Conv2d)  # noqa: S101  (for mypy)
    weight, bias = projection.weight.double(), projection.bias
    added = (weight * torch.from_numpy(offset)[:, None, None]).sum((1, 2, 3))
    added = added if bias is None else bias.double() + added
    projection.weight.copy_(weight * torch.from_numpy(scale)[:, None, None])
    projection.bias = nn.Parameter(added.to(projection.weight.dtype), requires_grad=projection.weight.requires_grad)
    return folded
