"""The heads of the tasks: encoder tokens (N, L, D) -> named outputs.

Poolers and heads have `leading_tokens`, the number of first tokens that they read, or None for all; a FeatureHead's is
that of `pooler_output` and `image_embeds`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.activations import activation
from vitdeploy.models.layers.dense import patch_map
from vitdeploy.models.layers.embedding import ImageEmbedding
from vitdeploy.models.layers.encoder import Attention, Mlp
from vitdeploy.specs import EMBEDS, Pool, Task


class ClsPooler(nn.Module):
    """The class token: (N, L, D) -> (N, D)."""

    leading_tokens: int | None = 1

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.width = config.hidden_size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0]


class ClsNormPooler(nn.Module):
    """The normalized class token, CLIP's: (N, L, D) -> (N, D)."""

    leading_tokens: int | None = 1

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.layernorm(x[:, 0])  # type: ignore[no-any-return]


class MeanPooler(nn.Module):
    """The mean of the patches: (N, L, D) -> (N, D)."""

    leading_tokens: int | None = None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.num_prefix_tokens = config.num_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        return x[:, self.num_prefix_tokens :].mean(1)


class MeanNormPooler(MeanPooler):
    """The normalized mean of the patches, BEiT's: (N, L, D) -> (N, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.layernorm(super().forward(x))  # type: ignore[no-any-return]


class ClsMeanPooler(nn.Module):
    """The class token concatenated with the mean of the patches, DINOv2's: (N, L, D) -> (N, 2 D)."""

    leading_tokens: int | None = None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.width = 2 * config.hidden_size
        self.num_prefix_tokens = config.num_prefix_tokens

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, 0], x[:, self.num_prefix_tokens :].mean(1)), dim=1)


class DensePooler(nn.Module):
    """The class token through a dense layer, ViT's: (N, L, D) -> (N, pooler_output_size)."""

    leading_tokens: int | None = 1

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.width = config.pooler_output_size or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, self.width)
        self.activation = activation(config.pooler_act, "pooler_act")

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.dense(x[:, 0]))


