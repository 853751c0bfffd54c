"""Write tests/golden/timm: tiny models of timm's architectures, and what timm computes with them.

Run it in the environment of constraints-timm.txt: `.venvs/timm/bin/python tests/golden/make_timm.py`. The same versions
on the same processor write the same files.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import sklearn.datasets
import torch
from PIL import Image

# torchvision's compiled operators need the build of torch that it was made for; its transforms of Pillow images do not,
# but its import looks these names up.
_OPERATORS = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
for _name in ("nms", "qnms"):
    _OPERATORS.define(f"{_name}() -> ()")  # type: ignore[no-untyped-call]

timm: Any = importlib.import_module("timm")

OUT = Path(__file__).parent / "timm"


def case(
    architecture: str, img_size: Any, patch_size: int | None, embed_dim: int, **others: Any
) -> tuple[str, dict[str, Any]]:
    patch = {} if patch_size is None else {"patch_size": patch_size}
    return architecture, {"img_size": img_size, **patch, "embed_dim": embed_dim, **others}


def cfg(**changes: Any) -> dict[str, Any]:
    return {f"pretrained_cfg.{key}": value for key, value in changes.items()}


def args(**changes: Any) -> dict[str, Any]:
    return {f"model_args.{key}": value for key, value in changes.items()}


# Per kind: the architecture, and the arguments of three models. Sizes are (height, width).
KINDS: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "vit": [
        case("vit_base_patch16_224", 32, 8, 32, num_heads=4, mlp_ratio=2),
        case("vit_tiny_patch16_384", (24, 36), 6, 24, mlp_ratio=2.5),
        case("vit_base_patch16_224_miil", 33, 11, 24, depth=3),
    ],
    "vit_features": [
        case("vit_small_patch8_224", 40, 8, 24, mlp_ratio=3),
        case("vit_base_patch32_224", 32, 16, 24, num_heads=2, mlp_ratio=1.5),
        case("vit_large_patch16_224", 36, 6, 32, mlp_ratio=2, depth=3),
    ],
    "deit": [
        case("deit_tiny_patch16_224", 32, 8, 24, mlp_ratio=2),
        case("deit_small_patch16_224", 40, 10, 36, mlp_ratio=1),
        case("deit_base_patch16_384", 28, 4, 24, depth=3, mlp_ratio=2),
    ],
    "deit_distilled": [
        case("deit_tiny_distilled_patch16_224", 32, 8, 24, mlp_ratio=2),
        case("deit_small_distilled_patch16_224", 24, 6, 30, mlp_ratio=2),
        case("deit_base_distilled_patch16_224", 30, 6, 24, mlp_ratio=1.5),
    ],
    "beit": [
        case("beit_base_patch16_224", 32, 8, 32, num_heads=4, mlp_ratio=2),
        case("beitv2_base_patch16_224", 30, 6, 24, mlp_ratio=2),
        case("beit_large_patch16_384", 36, 12, 32, mlp_ratio=1, depth=3),
    ],
    "beit_features": [
        case("beitv2_base_patch16_224", 32, 8, 24, mlp_ratio=2),
        case("beit_base_patch16_224", 24, 6, 24, mlp_ratio=2, global_pool="token"),
        case(
            "beit_base_patch16_224",
            20,
            4,
            24,
            mlp_ratio=1.5,
            init_values=None,
            use_abs_pos_emb=True,
            use_rel_pos_bias=False,
            use_shared_rel_pos_bias=True,
        ),
    ],
    "dinov2": [
        case("vit_small_patch14_dinov2", 28, 7, 24, mlp_ratio=2),
        case("vit_base_patch14_dinov2", 42, None, 24, num_heads=3, mlp_ratio=1),
        case("vit_large_patch14_dinov2", 30, 5, 32, mlp_ratio=2, depth=3),
    ],
    "reg4_dinov2": [
        case("vit_small_patch14_reg4_dinov2", 28, 7, 24, mlp_ratio=2),
        case("vit_base_patch14_reg4_dinov2", 32, 8, 24, no_embed_class=False),
        case("vit_base_patch14_reg1_tipsv2", 25, 5, 24, mlp_ratio=3),
    ],
    "reg4_dinov2_classifier": [
        case("vit_small_patch14_reg4_dinov2", 28, 7, 24, mlp_ratio=2),
        case("vit_base_patch14_reg4_dinov2", 42, None, 24, mlp_ratio=1, qkv_bias=False),
        case("vit_large_patch14_reg4_dinov2", 24, 4, 32, mlp_ratio=2),
    ],
    "deit3": [
        case("deit3_small_patch16_224", 32, 8, 24, mlp_ratio=2),
        case("deit3_base_patch16_384", 36, 6, 36, mlp_ratio=1),
        case("deit3_medium_patch16_224", 30, 10, 24, mlp_ratio=2, depth=3),
    ],
    "swiglu": [
        case("vit_giant_patch14_dinov2", 28, 7, 24),
        case("vit_giant_patch14_reg4_dinov2", 24, 6, 24),
        case("vit_giant_patch14_dinov2", 32, 8, 48, num_heads=2, num_classes=5),
    ],
    # The norm after the mean of the patches (fc_norm), a BEiT to transformers.
    "mean": [
        case("vit_base_patch16_224", 32, 8, 32, num_heads=4, mlp_ratio=2, global_pool="avg"),
        case("deit3_small_patch16_224", 30, 6, 24, mlp_ratio=2.5, global_pool="avg"),
        case("vit_large_patch16_224", 33, 8, 32, mlp_ratio=1, global_pool="avg", qkv_bias=False),
    ],
    "mean_features": [
        case("vit_small_patch14_dinov2", 28, 7, 24, mlp_ratio=1, global_pool="avg"),
        case("deit_tiny_patch16_224", 32, 8, 24, mlp_ratio=1, global_pool="avg"),
        case("vit_tiny_patch16_224", 24, 6, 24, mlp_ratio=1, global_pool="avg", no_embed_class=True),
    ],
    # The norm before the mean of the patches, a DINOv2 to transformers.
    "norm_mean": [
        case("vit_base_patch16_224", 32, 8, 24, mlp_ratio=2, global_pool="avg", fc_norm=False),
        case("vit_small_patch14_reg4_dinov2", 28, 7, 24, mlp_ratio=2, global_pool="avg", fc_norm=False),
        case("vit_giant_patch14_dinov2", 24, 6, 24, global_pool="avg", fc_norm=False),
    ],
    # The norm after the choice of the class token.
    "token_norm": [
        case("vit_base_patch16_224", 32, 8, 24, mlp_ratio=2, fc_norm=True),
        case("vit_small_patch14_reg4_dinov2", 28, 7, 24, mlp_ratio=2, fc_norm=True),
        case("deit3_small_patch16_224", 30, 6, 24, mlp_ratio=2, fc_norm=True),
    ],
    "beit_token_norm": [
        case("beit_base_patch16_224", 24, 6, 24, mlp_ratio=2, global_pool="token", use_fc_norm=True),
    ],
    # Models that interpolate their positions to each image; `input_size` is of the images that timm evaluates.
    "dynamic": [
        case("vit_base_patch16_224", 32, 8, 24, mlp_ratio=2, dynamic_img_size=True, input_size=(3, 48, 48)),
        case(
            "deit_small_distilled_patch16_224",
            (24, 36),
            6,
            24,
            mlp_ratio=2,
            dynamic_img_size=True,
            input_size=(3, 30, 30),
        ),
        case(
            "vit_base_patch16_224",
            40,
            8,
            24,
            mlp_ratio=2,
            dynamic_img_size=True,
            global_pool="avg",
            input_size=(3, 24, 24),
        ),
    ],
    "eva02": [
        case("eva02_tiny_patch14_336", 32, 8, 24),
        case("eva02_base_patch14_448", 30, 6, 24, num_heads=3, depth=3),
        case("eva02_large_patch14_448", 36, 9, 32, num_heads=4, mlp_ratio=1.5, ref_feat_shape=(5, 3)),
    ],
    "eva02_features": [
        case("eva02_small_patch14_224", 32, 8, 24),
        case("eva02_large_patch14_224", 24, 6, 32, num_heads=2, init_values=0.1, qkv_bias=False),
        case("eva02_base_patch14_224", 28, 7, 48, no_embed_class=True, rope_grid_indexing="xy", rope_temperature=100.0),
    ],
    "eva02_clip": [
        case("eva02_base_patch16_clip_224", 32, 8, 24, num_heads=3, num_classes=512),
        case("eva02_large_patch14_clip_224", 28, 7, 32, num_heads=4),
        case("eva02_base_patch16_clip_224", 24, 6, 24, num_heads=2, global_pool="avg"),
    ],
    "eva": [
        case("eva_giant_patch14_224", 32, 8, 32, num_heads=4, mlp_ratio=2),
        case("eva_giant_patch14_clip_224", 30, 6, 32, mlp_ratio=1, depth=3),
        case("eva_giant_patch14_336", 24, 6, 24, num_heads=2, mlp_ratio=2, use_rot_pos_emb=True, use_fc_norm=False),
    ],
    "pe_core": [
        case("vit_pe_core_tiny_patch16_384", 32, 8, 24, num_classes=512, mlp_ratio=2),
        case("vit_pe_core_gigantic_patch14_448", 28, 7, 32, num_heads=4, mlp_ratio=1.5),
        case(
            "vit_pe_core_base_patch16_224",
            30,
            6,
            24,
            num_heads=3,
            attn_pool_num_heads=4,
            attn_pool_mlp_ratio=2,
            depth=3,
        ),
    ],
    "pe_lang": [
        case("vit_pe_lang_large_patch14_448", 32, 8, 32, num_heads=4, mlp_ratio=2),
        case("vit_pe_lang_gigantic_patch14_448", 28, 7, 32, num_heads=2, mlp_ratio=2, depth=3),
    ],
    "pe_spatial": [
        case("vit_pe_spatial_tiny_patch16_512", 32, 8, 24, mlp_ratio=2),
        case("vit_pe_spatial_gigantic_patch14_448", 28, 7, 32, num_heads=2, mlp_ratio=2, rope_rotate_half=True),
        case("vit_pe_spatial_base_patch16_512", 24, 6, 24, num_heads=2, mlp_ratio=2, global_pool="token"),
    ],
    "dynamic_eva": [
        case("eva02_tiny_patch14_336", 32, 8, 24, dynamic_img_size=True, input_size=(3, 48, 48)),
        case(
            "vit_pe_core_tiny_patch16_384", (24, 36), 6, 24, mlp_ratio=2, dynamic_img_size=True, input_size=(3, 30, 30)
        ),
    ],
    "clip": [
        case("vit_base_patch16_clip_quickgelu_224", 32, 8, 24, num_heads=3, mlp_ratio=2),
        case("vit_base_patch32_clip_224", 24, 6, 24, num_heads=2, mlp_ratio=2.5, depth=3, fc_norm=True),
        case("vit_large_patch14_clip_336", 28, 7, 32, mlp_ratio=1, no_embed_class=True, act_layer="gelu"),
    ],
    "clip_classifier": [
        case("vit_base_patch16_clip_384", 32, 8, 24, num_heads=3, mlp_ratio=2),
        case("vit_huge_patch14_clip_quickgelu_378", 30, 6, 32, mlp_ratio=1, qkv_bias=False),
    ],
    "clip_features": [
        case("vit_large_patch14_clip_quickgelu_224", 28, 7, 32, mlp_ratio=1.5),
    ],
    # DINOv3's take images of every size.
    "dinov3": [
        case(
            "vit_small_patch16_dinov3", 32, 8, 24, num_heads=3, mlp_ratio=2, global_pool="token", input_size=(3, 40, 40)
        ),
        case(
            "vit_base_patch16_dinov3_qkvb",
            (24, 36),
            6,
            24,
            num_heads=2,
            mlp_ratio=1.5,
            global_pool="token",
            input_size=(3, 30, 30),
        ),
        case(
            "vit_huge_plus_patch16_dinov3_qkvb",
            30,
            6,
            32,
            num_heads=4,
            mlp_ratio=1,
            depth=3,
            global_pool="token",
            input_size=(3, 36, 36),
        ),
    ],
    "dinov3_mean": [
        case("vit_7b_patch16_dinov3", 32, 8, 24, num_heads=3, mlp_ratio=1, input_size=(3, 48, 48)),
        case(
            "vit_small_plus_patch16_dinov3",
            28,
            7,
            24,
            mlp_ratio=1,
            num_reg_tokens=1,
            init_values=None,
            input_size=(3, 35, 35),
        ),
    ],
    # Attention pooling of every patch; the second has GELU's approximation, the third is not square.
    "siglip": [
        case("vit_base_patch16_siglip_224", 32, 8, 24, num_heads=3, mlp_ratio=2),
        case("vit_so400m_patch16_siglip_256", 30, 6, 32, mlp_ratio=1.7362, depth=3),
        case("vit_large_patch16_siglip_384", (24, 36), 6, 32, mlp_ratio=1),
    ],
    "siglip_classifier": [case("vit_base_patch32_siglip_256", 32, 8, 24, mlp_ratio=2)],
    # No class token: the mean of the patches.
    "gap": [
        case("vit_base_patch16_gap_224", 32, 8, 32, mlp_ratio=2),
        case("vit_medium_patch16_gap_256", 24, 6, 24, mlp_ratio=1),
        case("vit_base_patch16_reg4_gap_256", 30, 6, 24, mlp_ratio=1.5, depth=3),
    ],
    "gap_features": [
        case("vit_base_patch16_siglip_gap_224", 28, 7, 24, mlp_ratio=2),
        case("vit_so150m_patch16_reg4_map_256", 24, 6, 28, mlp_ratio=1),
        case("vit_so150m2_patch16_reg1_gap_256", 32, 8, 26, mlp_ratio=1),
    ],
    # Pooling, norm and tokens as no class of transformers combines them.
    "pooled": [
        case("vit_giant_patch14_dinov2", 28, 7, 24, global_pool="avg"),
        case("vit_small_patch14_reg4_dinov2", 24, 6, 24, mlp_ratio=1, global_pool="avg"),
        case("vit_base_patch16_224", (24, 36), 6, 24, mlp_ratio=1, global_pool="avg"),
    ],
    "pooled_features": [
        case("vit_base_patch16_224", 32, 8, 24, mlp_ratio=1, global_pool="avg", fc_norm=False),
        case("vit_base_patch16_224", 24, 6, 24, mlp_ratio=1, fc_norm=True),
    ],
}
FEATURES = (
    *("vit_features", "beit_features", "dinov2", "reg4_dinov2", "swiglu", "mean_features"),
    *("eva02_features", "pe_lang", "pe_spatial", "clip_features", "dinov3", "dinov3_mean"),
    *("siglip", "gap_features", "pooled_features"),
)
# Of models without a head, those whose pooled features are written too.
POOLED = (
    *("mean_features", "eva02_features", "pe_lang", "pe_spatial", "clip_features", "dinov3"),
    *("siglip", "gap_features", "pooled_features"),
)
# Models whose head is a projection to a text's vectors, which timm calls logits.
PROJECTED = ("eva02_clip_0", "pe_core_0", "clip_0", "clip_1", "clip_2")
# Evaluation transforms beside those of the models; the last ones are smaller than their crop.
TRANSFORMS: dict[str, dict[str, Any]] = {
    "augreg": {"crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3},
    "deit": {"crop_pct": 0.9, "interpolation": "bicubic"},
    "deit at 384": {"input_size": [3, 384, 384], "crop_pct": 1.0},
    "dinov2": {"input_size": [3, 518, 518], "crop_pct": 1.0, "crop_mode": "center"},
    "defaults": {"interpolation": None},
    "bilinear": {"crop_pct": 0.95, "interpolation": "bilinear", "input_size": [3, 197, 197]},
    "lanczos": {"crop_pct": 0.97, "interpolation": "lanczos", "input_size": [3, 98, 98]},
    "squash": {"crop_pct": 1.0, "crop_mode": "squash", "input_size": [3, 160, 224]},
    "squash and crop": {"crop_pct": 0.93, "crop_mode": "squash", "input_size": [3, 161, 98]},
    "padded by 3": {"crop_pct": 1.1, "input_size": [3, 33, 33]},
    "padded by 1": {"crop_pct": 1.02, "input_size": [3, 50, 50], "crop_mode": "squash"},
    "nearest": {"interpolation": "nearest", "input_size": [3, 65, 65]},
    "box": {"interpolation": "box", "input_size": [3, 64, 64]},
    "hamming": {"interpolation": "hamming", "input_size": [3, 64, 64]},
    "empty": {"input_size": None, "interpolation": "", "crop_pct": 0, "crop_mode": None, "mean": [], "std": None},
    "one mean": {"input_size": [3, 48, 48], "mean": [0.4], "std": [0.3]},
    "sizes for tests": {
        "input_size": [3, 48, 48],
        "crop_pct": 0.9,
        "test_input_size": [3, 64, 64],
        "test_crop_pct": 1.0,
        "min_input_size": [3, 32, 32],
    },
    "unequal, resized alike": {"input_size": [3, 30, 31], "crop_pct": 1.5},
}
# Forms of a configuration, each of a case above: keys to set, by their path, and keys to remove ("-").
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "as saved": ("vit_0", {}),
    "nulls": (
        "vit_0",
        {
            f"model_args.{key}": None
            for key in ("fc_norm", "init_values", "norm_layer", "embed_norm_layer", "act_layer")
        },
    ),
    "null for true": ("vit_0", {"model_args.class_token": None}),
    "null for a number": ("vit_0", {"model_args.img_size": None}),
    "a former name": ("vit_0", {"architecture": "vit_base_patch16_224_in21k"}),
    "without information": ("vit_0", {"num_features": "-", "global_pool": "-", "pretrained_cfg.tag": "-"}),
    "problem type": ("vit_0", {"problem_type": "multi_label_classification"}),
    "custom load": ("vit_0", {"pretrained_cfg.custom_load": True}),
    "sizes for tests": ("vit_0", {"pretrained_cfg.test_input_size": [3, 48, 48], "pretrained_cfg.test_crop_pct": 1.0}),
    "unknown key": ("vit_0", {"pretrained_cfg.test_crop_mode": "squash"}),
    "unknown argument": ("vit_0", {"model_args.strict_img_size": False}),
    "classes at the top": ("vit_0", {"model_args.num_classes": "-", "pretrained_cfg.num_classes": "-"}),
    "classes in pretrained_cfg": ("vit_0", {"model_args.num_classes": "-", "num_classes": "-"}),
    "classes in model_args": ("vit_0", {"num_classes": "-", "pretrained_cfg.num_classes": "-"}),
    "classes overridden at the top": ("vit_0", {"pretrained_cfg.num_classes": 1000}),
    "classes contradicted": ("vit_0", {"num_classes": 5, "pretrained_cfg.num_classes": 5}),
    "offset": ("vit_0", {"pretrained_cfg.label_offset": 1, "rows": 1}),
    "offset of two layers": ("deit_distilled_0", cfg(label_offset=2, classifier=["head", "head_dist"]) | {"rows": 2}),
    "offset without rows": ("vit_0", {"pretrained_cfg.label_offset": 1}),
    "offset of no layer": ("vit_0", {"pretrained_cfg.label_offset": 1, "pretrained_cfg.classifier": None}),
    "no offset": ("vit_0", {"pretrained_cfg.label_offset": 0}),
    "another input size": ("vit_0", {"pretrained_cfg.input_size": [3, 48, 48]}),
    "another input size, not fixed": ("vit_0", cfg(input_size=[3, 48, 48], fixed_input_size=False)),
    "dynamic": ("vit_0", {"pretrained_cfg.input_size": [3, 48, 48], "model_args.dynamic_img_size": True}),
    "dynamic, not square": (
        "vit_0",
        cfg(input_size=[3, 24, 48], crop_mode="squash") | args(dynamic_img_size=True),
    ),
    "dynamic, part of a patch": ("vit_0", cfg(input_size=[3, 44, 44]) | args(dynamic_img_size=True)),
    "dynamic, without img_size": ("vit_0", {"model_args.img_size": "-", "model_args.dynamic_img_size": True}),
    "dynamic BEiT": ("beit_0", {"model_args.dynamic_img_size": True}),
    "without img_size": ("vit_0", {"model_args.img_size": "-"}),
    "avg at the top alone": ("vit_0", {"global_pool": "avg", "model_args.global_pool": "-"}),
    "avg at the top alone, fc_norm": ("mean_0", {"model_args.global_pool": "-"}),
    "token for fc_norm": ("mean_0", {"global_pool": "-", "model_args.global_pool": "token"}),
    "avg": ("mean_0", {"model_args.fc_norm": True}),
    "avg, unnormalized": ("vit_0", {"global_pool": "-", "model_args.global_pool": "avg", "model_args.fc_norm": False}),
    "max": ("mean_0", {"global_pool": "-", "model_args.global_pool": "max"}),
    "avgmax": ("mean_0", {"global_pool": "-", "model_args.global_pool": "avgmax"}),
    "every token": ("vit_0", {"global_pool": "-", "model_args.global_pool": ""}),
    "prefix in the mean": ("mean_0", {"model_args.pool_include_prefix": True}),
    "avg of a BEiT": ("beit_token_norm_0", {"global_pool": "-", "model_args.global_pool": "avg"}),
    "avg of a BEiT, normalized before": (
        "beit_features_1",
        {"global_pool": "-"} | args(global_pool="avg", use_fc_norm=False),
    ),
}


def photographs() -> dict[str, Image.Image]:
    """A photograph, and parts of it whose margins around a crop are odd or upright."""
    china = Image.fromarray(sklearn.datasets.load_sample_images().images[0])
    return {"china": china, "odd": china.crop((0, 0, 601, 427)), "upright": china.crop((100, 3, 353, 427))}


def spread(model: torch.nn.Module, seed: int) -> None:
    """Draw every weight so that each of them shows in the result; float16 holds all of them exactly."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        values = torch.randn(weight.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            values = 1 + 0.3 * values
        elif "gamma" in name:
            values = 0.5 + 0.3 * values
        elif weight.ndim >= 2 and name.endswith("weight"):
            values *= weight[0].numel() ** -0.5
        else:
            values *= 0.5
        with torch.no_grad():
            weight.copy_(values.half())


