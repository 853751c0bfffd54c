"""Read Google's Vision Transformer checkpoints (`.npz`) under transformers' names.

The arrays belong to the Flax models in google-research/vision_transformer (vit_jax/models_vit.py) and
google-research/big_vision (big_vision/models/vit.py), under the names of all their versions.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from vitdeploy.errors import CheckpointError
from vitdeploy.files.content_limit import check_content
from vitdeploy.models.checkpoint import some
from vitdeploy.sources.layouts.npz_arrays import array_shape, open_npz, read_tensor
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

# Not in the arrays: flax.linen.LayerNorm's epsilon, and flax.linen.gelu's default, the approximation. transformers'
# copies of these checkpoints say "gelu", the exact one; these settings are the models as trained.
_FLAX = {"layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh", "qkv_bias": True}


class _Weight(NamedTuple):
    key: str  # in vision_transformer's spelling
    axes: str
    name: str  # transformers' name; {} is the layer
    order: str  # transformers' axes, some of them joined: "heads*head_dim"


def _dense(key: str, name: str, inputs: str, outputs: str) -> tuple[_Weight, _Weight]:
    joined_in, joined_out = inputs.replace(" ", "*"), outputs.replace(" ", "*")
    kernel = _Weight(f"{key}/kernel", f"{inputs} {outputs}", f"{name}.weight", f"{joined_out} {joined_in}")
    return kernel, _Weight(f"{key}/bias", outputs, f"{name}.bias", joined_out)


def _norm(key: str, name: str) -> tuple[_Weight, _Weight]:
    scale = _Weight(f"{key}/scale", "hidden", f"{name}.weight", "hidden")
    return scale, _Weight(f"{key}/bias", "hidden", f"{name}.bias", "hidden")


_PATCHES = "embeddings.patch_embeddings.projection"
_POSITIONS = _Weight(
    "Transformer/posembed_input/pos_embedding", "one rows hidden", "embeddings.position_embeddings", "one rows hidden"
)
_TRUNK = (
    _Weight("embedding/kernel", "height width channels hidden", f"{_PATCHES}.weight", "hidden channels height width"),
    _Weight("embedding/bias", "hidden", f"{_PATCHES}.bias", "hidden"),
    _Weight("cls", "one cls hidden", "embeddings.cls_token", "one cls hidden"),
    _POSITIONS,
    *_norm("Transformer/encoder_norm", "layernorm"),
)
_ATTENTION = "MultiHeadDotProductAttention_1"
_BLOCK = (
    *_norm("LayerNorm_0", "layernorm_before"),
    *_dense(f"{_ATTENTION}/query", "attention.attention.query", "hidden", "heads head_dim"),
    *_dense(f"{_ATTENTION}/key", "attention.attention.key", "hidden", "heads head_dim"),
    *_dense(f"{_ATTENTION}/value", "attention.attention.value", "hidden", "heads head_dim"),
    *_dense(f"{_ATTENTION}/out", "attention.output.dense", "heads head_dim", "hidden"),
    *_norm("LayerNorm_2", "layernorm_after"),
    *_dense("MlpBlock_3/Dense_0", "intermediate.dense", "hidden", "mlp"),
    *_dense("MlpBlock_3/Dense_1", "output.dense", "mlp", "hidden"),
)
_POOLER = _dense("pre_logits", "pooler.dense", "hidden", "pooled")
_HEAD = _dense("head", "classifier", "hidden", "classes")
# Flax once numbered the modules of a block together, and later by type; big_vision moved the position table up.
_SPELLINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^(Transformer/encoderblock(?:_[0-9]+)?/)(?:MultiHeadDotProductAttention|MHDPA)_0/", rf"\1{_ATTENTION}/"),
        (r"^(Transformer/encoderblock(?:_[0-9]+)?/)LayerNorm_1/", r"\1LayerNorm_2/"),
        (r"^(Transformer/encoderblock(?:_[0-9]+)?/)MlpBlock_0/", r"\1MlpBlock_3/"),
        (r"^(?:Transformer/)?pos_embedding\Z", _POSITIONS.key),
    )
)
_BLOCK_KEY = re.compile(r"Transformer/encoderblock(?:_(0|[1-9][0-9]{0,3}))?/")
_PREFIXES = ("params/", "opt/target/")
_NOT_WEIGHTS = ("opt/", "extra/")  # beside a prefix: the optimizer's state, and counters of the training loop


def read_npz(path: Path, task: Task | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Content of a `config.json`, and the weights under transformers' names on disk, in the file's precision.

    `pre_logits`, a dense layer and tanh before the head, is the pooler of transformers' ViTModel, which has no
    classifier: such a checkpoint is for features only, and its head is omitted.

    Args:
        path: The checkpoint; keys may be below `params/` or `opt/target/`, and blocks may be stacked in one array.
        task: Task of the model. Default: classification if there is a head and no `pre_logits`, else features.

    Raises:
        CheckpointError: If the file cannot be read, is not a plain Vision Transformer with a class token and a square
            grid of learned position embeddings, or has no head for `task`.
    """
    with open_npz(path) as archive:
        keys = _spelled(path, archive.namelist())
        task = _task(path, keys, task)
        weights, layers = _expected(path, keys, task)
        sizes = {"one": 1, "cls": 1}
        content_bytes = 0
        for weight in weights:
            shape, size_bytes = array_shape(archive, keys[weight.key])
            _bind(path, keys[weight.key], weight.axes.split(), shape, sizes)
            content_bytes += size_bytes
        check_content(path, content_bytes)
        positions = keys[_POSITIONS.key]
        side, has_cls_row = _grid(path, positions, sizes["rows"], above="posembed_input" not in positions)
        tensors: dict[str, Tensor] = {}
        for weight in weights:  # one array at a time: the file is not in memory twice
            tensor = read_tensor(archive, keys[weight.key])
            if weight.key == _POSITIONS.key and not has_cls_row:
                tensor = torch.cat([tensor.new_zeros(1, 1, sizes["hidden"]), tensor], dim=1)
            if weight.axes.startswith("layers "):
                for layer, one in enumerate(tensor):
                    tensors[weight.name.format(layer)] = _reorder(one, weight).clone()  # not a view of all layers
            else:
                tensors[weight.name] = _reorder(tensor, weight)
    if task is Task.CLASSIFICATION:
        tensors = {name if name.startswith("classifier.") else f"vit.{name}": tensors[name] for name in tensors}
    return _config(sizes, sizes.get("layers", layers), side, task), tensors