class ProbeAttention(Attention):
    """Multi-head attention of a probe (1, 1, D) to all tokens: (N, L, D) -> (N, 1, D); torch's `MultiheadAttention`."""

    def __init__(self, config: ViTConfig) -> None:
        own: dict[str, Any] = dict.fromkeys(("qkv_bias", "query_bias", "key_bias", "value_bias", "proj_bias"), True)
        own |= {"num_attention_heads": config.pooler_attention_heads or config.num_attention_heads, "head_dim": None}
        super().__init__(dataclasses.replace(config, **own, rotary=None, attention_norm=False), "sdpa")

    def forward(self, probe: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = map(self._split_heads, (self.q_proj(probe), self.k_proj(x), self.v_proj(x)))
        return self._attend(q, k, v, None)[0]


class AttentionPooler(nn.Module):
    """Attention of a learned probe, then a norm and an MLP beside a residual, SigLIP's: (N, L, D) -> (N, D).

    Zhai et al., Scaling Vision Transformers (arXiv:2106.04560), section 3.2.
    """

    leading_tokens: int | None = None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.width = config.hidden_size
        self.first = 0 if config.pooler_prefix else config.num_prefix_tokens
        self.probe = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.attention = ProbeAttention(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        width = config.pooler_intermediate_size or config.intermediate_size
        self.mlp = Mlp(dataclasses.replace(config, intermediate_size=width, mlp_norm=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.probe, x[:, self.first :])[:, 0]
        return x + self.mlp(self.layernorm(x))  # type: ignore[no-any-return]


AnyPooler = ClsPooler | ClsNormPooler | MeanPooler | ClsMeanPooler | DensePooler | AttentionPooler
_POOLERS: dict[str, type[AnyPooler]] = {
    "cls": ClsPooler,
    "cls+norm": ClsNormPooler,
    "mean": MeanPooler,
    "mean+norm": MeanNormPooler,
    "cls+mean": ClsMeanPooler,
    "dense": DensePooler,
    "attention": AttentionPooler,
}


class ClassificationHead(nn.Module):
    """Tokens -> `logits` (N, num_labels); without labels, the pooled tokens."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.pooler = _POOLERS[config.classification_pooler](config)
        self.leading_tokens = self.pooler.leading_tokens
        self.classifier = _classifier(self.pooler.width, config)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:  # noqa: ARG002  (one signature)
        return {"logits": self.classifier(self.pooler(x))}


class TeacherHead(nn.Module):
    """Class and distillation token -> `logits`, the mean of `cls_logits` and `distillation_logits`, (N, num_labels).

    DeiT's, arXiv:2012.12877.
    """

    leading_tokens: int | None = 2

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.cls_classifier = _classifier(config.hidden_size, config)
        self.distillation_classifier = _classifier(config.hidden_size, config)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:  # noqa: ARG002  (one signature)
        cls, distillation = self.cls_classifier(x[:, 0]), self.distillation_classifier(x[:, 1])
        return {"logits": (cls + distillation) / 2, "cls_logits": cls, "distillation_logits": distillation}


class FeatureHead(nn.Module):
    """Tokens -> `last_hidden_state` (N, L, D) and, with a pooler, `pooler_output` (N, its width).

    With a projection, `image_embeds` (N, projection_size) instead of `pooler_output`, as in transformers. With
    `ViTConfig.embedding_pool`, `image_embeds` is of that pooling.
    """

    def __init__(self, config: ViTConfig, *, pooler: bool) -> None:
        super().__init__()
        kind, size = config.feature_pooler, config.projection_size
        self.pooler = _POOLERS[kind](config) if pooler and kind is not None else None
        self.visual_projection = (
            None if self.pooler is None or size is None else nn.Linear(self.pooler.width, size, config.embeds_bias)
        )
        self.embed_by(config)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:  # noqa: ARG002  (one signature)
        outputs, pooled = {"last_hidden_state": x}, None if self.pooler is None else self.pooler(x)
        if self.visual_projection is not None:
            outputs = {EMBEDS: self.visual_projection(pooled), **outputs}
        elif pooled is not None:
            outputs["pooler_output"] = pooled
        if self.embedding is not None:
            outputs[EMBEDS] = self.embedding(x, pooled, outputs.get(EMBEDS))
        return outputs

    def embed_by(self, config: ViTConfig) -> None:
        """Take the pooling of `image_embeds` from a configuration."""
        self.embedding = None if config.embedding_pool is None else ImageEmbedding(config, self.pooler)
        pooled = [module.leading_tokens for module in (self.pooler, self.embedding) if module is not None]
        self.leading_tokens = None if None in pooled else max(filter(None, pooled), default=None)

    def pools(self, config: ViTConfig) -> tuple[Pool, ...]:
        """The possible values of `embedding_pool`, the default first."""
        own: dict[Pool, nn.Module | None] = {"projection": self.visual_projection, "pooler": self.pooler}
        return (*(pool for pool, module in own.items() if module is not None), *config.token_pools)


class ZeroShotHead(FeatureHead):
    """Tokens -> `logits` (N, num_labels): `image_embeds` times a vector for each class, plus a bias.

    The vectors have the text encoder's direction and the length of its scale, so that a logit is a scaled cosine if the
    embedding is normalized.
    """

    def __init__(self, config: ViTConfig, *, pooler: bool) -> None:
        super().__init__(config, pooler=pooler)
        if self.embedding is None:
            message = "a zero-shot classifier needs an embedding_pool"
            raise UsageError(message, what="embedding_pool", hint="name the pooling of its image embedding")
        self.leading_tokens = self.embedding.leading_tokens
        self.zero_shot = nn.Linear(self._width(config), len(config.labels))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        embeds = super().forward(x, grid)[EMBEDS]  # float32 in every precision
        return {"logits": self.zero_shot(embeds.to(self.zero_shot.weight.dtype))}

    def _width(self, config: ViTConfig) -> int:
        """Length of `image_embeds`."""
        if config.embedding_pool == "projection" and config.projection_size is not None:
            return config.projection_size
        if config.embedding_pool == "pooler" and self.pooler is not None:
            return self.pooler.width
        return config.hidden_size * (2 if config.embedding_pool == "cls+mean" else 1)


class ReconstructionHead(nn.Module):
    """Tokens -> `reconstruction` (N, C, gh * stride, gw * stride), as in SimMIM (arXiv:2111.09886)."""

    leading_tokens: int | None = None

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        channels = config.encoder_stride**2 * config.num_channels
        self.num_prefix_tokens = config.num_prefix_tokens
        self.decoder = nn.Sequential(
            nn.Conv2d(config.hidden_size, channels, kernel_size=1), nn.PixelShuffle(config.encoder_stride)
        )

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
        return {"reconstruction": self.decoder(patch_map(x, self.num_prefix_tokens, grid))}


class VisualTokenHead(nn.Module):
    """Tokens -> `logits` (N, gh * gw, vocab_size) over the patches' visual tokens, BEiT's."""

    leading_tokens: int | None = None

    def __init__(self, config: ViTConfig, vocab_size: int) -> None:
        super().__init__()
        self.num_prefix_tokens = config.num_prefix_tokens
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, vocab_size)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:  # noqa: ARG002  (one signature)
        return {"logits": self.lm_head(self.layernorm(x[:, self.num_prefix_tokens :]))}


Head = ClassificationHead | TeacherHead | FeatureHead | ZeroShotHead | ReconstructionHead | VisualTokenHead


def make_head(config: ViTConfig, task: Task, *, pooler: bool, teacher: bool) -> Head:
    """The head of a task, with the family's pooler for features and a distilled model's teacher if requested."""
    if task is Task.CLASSIFICATION and config.zero_shot:
        return ZeroShotHead(config, pooler=pooler)
    if task is Task.CLASSIFICATION:
        return TeacherHead(config) if teacher else ClassificationHead(config)
    if task is Task.FEATURES:
        return FeatureHead(config, pooler=pooler)
    return ReconstructionHead(config) if config.vocab_size is None else VisualTokenHead(config, config.vocab_size)


def _classifier(width: int, config: ViTConfig) -> nn.Linear | nn.Identity:
    return nn.Linear(width, len(config.labels)) if config.labels else nn.Identity()
