"""Convert OpenCLIP's image encoders (open_clip_config.json) to transformers' CLIPVisionModelWithProjection.

An encoder that OpenCLIP takes from timm (`timm_model_name`) is converted as timm's. Text towers are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError
from vitdeploy.images.preprocessor_config import FILTERS
from vitdeploy.models.checkpoint import some
from vitdeploy.sources.timm_layouts.layout import from_timm
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from torch import Tensor

_VISUAL, _TRUNK = "visual.", "visual.trunk."
_MOST = 1 << 15  # as in ViTConfig
_EPS = 1e-5  # torch.nn.LayerNorm
# open_clip/constants.py, OPENAI_DATASET_MEAN and _STD: the defaults of PreprocessCfg.
_MEAN, _STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# Of vision_cfg (open_clip/model.py, CLIPVisionCfg, 3.3): keys that may change a result, with the values that do not.
_PLAIN: dict[str, tuple[object, ...]] = {
    "ls_init_value": (None,),
    "attentional_pool": (False,),
    "no_ln_pre": (False,),
    "pool_type": ("tok",),
    "act_kwargs": (None, {}),
    "norm_kwargs": (None, {}),
    "block_type": (None, "default"),
    "qk_norm": (False,),
    "scaled_cosine_attn": (False,),
    "scale_heads": (False,),
    "scale_attn_inner": (False,),
    "scale_attn": (False,),
    "scale_fc": (False,),
}
_WITHOUT_EFFECT = {
    "patch_dropout", "attn_pooler_queries", "attn_pooler_heads", "pos_embed_type", "final_ln_after_pool",
    "output_tokens", "timm_model_name", "timm_model_pretrained", "timm_pool", "timm_proj", "timm_proj_bias",
    "timm_drop", "timm_drop_path",
}  # fmt: skip
_SIZES = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16, "image_size": 224}
_LAYER = {
    "ln_1": "layer_norm1",
    "attn.in_proj_": "self_attn",
    "attn.out_proj": "self_attn.out_proj",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_ENCODER = "vision_model"


def is_open_clip(config: Mapping[str, Any]) -> bool:
    """True for the content of an open_clip_config.json."""
    return isinstance(config.get("model_cfg"), Mapping)


def from_open_clip(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], task: Task | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Convert the image encoder of an OpenCLIP model.

    OpenCLIP normalizes all tokens and takes the class token, transformers normalizes it alone: the same numbers.

    Args:
        config: Content of open_clip_config.json.
        tensors: Weights under OpenCLIP's names.
        task: Task of the model, which can only be feature extraction, unless timm's encoder has others.

    Returns:
        Content of the Hugging Face config.json, and the tensors under transformers' names.

    Raises:
        CheckpointError: If the encoder has no equivalent, or the files are malformed or do not fit each other.
    """
    vision = _vision(config)
    if vision.get("timm_model_name") is not None:
        trunk = {name.removeprefix(_TRUNK): tensor for name, tensor in tensors.items() if name.startswith(_TRUNK)}
        extra = [name for name in tensors if name.startswith(_VISUAL) and not name.startswith(_TRUNK)]
        if extra or not trunk:
            raise _refused("timm_proj", f"the encoder has weights beside timm's ({some(extra) or 'no visual.trunk'})")
        return _from_timm(timm_form(config), trunk, task)
    if task not in (None, Task.FEATURES):
        raise CheckpointError(
            f"an OpenCLIP model has no head for {task}",
            what="task", found=task, hint=f"use --task {Task.FEATURES}",
        )  # fmt: skip
    sizes, quick = _sizes(vision), config["model_cfg"].get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise _refused("quick_gelu", f"quick_gelu is true or false, got {quick!r:.80}")
    visual = {name.removeprefix(_VISUAL): tensor for name, tensor in tensors.items() if name.startswith(_VISUAL)}
    weights = _weights(sizes, visual)
    projection = weights.get("visual_projection.weight")
    content = {
        "architectures": ["CLIPVisionModel" if projection is None else "CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_size": sizes["width"],
        "num_hidden_layers": sizes["layers"],
        "num_attention_heads": sizes["width"] // sizes["head_width"],
        "intermediate_size": int(sizes["width"] * sizes["mlp_ratio"]),
        "hidden_act": "quick_gelu" if quick else "gelu",
        "layer_norm_eps": _EPS,
        "image_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
    }
    return content | ({} if projection is None else {"projection_dim": projection.shape[0]}), weights


def open_clip_processor(config: Mapping[str, Any], size: tuple[int, int] | None = None) -> dict[str, Any]:
    """The preprocessor_config.json equivalent to OpenCLIP's evaluation transform (open_clip/transform.py).

    Args:
        config: Content of open_clip_config.json; keys of `preprocess_cfg` that are absent have OpenCLIP's defaults.
        size: Output (height, width) in pixels. Default: that of `preprocess_cfg`, or else the encoder's.

    Raises:
        CheckpointError: If a value is malformed, or the transform has no equivalent.
    """
    cfg = config.get("preprocess_cfg") or {}
    if not isinstance(cfg, Mapping):
        raise _refused("preprocess_cfg", "preprocess_cfg is not an object")
    given = cfg.get("size", _vision(config).get("image_size", _SIZES["image_size"]))
    height, width = size or _pair("preprocess_cfg.size", given)
    mode, interpolation = cfg.get("resize_mode", "shortest"), cfg.get("interpolation", "bicubic")
    if cfg.get("mode", "RGB") != "RGB" or interpolation not in ("bicubic", "bilinear", "random"):
        raise _refused("preprocess_cfg", f"{cfg.get('mode', 'RGB')!r:.40} and {interpolation!r:.40} are not supported")
    if mode not in ("shortest", "squash") or (mode == "shortest" and height != width):
        raise _refused("preprocess_cfg.resize_mode", f"resize_mode {mode!r:.40} to {height}x{width} is not supported")
    squash = mode == "squash"
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": height, "width": width} if squash else {"shortest_edge": height},
        "resample": FILTERS["bilinear" if interpolation == "bilinear" else "bicubic"],
        "do_center_crop": not squash,
        "crop_size": {"height": height, "width": width},
        "crop_rounding": "half_even",
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": _channels("preprocess_cfg.mean", cfg.get("mean") or _MEAN),
        "image_std": _channels("preprocess_cfg.std", cfg.get("std") or _STD),
    }


