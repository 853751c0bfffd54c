"""Convert a timm checkpoint of an EVA or a Perception Encoder: timm's names and numbers, with a config.json of our own.

transformers has no such models. Fused projections are split, into the tensors that timm has with `qkv_fused` false and
`swiglu_align_to` 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.sources.timm_layouts.config import POOLINGS
from vitdeploy.sources.timm_layouts.eva_config import EvaConfig, read_eva_config
from vitdeploy.sources.timm_layouts.parts import refuse
from vitdeploy.sources.timm_layouts.tensors import Tensors
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_PREFIX_ROWS = 1  # of the class token


def from_eva(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], task: Task | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert an EVA or a Perception Encoder; see `vitdeploy.sources.timm_layouts.layout.from_timm`.

    A head that is a projection (see `read_eva_config`) is read as a classifier if `task` says so.
    """
    stated = read_eva_config(config)
    # Buffers of former versions of timm, which computes them again, as is done here.
    source = Tensors(stated, {name: tensor for name, tensor in tensors.items() if not name.startswith("rope.")})
    gated = stated.architecture.model_type == "timm_eva02"
    if gated and source.has("blocks.0.mlp.fc1.weight"):  # both halves in one layer
        source.mlp //= 2
    projects = stated.projects and task is not Task.CLASSIFICATION
    classes = source.has("cls_token")
    scaled = source.has("blocks.0.gamma_1")
    mlp_norm, attention_norm = source.has("blocks.0.mlp.norm.weight"), source.has("blocks.0.attn.norm.weight")
    fused = source.has("blocks.0.attn.qkv.weight")
    biased = source.has(_query_bias(stated, fused=fused))
    absolute = source.has("pos_embed")
    before = stated.architecture.is_perception_encoder
    weights, rows = _embeddings(source, classes=classes, absolute=absolute, before=before)
    for index in range(source.depth):
        block = f"blocks.{index}"
        weights |= _attention(source, f"{block}.attn", stated, fused=fused, biased=biased, norm=attention_norm)
        weights |= _mlp(source, f"{block}.mlp", gated=gated, norm=mlp_norm)
        for norm in ("norm1", "norm2"):
            weights |= source.layer(f"{block}.{norm}", f"{block}.{norm}", source.width)
        for scale in ("gamma_1", "gamma_2") if scaled else ():
            weights[f"{block}.{scale}"] = source.take(f"{block}.{scale}", source.width)
    for norm, present in (("norm", stated.final_norm), ("fc_norm", stated.late_norm)):
        weights |= source.layer(norm, norm, source.width) if present else {}
    if stated.global_pool == "map" and source.width % stated.pool_heads:
        raise refuse("attn_pool_num_heads", f"does not divide the width, {source.width}", stated.pool_heads)
    pool_width = source.shape("attn_pool.mlp.fc1.weight", 2)[0] if stated.global_pool == "map" else None
    if pool_width is not None:
        weights |= _attention_pool(source, pool_width)
    if stated.num_classes:
        weights |= source.head("head", "head")
    source.finish(
        {
            "qkv_bias": biased,
            "init_values": scaled,
            "class_token": classes,
            "use_abs_pos_emb": absolute,
            "attn_type": stated.architecture.attn_type,
            "use_pre_transformer_norm": before,
            "swiglu_mlp": gated,
            "scale_mlp": mlp_norm,
            "scale_attn_inner": attention_norm,
            "qkv_fused": fused,
            "no_embed_class": classes and absolute and not rows,
            "attn_pool_mlp_ratio": pool_width,
        }
    )
    kind = "ForImageClassification" if stated.num_classes and not projects else "Model"
    names = {"timm_eva": "TimmEva", "timm_eva02": "TimmEva02", "timm_perception_encoder": "TimmPerceptionEncoder"}
    model_type = stated.architecture.model_type
    content = source.content(model_type, names[model_type] + kind) | {
        "hidden_act": "silu" if gated else "gelu",
        "layer_norm_eps": stated.architecture.epsilon,
        "intermediate_size": source.mlp,
        "qkv_bias": biased,
        "position_antialias": True,
        "absolute_positions": absolute,
        "class_token": classes,
        "layer_scale": scaled,
        "mlp_norm": mlp_norm,
        "attention_norm": attention_norm,
        "final_norm": stated.final_norm,
        "pooling": POOLINGS[stated.global_pool, stated.late_norm],
        "rotary": stated.rotary,
    }
    if pool_width is not None:
        content |= {"pooler_attention_heads": stated.pool_heads, "pooler_intermediate_size": pool_width}
    return content | ({"projection_size": stated.num_classes} if projects else {}), weights


