"""Every head of every family that transformers has, and random configurations of each."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from typing import TYPE_CHECKING, Any

from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Callable

# transformers' classes of a plain ViT.
VIT_CLASSES = {
    Task.CLASSIFICATION: "ViTForImageClassification",
    Task.FEATURES: "ViTModel",
    Task.MASKED_IMAGE_MODELING: "ViTForMaskedImageModeling",
}
# Arguments of transformers' ViTConfig for a model of 17 tokens that runs in a millisecond.
TINY: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "encoder_stride": 8,
    "id2label": {0: "cat", 1: "dog", 2: "newt"},
    "label2id": {"cat": 0, "dog": 1, "newt": 2},
}


# The class and the module that are exported of a larger class.
_ENCODERS = {
    "ViTMAEForPreTraining": ("ViTMAEModel", "vit"),
    "SiglipModel": ("SiglipVisionModel", "vision_model"),
    "CLIPModel": ("CLIPVisionModelWithProjection", ""),
    "MetaClip2Model": ("MetaClip2VisionModelWithProjection", ""),
    "ChineseCLIPModel": ("CLIPVisionModelWithProjection", ""),
    "AltCLIPModel": ("CLIPVisionModelWithProjection", ""),
}
_UNUSED = {
    "SiglipForImageClassification": "vision_model.head.",
}
# Of a text tower, which no test looks at.
_TEXT = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 16,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Head:
    """One class of transformers.

    Attributes:
        family: Its model_type.
        name: Of the class.
        task: What it computes.
        processor: The class of its image processor, without "Pil".
    """

    family: str
    name: str
    task: Task
    processor: str = "ViTImageProcessor"

    def __str__(self) -> str:
        return self.name

    @property
    def exported_name(self) -> str:
        """The class of what is exported."""
        return _ENCODERS.get(self.name, (self.name,))[0]

    def exported(self, model: Any) -> Any:
        """The part of the class's model that is exported: the encoder for pretraining, the image tower of two."""
        if self.name not in _ENCODERS:
            return model
        name, module = _ENCODERS[self.name]
        return getattr(model, module) if module else _with_projection(model, name)

    @property
    def unused(self) -> str | None:
        """Beginning of the names of weights that the class does not compute with."""
        return _UNUSED.get(self.name)

    def arguments(self, config: dict[str, Any]) -> dict[str, Any]:
        """Arguments of the class's configuration; a configuration of two towers nests those of an encoder."""
        import transformers

        own = getattr(transformers, self.name).config_class
        if "vision_config" not in own.sub_configs:
            return config
        of_tower = {field.name for field in dataclasses.fields(own.sub_configs["vision_config"])}
        of_tower -= {field.name for field in dataclasses.fields(own)}
        nested = {key: value for key, value in config.items() if key in of_tower}
        rest = {key: value for key, value in config.items() if key not in of_tower}
        return {"text_config": _TEXT, **rest, "vision_config": nested}

    @property
    def resizes_by_itself(self) -> bool:
        """Whether transformers' model interpolates positions without being asked to."""
        return self.family in ("beit", "dinov2", "dinov2_with_registers", "dinov3_vit")


def _with_projection(model: Any, name: str) -> Any:
    """The image tower with its projection, which no module of the model holds together, in the class `name`."""
    import transformers

    config = copy.deepcopy(model.config.vision_config)
    config.projection_dim = model.config.projection_dim
    tower: Any = getattr(transformers, name)(config).eval().to(model.dtype)
    tower.set_attn_implementation(model.config._attn_implementation)
    tower.load_state_dict({name: value for name, value in model.state_dict().items() if name in tower.state_dict()})
    return tower


