"""Convert a timm checkpoint of a DINOv3, of timm's class `Eva`, to transformers' names."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from vitdeploy.sources.timm_layouts.classes import num_classes
from vitdeploy.sources.timm_layouts.config import global_pool
from vitdeploy.sources.timm_layouts.dinov3_config import DinoV3Config, read_dinov3_config
from vitdeploy.sources.timm_layouts.parts import MOST, model_args, pretrained_cfg, unsupported
from vitdeploy.sources.timm_layouts.tensors import Tensors
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

logger = logging.getLogger(__name__)

_EPS = 1e-5  # of every norm


def from_dinov3(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], task: Task | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a DINOv3; see `vitdeploy.sources.timm_layouts.layout.from_timm`.

    `pooler_output` is the class token, as in Meta's model and transformers', even if timm averages the patches
    (`global_pool` "avg", the default of its registry): a warning says so.
    """
    arguments, cfg = model_args(config), pretrained_cfg(config)
    classes = num_classes(config, arguments, cfg)
    if classes and task is not Task.FEATURES:
        raise unsupported(
            "num_classes",
            "transformers has no classifier of a DINOv3; for its features: --task image-feature-extraction",
        )
    stated = read_dinov3_config(config)
    if global_pool(config, arguments, "avg", classes) == "avg":
        logger.warning(
            "timm's %s averages the patches; here pooler_output is the class token, as in DINOv3 itself, and --pool "
            "mean gives the average",
            config["architecture"],
        )
    names = {name for name in tensors if name.startswith(("rope.", "head." if classes else "rope."))}
    gated = stated.aligned is not None
    source = Tensors(stated, {name: tensor for name, tensor in tensors.items() if name not in names})
    width, mlp = source.width, "mlp.fc1_g" if source.has("blocks.0.mlp.fc1_g.weight") else "mlp.fc1"
    packed = gated and mlp == "mlp.fc1"  # both halves in one layer
    source.mlp //= 2 if packed else 1
    biased, scaled = source.has("blocks.0.attn.q_bias"), source.has("blocks.0.gamma_1")
    registers = source.shape("reg_token", 3)[1] if source.has("reg_token") else 0
    shape = (width, source.channels, *source.patch)
    weights = source.layer("patch_embed.proj", "embeddings.patch_embeddings", *shape)
    weights |= source.layer("norm", "norm", width)
    weights["embeddings.cls_token"] = source.take("cls_token", 1, 1, width)
    weights["embeddings.mask_token"] = torch.zeros(1, 1, width)  # transformers always has one; it has no effect
    if registers:
        weights["embeddings.register_tokens"] = source.take("reg_token", 1, registers, width)
    for index in range(source.depth):
        block, layer = f"blocks.{index}", f"layer.{index}"
        weights |= _attention(source, f"{block}.attn", f"{layer}.attention", biased=biased)
        weights |= _mlp(source, f"{block}.mlp", f"{layer}.mlp", packed=packed)
        for number in ("1", "2"):
            weights |= source.layer(f"{block}.norm{number}", f"{layer}.norm{number}", width)
            gamma = source.take(f"{block}.gamma_{number}", width) if scaled else torch.ones(width)
            weights[f"{layer}.layer_scale{number}.lambda1"] = gamma
    counted = {"qkv_bias": biased, "init_values": scaled, "num_reg_tokens": registers, "swiglu_mlp": gated}
    source.finish(counted | _stated_width(source))
    content = source.content("dinov3_vit", "DINOv3ViTModel") | {
        "hidden_act": "silu" if gated else "gelu",
        "layer_norm_eps": _EPS,
        "intermediate_size": source.mlp,
        "use_gated_mlp": gated,
        "query_bias": biased,
        "key_bias": False,
        "value_bias": biased,
        "num_register_tokens": registers,
        "rope_theta": stated.theta,
    }
    return content, weights


def _attention(source: Tensors[DinoV3Config], name: str, target: str, *, biased: bool) -> dict[str, Tensor]:
    """The fused projection in its parts; keys have no bias."""
    width = source.width
    parts = ("q_proj", "k_proj", "v_proj")
    thirds = source.take(f"{name}.qkv.weight", 3 * width, width).chunk(3)
    weights = {f"{target}.{part}.weight": third for part, third in zip(parts, thirds, strict=True)}
    for part in ("q", "v") if biased else ():
        weights[f"{target}.{part}_proj.bias"] = source.take(f"{name}.{part}_bias", width)
    return weights | source.layer(f"{name}.proj", f"{target}.o_proj", width, width)


def _stated_width(source: Tensors[DinoV3Config]) -> dict[str, int]:
    """The MLP's width before it was rounded up to a multiple of `aligned`, for the comparison with `mlp_ratio`."""
    ratio, aligned = source.stated.arguments.get("mlp_ratio"), source.stated.aligned
    if aligned is None or not isinstance(ratio, (int, float)) or not 0 < ratio < MOST:
        return {}
    width = int(source.width * ratio)
    return {"mlp_ratio": width} if width + -width % (aligned or 1) == source.mlp else {}


def _mlp(source: Tensors[DinoV3Config], name: str, target: str, *, packed: bool) -> dict[str, Tensor]:
    width, hidden = source.width, source.mlp
    down = source.layer(f"{name}.fc2", f"{target}.down_proj", width, hidden)
    if packed:
        both = source.layer(f"{name}.fc1", "", 2 * hidden, width)
        halves = {key.removeprefix("."): tensor.chunk(2) for key, tensor in both.items()}
        return down | {
            f"{target}.{part}_proj.{key}": half
            for key, pair in halves.items()
            for part, half in zip(("gate", "up"), pair, strict=True)
        }
    if source.stated.aligned is None:
        return down | source.layer(f"{name}.fc1", f"{target}.up_proj", hidden, width)
    gate = source.layer(f"{name}.fc1_g", f"{target}.gate_proj", hidden, width)
    return down | gate | source.layer(f"{name}.fc1_x", f"{target}.up_proj", hidden, width)
