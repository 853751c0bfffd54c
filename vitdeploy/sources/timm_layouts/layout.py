"""Convert a timm checkpoint to the equivalent Hugging Face checkpoint: the same numbers under other names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.sources.timm_layouts.clip import from_clip
from vitdeploy.sources.timm_layouts.config import read_config
from vitdeploy.sources.timm_layouts.dinov3 import from_dinov3
from vitdeploy.sources.timm_layouts.eva import from_eva
from vitdeploy.sources.timm_layouts.parts import is_dinov3, is_eva, is_timm, refuse, unsupported
from vitdeploy.sources.timm_layouts.pooled import from_pooled, is_pooled
from vitdeploy.sources.timm_layouts.processor import processor_config
from vitdeploy.sources.timm_layouts.tensors import Source
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["from_timm", "is_timm", "processor_config"]


def from_timm(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], task: Task | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a timm Vision Transformer, DeiT, BEiT, DINOv3, CLIP image encoder, EVA or Perception Encoder.

    Sizes are taken from the tensors' shapes if possible, and compared with `model_args`. A position table without rows
    for the class token gets rows of zeros, and a classifier of only the class token gets zeros for the mean of the
    patches, which Dinov2ForImageClassification also reads: neither changes a result. Two configuration keys are
    specific to vitdeploy, because timm's rules for changing the image size differ from transformers':
    `position_antialias` and `relative_position_interpolation`.

    A model that averages the patches becomes a transformers model that does so, whatever its family in timm: a BEiT if
    the norm follows the mean (`fc_norm`), a DINOv2 if it precedes it; others, see `timm_pooled`.

    Args:
        config: Content of timm's config.json, or of the config.json of transformers' wrapper around timm.
        tensors: Weights under timm's names, with or without the wrapper's prefix "timm_model.".
        task: Task of the model. Default: the checkpoint's.

    Returns:
        Content of the Hugging Face config.json, and the tensors under transformers' names.

    Raises:
        CheckpointError: If the model has no equivalent, or the files are malformed or do not fit each other.
    """
    if all(name.startswith("timm_model.") for name in tensors):
        tensors = {name.removeprefix("timm_model."): tensor for name, tensor in tensors.items()}
    if is_dinov3(config):
        return from_dinov3(config, tensors, task)
    if is_eva(config):
        return from_eva(config, tensors, task)
    stated = read_config(config)
    source = Source(stated, tensors)
    if stated.clip:
        return from_clip(source, task)
    features = not stated.num_classes or task is Task.FEATURES
    _check_norm(source)
    if is_pooled(source, features=features):
        return from_pooled(source, features=features)
    _check_pooling(source, features=features)
    return _beit(source) if stated.beit or (stated.late_norm and stated.global_pool == "avg") else _vit(source)


def _check_norm(source: Source) -> None:
    """Refuse weights of a norm before the pooling for a model with one after it, and the other way round."""
    stated, late = source.stated, source.stated.late_norm
    built, other = ("fc_norm", "norm") if late else ("norm", "fc_norm")
    if source.has(f"{other}.weight") and not source.has(f"{built}.weight"):
        key = "use_fc_norm" if stated.beit else "fc_norm"
        raise unsupported(
            key,
            f"timm builds it with global_pool {stated.global_pool!r} and {built}, but the weights have {other}. "
            f"Set global_pool and {key} in model_args to those of training",
        )


def _check_pooling(source: Source, *, features: bool) -> None:
    """Refuse combinations of pooling and norm that neither transformers nor the reference has."""
    stated = source.stated
    if stated.beit and stated.global_pool == "avg" and not stated.late_norm:
        raise unsupported("use_fc_norm", "no BEiT of transformers has its norm before the mean (use_fc_norm false)")
    if features and stated.late_norm and stated.global_pool == "token":
        raise unsupported(
            "global_pool",
            "no BEiT of transformers gives tokens before the last norm beside the class token after it",
        )