def inputs(seed: int, height: int, width: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, height, width), np.float32))


def compute(model: Any, pixels: torch.Tensor, prefix: str, name: str | None) -> dict[str, np.ndarray[Any, Any]]:
    *_, last = hidden_states(model, pixels, prefix).values()
    with torch.inference_mode():
        # of transformers' CLIP without the norm, which only the class token gets
        results = {f"{prefix}/last_hidden_state": last if is_clip(model) else model.forward_features(pixels).numpy()}
        if name is not None:
            results[f"{prefix}/{name}"] = model(pixels).numpy()
    return results


def is_clip(model: Any) -> bool:
    return "_clip_" in model.pretrained_cfg["architecture"] and type(model).__name__ == "VisionTransformer"


def hidden_states(model: Any, pixels: torch.Tensor, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
    """Input of the first block, and output of each."""
    found: list[torch.Tensor] = []
    hooks = [model.blocks[0].register_forward_pre_hook(lambda _, given: found.append(given[0]))]
    hooks += [block.register_forward_hook(lambda _, __, result: found.append(result)) for block in model.blocks]
    with torch.inference_mode():
        model.forward_features(pixels)
    for hook in hooks:
        hook.remove()
    return {f"{prefix}/hidden_states.{index}": value.numpy() for index, value in enumerate(found)}


def write_case(kind: str, number: int, architecture: str, arguments: dict[str, Any]) -> None:
    seed = 10 * list(KINDS).index(kind) + number
    classes = 0 if kind in FEATURES else 4 + number
    name = "image_embeds" if f"{kind}_{number}" in PROJECTED else "logits" if classes else None
    if kind in POOLED:
        name = "pooler_output"
    arguments = dict(arguments)
    data_config = {"input_size": arguments.pop("input_size")} if "input_size" in arguments else None
    model = timm.create_model(architecture, **{"depth": 2, "num_classes": classes, **arguments}).eval()
    spread(model, seed)
    if kind == "clip":
        torch.nn.init.zeros_(model.head.bias)
    folder = OUT / f"{kind}_{number}"
    labels = [] if kind == "clip" else [f"n{index:04}" for index in range(model.num_classes)]
    names = {"label_names": labels, "label_descriptions": {name: f"class {name}" for name in labels[1:]}}
    in_half = copy.deepcopy(model).half()  # half the bytes, the same values
    timm.models.save_for_hf(
        in_half, folder, names if labels and number else {}, safe_serialization=True, data_config=data_config
    )
    config = json.loads((folder / "config.json").read_text())
    height, width = config["model_args"]["img_size"]
    patch_height, patch_width = model.patch_embed.patch_size
    # Larger, and not square; of a BEiT with the width of its own once: timm resamples that axis too where the other one
    # changes. Of the first model of a kind also smaller, wide and tall.
    last = (height - patch_height, width + (0 if kind.startswith("beit") else patch_width))
    sizes = [(height, width), (height + 2 * patch_height, width + 2 * patch_width), last]
    if not number:
        more = ((2, 2), (1, 5), (6, 3))
        sizes += [(rows * patch_height, columns * patch_width) for rows, columns in more]
    if data_config:  # the size of the evaluation comes first, then that of the position table
        sizes = [tuple(config["pretrained_cfg"]["input_size"][1:]), sizes[0], *sizes[2:]]
    results: dict[str, np.ndarray[Any, Any]] = {"seed": np.array(seed)}
    results |= hidden_states(model, inputs(seed, *sizes[0]), f"{sizes[0][0]}x{sizes[0][1]}")
    for size in sizes:
        resized = copy.deepcopy(model)
        if size != (height, width) and not data_config:
            resized.set_input_size(img_size=size)
        results |= compute(resized, inputs(seed, *size), f"{size[0]}x{size[1]}", name)
    if not number or data_config:
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, config["pretrained_cfg"]))
        for photograph, image in photographs().items():
            pixels = transform(image)[None]
            results |= {f"{photograph}/pixel_values": pixels.numpy(), **compute(model, pixels, photograph, name)}
    np.savez_compressed(folder / "expected.npz", **results)  # type: ignore[arg-type, unused-ignore]