HEADS = (
    Head("vit", "ViTForImageClassification", Task.CLASSIFICATION),
    Head("vit", "ViTModel", Task.FEATURES),
    Head("vit", "ViTForMaskedImageModeling", Task.MASKED_IMAGE_MODELING),
    Head("deit", "DeiTForImageClassification", Task.CLASSIFICATION, "DeiTImageProcessor"),
    Head("deit", "DeiTForImageClassificationWithTeacher", Task.CLASSIFICATION, "DeiTImageProcessor"),
    Head("deit", "DeiTModel", Task.FEATURES, "DeiTImageProcessor"),
    Head("deit", "DeiTForMaskedImageModeling", Task.MASKED_IMAGE_MODELING, "DeiTImageProcessor"),
    Head("beit", "BeitForImageClassification", Task.CLASSIFICATION, "BeitImageProcessor"),
    Head("beit", "BeitModel", Task.FEATURES, "BeitImageProcessor"),
    Head("beit", "BeitForMaskedImageModeling", Task.MASKED_IMAGE_MODELING, "BeitImageProcessor"),
    Head("vit_mae", "ViTMAEModel", Task.FEATURES),
    Head("vit_mae", "ViTMAEForPreTraining", Task.FEATURES),
    Head("vit_msn", "ViTMSNForImageClassification", Task.CLASSIFICATION),
    Head("vit_msn", "ViTMSNModel", Task.FEATURES),
    Head("ijepa", "IJepaForImageClassification", Task.CLASSIFICATION),
    Head("ijepa", "IJepaModel", Task.FEATURES),
    Head("dinov2", "Dinov2ForImageClassification", Task.CLASSIFICATION, "BitImageProcessor"),
    Head("dinov2", "Dinov2Model", Task.FEATURES, "BitImageProcessor"),
    Head(
        "dinov2_with_registers", "Dinov2WithRegistersForImageClassification", Task.CLASSIFICATION, "BitImageProcessor"
    ),
    Head("dinov2_with_registers", "Dinov2WithRegistersModel", Task.FEATURES, "BitImageProcessor"),
    Head("dinov3_vit", "DINOv3ViTModel", Task.FEATURES, "DINOv3ViTImageProcessor"),
    Head("clip_vision_model", "CLIPVisionModelWithProjection", Task.FEATURES, "CLIPImageProcessor"),
    Head("clip_vision_model", "CLIPVisionModel", Task.FEATURES, "CLIPImageProcessor"),
    Head("clip", "CLIPForImageClassification", Task.CLASSIFICATION, "CLIPImageProcessor"),
    Head("clip", "CLIPModel", Task.FEATURES, "CLIPImageProcessor"),
    Head("siglip_vision_model", "SiglipVisionModel", Task.FEATURES, "SiglipImageProcessor"),
    Head("siglip", "SiglipForImageClassification", Task.CLASSIFICATION, "SiglipImageProcessor"),
    Head("siglip", "SiglipModel", Task.FEATURES, "SiglipImageProcessor"),
)


# CLIP under other names. One test holds each to transformers; what else is to be tested is CLIP's.
ALIASES = (
    Head("metaclip_2_vision_model", "MetaClip2VisionModelWithProjection", Task.FEATURES, "CLIPImageProcessor"),
    Head("metaclip_2_vision_model", "MetaClip2VisionModel", Task.FEATURES, "CLIPImageProcessor"),
    Head("metaclip_2", "MetaClip2ForImageClassification", Task.CLASSIFICATION, "CLIPImageProcessor"),
    Head("metaclip_2", "MetaClip2Model", Task.FEATURES, "CLIPImageProcessor"),
    Head("chinese_clip", "ChineseCLIPModel", Task.FEATURES, "ChineseCLIPImageProcessor"),
    Head("altclip", "AltCLIPModel", Task.FEATURES, "CLIPImageProcessor"),
)
# Families of transformers; the others are timm's own, and have their results in tests/golden/timm.
OF_TRANSFORMERS = tuple(dict.fromkeys(head.family for head in HEADS))
# One head of each family, of both tasks in turn, for what a head has no part in.
ONE_A_FAMILY = tuple(
    heads[-(index % 2)]
    for index, (_, group) in enumerate(itertools.groupby(HEADS, key=lambda head: head.family))
    for heads in [[head for head in group if head.task is not Task.MASKED_IMAGE_MODELING]]
)


