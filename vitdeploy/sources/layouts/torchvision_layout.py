"""Convert torchvision's Vision Transformers (torchvision.models.vit_b_16 ...) to transformers' ViT.

torchvision writes no configuration; `torchvision_config` makes one of an architecture's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from vitdeploy.errors import CheckpointError
from vitdeploy.images.preprocessor_config import FILTERS
from vitdeploy.models.checkpoint import some
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from torch import Tensor


class _Sizes(NamedTuple):
    patch: int
    layers: int
    heads: int
    width: int
    mlp: int


# torchvision/models/vision_transformer.py, 0.28.
MODELS = {
    "vit_b_16": _Sizes(16, 12, 12, 768, 3072),
    "vit_b_32": _Sizes(32, 12, 12, 768, 3072),
    "vit_l_16": _Sizes(16, 24, 16, 1024, 4096),
    "vit_l_32": _Sizes(32, 24, 16, 1024, 4096),
    "vit_h_14": _Sizes(14, 32, 16, 1280, 5120),
}


class _Transforms(NamedTuple):
    """Settings of torchvision.transforms._presets.ImageClassification, and the weights that have them."""

    weights: str
    resize: int
    interpolation: str = "bilinear"


# By architecture, image size in pixels, and whether the file's name has SWAG's mark, as torchvision's own files have.
_OF_TRAINING = _Transforms("IMAGENET1K_V1", 256)
_SWAG_LINEAR = _Transforms("IMAGENET1K_SWAG_LINEAR_V1", 224, "bicubic")
TRANSFORMS = {
    ("vit_b_16", 224, False): _OF_TRAINING,
    ("vit_b_16", 224, True): _SWAG_LINEAR,
    ("vit_b_16", 384, True): _Transforms("IMAGENET1K_SWAG_E2E_V1", 384, "bicubic"),
    ("vit_b_32", 224, False): _OF_TRAINING,
    ("vit_l_16", 224, False): _Transforms("IMAGENET1K_V1", 242),
    ("vit_l_16", 224, True): _SWAG_LINEAR,
    ("vit_l_16", 512, True): _Transforms("IMAGENET1K_SWAG_E2E_V1", 512, "bicubic"),
    ("vit_l_32", 224, False): _OF_TRAINING,
    ("vit_h_14", 224, True): _SWAG_LINEAR,
    ("vit_h_14", 518, True): _Transforms("IMAGENET1K_SWAG_E2E_V1", 518, "bicubic"),
}
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_QKV = ("query", "key", "value")
_EPS = 1e-6  # norm_layer of torchvision's VisionTransformer
# Parts of a layer: torchvision's name, transformers', and the shape of the weight.
_PARTS = (
    ("ln_1", "layernorm_before", ("width",)),
    ("self_attention.in_proj_", "attention.attention", ("3 * width", "width")),
    ("self_attention.out_proj", "attention.output.dense", ("width", "width")),
    ("ln_2", "layernorm_after", ("width",)),
    ("mlp.0", "intermediate.dense", ("mlp", "width")),
    ("mlp.3", "output.dense", ("width", "mlp")),
)
_FORMER = ((".mlp.linear_1.", ".mlp.0."), (".mlp.linear_2.", ".mlp.3."))  # torchvision 0.12
# The classifier: torchvision's, and as it is usually replaced: `model.heads = Linear(...)`, `Sequential(Linear(...))`.
_HEADS = ("heads.head", "heads", "heads.0")


def is_torchvision(config: Mapping[str, Any]) -> bool:
    """True for the configuration of `torchvision_config`."""
    return "torchvision" in config


def torchvision_config(name: str, tensors: Mapping[str, Tensor], file_name: str) -> dict[str, Any]:
    """The configuration of a model.

    Args:
        name: One of `MODELS`.
        tensors: The weights, whose position table tells the image size: torchvision's images are square.
        file_name: The weights' file. SWAG's weights have other transforms than those of torchvision's training, and
            torchvision's files say so in their names. Where weights of one kind alone are published in a size, it does
            not matter.

    Raises:
        CheckpointError: If the weights have no such table.
    """
    positions = tensors.get("encoder.pos_embedding")
    rows = positions.shape[1] - 1 if positions is not None and positions.ndim == 3 else -1
    side = math.isqrt(max(rows, 0))
    if side < 1 or side * side != rows:
        shape = None if positions is None else tuple(positions.shape)
        raise CheckpointError(
            f"the weights are not those of torchvision's {name}: encoder.pos_embedding is {shape or 'missing'}, not a "
            f"row for the class token and one for each patch of a square grid",
            what="encoder.pos_embedding", found=shape, hint="check the architecture's name",
        )  # fmt: skip
    edge = side * MODELS[name].patch
    marked = "swag" in file_name.lower()
    transforms = TRANSFORMS.get((name, edge, marked)) or TRANSFORMS.get((name, edge, not marked))
    config: dict[str, Any] = {"torchvision": name, "image_size": edge}
    return config | ({} if transforms is None else {"transforms": transforms._asdict()})


def from_torchvision(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], task: Task | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert a Vision Transformer of torchvision.

    Args:
        config: See `torchvision_config`; `label_names` are the classes' names.
        tensors: Weights under torchvision's names.
        task: Task of the model. Default: classification if the weights have a head, else features.

    Returns:
        Content of the Hugging Face config.json, and the tensors under transformers' names.

    Raises:
        CheckpointError: If the weights are not those of the architecture, or have no head for `task`.
    """
    name = config["torchvision"]
    sizes, edge = MODELS[name], config["image_size"]
    tensors = {_current(spelled): tensor for spelled, tensor in tensors.items()}
    head = classifier_of(tensors)
    if task is Task.CLASSIFICATION and head is None:
        raise CheckpointError(
            f"the weights of {name} have no classifier ({_HEADS[0]})",
            what="task", found=task, hint=f"use --task {Task.FEATURES}",
        )  # fmt: skip
    layers = _layers(sizes, edge, prefix="vit." if head else "")
    if head is not None:
        layers[head] = ("classifier", (*tensors[f"{head}.weight"].shape[:1], sizes.width))
    _check(name, tensors, layers)
    weights: dict[str, Tensor] = {}
    for place, (target, _) in layers.items():
        if place.endswith("in_proj_"):
            for kind in ("weight", "bias"):
                parts = tensors[f"{place}{kind}"].chunk(3)
                weights |= {f"{target}.{part}.{kind}": tensor for part, tensor in zip(_QKV, parts, strict=True)}
        elif f"{place}.weight" in tensors:
            weights |= {f"{target}.{kind}": tensors[f"{place}.{kind}"] for kind in ("weight", "bias")}
        else:
            weights[target] = tensors[place]
    labels = config.get("label_names") or [
        f"LABEL_{i}" for i in range(0 if head is None else len(weights["classifier.bias"]))
    ]
    content = {
        "architectures": ["ViTModel" if head is None else "ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "intermediate_size": sizes.mlp,
        "hidden_act": "gelu",
        "layer_norm_eps": _EPS,
        "image_size": edge,
        "patch_size": sizes.patch,
    }
    if head is not None:
        content |= {"id2label": {str(index): label for index, label in enumerate(labels)}}
        content |= {"label2id": {label: index for index, label in enumerate(labels)}}
    return content, weights


def classifier_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the classifier in torchvision's weights; None if they have none."""
    return next((head for head in _HEADS if f"{head}.weight" in tensors), None)


def torchvision_processor(config: Mapping[str, Any], _: tuple[int, int] | None = None) -> dict[str, Any] | None:
    """The preprocessor_config.json equivalent to torchvision's ImageClassification transform.

    It resizes the shorter edge, crops the center with its offset rounded half to even, and normalizes.

    Args:
        config: See `torchvision_config`.

    Returns:
        Settings; None if torchvision publishes no weights of the model's size, whose transforms could be taken.
    """
    transforms, edge = config.get("transforms"), config["image_size"]
    if transforms is None:
        return None
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": transforms["resize"]},
        "resample": FILTERS[transforms["interpolation"]],
        "do_center_crop": True,
        "crop_size": {"height": edge, "width": edge},
        "crop_rounding": "half_even",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _MEAN,
        "image_std": _STD,
    }


