"""Dense features: a layer's patch tokens as a map over the image, for heads of segmentation, depth and detection."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from vitdeploy.models.config import ViTConfig

FEATURES, RAW_FEATURES = "features", "raw_features"


class DenseFeatures(NamedTuple):
    """A requested map: of `hidden_states.<layer>`, with or without the model's final norm."""

    layer: int
    normalized: bool


def dense_features(names: Iterable[str], config: ViTConfig) -> dict[str, DenseFeatures]:
    """The dense features among output names.

    `features.N` and `raw_features.N` are the patches of `hidden_states.N`, and without a number those of the last
    layer. `raw_features` are not normalized; `features` are, if the family's backbone in transformers does so; see
    `ViTConfig.feature_norm`.
    """
    found = {}
    for name in names:
        kind, _, number = name.partition(".")
        if kind in (FEATURES, RAW_FEATURES):
            layer = int(number) if number else config.num_hidden_layers
            is_last = layer == config.num_hidden_layers
            normalized = config.feature_norm == "all" or (config.feature_norm == "last" and is_last)
            found[name] = DenseFeatures(layer, normalized and kind == FEATURES)
    return found


def patch_map(tokens: Tensor, num_prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """The patches on their grid (gh, gw), without the prefix: (N, P + gh * gw, D) -> (N, D, gh, gw)."""
    return torch.unflatten(tokens[:, num_prefix_tokens:].transpose(1, 2), 2, grid)