# Of tests/golden/timm: a checkpoint for each family and task, which has an ONNX graph too.
TIMM_GRAPHS = (
    *("vit_0", "vit_features_0", "deit_distilled_0", "beit_0", "beit_features_0", "deit3_0", "dinov2_0"),
    *("reg4_dinov2_classifier_0", "reg4_dinov2_0", "dinov3_0"),
    *("siglip_0", "siglip_classifier_0", "gap_0", "gap_features_0"),
    *("eva_0", "eva02_0", "eva02_features_0", "pe_core_0", "pe_core_1"),
    *("clip_0", "clip_classifier_0"),
)


def random_config(head: Head, seed: int) -> dict[str, Any]:
    """Arguments of transformers' configuration: odd depths, sizes that are no defaults, every switch of the family."""
    draw = random.Random(f"{head.name}-{seed}")
    patch = draw.choice((4, 5, 8))
    heads = draw.choice((2, 3, 4))
    config: dict[str, Any] = {
        "hidden_size": heads * draw.choice((8, 12)),
        "num_hidden_layers": (1, 3, 5)[seed % 3],
        "num_attention_heads": heads,
        "hidden_act": draw.choice(("gelu", "gelu_new", "relu", "quick_gelu")),
        "layer_norm_eps": draw.choice((1e-12, 1e-6, 1e-3)),
        "image_size": patch * draw.choice((3, 4, 6)) + draw.choice((0, 0, 2)),
        "patch_size": patch,
        "num_labels": draw.choice((2, 3, 11)),
    }
    if head.family not in ("dinov2", "dinov2_with_registers"):
        config["intermediate_size"] = draw.choice((24, 40, 56))
    if head.family not in ("beit", "dinov3_vit") and "clip" not in head.family:
        config["qkv_bias"] = draw.random() < 0.7
    if head.task is Task.MASKED_IMAGE_MODELING:  # transformers takes a mask where one patch is decoded to one patch
        config["encoder_stride"] = patch
        config["image_size"] -= config["image_size"] % patch
    if head.family in _OF_FAMILY:
        config |= _OF_FAMILY[head.family](draw, seed, head)
    return config


def _beit(draw: random.Random, seed: int, head: Head) -> dict[str, Any]:
    return {
        "use_relative_position_bias": seed % 3 != 1,
        "use_shared_relative_position_bias": seed % 3 != 0,
        "use_absolute_position_embeddings": draw.random() < 0.5,
        "use_mean_pooling": seed % 2 == 0,
        "layer_scale_init_value": draw.choice((0.0, 0.1)),
        "use_mask_token": head.task is Task.MASKED_IMAGE_MODELING,
        "vocab_size": 17,
    }


def _dinov2(draw: random.Random, seed: int, head: Head) -> dict[str, Any]:
    registers = {"num_register_tokens": draw.choice((1, 4))} if head.family == "dinov2_with_registers" else {}
    return {"use_swiglu_ffn": seed % 2 == 1, "mlp_ratio": draw.choice((2, 4)), **registers}


def _dinov3(draw: random.Random, seed: int, head: Head) -> dict[str, Any]:
    biases = ("query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias")
    return {
        "use_gated_mlp": seed % 2 == 1,
        "num_register_tokens": (4, 0, 1)[seed % 3],
        "rope_theta": draw.choice((100.0, 10000.0)),
        **{bias: draw.random() < 0.7 for bias in biases},
    }


def _mae(draw: random.Random, seed: int, head: Head) -> dict[str, Any]:
    return {  # nothing is masked in deployment
        "mask_ratio": 0.0,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
    }


def _clip(draw: random.Random, seed: int, head: Head) -> dict[str, Any]:
    return {"projection_dim": draw.choice((7, 16))}


def _siglip(draw: random.Random, seed: int, head: Head) -> dict[str, Any]:
    return {"hidden_act": "gelu_pytorch_tanh", "vision_use_head": head.name != "SiglipVisionModel" or seed % 3 != 2}


_OF_FAMILY: dict[str, Callable[[random.Random, int, Head], dict[str, Any]]] = {
    "beit": _beit,
    "dinov2": _dinov2,
    "dinov2_with_registers": _dinov2,
    "dinov3_vit": _dinov3,
    "vit_mae": _mae,
    "clip_vision_model": _clip,
    **dict.fromkeys(("clip", *(head.family for head in ALIASES)), _clip),
    "siglip_vision_model": _siglip,
    "siglip": _siglip,
}