def write_wrapped(case: str, name: str) -> None:
    """The same model as transformers' own wrapper of timm saves it."""
    import transformers

    folder = OUT / f"{case}_wrapped"
    with tempfile.TemporaryDirectory() as source:
        shutil.copytree(OUT / case, source, dirs_exist_ok=True)
        config = json.loads((OUT / case / "config.json").read_text())
        del config["model_args"]["num_classes"]  # transformers 5.23 passes it a second time
        (Path(source) / "config.json").write_text(json.dumps(config))
        model: Any = getattr(transformers, name).from_pretrained(source)
    model.save_pretrained(folder)
    shutil.copy(OUT / case / "expected.npz", folder)


def write_pipeline(case: str) -> None:
    """Labels and scores of transformers' pipeline with the wrapper, by problem type."""
    import transformers

    photographed = {}
    for problem in (None, "single_label_classification", "multi_label_classification", "regression"):
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(OUT / case, folder, dirs_exist_ok=True)
            config = json.loads((OUT / case / "config.json").read_text())
            config |= {"label_names": list("abcd"), "label_descriptions": {"a": "first"}, "problem_type": problem}
            (Path(folder) / "config.json").write_text(json.dumps(config))
            pipeline = transformers.pipeline("image-classification", folder, dtype=torch.float32, device="cpu")
            photographed[str(problem)] = {name: pipeline(image, top_k=4) for name, image in photographs().items()}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in photographed.items())
    (OUT / "pipeline.json").write_text(f"{{\n{lines}\n}}\n")


