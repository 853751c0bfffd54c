"""A model that takes bytes: rescaling and normalization folded into its patch projection."""

from __future__ import annotations

import copy

import numpy as np
import torch

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
    weight, bias = (model.get_parameter(name + key).double() for key in ("weight", "bias"))
    folded.get_parameter(name + "weight").copy_(weight * torch.from_numpy(scale)[:, None, None])
    folded.get_parameter(name + "bias").copy_(bias + (weight * torch.from_numpy(offset)[:, None, None]).sum((1, 2, 3)))
    return folded
