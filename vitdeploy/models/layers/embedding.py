"""Tokens to one vector per image, pooled and normalized within the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.specs import SMALLEST_NORM

if TYPE_CHECKING:
    from vitdeploy.models.config import ViTConfig


class ImageEmbedding(nn.Module):
    """Tokens -> `image_embeds` (N, D), or (N, 2 D) for "cls+mean".

    `embedding_pool` is "cls", the class token of `last_hidden_state`; "mean", the mean of its patches; "cls+mean", both
    concatenated; "pooler", the family's pooler; or "projection", its projection of the pooler's output. The vector is
    normalized in float32 in every precision, as by `torch.nn.functional.normalize`: a zero vector stays zero.

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

    def forward(self, x: Tensor, pooled: Tensor | None, projected: Tensor | None) -> Tensor:
        """Pool tokens (N, L, D), or take what the model's own pooler or projection gives, (N, its width)."""
        y = self._pooled(x, pooled, projected)
        return l2_normalized(y) if self.normalize else y

    def _pooled(self, x: Tensor, pooled: Tensor | None, projected: Tensor | None) -> Tensor:
        if self.pool in ("pooler", "projection"):
            own = pooled if self.pool == "pooler" else projected
            if own is None:
                message = f"this model has no {self.pool}"
                raise UsageError(message, what="embedding_pool", found=self.pool, hint="choose another pool")
            return own
        if self.pool == "cls":
            return x[:, 0]
        mean = x[:, self.num_prefix_tokens :].mean(1)
        return mean if self.pool == "mean" else torch.cat((x[:, 0], mean), dim=1)


def l2_normalized(x: Tensor) -> Tensor:
    """Vectors divided by their L2 norms, (N, D) of any floating-point type -> (N, D) float32."""
    x = x.float()
    norm: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / norm.clamp_min(SMALLEST_NORM)