def write_transforms() -> None:
    """Of every transform of every photograph the middle column and row, and the mean of all pixels."""
    results = {}
    for name, cfg in TRANSFORMS.items():
        transform = timm.data.create_transform(**timm.data.resolve_data_config({}, cfg))
        for photograph, image in photographs().items():
            pixels = transform(image).numpy()
            results[f"{name}/{photograph}/column"] = pixels[:, :, pixels.shape[2] // 2]
            results[f"{name}/{photograph}/row"] = pixels[:, pixels.shape[1] // 2]
            results[f"{name}/{photograph}/edges"] = np.stack([pixels[:, 0, 0], pixels[:, -1, -1]])
            results[f"{name}/{photograph}/mean"] = pixels.mean(axis=(1, 2), dtype=np.float64)
    np.savez_compressed(OUT / "transforms.npz", **results)  # type: ignore[arg-type, unused-ignore]
    (OUT / "transforms.json").write_text(json.dumps(TRANSFORMS, indent=1) + "\n")


def write_architectures() -> None:
    """What no tensor shows of every architecture that timm builds from these three modules."""
    rows = {}
    names = [name for module in ("vision_transformer", "deit", "beit") for name in timm.list_models(module=module)]
    for name in sorted(names):
        model = timm.create_model(name, pretrained=False, device="meta")
        block = model.blocks[0]
        norms = {(type(layer).__name__, layer.eps) for layer in model.modules() if "Norm" in type(layer).__name__}
        rows[name] = {
            "block": type(block).__name__,
            "mlp": type(block.mlp).__name__ if hasattr(block, "mlp") else None,
            "act": type(block.mlp.act).__name__ if hasattr(block, "mlp") else None,
            "num_heads": block.attn.num_heads if hasattr(block, "attn") else None,
            "norms": sorted(norms),
            "prefix": model.num_prefix_tokens,
            "class_token": bool(getattr(model, "has_class_token", True)),
            "pool": model.global_pool,
            "late_norm": not isinstance(model.fc_norm, torch.nn.Identity),
        }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (OUT / "architectures.json").write_text(f"{{\n{lines}\n}}\n")


def write_eva_architectures() -> None:
    """The same of every EVA and Perception Encoder."""
    rows = {}
    for name in sorted(timm.list_models(module="eva")):
        if not name.startswith(("eva_", "eva02_", "vit_pe_")):
            continue
        model = timm.create_model(name, pretrained=False, device="meta", num_classes=0)
        block, rope = model.blocks[0], model.rope
        rows[name] = {
            "block": type(block).__name__,
            "attention": type(block.attn).__name__,
            "mlp": type(block.mlp).__name__,
            "act": type(block.mlp.act).__name__,
            "num_heads": block.attn.num_heads,
            "epsilons": sorted({layer.eps for layer in model.modules() if hasattr(layer, "eps")}),
            "final_norm": not isinstance(model.norm, torch.nn.Identity),
            "late_norm": not isinstance(model.fc_norm, torch.nn.Identity),
            "norm_before": not isinstance(model.norm_pre, torch.nn.Identity),
            "pool": model.global_pool,
            "pool_heads": model.attn_pool.num_heads if model.attn_pool is not None else None,
            "rope": None
            if rope is None
            else {
                "class": type(rope).__name__,
                "reference_grid": rope.ref_feat_shape,
                "offset": rope.grid_offset,
                "indexing": rope.grid_indexing,
                "theta": rope.temperature,
                "rotate_half": rope.rotate_half,
                "grid_type": rope.grid_type,
            },
            "classes": sorted(
                {timm.get_pretrained_cfg(pretrained).num_classes for pretrained in timm.list_pretrained(f"{name}.*")}
            ),
        }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (OUT / "eva_architectures.json").write_text(f"{{\n{lines}\n}}\n")


def write_dinov3_architectures() -> None:
    """The same of every DINOv3."""
    rows = {}
    for name in sorted(name for name in timm.list_models(module="eva") if "_dinov3" in name):
        model = timm.create_model(name, pretrained=False, device="meta", num_classes=0)
        block, rope = model.blocks[0], model.rope
        rows[name] = {
            "mlp": type(block.mlp).__name__,
            "act": type(block.mlp.act).__name__,
            "hidden": block.mlp.fc2.in_features,
            "width": model.embed_dim,
            "num_heads": block.attn.num_heads,
            "epsilons": sorted({layer.eps for layer in model.modules() if hasattr(layer, "eps")}),
            "final_norm": not isinstance(model.norm, torch.nn.Identity),
            "late_norm": not isinstance(model.fc_norm, torch.nn.Identity),
            "biased": block.attn.q_bias is not None,
            "registers": model.reg_token.shape[1],
            "dynamic": model.dynamic_img_size,
            "pool": model.global_pool,
            "rope": {"class": type(rope).__name__, "theta": rope.temperature, "rotate_half": rope.rotate_half},
            "input_sizes": sorted({cfg.input_size[1] for cfg in _pretrained_cfgs(name)}),
        }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (OUT / "dinov3_architectures.json").write_text(f"{{\n{lines}\n}}\n")


def _pretrained_cfgs(name: str) -> list[Any]:
    return [timm.get_pretrained_cfg(pretrained) for pretrained in timm.list_pretrained(f"{name}.*")]


def changed(config: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy with the keys of a form set or removed."""
    config = copy.deepcopy(config)
    for path, value in changes.items():
        *parents, key = path.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        if value == "-":
            place.pop(key, None)
        elif path != "rows":
            place[key] = value
    return config


def write_forms() -> None:
    """What timm makes of each form of a configuration: the transform's settings and logits, or an error."""
    rows = {}
    for name, (case, changes) in FORMS.items():
        config = changed(json.loads((OUT / case / "config.json").read_text()), changes)
        tensors = safetensors.torch.load_file(OUT / case / "model.safetensors")
        for key in ("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"):
            if changes.get("rows") and key in tensors:
                tensors[key] = torch.cat([tensors[key][: changes["rows"]] + 1, tensors[key]])
        rows[name] = {"case": case, "rows": changes.get("rows", 0), "config": config}
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(config))
            safetensors.torch.save_file(tensors, Path(folder) / "model.safetensors")
            try:
                model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
                settings = timm.data.resolve_model_data_config(model)
                height, width = settings["input_size"][1:]
                with torch.inference_mode():
                    logits = model(inputs(0, height, width))
            except (AssertionError, KeyError, RuntimeError, TypeError) as exc:
                rows[name] |= {"error": type(exc).__name__}
                continue
            head = tensors.get("head.weight")
            taken = head is None or torch.equal(model.head.weight, head[changes.get("rows", 0) :].float())
            rows[name] |= {"transform": settings, "head": "taken" if taken else "drawn"}
            rows[name] |= {"logits": logits.tolist()} if taken else {}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
    (OUT / "forms.json").write_text(f"{{\n{lines}\n}}\n")


def write_keys() -> None:
    """The keys that a configuration may have, by the libraries that read it, and the names that timm gave up."""
    import transformers

    registry = importlib.import_module("timm.models._registry")
    modules = [importlib.import_module(f"timm.models.{name}") for name in ("vision_transformer", "deit", "beit")]
    classes = (modules[0].VisionTransformer, modules[1].VisionTransformerDistilled, modules[2].Beit)
    eva = inspect.signature(importlib.import_module("timm.models.eva").Eva).parameters
    config = transformers.TimmWrapperConfig()
    content = {
        "PretrainedCfg": [field.name for field in dataclasses.fields(timm.models.PretrainedCfg)],
        "model_args": sorted(
            {name for cls in classes for name in inspect.signature(cls).parameters} - {"args", "kwargs"}
        ),
        "eva_args": sorted(eva),
        "TimmWrapperConfig": sorted({*config.to_dict(), *(field.name for field in dataclasses.fields(config))}),
        "deprecated": {
            name: target
            for name, target in sorted(registry._deprecated_models.items())
            if target
            and timm.models.get_arch_name(target) in registry._model_to_module
            and registry._model_to_module[timm.models.get_arch_name(target)] in ("vision_transformer", "deit", "beit")
        },
    }
    (OUT / "keys.json").write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    for kind, cases in KINDS.items():
        for number, (architecture, arguments) in enumerate(cases):
            write_case(kind, number, architecture, arguments)
    write_wrapped("vit_0", "TimmWrapperForImageClassification")
    write_wrapped("dinov2_0", "TimmWrapperModel")
    write_pipeline("vit_0_wrapped")
    write_transforms()
    write_forms()
    write_keys()
    write_architectures()
    write_eva_architectures()
    write_dinov3_architectures()


if __name__ == "__main__":
    main()
