"""Pool a model's outputs into one vector per image, outside the artifact (numpy only)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.errors import UsageError
from vitdeploy.models.config import ViTConfig
from vitdeploy.specs import EMBEDS, POOLS, SMALLEST_NORM, Pool, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_POOLER, _TOKENS = "pooler_output", "last_hidden_state"


@dataclasses.dataclass(frozen=True)
class Pooling:
    """The step from an artifact's outputs to embeddings.

    The vectors are those of an artifact exported with the same pooling, within the tolerance of its precision.

    Attributes:
        output: Name of the output that it reads.
        pool: Pooling of `last_hidden_state`; None for an output that is one vector per image already.
        num_prefix_tokens: Tokens before the patches.
        width: Length of the vectors, D.
        normalize: True if the vectors are divided by their L2 norms in any case, as the bundle's `image_embeds` are.
    """

    output: str
    pool: Pool | None
    num_prefix_tokens: int
    width: int
    normalize: bool = False

    @classmethod
    def choose(cls, config: Mapping[str, Any], outputs: Sequence[TensorSpec], pool: str | None = None) -> Pooling:
        """Choose among an artifact's outputs.

        Args:
            config: Content of the model's `config.json`.
            outputs: The artifact's outputs.
            pool: Pooling. Default: the configuration's `embedding_pool`; without one, `image_embeds` if there is one,
                else `pooler_output`, else the family's.

        Raises:
            UsageError: If the pooling is unknown, or the artifact lacks the output that it reads.
            CheckpointError: If the configuration is invalid.
        """
        if pool not in (None, *POOLS):
            message = f"pool takes one of {', '.join(POOLS)}, got {pool!r:.80}"
            raise UsageError(message, what="pool", expected=POOLS, found=pool)
        if not config:
            raise UsageError("embeddings need the model's config.json", what="config", hint="load a bundle")
        model = ViTConfig.from_dict(config)
        choices, pool = _choices(model, outputs), pool or model.embedding_pool
        if not choices:
            names = [spec.name for spec in outputs]
            raise UsageError(
                f"embeddings need an artifact for features, the outputs of this one are {', '.join(names)}",
                what="outputs", expected=(EMBEDS, _POOLER, _TOKENS), found=names,
            )  # fmt: skip
        if pool is None:
            return next(iter(choices.values()))
        if pool not in choices:
            raise UsageError(
                f"this artifact cannot give the pool {pool}, only: {', '.join(choices)}",
                what="pool", expected=tuple(choices), found=pool,
            )  # fmt: skip
        return choices[pool]

    def __call__(self, outputs: Mapping[str, np.ndarray], *, normalize: bool = False) -> np.ndarray:
        """Pool a batch: outputs (N, ...) by name -> (N, D) float32; see `l2_normalized`."""
        x = outputs[self.output].astype(np.float32, copy=False)
        if self.pool is not None:
            x = _POOLS[self.pool](x, self.num_prefix_tokens)
        return l2_normalized(x) if normalize or self.normalize else x


def l2_normalized(x: np.ndarray) -> np.ndarray:
    """Vectors divided by their L2 norms, (N, D) float32 -> (N, D) float32; a zero vector stays zero."""
    normalized: np.ndarray = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.float32(SMALLEST_NORM))
    return normalized


_POOLS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "cls": lambda x, prefix: x[:, 0],  # noqa: ARG005  (one signature)
    "mean": lambda x, prefix: x[:, prefix:].mean(axis=1),
    "cls+mean": lambda x, prefix: np.concatenate((x[:, 0], x[:, prefix:].mean(axis=1)), axis=1),
}


def _choices(model: ViTConfig, outputs: Sequence[TensorSpec]) -> dict[Pool, Pooling]:
    """The poolings that an artifact can give, the default first."""
    widths = {spec.name: int(spec.shape[-1]) for spec in outputs if spec.name in (EMBEDS, _POOLER, _TOKENS)}
    prefix = model.num_prefix_tokens
    choices: dict[Pool, Pooling] = {}

    def outside(pool: Pool) -> bool:
        return model.normalize_embedding and pool == model.embedding_pool

    for name, pool in ((EMBEDS, model.embedding_pool or "projection"), (_POOLER, "pooler")):
        if name in widths:
            choices.setdefault(pool, Pooling(name, None, prefix, widths[name], outside(pool) and name != EMBEDS))
    if _TOKENS in widths:
        for pool in model.token_pools:
            width = widths[_TOKENS] * (2 if pool == "cls+mean" else 1)
            choices.setdefault(pool, Pooling(_TOKENS, pool, prefix, width, outside(pool)))
    return choices