def _spelled(path: Path, members: list[str]) -> dict[str, str]:
    """Keys of the weights, by name in vision_transformer's spelling."""
    prefixes = [prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in members)]
    if len(prefixes) > 1:
        raise CheckpointError(
            f"{path} holds a model in each of {' and '.join(prefixes)}", where=path, found=prefixes, hint="keep one"
        )
    prefix = prefixes[0] if prefixes else ""
    keys: dict[str, str] = {}
    for name in members:
        if not name.startswith(prefix) and name.startswith(_NOT_WEIGHTS):
            continue
        if not name.startswith(prefix) or not name.endswith(".npy"):
            raise CheckpointError(
                f"{path} holds {name!r:.80}, which is no array{f' in {prefix}' if prefix else ''}",
                where=path, found=name,
            )  # fmt: skip
        key = spelled = name.removesuffix(".npy")
        spelled = spelled.removeprefix(prefix)
        for pattern, replacement in _SPELLINGS:
            spelled = pattern.sub(replacement, spelled)
        if spelled in keys:
            raise CheckpointError(
                f"{path}: {key!r:.80} and {keys[spelled]!r:.80} are the same weight",
                what=keys[spelled], where=path, found=key, hint="keep one",
            )  # fmt: skip
        keys[spelled] = key
    return keys


def _task(path: Path, keys: Mapping[str, str], task: Task | None) -> Task:
    pooler, head = (any(key.startswith(part) for key in keys) for part in ("pre_logits/", "head/"))
    if task is Task.MASKED_IMAGE_MODELING:
        raise CheckpointError(
            f"{path}: Google's checkpoints have no decoder for {task}",
            what="task", where=path, found=task, hint="use another --task",
        )  # fmt: skip
    if task is Task.CLASSIFICATION and pooler:
        raise CheckpointError(
            f"{path}: its classifier follows 'pre_logits', and transformers' ViT has none behind a pooler",
            what="task", where=path, found="pre_logits",
            hint=f"use --task {Task.FEATURES}, or a fine-tuned checkpoint, which has no 'pre_logits'",
        )  # fmt: skip
    if task is Task.CLASSIFICATION and not head:
        raise CheckpointError(
            f"{path} has no 'head/kernel' for {task}", what="task", where=path, hint=f"use --task {Task.FEATURES}"
        )
    return task or (Task.CLASSIFICATION if head and not pooler else Task.FEATURES)


