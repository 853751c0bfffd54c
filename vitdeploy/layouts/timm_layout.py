"""Turn a timm checkpoint into the equivalent Hugging Face checkpoint: the same numbers under other names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.layouts.timm_config import is_timm, read_config, refuse
from vitdeploy.layouts.timm_processor import processor_config
from vitdeploy.layouts.timm_tensors import Source

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["from_timm", "is_timm", "processor_config"]


def from_timm(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a timm Vision Transformer, DeiT or BEiT.

    Sizes come from the tensors' shapes where those tell them, and are checked against `model_args`. A position table
    without rows for the class token gets rows of zeros, and a classifier that reads the class token alone gets zeros
    for the mean of the patches that Dinov2ForImageClassification reads besides: neither changes a result. Two keys of
    the configuration are vitdeploy's own, since timm makes a model one of another image size by other rules than
    transformers: `position_antialias` and `relative_position_interpolation`.

    Args:
        config: the content of timm's config.json, or of that of transformers' wrapper around timm.
        tensors: the weights under timm's names, with or without the wrapper's prefix "timm_model.".

    Returns:
        The content of the Hugging Face config.json, and the tensors under the names that transformers writes.

    Raises:
        CheckpointError: the model has no equivalent, or the files are malformed or do not fit each other.
    """
    stated = read_config(config)
    if all(name.startswith("timm_model.") for name in tensors):
        tensors = {name.removeprefix("timm_model."): tensor for name, tensor in tensors.items()}
    source = Source(stated, tensors)
    return _beit(source) if stated.beit else _vit(source)


