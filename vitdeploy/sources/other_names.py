"""Names of timm and torchvision models that are not Hub ids, with the location of their weights."""

from __future__ import annotations

import re

from vitdeploy.errors import CheckpointError

# Default weights in timm 1.0 for a name without a tag: the first of each in its `default_cfgs`.
_TAGS = {
    "augreg2_in21k_ft_in1k": "vit_base_patch16_224 vit_base_patch8_224",
    "augreg_in21k_ft_in1k": (
        "vit_tiny_patch16_224 vit_tiny_patch16_384 vit_small_patch32_224 vit_small_patch32_384 vit_small_patch16_224 "
        "vit_small_patch16_384 vit_base_patch32_224 vit_base_patch32_384 vit_base_patch16_384 vit_large_patch16_224 "
        "vit_large_patch16_384"
    ),
    "orig_in21k_ft_in1k": "vit_large_patch32_384",
    "orig_in21k": "vit_large_patch32_224",
    "dino": "vit_small_patch8_224",
    "lvd142m": (
        "vit_small_patch14_dinov2 vit_base_patch14_dinov2 vit_large_patch14_dinov2 vit_giant_patch14_dinov2 "
        "vit_small_patch14_reg4_dinov2 vit_base_patch14_reg4_dinov2 vit_large_patch14_reg4_dinov2 "
        "vit_giant_patch14_reg4_dinov2"
    ),
    "fb_in1k": (
        "deit_tiny_patch16_224 deit_small_patch16_224 deit_base_patch16_224 deit_base_patch16_384 "
        "deit_tiny_distilled_patch16_224 deit_small_distilled_patch16_224 deit_base_distilled_patch16_224 "
        "deit_base_distilled_patch16_384 deit3_small_patch16_224 deit3_small_patch16_384 deit3_medium_patch16_224 "
        "deit3_base_patch16_224 deit3_base_patch16_384 deit3_large_patch16_224 deit3_large_patch16_384 "
        "deit3_huge_patch14_224"
    ),
    "in22k_ft_in22k_in1k": (
        "beit_base_patch16_224 beit_base_patch16_384 beit_large_patch16_224 beit_large_patch16_384 "
        "beit_large_patch16_512"
    ),
    "mim_in22k_ft_in22k_in1k": "eva02_base_patch14_448 eva02_large_patch14_448",
    "mim_in22k_ft_in1k": "eva02_tiny_patch14_336 eva02_small_patch14_336",
    "mim_in22k": ("eva02_tiny_patch14_224 eva02_small_patch14_224 eva02_base_patch14_224 eva02_large_patch14_224"),
    "merged2b": "eva02_base_patch16_clip_224 eva02_large_patch14_clip_224 eva02_large_patch14_clip_336",
    "clip_ft_in1k": "eva_giant_patch14_224 eva_giant_patch14_336",
    "m30m_ft_in22k_in1k": "eva_giant_patch14_560",
    "laion400m": "eva_giant_patch14_clip_224",
    "fb": (
        "vit_pe_core_tiny_patch16_384 vit_pe_core_small_patch16_384 vit_pe_core_base_patch16_224 "
        "vit_pe_core_large_patch14_336 vit_pe_core_gigantic_patch14_448 vit_pe_lang_large_patch14_448 "
        "vit_pe_lang_gigantic_patch14_448 vit_pe_spatial_tiny_patch16_512 vit_pe_spatial_small_patch16_512 "
        "vit_pe_spatial_base_patch16_512 vit_pe_spatial_large_patch14_448 vit_pe_spatial_gigantic_patch14_448"
    ),
    "in1k_ft_in22k_in1k": "beitv2_base_patch16_224 beitv2_large_patch16_224",
}
_DEFAULTS = {name: tag for tag, names in _TAGS.items() for name in names.split()}
_TIMM = re.compile(r"(?P<name>(vit|deit3?|beit(v2|3)?|eva(02)?)_[a-z0-9_]*patch\d+[a-z0-9_]*)(\.(?P<tag>[a-z0-9_]+))?")
_TORCHVISION = {  # and the checkpoint of the same architecture
    "vit_b_16": "google/vit-base-patch16-224",
    "vit_b_32": "google/vit-base-patch32-384",
    "vit_l_16": "google/vit-large-patch16-224",
    "vit_l_32": "google/vit-large-patch32-384",
    "vit_h_14": "google/vit-huge-patch14-224-in21k",
}


def check_other_names(name: str) -> None:
    """Raise CheckpointError for a timm or torchvision name, with the name to use."""
    if name in _TORCHVISION:
        raise CheckpointError(
            f"'{name}' is a model of torchvision, which keeps weights without a configuration",
            what="model", found=name, expected=_TORCHVISION[name],
            hint=f"name the file: --arch {name} --weights FILE; or use {_TORCHVISION[name]}, of the same architecture",
        )  # fmt: skip
    match = _TIMM.fullmatch(name)
    if match is None:
        return
    tag = match["tag"] or _DEFAULTS.get(match["name"])
    if tag is None:
        raise CheckpointError(
            f"'{name}' is a model of timm, without the tag of its weights", what="model", found=name,
            hint=f"use timm/{name}.TAG, with a tag that timm.list_pretrained('{name}*') lists",
        )  # fmt: skip
    full = f"timm/{match['name']}.{tag}"
    raise CheckpointError(
        f"'{name}' is a model of timm, whose weights are on the Hub under another name",
        what="model", found=name, expected=full, hint=f"use {full}",
    )  # fmt: skip
