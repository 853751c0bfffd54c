"""Families of Vision Transformers in transformers and timm: differences from ViT, and weight names.

CONTRIBUTING shows how to add a family to `FAMILIES`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from vitdeploy.errors import UsageError, shown
from vitdeploy.models.rotary import Rotary
from vitdeploy.specs import Task

# Names of a layer's parts here -> on disk. The Hub keeps transformers 4's names, which transformers 5 still writes; the
# names here are transformers 5's module names, which are also read.
_ATTENTION = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
_VIT_LAYER = {**_ATTENTION, "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
_BEIT_LAYER = {
    **_VIT_LAYER,
    "layer_scale1": "lambda_1",
    "layer_scale2": "lambda_2",
    "relative_position_bias": "attention.attention.relative_position_bias",
}
_DINOV2_LAYER = {
    **_ATTENTION,
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "layer_scale1": "layer_scale1.lambda1",
    "layer_scale2": "layer_scale2.lambda1",
}
_DINOV3_LAYER = {
    **{name: on_disk for name, on_disk in _DINOV2_LAYER.items() if name not in _ATTENTION},
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


@dataclasses.dataclass(frozen=True)
class Tower:
    """The image tower of a model with two, whose `config.json` nests its keys beside those of a text tower.

    Attributes:
        model_type: Its own family.
        nested_in: Keys with its keys; the first that is not null.
        shared: Keys beside them that its own `config.json` has, with their defaults.
        of_classifier: Nested keys of a classifier, which differ from those of the two towers.
    """

    model_type: str
    nested_in: tuple[str, ...] = ("vision_config",)
    shared: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    of_classifier: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def key(self, config: Mapping[str, Any]) -> str:
        """The key in a `config.json` with the tower's keys."""
        return next((key for key in self.nested_in if config.get(key) is not None), self.nested_in[-1])


@dataclasses.dataclass(frozen=True)
class Family:
    """One `model_type`: of transformers, or our own for models that only timm has.

    Attributes:
        prefix: Name prefix of the encoder's weights in a model with a head.
        architectures: Supported classes, with their tasks; the default class of a task first.
        backbone: transformers' class without a head, if any, whose feature maps are the dense features here.
        sets: Fields of `ViTConfig` that differ from ViT, or from ViT's defaults.
        keys: Other keys of its `config.json` that are fields.
        derive: Fields derived from other keys of its `config.json`.
        layer_names: Names of a layer's parts here -> on disk.
        other_names: The same for weights outside the layers.
        layers: Name of the layers on disk, before their numbers.
        stacked: Parts of names on disk of weights that are several here, stacked along the first axis -> the parts of
            their names, from the top.
        axes: Number of axes on disk of weights that have more here, with sizes of 1 before them; by their names here.
        always_prefixed: True if weights have the prefix in a model without a head, too.
        head_name: Name on disk of the last linear layer, if it is the same for a classifier and a projection.
        head_norm: True if a head has its own norm, distinguished from the encoder's only by the missing prefix.
        tower: The image tower of a model with two.
    """

    prefix: str
    architectures: Mapping[str, Task]
    backbone: str | None = None
    sets: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    keys: tuple[str, ...] = ()
    derive: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    layer_names: Mapping[str, str] = dataclasses.field(default_factory=lambda: _VIT_LAYER)
    other_names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    layers: str = "encoder.layer"
    stacked: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    axes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    always_prefixed: bool = False
    head_name: str | None = None
    head_norm: bool = False
    tower: Tower | None = None


def _beit(config: Mapping[str, Any]) -> dict[str, Any]:
    mean = _flag(config, "use_mean_pooling", default=True)
    return {
        "qkv_bias": True,  # transformers has no such key here
        "absolute_positions": _flag(config, "use_absolute_position_embeddings", default=False),
        "relative_positions": _flag(config, "use_relative_position_bias", default=False),
        "shared_relative_positions": _flag(config, "use_shared_relative_position_bias", default=False),
        "layer_scale": _number(config, "layer_scale_init_value", default=0.1) > 0,
        "final_norm": not mean,
        "classification_pooler": "mean+norm" if mean else "cls",
        "feature_pooler": "mean+norm" if mean else "cls",
        "vocab_size": config.get("vocab_size", 8192),
    }


def _dinov2(config: Mapping[str, Any]) -> dict[str, Any]:
    swiglu = _flag(config, "use_swiglu_ffn", default=False)
    size = config.get("hidden_size", 768)
    ratio = _number(config, "mlp_ratio", default=4)
    if isinstance(size, bool) or not isinstance(size, int):
        return {}  # ViTConfig reports the problem
    width = int(size * ratio)
    if swiglu:  # two thirds of the MLP's width, rounded up to a multiple of 8: transformers' Dinov2SwiGLUFFN
        width = (int(width * 2 / 3) + 7) // 8 * 8
    return {
        "intermediate_size": width,
        "swiglu": swiglu,
        "mask_token": _flag(config, "use_mask_token", default=True),
        "feature_norm": "all" if _flag(config, "apply_layernorm", default=True) else "none",
    }


def _registers(config: Mapping[str, Any]) -> dict[str, Any]:
    return {**_dinov2(config), "mask_token": True, "num_register_tokens": config.get("num_register_tokens", 4)}


def _dinov3(config: Mapping[str, Any]) -> dict[str, Any]:
    biases = {"query_bias": True, "key_bias": False, "value_bias": True, "proj_bias": True, "mlp_bias": True}
    return {
        "qkv_bias": True,  # one key for each
        **{key: _flag(config, key, default=default) for key, default in biases.items()},
        "head_dim": None,  # transformers ignores such a key here
        "gated_mlp": _flag(config, "use_gated_mlp", default=False),
        "num_register_tokens": config.get("num_register_tokens", 0),
        "rotary": Rotary("centered", config.get("rope_theta", 100.0)),
        "feature_norm": "all" if _flag(config, "apply_layernorm", default=True) else "last",
    }


def _clip(config: Mapping[str, Any]) -> dict[str, Any]:
    named = config.get("architectures")
    without = ("VisionModel", "ForImageClassification")  # endings of classes without the projection
    projected = not isinstance(named, list) or not any(str(name).endswith(without) for name in named)
    # transformers has no such keys here
    return {
        "qkv_bias": True,
        "head_dim": None,
        "projection_size": config.get("projection_dim", 512) if projected else None,
    }


def _siglip(config: Mapping[str, Any]) -> dict[str, Any]:
    pools = _flag(config, "vision_use_head", default=True)
    # transformers has no such keys as the first two here
    return {"qkv_bias": True, "head_dim": None, "feature_pooler": "attention" if pools else None}


def _timm(config: Mapping[str, Any]) -> dict[str, Any]:
    pooling, rotary = config.get("pooling"), config.get("rotary")
    return {
        "classification_pooler": "mean" if pooling is None else pooling,
        "feature_pooler": pooling,
        "rotary": None if rotary is None else Rotary.from_dict(rotary),
    }


def _flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UsageError(f"{key} is {shown(value)}, expected true or false", what=key, found=value)
    return value


def _number(config: Mapping[str, Any], key: str, *, default: float) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 2**15:
        raise UsageError(f"{key} is {shown(value)}, expected a number from 0 to {2**15}", what=key, found=value)
    return value


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
    "keys": _TIMM_KEYS, "derive": _timm, "layers": "blocks", "layer_names": _TIMM_LAYER, "head_name": "head",
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
        derive=_beit,
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
        derive=_dinov2,
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
        derive=_registers,
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
        derive=_dinov3,
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
        derive=_clip,
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
        derive=_siglip,
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