def _query_bias(stated: EvaConfig, *, fused: bool) -> str:
    name = "q_proj.bias" if not fused else "qkv.bias" if stated.architecture.attn_type == "rope" else "q_bias"
    return f"blocks.0.attn.{name}"


def _embeddings(
    source: Tensors[EvaConfig], *, classes: bool, absolute: bool, before: bool
) -> tuple[dict[str, Tensor], int]:
    """Tensors before the blocks, and the number of rows for the class token in the stored position table."""
    width, patches = source.width, source.grid[0] * source.grid[1]
    shape = (width, source.channels, *source.patch)
    if before:  # the norm before the blocks replaces the projection's bias
        weights = {"patch_embed.proj.weight": source.take("patch_embed.proj.weight", *shape)}
        weights |= source.layer("norm_pre", "norm_pre", width)
    else:
        weights = source.layer("patch_embed.proj", "patch_embed.proj", *shape)
    if classes:
        weights["cls_token"] = source.take("cls_token", 1, 1, width)
    if not absolute:
        return weights, 0
    rows = _PREFIX_ROWS if classes and source.shape("pos_embed", 3)[1] != patches else 0
    table = source.take("pos_embed", 1, rows + patches, width)
    if classes and not rows:
        table = torch.cat((table.new_zeros(1, _PREFIX_ROWS, width), table), dim=1)
    return weights | {"pos_embed": table}, rows


def _attention(
    source: Tensors[EvaConfig], name: str, stated: EvaConfig, *, fused: bool, biased: bool, norm: bool
) -> dict[str, Tensor]:
    width = source.width
    parts = ("q_proj", "k_proj", "v_proj")
    with_bias = parts if stated.architecture.attn_type == "rope" else ("q_proj", "v_proj")
    weights = source.layer(f"{name}.proj", f"{name}.proj", width, width)
    if norm:
        weights |= source.layer(f"{name}.norm", f"{name}.norm", width)
    if not fused:
        weights |= {f"{name}.{part}.weight": source.take(f"{name}.{part}.weight", width, width) for part in parts}
        biases = {part: source.take(f"{name}.{part}.bias", width) for part in with_bias} if biased else {}
    else:
        thirds = source.take(f"{name}.qkv.weight", 3 * width, width).chunk(3)
        weights |= {f"{name}.{part}.weight": third for part, third in zip(parts, thirds, strict=True)}
        if not biased:
            biases = {}
        elif stated.architecture.attn_type == "rope":
            biases = dict(zip(parts, source.take(f"{name}.qkv.bias", 3 * width).chunk(3), strict=True))
        else:
            biases = {part: source.take(f"{name}.{part[0]}_bias", width) for part in with_bias}
    return weights | {f"{name}.{part}.bias": bias for part, bias in biases.items()}


def _mlp(source: Tensors[EvaConfig], name: str, *, gated: bool, norm: bool) -> dict[str, Tensor]:
    width, hidden = source.width, source.mlp
    weights = source.layer(f"{name}.fc2", f"{name}.fc2", width, hidden)
    if norm:
        weights |= source.layer(f"{name}.norm", f"{name}.norm", hidden)
    if not gated:
        return weights | source.layer(f"{name}.fc1", f"{name}.fc1", hidden, width)
    if not source.has(f"{name}.fc1.weight"):
        return weights | {
            key: tensor
            for part in ("fc1_g", "fc1_x")
            for key, tensor in source.layer(f"{name}.{part}", f"{name}.{part}", hidden, width).items()
        }
    for leaf, shape in (("weight", (2 * hidden, width)), ("bias", (2 * hidden,))):
        gate, value = source.take(f"{name}.fc1.{leaf}", *shape).chunk(2)
        weights |= {f"{name}.fc1_g.{leaf}": gate, f"{name}.fc1_x.{leaf}": value}
    return weights


def _attention_pool(source: Tensors[EvaConfig], hidden: int) -> dict[str, Tensor]:
    width = source.width
    shapes = {"q": (width, width), "kv": (2 * width, width), "proj": (width, width), "norm": (width,)}
    shapes |= {"mlp.fc1": (hidden, width), "mlp.fc2": (width, hidden)}
    weights = {"attn_pool.latent": source.take("attn_pool.latent", 1, 1, width)}
    for part, shape in shapes.items():
        weights |= source.layer(f"attn_pool.{part}", f"attn_pool.{part}", *shape)
    return weights