def timm_form(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that timm would write for an encoder that OpenCLIP takes from timm."""
    vision, embed_dim = _vision(config), config["model_cfg"].get("embed_dim")
    projection = vision.get("timm_proj", "linear")
    if projection not in ("none", None, ""):
        raise _refused("timm_proj", f"timm_proj {projection!r:.40} is a projection beside timm's own encoder")
    size = list(_pair("vision_cfg.image_size", vision.get("image_size", _SIZES["image_size"])))
    return {
        "architecture": vision["timm_model_name"],
        "num_classes": 0 if projection == "none" else embed_dim,
        "model_args": {"global_pool": vision.get("timm_pool", "avg")},
        "pretrained_cfg": {"input_size": [3, *size], "fixed_input_size": True},
    }


def _from_timm(
    form: dict[str, Any], trunk: dict[str, Tensor], task: Task | None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An encoder of timm; its head can only be OpenCLIP's projection."""
    content, weights = from_timm(form, trunk, task or Task.FEATURES)
    if form["num_classes"] and task is None and "ForImageClassification" in content["architectures"][0]:
        raise _refused("timm_proj", f"the projection of {form['architecture']} is not supported")
    return content, weights


def _vision(config: Mapping[str, Any]) -> Mapping[str, Any]:
    vision = config["model_cfg"].get("vision_cfg")
    if not isinstance(vision, Mapping):
        raise _refused("vision_cfg", "model_cfg has no vision_cfg")
    return vision


def _sizes(vision: Mapping[str, Any]) -> dict[str, Any]:
    """Sizes of a plain encoder; CheckpointError for any other."""
    for key, value in vision.items():
        if key in _PLAIN and value not in _PLAIN[key]:
            raise _refused(key, f"vision_cfg.{key} {value!r:.80} has no equivalent in transformers' CLIP")
        if key not in _PLAIN and key not in _SIZES and key not in _WITHOUT_EFFECT:
            raise _refused(key, f"vision_cfg has {key!r:.80}, whose effect is not known")
    sizes: dict[str, Any] = {key: vision.get(key, value) for key, value in _SIZES.items()}
    for key in ("layers", "width", "head_width"):
        if type(sizes[key]) is not int or not 1 <= sizes[key] <= _MOST:
            raise _refused(key, f"vision_cfg.{key} {sizes[key]!r:.80} is not a size of a Vision Transformer")
    ratio = sizes["mlp_ratio"]
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= _MOST:
        raise _refused("mlp_ratio", f"vision_cfg.mlp_ratio {ratio!r:.80} is not a number above 0")
    for key in ("image_size", "patch_size"):
        height, width = _pair(f"vision_cfg.{key}", sizes[key])
        sizes[key] = height if height == width else [height, width]
    return sizes


def _weights(sizes: Mapping[str, Any], visual: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under transformers' names; their shapes are compared with the configuration later."""
    left, weights = dict(visual), {}
    missing: list[str] = []

    def move(name: str, target: str, shape: tuple[int, ...] | None = None) -> None:
        tensor = left.pop(name, None)
        if tensor is None:
            missing.append(f"{_VISUAL}{name}")
        else:
            weights[target] = tensor if shape is None or tensor.numel() != sizes["width"] else tensor.reshape(shape)

    move("class_embedding", f"{_ENCODER}.embeddings.class_embedding", (sizes["width"],))
    move("positional_embedding", f"{_ENCODER}.embeddings.position_embedding.weight")
    move("conv1.weight", f"{_ENCODER}.embeddings.patch_embedding.weight")
    for norm, target in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm")):
        for leaf in ("weight", "bias"):
            move(f"{norm}.{leaf}", f"{_ENCODER}.{target}.{leaf}")
    for index in range(sizes["layers"]):
        for part, target in _LAYER.items():
            for leaf in ("weight", "bias"):
                place = f"{_ENCODER}.encoder.layers.{index}.{target}"
                stem = part if part.endswith("_") else f"{part}."
                move(f"transformer.resblocks.{index}.{stem}{leaf}", f"{place}.{leaf}")
                if part.endswith("_") and f"{place}.{leaf}" in weights:
                    fused = weights.pop(f"{place}.{leaf}")
                    thirds = fused.chunk(3) if fused.ndim else ()
                    weights |= {
                        f"{place}.{name}_proj.{leaf}": third for name, third in zip("qkv", thirds, strict=False)
                    }
    if "proj" in left and left["proj"].ndim == 2:
        weights["visual_projection.weight"] = left.pop("proj").T.contiguous()
    kinds = {"missing": missing, "unexpected": [f"{_VISUAL}{name}" for name in left]}
    problems = "; ".join(f"{kind} {some(names)}" for kind, names in kinds.items() if names)
    if problems:
        raise CheckpointError(
            f"the weights are not those of the OpenCLIP configuration: {problems}", what="weights", found=problems
        )
    return weights


def _pair(key: str, value: object) -> tuple[int, int]:
    pair: Any = value if isinstance(value, Sequence) and not isinstance(value, str) else (value, value)
    if len(pair) != 2 or not all(type(edge) is int and 1 <= edge <= _MOST for edge in pair):
        raise _refused(key, f"{key} {value!r:.80} is not a size in pixels")
    return pair[0], pair[1]


def _channels(key: str, value: object) -> list[float]:
    values: list[Any] = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value] * 3
    if len(values) != 3 or not all(type(number) in (int, float) and abs(number) < _MOST for number in values):
        raise _refused(key, f"{key} {value!r:.80} is not one number, or one for each of 3 channels")
    return values


def _refused(key: str, reason: str) -> CheckpointError:
    return CheckpointError(f"OpenCLIP checkpoint: {reason}", what=key)
