"""The families that are built, of transformers and timm.

CONTRIBUTING shows how to add one to `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from vitdeploy.models.families import fields
from vitdeploy.models.families.family import ATTENTION, VIT_LAYER, Family, Tower
from vitdeploy.specs import Task

_BEIT_LAYER = {
    **VIT_LAYER,
    "layer_scale1": "lambda_1",
    "layer_scale2": "lambda_2",
    "relative_position_bias": "attention.attention.relative_position_bias",
}
_DINOV2_LAYER = {
    **ATTENTION,
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layer_scale1": "layer_scale1.lambda1",
    "layer_scale2": "layer_scale2.lambda1",
}
_DINOV3_LAYER = {
    **{name: on_disk for name, on_disk in _DINOV2_LAYER.items() if name not in ATTENTION},
    "mlp.gate": "mlp.gate_proj",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
}

_CLIP_LAYER = {
    "attention.o_proj": "self_attn.out_proj",
    "attention": "self_attn",
    "layernorm_before": "layer_norm1",
    "layernorm_after": "layer_norm2",
}
# timm's names, with separate projections of queries, keys and values.
_TIMM_LAYER = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.o_proj": "attn.proj",
    "attention.layernorm": "attn.norm",
    "attention": "attn",
    "mlp.layernorm": "mlp.norm",
    "layer_scale1": "gamma_1",
    "layer_scale2": "gamma_2",
}
_TIMM_OTHERS = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.layernorm": "norm_pre",
    "layernorm": "norm",
}
# Fields of `ViTConfig` that the config.json of our own model types has under the same names.
_TIMM_KEYS = (
    "class_token", "absolute_positions", "layer_scale", "attention_norm", "mlp_norm", "final_norm",
    "pooler_attention_heads", "pooler_intermediate_size", "projection_size",
)  # fmt: skip


_DINOV2_FIELDS: dict[str, Any] = {
    "layer_norm_eps": 1e-6,
    "layer_scale": True,
    "float32_softmax": False,
    "any_image_size": True,
    "classification_pooler": "cls+mean",
    "feature_pooler": "cls",
}

_TIMM_FIELDS: dict[str, Any] = {"patch_size": (14, 14), "position_antialias": True, "embeds_bias": True}
_TIMM: dict[str, Any] = {
    "keys": _TIMM_KEYS, "derive": fields.timm, "layers": "blocks", "layer_names": _TIMM_LAYER, "head_name": "head",
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "vit": Family(
        prefix="vit.",
        architectures={
            "ViTForImageClassification": Task.CLASSIFICATION,
            "ViTModel": Task.FEATURES,
            "ViTForMaskedImageModeling": Task.MASKED_IMAGE_MODELING,
        },
    ),
    "deit": Family(
        prefix="deit.",
        architectures={
            "DeiTForImageClassification": Task.CLASSIFICATION,
            "DeiTForImageClassificationWithTeacher": Task.CLASSIFICATION,
            "DeiTModel": Task.FEATURES,
            "DeiTForMaskedImageModeling": Task.MASKED_IMAGE_MODELING,
        },
        sets={"distillation_token": True},
    ),
    "beit": Family(
        prefix="beit.",
        architectures={
            "BeitForImageClassification": Task.CLASSIFICATION,
            "BeitModel": Task.FEATURES,
            "BeitForMaskedImageModeling": Task.MASKED_IMAGE_MODELING,
        },
        backbone="BeitBackbone",
        sets={"key_bias": False, "any_image_size": True, "feature_norm": "none"},
        derive=fields.beit,
        layer_names=_BEIT_LAYER,
        other_names={"shared_position_bias": "encoder.relative_position_bias"},
        head_norm=True,
    ),
    "vit_mae": Family(
        prefix="vit.",
        architectures={"ViTMAEModel": Task.FEATURES, "ViTMAEForPreTraining": Task.FEATURES},
        sets={"feature_pooler": None, "default_pool": "mean"},
    ),
    "vit_msn": Family(
        prefix="vit.",
        architectures={"ViTMSNForImageClassification": Task.CLASSIFICATION, "ViTMSNModel": Task.FEATURES},
        sets={"layer_norm_eps": 1e-6, "feature_pooler": None},
    ),
    "ijepa": Family(
        prefix="ijepa.",
        architectures={"IJepaForImageClassification": Task.CLASSIFICATION, "IJepaModel": Task.FEATURES},
        sets={"class_token": False, "classification_pooler": "mean", "feature_pooler": None},
    ),
    "dinov2": Family(
        prefix="dinov2.",
        architectures={"Dinov2ForImageClassification": Task.CLASSIFICATION, "Dinov2Model": Task.FEATURES},
        backbone="Dinov2Backbone",
        sets={**_DINOV2_FIELDS, "patch_size": (14, 14)},
        derive=fields.dinov2,
        layer_names=_DINOV2_LAYER,
        axes={"embeddings.mask_token": 2},
    ),
    "dinov2_with_registers": Family(
        prefix="dinov2_with_registers.",
        architectures={
            "Dinov2WithRegistersForImageClassification": Task.CLASSIFICATION,
            "Dinov2WithRegistersModel": Task.FEATURES,
        },
        backbone="Dinov2WithRegistersBackbone",
        sets={**_DINOV2_FIELDS, "position_antialias": True},
        derive=fields.registers,
        layer_names=_DINOV2_LAYER,
        axes={"embeddings.mask_token": 2},
    ),
    "dinov3_vit": Family(
        prefix="model.",
        architectures={"DINOv3ViTModel": Task.FEATURES},
        backbone="DINOv3ViTBackbone",
        sets={
            "hidden_size": 384,
            "intermediate_size": 1536,
            "num_attention_heads": 6,
            "layer_norm_eps": 1e-5,
            "layer_scale": True,
            "float32_softmax": False,
            "any_image_size": True,
            "feature_pooler": "cls",
            "absolute_positions": False,
            "mask_token": True,
        },
        derive=fields.dinov3,
        layer_names=_DINOV3_LAYER,
        other_names={"embeddings.patch_embeddings.projection": "embeddings.patch_embeddings", "layernorm": "norm"},
        layers="layer",
    ),
    "clip_vision_model": Family(
        prefix="vision_model.",
        architectures={"CLIPVisionModelWithProjection": Task.FEATURES, "CLIPVisionModel": Task.FEATURES},
        sets={
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
            "patch_size": (32, 32),
            "projection_bias": False,
            "embedding_norm": True,
            "final_norm": False,
            "feature_pooler": "cls+norm",
        },
        derive=fields.clip,
        layers="encoder.layers",
        layer_names=_CLIP_LAYER,
        other_names={
            "embeddings.cls_token": "embeddings.class_embedding",
            "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
            "embeddings.position_embeddings": "embeddings.position_embedding.weight",
            "embeddings.layernorm": "pre_layrnorm",  # transformers' spelling
            "head.pooler.layernorm": "post_layernorm",
        },
        axes={"embeddings.cls_token": 1, "embeddings.position_embeddings": 2},
        always_prefixed=True,
    ),
    "siglip_vision_model": Family(
        prefix="vision_model.",
        architectures={"SiglipVisionModel": Task.FEATURES},
        sets={
            "hidden_act": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "class_token": False,
            "classification_pooler": "mean",
        },
        derive=fields.siglip,
        layers="encoder.layers",
        layer_names=_CLIP_LAYER,
        other_names={
            "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
            "embeddings.position_embeddings": "embeddings.position_embedding.weight",
            "layernorm": "post_layernorm",
            "head.pooler.attention.o_proj": "head.attention.out_proj",
            "head.pooler": "head",
        },
        stacked={"pooler.attention.in_proj_": tuple(f"pooler.attention.{part}_proj." for part in "qkv")},
        axes={"embeddings.position_embeddings": 2},
        always_prefixed=True,
    ),
    "timm_vit": Family(
        prefix="",
        architectures={"TimmViTForImageClassification": Task.CLASSIFICATION, "TimmViTModel": Task.FEATURES},
        sets={"layer_norm_eps": 1e-6, "position_antialias": True, "pooler_prefix": False},
        other_names={
            **_TIMM_OTHERS,
            "embeddings.register_tokens": "reg_token",
            "head.pooler.layernorm": "fc_norm",
            "head.pooler.probe": "attn_pool.latent",
            "head.pooler.mlp": "attn_pool.mlp",
            "head.pooler.attention": "attn_pool",
        },
        **_TIMM
        | {
            "keys": (*_TIMM_KEYS, "num_register_tokens", "swiglu"),
            "layer_names": {**_TIMM_LAYER, "layer_scale1": "ls1.gamma", "layer_scale2": "ls2.gamma"},
        },
    ),
    "timm_eva": Family(
        prefix="",
        architectures={"TimmEvaForImageClassification": Task.CLASSIFICATION, "TimmEvaModel": Task.FEATURES},
        sets={**_TIMM_FIELDS, "layer_norm_eps": 1e-6, "key_bias": False},
        other_names={**_TIMM_OTHERS, "head.pooler.layernorm": "fc_norm"},
        **_TIMM,
    ),
    "timm_eva02": Family(
        prefix="",
        architectures={"TimmEva02ForImageClassification": Task.CLASSIFICATION, "TimmEva02Model": Task.FEATURES},
        sets={**_TIMM_FIELDS, "layer_norm_eps": 1e-6, "key_bias": False, "gated_mlp": True, "hidden_act": "silu"},
        other_names={**_TIMM_OTHERS, "head.pooler.layernorm": "fc_norm"},
        **_TIMM | {"layer_names": {**_TIMM_LAYER, "mlp.gate": "mlp.fc1_g", "mlp.fc1": "mlp.fc1_x"}},
    ),
    "timm_perception_encoder": Family(
        prefix="",
        architectures={
            "TimmPerceptionEncoderForImageClassification": Task.CLASSIFICATION,
            "TimmPerceptionEncoderModel": Task.FEATURES,
        },
        sets={**_TIMM_FIELDS, "layer_norm_eps": 1e-5, "projection_bias": False, "embedding_norm": True},
        other_names={
            **_TIMM_OTHERS,
            "head.pooler.attention.q_proj": "attn_pool.q",
            "head.pooler.attention.kv": "attn_pool.kv",
            "head.pooler.attention.o_proj": "attn_pool.proj",
            "head.pooler.probe": "attn_pool.latent",
            "head.pooler.layernorm": "attn_pool.norm",
            "head.pooler.mlp": "attn_pool.mlp",
        },
        stacked={"pooler.attention.kv.": ("pooler.attention.k_proj.", "pooler.attention.v_proj.")},
        **_TIMM,
    ),
}
_CLIP_TOWER = Tower("clip_vision_model", ("vision_config_dict", "vision_config"), shared={"projection_dim": 512})
# A CLIP with both towers. Its classifiers have the norm of the class token, too, but do not compute it.
FAMILIES["clip"] = dataclasses.replace(
    FAMILIES["clip_vision_model"],
    architectures={
        "CLIPForImageClassification": Task.CLASSIFICATION,
        "CLIPVisionModelWithProjection": Task.FEATURES,
        "CLIPVisionModel": Task.FEATURES,
        "CLIPModel": Task.FEATURES,
    },
    sets={**FAMILIES["clip_vision_model"].sets, "classification_pooler": "mean", "unused_norm": True},
    other_names={
        **{ours: name for ours, name in FAMILIES["clip_vision_model"].other_names.items() if "pooler" not in ours},
        "layernorm": "post_layernorm",
    },
    tower=_CLIP_TOWER,
)
# MetaCLIP 2 is the same with classes of its own. Chinese CLIP and AltCLIP have CLIP's image tower beside another text
# tower, without a class for the tower with its projection.
FAMILIES["metaclip_2_vision_model"] = dataclasses.replace(
    FAMILIES["clip_vision_model"],
    architectures={"MetaClip2VisionModelWithProjection": Task.FEATURES, "MetaClip2VisionModel": Task.FEATURES},
)
FAMILIES["metaclip_2"] = dataclasses.replace(
    FAMILIES["clip"],
    architectures={"MetaClip2ForImageClassification": Task.CLASSIFICATION, "MetaClip2Model": Task.FEATURES},
    tower=dataclasses.replace(_CLIP_TOWER, model_type="metaclip_2_vision_model"),
)
FAMILIES["chinese_clip"] = dataclasses.replace(
    FAMILIES["clip"], architectures={"ChineseCLIPModel": Task.FEATURES}, tower=_CLIP_TOWER
)
FAMILIES["altclip"] = dataclasses.replace(
    FAMILIES["clip"],
    architectures={"AltCLIPModel": Task.FEATURES},
    tower=dataclasses.replace(_CLIP_TOWER, shared={"projection_dim": 768}),
)
# Classifiers of timm's CLIP encoders, which transformers does not have.
FAMILIES["timm_clip"] = dataclasses.replace(
    FAMILIES["clip_vision_model"],
    architectures={"TimmClipForImageClassification": Task.CLASSIFICATION},
    sets={**FAMILIES["clip_vision_model"].sets, "classification_pooler": "cls+norm"},
)
# A SigLIP with both towers; SigLIP2's models of fixed size are the same classes.
FAMILIES["siglip"] = dataclasses.replace(
    FAMILIES["siglip_vision_model"],
    architectures={
        "SiglipForImageClassification": Task.CLASSIFICATION,
        "SiglipVisionModel": Task.FEATURES,
        "SiglipModel": Task.FEATURES,
    },
    tower=Tower("siglip_vision_model", of_classifier={"vision_use_head": False}),
)