def _vit(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """ViT and DeiT; with layer scales, registers, SwiGLU or mean pooling, a DINOv2 in transformers."""
    stated, width = source.stated, source.width
    registers = source.shape("reg_token", 3)[1] if source.has("reg_token") else 0
    scaled, biased = source.has("blocks.0.ls1.gamma"), source.has("blocks.0.attn.qkv.bias")
    mean = stated.global_pool == "avg"
    dino = (scaled or registers > 0 or stated.gated or mean) and not stated.distilled
    family, name = ("deit", "DeiT") if stated.distilled else ("vit", "ViT")
    if dino:
        family, name = ("dinov2_with_registers", "Dinov2WithRegisters") if registers else ("dinov2", "Dinov2")
    prefix = f"{family}." if stated.num_classes else ""
    rows, embeddings = _embeddings(source, f"{prefix}embeddings", registers)
    # A norm after pooling a single token is that token's norm.
    norm = "fc_norm" if stated.late_norm else "norm"
    weights = embeddings | source.layer(norm, f"{prefix}layernorm", width)
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
        weights |= source.head("head", "cls_classifier") | source.head("head_dist", "distillation_classifier")
    elif stated.num_classes:
        weights |= source.head("head", "classifier")
        if dino:  # transformers classifies the class token and the mean of the patches, timm one of them
            weight = weights["classifier.weight"]
            parts = [torch.zeros_like(weight), weight] if mean else [weight, torch.zeros_like(weight)]
            weights["classifier.weight"] = torch.cat(parts, dim=1)  # (classes, 2 * width)
    source.finish({"qkv_bias": biased, "init_values": scaled, "reg_tokens": registers, "no_embed_class": rows == 0})
    content = source.content(family, name + kind) | {"qkv_bias": biased, "position_antialias": True}
    if not dino:
        return content | {"intermediate_size": source.mlp}, weights
    content |= {"mlp_ratio": _mlp_ratio(source), "use_swiglu_ffn": stated.gated}
    return content | ({"num_register_tokens": registers} if registers else {"use_mask_token": False}), weights


def _beit(source: Source) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """BEiT, and a ViT or DeiT with its norm after the mean of the patches, which is a BEiT in transformers.

    BEiT's key projection has no bias. A ViT's is omitted: it adds the same number to all scores of a query, q (k + b) =
    q k + q b, and so does not change their softmax.
    """
    stated, width = source.stated, source.width
    scales = "blocks.{}.gamma_{}" if stated.beit else "blocks.{}.ls{}.gamma"
    scaled, biased = source.has(scales.format(0, 1)), stated.beit or source.has("blocks.0.attn.qkv.bias")
    absolute = source.has("pos_embed") or not stated.beit
    mean = stated.global_pool == "avg" or (stated.late_norm and not stated.global_pool)
    if source.grid[0] != source.grid[1] or source.patch[0] != source.patch[1]:
        pooled = "a model with a norm after average pooling, which is a BEiT to transformers,"
        kind = "a BEiT" if stated.beit else pooled
        raise refuse(
            "image_size", f"is not a square grid of square patches, as {kind} needs it", (source.grid, source.patch)
        )
    prefix = "beit." if stated.num_classes else ""
    rows, weights = _embeddings(source, f"{prefix}embeddings", 0, absolute=absolute)
    if stated.beit and absolute and not rows:
        raise refuse("pos_embed", "has no row for the class token, which a BEiT needs", "none")
    norm = "fc_norm" if stated.late_norm else "norm"
    weights |= source.layer(norm, f"{prefix}pooler.layernorm" if mean else f"{prefix}layernorm", width)
    relative, shared, biases = _relative_positions(source, prefix)
    weights |= biases
    for index in range(source.depth):
        block, layer = f"blocks.{index}", f"{prefix}encoder.layer.{index}"
        attention = f"{layer}.attention.attention"
        qkv = source.take(f"{block}.attn.qkv.weight", 3 * width, width)
        weights |= _thirds(qkv, attention, "weight")
        if stated.beit:
            query, value = source.take(f"{block}.attn.q_bias", width), source.take(f"{block}.attn.v_bias", width)
        else:
            bias = source.take(f"{block}.attn.qkv.bias", 3 * width) if biased else qkv.new_zeros(3 * width)
            query, _, value = bias.chunk(3)
        weights |= {f"{attention}.query.bias": query, f"{attention}.value.bias": value}
        weights |= _rest_of_block(source, block, layer, ("layernorm_before", "layernorm_after"))
        for number in (1, 2) if scaled else ():
            weights[f"{layer}.lambda_{number}"] = source.take(scales.format(index, number), width)
    if stated.num_classes:
        weights |= source.head("head", "classifier")
    source.finish(
        {"qkv_bias": biased, "init_values": scaled}
        | {"use_abs_pos_emb": absolute, "use_rel_pos_bias": relative, "use_shared_rel_pos_bias": shared}
        if stated.beit
        else {"qkv_bias": biased, "init_values": scaled, "reg_tokens": 0, "no_embed_class": rows == 0}
    )
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


def _relative_positions(source: Source, prefix: str) -> tuple[bool, bool, dict[str, Tensor]]:
    """Do blocks have relative-position tables, do all share one, and the tables."""
    table, heads = "relative_position_bias_table", source.stated.num_heads
    offsets = (2 * source.grid[0] - 1) * (2 * source.grid[1] - 1) + 3  # between patches, and to, from and at the class
    in_layers, shared = source.has(f"blocks.0.attn.{table}"), source.has(f"rel_pos_bias.{table}")
    weights = {}
    if shared:
        bias = source.take(f"rel_pos_bias.{table}", offsets, heads)
        weights[f"{prefix}encoder.relative_position_bias.{table}"] = bias
    for index in range(source.depth):
        if in_layers:
            bias = source.take(f"blocks.{index}.attn.{table}", offsets, heads)
            weights[f"{prefix}encoder.layer.{index}.attention.attention.relative_position_bias.{table}"] = bias
        source.drop_index(f"blocks.{index}.attn.relative_position_index")
    return in_layers, shared, weights


def _embeddings(source: Source, target: str, registers: int, *, absolute: bool = True) -> tuple[int, dict[str, Tensor]]:
    """The prefix tokens, and the number of them with rows in the position table."""
    width, tokens, patches = source.width, 2 if source.stated.distilled else 1, source.grid[0] * source.grid[1]
    shape = (width, source.channels, *source.patch)
    weights = source.layer("patch_embed.proj", f"{target}.patch_embeddings.projection", *shape)
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
    if rows and registers and source.sound:  # transformers has no rows for registers: they are added to the tokens
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
    hidden = source.mlp // 2 if gated else source.mlp  # SwiGLU's first layer computes the gate, then the value
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
    """Dinov2Config's integer factor for the MLP's width; SwiGLU keeps two thirds, rounded up to a multiple of 8."""
    width, mlp = source.width, source.mlp
    for ratio in range(1, 3 * mlp // width + 2):
        if (int(width * ratio * 2 / 3) + 7) // 8 * 16 == mlp if source.stated.gated else width * ratio == mlp:
            return ratio
    raise refuse("mlp_ratio", f"gives the MLP a width that Dinov2Config cannot state for the width {width}", mlp)
