"""Tokens to one vector per image, pooled and normalized within the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitdeploy.specs import EMBEDS, SMALLEST_NORM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.models.config import ViTConfig


class ImageEmbedding(nn.Module):
    """A head's outputs -> `image_embeds` (N, D), or (N, 2 D) for "cls+mean".

    `embedding_pool` is "cls", the class token of `last_hidden_state`; "mean", the mean of its patches; "cls+mean", both
    concatenated; "pooler", `pooler_output`; or "projection", the family's own `image_embeds`. The vector is normalized
    in float32 in every precision, as by `torch.nn.functional.normalize`: a zero vector stays zero.

    Args:
        config: The configuration, with an `embedding_pool`.
        pooler: The family's pooler, if the model has one.
    """

    def __init__(self, config: ViTConfig, pooler: nn.Module | None) -> None:
        super().__init__()
        self.pool, self.normalize = config.embedding_pool, config.normalize_embedding
        self.num_prefix_tokens = config.num_prefix_tokens
        of_pooler: int | None = getattr(pooler, "leading_tokens", None)
        self.leading_tokens = {"cls": 1, "pooler": of_pooler, "projection": of_pooler}.get(str(self.pool))

    def forward(self, outputs: Mapping[str, Tensor]) -> Tensor:
        x = self._pooled(outputs)
        return l2_normalized(x) if self.normalize else x

    def _pooled(self, outputs: Mapping[str, Tensor]) -> Tensor:
        if self.pool == "pooler":
            return outputs["pooler_output"]
        if self.pool == "projection":
            return outputs[EMBEDS]
        x = outputs["last_hidden_state"]  # (N, L, D)
        if self.pool == "cls":
            return x[:, 0]
        mean = x[:, self.num_prefix_tokens :].mean(1)
        return mean if self.pool == "mean" else torch.cat((x[:, 0], mean), dim=1)


def l2_normalized(x: Tensor) -> Tensor:
    """Vectors divided by their L2 norms, (N, D) of any floating-point type -> (N, D) float32."""
    x = x.float()
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(SMALLEST_NORM)
