"""Convert a timm Vision Transformer without a class token, or with a pooling that few classes of transformers have.

SigLIP's image tower and a classifier of the mean of the patches have a class in transformers: `SiglipVisionModel` and
`IJepaForImageClassification`. Others have a model_type of our own, which states tokens, norms and pooling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.models.checkpoint import disk_tensors
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.sources.timm_layouts.config import POOLINGS

if TYPE_CHECKING:
    from torch import Tensor

    from vitdeploy.sources.timm_layouts.tensors import Source


def is_pooled(source: Source, *, features: bool) -> bool:
    """True for a model that `from_pooled` converts: no other class of transformers has its tokens and pooling."""
    stated = source.stated
    if not stated.class_token or stated.global_pool == "map":
        return True
    if stated.beit or stated.distilled or stated.clip:
        return False
    if stated.global_pool == "avg" and stated.late_norm:
        square = source.grid[0] == source.grid[1] and source.patch[0] == source.patch[1]
        return source.has("reg_token") or stated.gated or not square
    return features and (stated.global_pool, stated.late_norm) in (("avg", False), ("token", True))


def from_pooled(source: Source, *, features: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert the model; see `vitdeploy.sources.timm_layouts.layout.from_timm`."""
    stated, width = source.stated, source.width
    registers = source.shape("reg_token", 3)[1] if source.has("reg_token") else 0
    scaled, biased = source.has("blocks.0.ls1.gamma"), source.has("blocks.0.attn.qkv.bias")
    pooling = POOLINGS[stated.global_pool, stated.late_norm]
    rows, weights = _embeddings(source, registers)
    for index in range(source.depth):
        weights |= _block(source, f"blocks.{index}", f"layers.{index}", biased=biased, scaled=scaled)
    norm, target = ("fc_norm", "head.pooler.layernorm") if stated.late_norm else ("norm", "layernorm")
    weights |= source.layer(norm, target, width)
    if pooling == "attention":
        weights |= _attention_pool(source)
    head = source.head("head", "head.classifier") if stated.num_classes else {}
    positioned = stated.class_token or registers
    source.finish(
        {
            "qkv_bias": biased,
            "init_values": scaled,
            "reg_tokens": registers,
            "no_embed_class": not rows if positioned else stated.arguments.get("no_embed_class"),
        }
    )
    simple = not (stated.class_token or registers or scaled or stated.gated)
    square = source.grid[0] == source.grid[1] and source.patch[0] == source.patch[1]
    content: dict[str, Any]
    if simple and features and pooling in ("attention", None) and biased and square:
        content = source.content("siglip_vision_model", "SiglipVisionModel")
        content |= {"vision_use_head": pooling is not None}
    elif simple and not features and pooling == "mean":
        content = source.content("ijepa", "IJepaForImageClassification") | {"qkv_bias": biased}
    else:
        content = source.content("timm_vit", "TimmViTModel" if features else "TimmViTForImageClassification") | {
            "qkv_bias": biased,
            "class_token": stated.class_token,
            "num_register_tokens": registers,
            "layer_scale": scaled,
            "swiglu": stated.gated,
            "final_norm": not stated.late_norm,
            "pooling": pooling,
        }
    content |= {
        "hidden_act": stated.hidden_act,
        "intermediate_size": source.mlp // 2 if stated.gated else source.mlp,
        "position_antialias": True,
    }
    if not features:
        weights |= head
    return content, disk_tensors(FAMILIES[content["model_type"]], weights, beside_a_head=not features)


def _embeddings(source: Source, registers: int) -> tuple[int, dict[str, Tensor]]:
    """The tensors before the blocks, and the number of prefix tokens with rows in the position table."""
    width, tokens, patches = source.width, int(source.stated.class_token), source.grid[0] * source.grid[1]
    shape = (width, source.channels, *source.patch)
    weights = source.layer("patch_embed.proj", "embeddings.patch_embeddings.projection", *shape)
    rows = 0 if source.shape("pos_embed", 3)[1] == patches else tokens + registers
    table = source.take("pos_embed", 1, rows + patches, width)
    if tokens:
        weights["embeddings.cls_token"] = source.take("cls_token", 1, 1, width)
    if registers:
        register_tokens = source.take("reg_token", 1, registers, width)
        if rows and source.sound:  # the reference has no rows for registers: they are added to the tokens
            register_tokens = register_tokens.float() + table[:, tokens:rows].float()
        weights["embeddings.register_tokens"] = register_tokens
    prefix = table[:, :tokens] if rows else table.new_zeros(1, tokens, width)
    weights["embeddings.position_embeddings"] = torch.cat((prefix, table[:, rows:]), dim=1)
    return rows, weights


def _block(source: Source, block: str, layer: str, *, biased: bool, scaled: bool) -> dict[str, Tensor]:
    width, mlp, gated = source.width, source.mlp, source.stated.gated
    stacked = {"weight": source.take(f"{block}.attn.qkv.weight", 3 * width, width)}
    if biased:
        stacked["bias"] = source.take(f"{block}.attn.qkv.bias", 3 * width)
    first, last = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    return {
        **source.layer(f"{block}.norm1", f"{layer}.layernorm_before", width),
        **{
            f"{layer}.attention.{part}_proj.{leaf}": third
            for leaf, tensor in stacked.items()
            for part, third in zip("qkv", tensor.chunk(3), strict=True)
        },
        **source.layer(f"{block}.attn.proj", f"{layer}.attention.o_proj", width, width),
        **source.layer(f"{block}.norm2", f"{layer}.layernorm_after", width),
        **source.layer(f"{block}.mlp.fc1", f"{layer}.mlp.{first}", mlp, width),
        **source.layer(f"{block}.mlp.fc2", f"{layer}.mlp.{last}", width, mlp // 2 if gated else mlp),
        **{
            f"{layer}.layer_scale{number}": source.take(f"{block}.ls{number}.gamma", width)
            for number in ((1, 2) if scaled else ())
        },
    }


def _attention_pool(source: Source) -> dict[str, Tensor]:
    """Timm's `AttentionPoolLatent`."""
    width, target = source.width, "head.pooler"
    weights = {f"{target}.probe": source.take("attn_pool.latent", 1, 1, width)}
    weights |= source.layer("attn_pool.q", f"{target}.attention.q_proj", width, width)
    for leaf, shape in (("weight", (2 * width, width)), ("bias", (2 * width,))):
        key, value = source.take(f"attn_pool.kv.{leaf}", *shape).chunk(2)
        weights |= {f"{target}.attention.k_proj.{leaf}": key, f"{target}.attention.v_proj.{leaf}": value}
    weights |= source.layer("attn_pool.proj", f"{target}.attention.o_proj", width, width)
    weights |= source.layer("attn_pool.norm", f"{target}.layernorm", width)
    weights |= source.layer("attn_pool.mlp.fc1", f"{target}.mlp.fc1", source.mlp, width)
    return weights | source.layer("attn_pool.mlp.fc2", f"{target}.mlp.fc2", width, source.mlp)