def _expected(path: Path, keys: Mapping[str, str], task: Task) -> tuple[list[_Weight], int]:
    """All weights of the model, and the number of blocks, which is 0 if they are stacked."""
    indices = {match[1] for match in map(_BLOCK_KEY.match, keys) if match}
    numbers = sorted(int(number) for number in indices - {None})
    if not indices or numbers != list(range(len(numbers))) or (None in indices and numbers):
        came = ", ".join(map(str, numbers[:8])) + ("" if None not in indices else " and stacked ones")
        raise CheckpointError(
            f"{path}: blocks {came or 'none'} are neither 'Transformer/encoderblock_0' and so on without a gap, nor "
            f"stacked in 'Transformer/encoderblock'",
            what="Transformer/encoderblock", where=path, found=came or "none",
        )  # fmt: skip
    blocks = [(f"Transformer/encoderblock_{i}/", f"encoder.layer.{i}.", "") for i in numbers]
    weights = list(_TRUNK)
    for folder, layer, axis in blocks or [("Transformer/encoderblock/", "encoder.layer.{}.", "layers ")]:
        weights += (_Weight(folder + key, axis + axes, layer + name, order) for key, axes, name, order in _BLOCK)
    if task is Task.CLASSIFICATION:
        weights += _HEAD
    elif any(key.startswith("pre_logits/") for key in keys):
        weights += _POOLER
    wanted = {weight.key for weight in weights}
    beside = {weight.key for weight in _HEAD} if task is Task.FEATURES else set()
    missing = [_as_in_file(weight.key, keys) for weight in weights if weight.key not in keys]
    extra = [f"{keys[key]!r:.80}" for key in keys if key not in wanted | beside]
    if missing or extra:
        problems = [f"{what} {some(names)}" for what, names in (("missing", missing), ("unexpected", extra)) if names]
        raise CheckpointError(
            f"{path} is no plain Vision Transformer with a class token (a ResNet hybrid, or one that pools over all "
            f"tokens, is not supported): {'; '.join(problems)}",
            where=path, found="; ".join(problems),
        )  # fmt: skip
    return weights, len(numbers)


def _as_in_file(key: str, keys: Mapping[str, str]) -> str:
    """A missing key in the spelling of its neighbours."""
    parent, _, leaf = key.rpartition("/")
    names = [name for spelled, name in keys.items() if parent and spelled.rpartition("/")[0] == parent]
    return f"'{names[0].rpartition('/')[0]}/{leaf}'" if names else f"'{key}'"


def _bind(path: Path, key: str, axes: list[str], shape: tuple[int, ...], sizes: dict[str, int]) -> None:
    """Record the sizes of new axes, and check those of known ones."""
    if len(axes) != len(shape) or 0 in shape or any(sizes.get(a, n) != n for a, n in zip(axes, shape, strict=True)):
        want = ", ".join(f"{axis} {sizes[axis]}" if axis in sizes else axis for axis in axes)
        raise CheckpointError(
            f"{path}: '{key}' is {shape}, not ({want}) with 1 or more of each",
            what=key, where=path, expected=want, found=shape,
        )  # fmt: skip
    sizes.update(zip(axes, shape, strict=True))


def _grid(path: Path, key: str, rows: int, above: bool) -> tuple[int, bool]:
    """Patches per side, and True if the class token has a row; a table `above` the encoder may lack it."""
    for has_row in (True, False) if above else (True,):
        side = math.isqrt(rows - has_row)
        if side and side**2 == rows - has_row:
            return side, has_row
    raise CheckpointError(
        f"{path}: '{key}' has {rows} rows, not one for each patch of a square grid and one more",
        what=key, where=path, found=rows,
    )  # fmt: skip


def _reorder(tensor: Tensor, weight: _Weight) -> Tensor:
    axes = weight.axes.removeprefix("layers ").split()
    groups = [group.split("*") for group in weight.order.split()]
    moved = tensor.permute([axes.index(axis) for group in groups for axis in group])
    sizes = dict(zip(axes, tensor.shape, strict=True))
    return moved.reshape([math.prod(sizes[axis] for axis in group) for group in groups]).contiguous()


def _config(sizes: Mapping[str, int], layers: int, side: int, task: Task) -> dict[str, Any]:
    height, width = sizes["height"], sizes["width"]
    config: dict[str, Any] = {
        "model_type": "vit",
        "architectures": ["ViTForImageClassification" if task is Task.CLASSIFICATION else "ViTModel"],
        "hidden_size": sizes["hidden"],
        "num_hidden_layers": layers,
        "num_attention_heads": sizes["heads"],
        "intermediate_size": sizes["mlp"],
        "image_size": side * height if height == width else [side * height, side * width],
        "patch_size": height if height == width else [height, width],
        "num_channels": sizes["channels"],
        **_FLAX,
    }
    if sizes["heads"] * sizes["head_dim"] != sizes["hidden"]:
        config["head_dim"] = sizes["head_dim"]
    if "pooled" in sizes:
        config |= {"pooler_act": "tanh", "pooler_output_size": sizes["pooled"]}
    return config | ({"num_labels": sizes["classes"]} if task is Task.CLASSIFICATION else {})
