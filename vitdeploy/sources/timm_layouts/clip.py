"""Convert a timm checkpoint of a CLIP image encoder (`vit_*_clip_*`).

Its features and projection are a CLIPVisionModel in transformers, which has no classifier of the normalized class
token: such a classifier has a model_type of our own, with the same names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.sources.timm_layouts.parts import unsupported
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from torch import Tensor

    from vitdeploy.sources.timm_layouts.tensors import Source

_EPSILON = 1e-5
_ENCODER = "vision_model"


def from_clip(source: Source, task: Task | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a CLIP image encoder; see `vitdeploy.sources.timm_layouts.layout.from_timm`.

    timm's head is CLIP's projection if its bias is zero and no classes are named: the projection has no bias, for which
    timm writes zeros. Otherwise it is a classifier, or what `task` says.
    """
    stated, width = source.stated, source.width
    if stated.global_pool == "avg":
        raise unsupported("global_pool", "a CLIP encoder that averages the patches is not supported; set it to 'token'")
    rows, weights = _embeddings(source)
    weights |= source.layer("fc_norm" if stated.late_norm else "norm", f"{_ENCODER}.post_layernorm", width)
    biased = source.has("blocks.0.attn.qkv.bias")
    for index in range(source.depth):
        weights |= _block(source, f"blocks.{index}", f"{_ENCODER}.encoder.layers.{index}", biased=biased)
    head = source.head("head", "head") if stated.num_classes else {}
    source.finish({"qkv_bias": biased, "init_values": False, "reg_tokens": 0, "no_embed_class": rows == 0})
    projects = bool(head) and "id2label" not in stated.labels and not head["head.bias"].any()
    if head and (task is Task.CLASSIFICATION or not (projects or task is Task.FEATURES)):
        content = source.content("timm_clip", "TimmClipForImageClassification")
        weights |= {"classifier.weight": head["head.weight"], "classifier.bias": head["head.bias"]}
    elif projects:
        content = source.content("clip_vision_model", "CLIPVisionModelWithProjection")
        content |= {"projection_dim": stated.num_classes}
        weights["visual_projection.weight"] = head["head.weight"]
    else:
        content = source.content("clip_vision_model", "CLIPVisionModel")
    return content | {
        "hidden_act": stated.hidden_act,
        "layer_norm_eps": _EPSILON,
        "intermediate_size": source.mlp,
        "position_antialias": True,
    }, weights


def _embeddings(source: Source) -> tuple[int, dict[str, Tensor]]:
    """The tensors before the blocks, and the number of prefix tokens with rows in the position table."""
    width, patches, target = source.width, source.grid[0] * source.grid[1], f"{_ENCODER}.embeddings"
    rows = 0 if source.shape("pos_embed", 3)[1] == patches else 1
    table = source.take("pos_embed", 1, rows + patches, width)[0]
    return rows, {
        f"{target}.patch_embedding.weight": source.take(
            "patch_embed.proj.weight", width, source.channels, *source.patch
        ),
        f"{target}.class_embedding": source.take("cls_token", 1, 1, width)[0, 0],
        f"{target}.position_embedding.weight": table if rows else torch.cat((table.new_zeros(1, width), table)),
        **source.layer("norm_pre", f"{_ENCODER}.pre_layrnorm", width),
    }


def _block(source: Source, block: str, layer: str, *, biased: bool) -> dict[str, Tensor]:
    width = source.width
    fused = {"weight": source.take(f"{block}.attn.qkv.weight", 3 * width, width)}
    # transformers' projections have biases
    fused["bias"] = source.take(f"{block}.attn.qkv.bias", 3 * width) if biased else fused["weight"].new_zeros(3 * width)
    return {
        **source.layer(f"{block}.norm1", f"{layer}.layer_norm1", width),
        **{
            f"{layer}.self_attn.{part}_proj.{leaf}": third
            for leaf, tensor in fused.items()
            for part, third in zip("qkv", tensor.chunk(3), strict=True)
        },
        **source.layer(f"{block}.attn.proj", f"{layer}.self_attn.out_proj", width, width),
        **source.layer(f"{block}.norm2", f"{layer}.layer_norm2", width),
        **source.layer(f"{block}.mlp.fc1", f"{layer}.mlp.fc1", source.mlp, width),
        **source.layer(f"{block}.mlp.fc2", f"{layer}.mlp.fc2", width, source.mlp),
    }