def _layers(sizes: _Sizes, edge: int, prefix: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The transformers name and the shape of each tensor, or of a layer's weight, by torchvision's name."""
    width, patch = sizes.width, sizes.patch
    embeddings = f"{prefix}embeddings"
    layers: dict[str, tuple[str, tuple[int, ...]]] = {
        "class_token": (f"{embeddings}.cls_token", (1, 1, width)),
        "encoder.pos_embedding": (f"{embeddings}.position_embeddings", (1, 1 + (edge // patch) ** 2, width)),
        "conv_proj": (f"{embeddings}.patch_embeddings.projection", (width, 3, patch, patch)),
        "encoder.ln": (f"{prefix}layernorm", (width,)),
    }
    axes = {"width": width, "3 * width": 3 * width, "mlp": sizes.mlp}
    for index in range(sizes.layers):
        for part, target, shape in _PARTS:
            place = f"encoder.layers.encoder_layer_{index}.{part}"
            layers[place] = (f"{prefix}encoder.layer.{index}.{target}", tuple(axes[axis] for axis in shape))
    return layers


def _check(name: str, tensors: Mapping[str, Tensor], layers: Mapping[str, tuple[str, tuple[int, ...]]]) -> None:
    """Raise CheckpointError unless the weights have every tensor of the architecture in its shape, and no other."""
    expected: dict[str, tuple[int, ...]] = {}
    for place, (_, shape) in layers.items():
        if place in ("class_token", "encoder.pos_embedding"):
            expected[place] = shape
        else:
            stem = place if place.endswith("_") else f"{place}."
            expected |= {f"{stem}weight": shape, f"{stem}bias": shape[:1]}
    missing = [key for key in expected if key not in tensors]
    unexpected = [key for key in tensors if key not in expected]
    wrong = [
        f"{key} must be {expected[key]}, is {tuple(tensor.shape)}"
        for key, tensor in tensors.items()
        if key in expected and tuple(tensor.shape) != expected[key]
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "": wrong}
    problems = "; ".join(f"{kind} {some(names)}".strip() for kind, names in kinds.items() if names)
    if problems:
        raise CheckpointError(
            f"the weights are not those of torchvision's {name}: {problems}",
            what="weights", found=problems, hint="check the architecture's name",
        )  # fmt: skip


def _current(name: str) -> str:
    for former, current in _FORMER:
        name = name.replace(former, current)
    return name