def _vit(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """ViT and DeiT; what has layer scales, registers or SwiGLU is a DINOv2 to transformers."""
    stated, width = source.stated, source.width
    registers = source.shape("reg_token", 3)[1] if source.has("reg_token") else 0
    scaled, biased = source.has("blocks.0.ls1.gamma"), source.has("blocks.0.attn.qkv.bias")
    dino = (scaled or registers > 0 or stated.gated) and not stated.distilled
    family, name = ("deit", "DeiT") if stated.distilled else ("vit", "ViT")
    if dino:
        family, name = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    prefix = f"{family}." if stated.num_classes else ""
    rows, embeddings = _embeddings(source, f"{prefix}embeddings", registers)
    weights = embeddings | source.layer("norm", f"{prefix}layernorm", width)
    norms = ("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after")
    for index in range(source.depth):
        block, layer = f"blocks.{index}", f"{prefix}encoder.layer.{index}"
        qkv = source.take(f"{block}.attn.qkv.weight", 3 * width, width)
        weights |= _thirds(qkv, f"{layer}.attention.attention", "weight")
        if biased:
            weights |= _thirds(source.take(f"{block}.attn.qkv.bias", 3 * width), f"{layer}.attention.attention", "bias")
        weights |= _rest_of_block(source, block, layer, norms, dino=dino)
        for number in (1, 2) if dino else ():
            gamma = source.take(f"{block}.ls{number}.gamma", width) if scaled else qkv.new_ones(width)
            weights[f"{layer}.layer_scale{number}.lambda1"] = gamma
    kind = "ForImageClassification" if stated.num_classes else "Model"
    if stated.num_classes and stated.distilled:
        kind += "WithTeacher"
        weights |= source.layer("head", "cls_classifier", stated.num_classes, width)
        weights |= source.layer("head_dist", "distillation_classifier", stated.num_classes, width)
    elif stated.num_classes:
        weights |= source.layer("head", "classifier", stated.num_classes, width)
        if dino:  # transformers classifies the class token and the mean of the patches, timm the class token
            weight = weights["classifier.weight"]
            weights["classifier.weight"] = torch.cat([weight, torch.zeros_like(weight)], dim=1)  # (classes, 2 * width)
    source.finish({"qkv_bias": biased, "init_values": scaled, "reg_tokens": registers, "no_embed_class": rows == 0})
    content = source.content(family, name + kind) | {"qkv_bias": biased, "position_antialias": True}
    if not dino:
        return content | {"intermediate_size": source.mlp}, weights
    content |= {"mlp_ratio": _mlp_ratio(source), "use_swiglu_ffn": stated.gated}
    return content | ({"num_register_tokens": registers} if registers else {"use_mask_token": False}), weights


def _beit(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """BEiT and BEiTv2, whose keys have no bias."""
    stated, width, heads = source.stated, source.width, source.stated.num_heads
    if source.grid[0] != source.grid[1] or source.patch[0] != source.patch[1]:
        raise refuse("a BEiT must have a square grid of square patches", (source.grid, source.patch))
    offsets = (2 * source.grid[0] - 1) * (2 * source.grid[1] - 1) + 3  # between patches, and to, from and at the class
    scaled, absolute = source.has("blocks.0.gamma_1"), source.has("pos_embed")
    table, shared = "relative_position_bias_table", source.has("rel_pos_bias.relative_position_bias_table")
    relative = source.has(f"blocks.0.attn.{table}")
    mean = stated.global_pool == "avg" or (not stated.global_pool and source.has("fc_norm.weight"))
    prefix = "beit." if stated.num_classes else ""
    rows, weights = _embeddings(source, f"{prefix}embeddings", 0, absolute=absolute)
    if absolute and not rows:
        raise refuse("the position table of a BEiT must have a row for the class token", "none")
    norm, target = ("fc_norm", "pooler.layernorm") if mean else ("norm", "layernorm")
    weights |= source.layer(norm, f"{prefix}{target}", width)
    if shared:
        bias = source.take(f"rel_pos_bias.{table}", offsets, heads)
        weights[f"{prefix}encoder.relative_position_bias.{table}"] = bias
    for index in range(source.depth):
        block, layer = f"blocks.{index}", f"{prefix}encoder.layer.{index}"
        attention = f"{layer}.attention.attention"
        weights |= _thirds(source.take(f"{block}.attn.qkv.weight", 3 * width, width), attention, "weight")
        weights[f"{attention}.query.bias"] = source.take(f"{block}.attn.q_bias", width)
        weights[f"{attention}.value.bias"] = source.take(f"{block}.attn.v_bias", width)
        if relative:
            bias = source.take(f"{block}.attn.{table}", offsets, heads)
            weights[f"{attention}.relative_position_bias.{table}"] = bias
        source.drop_index(f"{block}.attn.relative_position_index")
        weights |= _rest_of_block(source, block, layer, ("layernorm_before", "layernorm_after"))
        for number in (1, 2) if scaled else ():
            weights[f"{layer}.lambda_{number}"] = source.take(f"{block}.gamma_{number}", width)
    if stated.num_classes:
        weights |= source.layer("head", "classifier", stated.num_classes, width)
    uses = {"use_abs_pos_emb": absolute, "use_rel_pos_bias": relative, "use_shared_rel_pos_bias": shared}
    source.finish({"qkv_bias": True, "init_values": scaled, **uses, "use_fc_norm": mean})
    content = source.content("beit", "BeitForImageClassification" if stated.num_classes else "BeitModel")
    return content | {
        "intermediate_size": source.mlp,
        "layer_scale_init_value": 0.1 if scaled else 0.0,  # above zero: there are layer scales
        "use_absolute_position_embeddings": absolute,
        "use_relative_position_bias": relative,
        "use_shared_relative_position_bias": shared,
        "use_mean_pooling": mean,
        **({"position_antialias": True} if absolute else {}),
        **({"relative_position_interpolation": "geometric"} if relative or shared else {}),
    }, weights


def _embeddings(source: Source, target: str, registers: int, *, absolute: bool = True) -> tuple[int, dict[str, Tensor]]:
    """The tokens before the blocks, and how many of those before the patches have rows in the position table."""
    width, tokens, patches = source.width, 2 if source.stated.distilled else 1, source.grid[0] * source.grid[1]
    weights = source.layer(
        "patch_embed.proj", f"{target}.patch_embeddings.projection", width, source.channels, *source.patch
    )
    weights[f"{target}.cls_token"] = source.take("cls_token", 1, 1, width)
    if source.stated.distilled:
        weights[f"{target}.distillation_token"] = source.take("dist_token", 1, 1, width)
    if registers:
        weights[f"{target}.register_tokens"] = source.take("reg_token", 1, registers, width)
        weights[f"{target}.mask_token"] = torch.zeros(1, width)  # transformers always has one; it has no effect
    if not absolute:
        return 0, weights
    rows = 0 if source.shape("pos_embed", 3)[1] == patches else tokens + registers
    table = source.take("pos_embed", 1, rows + patches, width)
    if rows and registers and source.sound:  # transformers has no rows for registers: their tokens take them in
        tokens_in_place = weights[f"{target}.register_tokens"].float() + table[:, tokens:rows].float()
        weights[f"{target}.register_tokens"] = tokens_in_place
    prefix = table[:, :tokens] if rows else table.new_zeros(1, tokens, width)
    table = torch.cat([prefix, table[:, rows:]], dim=1)  # (1, tokens + patches, width)
    weights[f"{target}.position_embeddings"] = table
    return rows, weights


def _thirds(qkv: Tensor, target: str, what: str) -> dict[str, Tensor]:
    """The rows of timm's fused projection: queries, keys, values."""
    return {f"{target}.{name}.{what}": part for name, part in zip(("query", "key", "value"), qkv.chunk(3), strict=True)}


def _rest_of_block(
    source: Source, block: str, layer: str, norms: tuple[str, str], *, dino: bool = False
) -> dict[str, Tensor]:
    """The norms, the output projection and the MLP."""
    width, gated = source.width, source.stated.gated
    hidden = source.mlp // 2 if gated else source.mlp  # SwiGLU's first layer makes the gate, then the value
    names = ("intermediate.dense", "output.dense")
    if dino:
        names = ("mlp.weights_in", "mlp.weights_out") if gated else ("mlp.fc1", "mlp.fc2")
    return {
        **source.layer(f"{block}.norm1", f"{layer}.{norms[0]}", width),
        **source.layer(f"{block}.attn.proj", f"{layer}.attention.output.dense", width, width),
        **source.layer(f"{block}.norm2", f"{layer}.{norms[1]}", width),
        **source.layer(f"{block}.mlp.fc1", f"{layer}.{names[0]}", 2 * hidden if gated else hidden, width),
        **source.layer(f"{block}.mlp.fc2", f"{layer}.{names[1]}", width, hidden),
    }


def _mlp_ratio(source: Source) -> int:
    """The integer from which Dinov2Config makes the width of the MLP; SwiGLU keeps two thirds, rounded up to eights."""
    width, mlp = source.width, source.mlp
    for ratio in range(1, 3 * mlp // width + 2):
        if (int(width * ratio * 2 / 3) + 7) // 8 * 16 == mlp if source.stated.gated else width * ratio == mlp:
            return ratio
    raise refuse(f"the MLP's width must be one that Dinov2Config can state for a model of width {width}", mlp)
