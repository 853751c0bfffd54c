"""The pre-norm transformer block: self-attention and MLP."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.layers.activations import activation
from vitdeploy.models.layers.positions import RelativePositionBias
from vitdeploy.models.layers.rotary import Rotation

AttentionKind = Literal["sdpa", "eager"]
ATTENTION_KINDS: tuple[str, ...] = get_args(AttentionKind)


def check_attention(kind: str) -> None:
    """Raise UsageError unless `kind` is an attention kind."""
    if kind not in ATTENTION_KINDS:
        message = f"unknown attention {kind!r}; known: {', '.join(ATTENTION_KINDS)}"
        raise UsageError(message, what="attention", expected=ATTENTION_KINDS, found=kind)


class Attention(nn.Module):
    """Multi-head self-attention: (N, L, D) -> (N, L, D), and the weights (N, H, L, L) if `kind` is "eager"."""

    def __init__(self, config: ViTConfig, kind: AttentionKind) -> None:
        super().__init__()
        width = config.num_attention_heads * config.attention_head_dim
        self.kind = kind
        self.num_heads = config.num_attention_heads
        self.head_dim = config.attention_head_dim
        self.scale = config.attention_head_dim**-0.5
        self.dropout = config.attention_probs_dropout_prob
        self.softmax_dtype = torch.float32 if config.float32_softmax else None
        self.q_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias and config.query_bias)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias and config.key_bias)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=config.qkv_bias and config.value_bias)
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps) if config.attention_norm else None
        self.o_proj = nn.Linear(width, config.hidden_size, bias=config.proj_bias)

    def forward(
        self, x: Tensor, bias: Tensor | None = None, rotation: Rotation | None = None, tokens: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; queries and keys are rotated, and `bias` (1, H, L, L) is added to their scaled products.

        With `tokens`, the result has only the first `tokens` tokens. The query projection still takes all: the three
        projections then have the same activation, which is quantized and smoothed once.
        """
        q, k, v = (proj(x) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if tokens is not None:
            q, bias = q[:, :tokens], None if bias is None else bias[:, :, :tokens]
        q, k, v = (self._split_heads(projected) for projected in (q, k, v))
        if rotation is not None:
            q, k = rotation(q, tokens), rotation(k)
        return self._attend(q, k, v, bias)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """From queries, keys and values, (N, H, L, head_dim) each, to the result and the weights."""
        weights = None
        if self.kind == "sdpa":
            dropout = self.dropout if self.training else 0.0
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=self.scale)
        else:
            weights = torch.matmul(q, k.transpose(2, 3)) * self.scale  # (N, H, L, L)
            if bias is not None:
                weights = weights + bias
            # In float32 in most families, as in transformers: half precision loses small weights.
            weights = F.softmax(weights, dim=-1, dtype=self.softmax_dtype).to(q.dtype)
            weights = F.dropout(weights, self.dropout, self.training)
            x = torch.matmul(weights, v)
        x = x.transpose(1, 2).flatten(2)  # (N, L, H * head_dim)
        return self.o_proj(x if self.layernorm is None else self.layernorm(x)), weights

    def _split_heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, 2, (self.num_heads, self.head_dim)).transpose(1, 2)  # (N, H, L, head_dim)


class Mlp(nn.Module):
    """Two linear layers around an activation and, in EVA-02, a norm: (N, L, D) -> (N, L, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.activation = activation(config.hidden_act, "hidden_act")
        self.layernorm = nn.LayerNorm(config.intermediate_size, eps=config.layer_norm_eps) if config.mlp_norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self._activated(x)
        return self.fc2(x if self.layernorm is None else self.layernorm(x))  # type: ignore[no-any-return]

    def _activated(self, x: Tensor) -> Tensor:
        return self.activation(self.fc1(x))


class GatedMlp(Mlp):
    """An MLP that a second layer with an activation gates, DINOv3's and EVA-02's: (N, L, D) -> (N, L, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)

    def _activated(self, x: Tensor) -> Tensor:
        return self.activation(self.gate(x)) * self.fc1(x)  # type: ignore[no-any-return]


class SwiGlu(nn.Module):
    """An MLP with one half gating the other (arXiv:2002.05202), DINOv2's: (N, L, D) -> (N, L, D)."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.weights_in = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.weights_out = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.weights_in(x).chunk(2, dim=-1)
        return self.weights_out(F.silu(gate) * up)  # type: ignore[no-any-return]


class Layer(nn.Module):
    """One pre-norm block: (N, L, D) -> (N, L, D), and the attention weights if available."""

    def __init__(self, config: ViTConfig, attention: AttentionKind) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = Attention(config, attention)
        self.layernorm_after = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = SwiGlu(config) if config.swiglu else GatedMlp(config) if config.gated_mlp else Mlp(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.relative_position_bias = RelativePositionBias(config) if config.relative_positions else None
        self.layer_scale1 = nn.Parameter(torch.ones(config.hidden_size)) if config.layer_scale else None
        self.layer_scale2 = nn.Parameter(torch.ones(config.hidden_size)) if config.layer_scale else None

    def forward(
        self, x: Tensor, bias: Tensor | None = None, rotation: Rotation | None = None, tokens: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Run the block; with `tokens`, for the first `tokens` tokens only, which attend to all: (N, tokens, D)."""
        attended, weights = self.attention(self.layernorm_before(x), bias, rotation, tokens)
        x = x if tokens is None else x[:, :tokens]
        x = _scaled(self.dropout(attended), self.layer_scale1) + x
        x = _scaled(self.dropout(self.mlp(self.layernorm_after(x))), self.layer_scale2) + x
        return x, weights


class UnusedNorm(nn.LayerNorm):
    """A norm that a checkpoint has and its class does not apply."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _scaled(x: Tensor, scale: Tensor | None) -> Tensor:
    return x if scale is None else x * scale
