"""Configuration of a Vision Transformer, read from a Hugging Face `config.json`."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from vitdeploy.bundle.labels import class_names
from vitdeploy.bundle.scores import ProblemType, stated_problem_type
from vitdeploy.errors import CheckpointError, UsageError, shown
from vitdeploy.files.json_text import json_object
from vitdeploy.files.regular_file import read_regular
from vitdeploy.models.families.config_keys import check_keys
from vitdeploy.models.families.family import Family
from vitdeploy.models.families.lookup import encoder_keys, family_of
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.rotary import Rotary
from vitdeploy.specs import EMBEDDING_KEYS, POOLS, ZERO_SHOT, Pool

Pooler = Literal["cls", "cls+norm", "mean", "mean+norm", "cls+mean", "dense", "attention"]
POOLERS: tuple[str, ...] = get_args(Pooler)
# Keys that every family's config.json may have, by field name.
_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "image_size",
    "patch_size", "num_channels", "qkv_bias", "head_dim", "encoder_stride", "pooler_output_size", "pooler_act",
)  # fmt: skip
# Keys that transformers does not have.
_OURS = ("position_antialias", "relative_position_interpolation", *EMBEDDING_KEYS, ZERO_SHOT)
_CLASS_TOKEN_POOLERS = ("cls", "cls+norm", "cls+mean", "dense")
# Larger than any real model; below, the element count of every weight fits 64 bits.
_MAX_SIZE = 2**15
_MAX_LAYERS = 2**10
_MAX_PATCHES = 2**16  # with this many tokens, the attention of one head takes 16 GiB
_OPTIONAL = (
    "head_dim", "pooler_output_size", "vocab_size", "projection_size", "pooler_attention_heads",
    "pooler_intermediate_size",
)  # fmt: skip
_SIZE = (int, 1, _MAX_SIZE, f"an integer from 1 to {_MAX_SIZE}")
_COUNT = (int, 0, _MAX_LAYERS, f"an integer from 0 to {_MAX_LAYERS}")
_SHARE = ((int, float), 0, 1, "a number from 0 to 1")
_NUMBER = ((int, float), 0, sys.float_info.max, "a finite number from 0 up")
_FLAG = (bool, False, True, "true or false")
# Type, smallest and largest value of fields, and a description.
_RANGES = {
    **dict.fromkeys(
        ("hidden_size", "num_attention_heads", "intermediate_size", "num_channels", "encoder_stride"), _SIZE
    ),
    **dict.fromkeys(_OPTIONAL, _SIZE),
    **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), _SHARE),
    **dict.fromkeys(("initializer_range", "layer_norm_eps"), _NUMBER),
    **dict.fromkeys(("num_hidden_layers", "num_register_tokens"), _COUNT),
    **dict.fromkeys(("qkv_bias", "position_antialias", "projection_bias", "embedding_norm", "class_token"), _FLAG),
    **dict.fromkeys(("absolute_positions", "layer_scale", "swiglu", "attention_norm", "mlp_norm", "final_norm"), _FLAG),
    **dict.fromkeys(("normalize_embedding", "zero_shot"), _FLAG),
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Hyper-parameters of every family; ViT's have transformers' names and defaults.

    Attributes:
        model_type: Family, one of `FAMILIES`.
        hidden_dropout_prob: Dropout after the embeddings, the attention projection and the MLP; training only.
        attention_probs_dropout_prob: Dropout of the attention weights; training only.
        initializer_range: Standard deviation of random weights.
        image_size: (height, width) in pixels of the position embeddings.
        patch_size: (height, width) in pixels of one patch.
        qkv_bias: True if the query, key and value projections have a bias.
        head_dim: Width of one attention head. Default: hidden_size // num_attention_heads.
        encoder_stride: Side length in pixels of the square that one token is decoded to, in masked image modeling.
        pooler_output_size: Width of the pooler. Default: hidden_size.
        labels: Class names, in the order of the logits; empty for an identity head.
        problem_type: Problem type of a classifier. Default: derived from the number of labels.
        projection_bias: True if the patch projection has a bias.
        embedding_norm: True if a layer norm precedes the first block; `hidden_states.0` follows it.
        query_bias: False if the query projection has no bias in spite of `qkv_bias`.
        key_bias: The same for keys.
        value_bias: The same for values.
        proj_bias: True if the output projection of attention has a bias.
        mlp_bias: True if the linear layers of the MLP have a bias; not for `swiglu`.
        class_token: True if a learned token precedes the patches.
        distillation_token: True if a second token, with its own position, follows the class token.
        mask_token: True if the model has a mask token for every task, though only masked image modeling uses it.
        num_register_tokens: Tokens without positions before the patches, after the class token.
        layer_scale: True if a learned factor per channel scales a block's residual branch.
        swiglu: True if the MLP gates with SiLU instead of applying `hidden_act`, in one linear layer.
        gated_mlp: True if a second linear layer with `hidden_act` gates the MLP.
        float32_softmax: True if eager attention computes its softmax in float32 for every model type.
        absolute_positions: True if tokens have position embeddings.
        rotary: Rotary positions of the patches, if any.
        relative_positions: True if every layer has an attention bias by the offset of two patches.
        shared_relative_positions: True if all layers share such a bias.
        attention_norm: True if a layer norm precedes the output projection of attention.
        mlp_norm: True if a layer norm precedes the last linear layer of the MLP; not for `swiglu`.
        position_antialias: True if position embeddings are interpolated with antialiasing.
        relative_position_interpolation: Interpolation of those biases: "bilinear" as in transformers, or "geometric" as
            in timm (see `vitdeploy.models.layers.geometric`), which does not support a dynamic image size.
        any_image_size: True if transformers' model takes images of every size without `interpolate_pos_encoding`.
        final_norm: True if a layer norm follows the last block.
        unused_norm: True if a model without it has its weights, which transformers' class expects.
        feature_norm: Dense features of this name that have the final norm, as the family's backbone in transformers has
            it: "all", "last" (the last layer's) or "none"; a family without a backbone has "all".
        classification_pooler: Pooling before the classifier; see `vitdeploy.models.layers.heads`.
        feature_pooler: Pooling of feature extraction, if any.
        pooler_prefix: True if the attention pooler attends to the tokens before the patches, too.
        pooler_attention_heads: Number of heads of the attention pooler. Default: num_attention_heads.
        pooler_intermediate_size: Width of the attention pooler's MLP. Default: intermediate_size.
        default_pool: Pooling of embeddings for a model with neither a projection nor a pooler: "cls" or "mean"; always
            "mean" without a class token.
        embedding_pool: Pooling of the output `image_embeds`; see `vitdeploy.models.layers.embedding`. None for
            transformers' outputs.
        normalize_embedding: True if the pooled vector is divided by its L2 norm.
        zero_shot: True for a classifier of `image_embeds` by vectors of its classes; see
            `vitdeploy.models.layers.heads.ZeroShotHead`.
        projection_size: Width of `image_embeds`, the pooled features through a linear layer; None without them.
        embeds_bias: True if that layer has a bias.
        vocab_size: Number of visual tokens that masked image modeling predicts; None if it reconstructs pixels.

    Raises:
        UsageError: If a value is invalid.
    """

    model_type: str = "vit"
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    image_size: tuple[int, int] = (224, 224)
    patch_size: tuple[int, int] = (16, 16)
    num_channels: int = 3
    qkv_bias: bool = True
    head_dim: int | None = None
    encoder_stride: int = 16
    pooler_output_size: int | None = None
    pooler_act: str = "tanh"
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: ProblemType | None = None
    projection_bias: bool = True
    embedding_norm: bool = False
    query_bias: bool = True
    key_bias: bool = True
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    class_token: bool = True
    distillation_token: bool = False
    mask_token: bool = False
    num_register_tokens: int = 0
    layer_scale: bool = False
    swiglu: bool = False
    gated_mlp: bool = False
    float32_softmax: bool = True
    absolute_positions: bool = True
    rotary: Rotary | None = None
    relative_positions: bool = False
    shared_relative_positions: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
    position_antialias: bool = False
    relative_position_interpolation: Literal["bilinear", "geometric"] = "bilinear"
    any_image_size: bool = False
    final_norm: bool = True
    unused_norm: bool = False
    feature_norm: Literal["all", "last", "none"] = "all"
    classification_pooler: Pooler = "cls"
    feature_pooler: Pooler | None = "dense"
    pooler_prefix: bool = True
    pooler_attention_heads: int | None = None
    pooler_intermediate_size: int | None = None
    default_pool: Literal["cls", "mean"] = "cls"
    embedding_pool: Pool | None = None
    normalize_embedding: bool = False
    zero_shot: bool = False
    projection_size: int | None = None
    embeds_bias: bool = False
    vocab_size: int | None = None

    def __post_init__(self) -> None:
        values, wrong = vars(self), {}
        for name, (kind, low, high, expected) in _RANGES.items():
            if not (values[name] is None and name in _OPTIONAL) and not _is_within(values[name], kind, low, high):
                wrong[name] = expected
        for name in ("image_size", "patch_size"):
            size = values[name]
            if not (isinstance(size, tuple) and len(size) == 2 and all(_is_within(edge, *_SIZE[:3]) for edge in size)):
                wrong[name] = f"{_SIZE[3]}, or a pair of them"
        for name in ("classification_pooler", "feature_pooler"):
            if values[name] not in POOLERS and not (values[name] is None and name == "feature_pooler"):
                wrong[name] = f"one of {', '.join(POOLERS)}"
        if self.relative_position_interpolation not in ("bilinear", "geometric"):
            wrong["relative_position_interpolation"] = "bilinear or geometric"
        if self.embedding_pool not in (None, *POOLS):
            wrong["embedding_pool"] = f"one of {', '.join(POOLS)}"
        if self.zero_shot and self.embedding_pool is None:
            wrong["embedding_pool"] = f"one of {', '.join(POOLS)}, which a zero-shot classifier needs"
        for name in ("hidden_act", "pooler_act"):
            if not isinstance(values[name], str):
                wrong[name] = "the name of an activation"
        for name, expected in wrong.items():
            message = f"{name} is {shown(values[name])}, expected {expected}"
            raise UsageError(message, what=name, expected=expected, found=values[name])
        if min(self.grid_size) < 1:
            message = f"patch_size {self.patch_size} exceeds image_size {self.image_size}"
            raise UsageError(message, what="patch_size", expected=self.image_size, found=self.patch_size)
        if self.num_patches > _MAX_PATCHES:
            raise UsageError(
                f"image_size {self.image_size} has {self.num_patches} patches of {self.patch_size}; at most "
                f"{_MAX_PATCHES} are supported",
                what="image_size", expected=_MAX_PATCHES, found=self.num_patches,
            )  # fmt: skip
        if self.attention_head_dim < 1:
            heads = self.num_attention_heads
            message = f"hidden_size {self.hidden_size} is less than num_attention_heads {heads}"
            raise UsageError(message, what="hidden_size", expected=heads, found=self.hidden_size)
        if self.rotary is not None and self.attention_head_dim % 4:
            width = self.attention_head_dim
            message = f"rotary positions need attention heads of a multiple of 4 channels, got {width}"
            raise UsageError(message, what="head_dim", expected=4, found=width)
        if not self.class_token:
            self._check_without_class_token()

    def _check_without_class_token(self) -> None:
        """Raise UsageError if anything reads the class token."""
        reads = {
            "distillation_token": self.distillation_token,
            "relative_positions": self.relative_positions,
            "shared_relative_positions": self.shared_relative_positions,
            "classification_pooler": self.classification_pooler in _CLASS_TOKEN_POOLERS,
            "feature_pooler": self.feature_pooler in _CLASS_TOKEN_POOLERS,
            "embedding_pool": self.embedding_pool in _CLASS_TOKEN_POOLERS,
        }
        for name in filter(reads.get, reads):
            value = getattr(self, name)
            message = f"{name} {shown(value)} needs a class token, which the model does not have"
            raise UsageError(message, what=name, found=value)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Number of patches (down, across); the model ignores pixels past the last whole patch."""
        return self.image_size[0] // self.patch_size[0], self.image_size[1] // self.patch_size[1]

    @property
    def num_patches(self) -> int:
        return self.grid_size[0] * self.grid_size[1]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches."""
        return self.class_token + self.distillation_token + self.num_register_tokens

    @property
    def token_pools(self) -> tuple[Pool, ...]:
        """Poolings of `last_hidden_state`, the default first."""
        if not self.class_token:
            return ("mean",)
        return tuple(dict.fromkeys((self.default_pool, "cls", "mean", "cls+mean")))

    @property
    def family(self) -> Family:
        return FAMILIES[self.model_type]

    @property
    def attention_head_dim(self) -> int:
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ViTConfig:
        """Read a parsed `config.json`; see `vitdeploy.models.families.config_keys` for every key.

        Raises:
            CheckpointError: If the model type is unknown, a value is invalid, or a key requires an unsupported feature.
        """
        family, model_type = family_of(data), data["model_type"]
        encoder = encoder_keys(data)
        values = {name: encoder[name] for name in (*_KEYS, *_OURS, *family.keys) if name in encoder}
        for name in ("image_size", "patch_size"):
            if name in values:
                values[name] = _pair(values[name])
        try:
            check_keys(model_type, data)
            if family.tower is not None:
                check_keys(family.tower.model_type, encoder)
            derived = {} if family.derive is None else family.derive(encoder)
            fields = {**family.sets, **values, **derived}
            labels = class_names(data)
            if fields.get(ZERO_SHOT) and not labels:
                raise UsageError("a zero-shot classifier needs labels", what="id2label", found=labels)
            return cls(model_type=model_type, **fields, labels=labels, problem_type=stated_problem_type(data))
        except UsageError as exc:
            raise exc.at("config.json").as_type(CheckpointError) from exc

    @classmethod
    def from_pretrained(cls, folder: Path) -> ViTConfig:
        """Read `config.json` in `folder`."""
        return cls.from_dict(read_json(folder / "config.json"))

    def to_dict(self) -> dict[str, Any]:
        """Content of a `config.json` for `from_dict` and transformers.

        Raises:
            UsageError: If the model is not a plain ViT; other families keep the checkpoint's `config.json`.
        """
        if self.model_type != "vit":
            message = f"a config.json can be written for vit, not for {self.model_type}"
            raise UsageError(message, what="model_type", found=self.model_type, hint="keep its own config.json")
        data = {"model_type": self.model_type} | {name: getattr(self, name) for name in _KEYS}
        data["id2label"] = {str(index): name for index, name in enumerate(self.labels)}
        data["label2id"] = {name: index for index, name in enumerate(self.labels)}
        if self.embedding_pool is not None:
            data |= {"embedding_pool": self.embedding_pool, "normalize_embedding": self.normalize_embedding}
        data["problem_type"] = None if self.problem_type is None else self.problem_type.in_config
        if self.zero_shot:
            data[ZERO_SHOT] = True
        for name in ("image_size", "patch_size"):
            data[name] = json_size(data[name])
        for name in ("initializer_range", "layer_norm_eps"):
            data[name] = float(data[name])  # transformers refuses an integer
        return {name: value for name, value in data.items() if value is not None}


def json_size(size: tuple[int, int]) -> int | list[int]:
    """(height, width) in the form of `config.json`: one number for a square."""
    height, width = size
    return height if height == width else [height, width]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; CheckpointError if the file is missing, unreadable or not a JSON object."""
    try:
        content = read_regular(path)
    except OSError as exc:
        raise CheckpointError(f"{path} cannot be read: {exc.strerror}", where=path) from exc
    return json_object(path, content, CheckpointError)


def _is_within(value: Any, kind: Any, low: float, high: float) -> bool:
    """True if a value has a type and is within limits; booleans are not numbers."""
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool) and low <= value <= high


def _pair(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    return (value, value) if isinstance(value, int) else value
