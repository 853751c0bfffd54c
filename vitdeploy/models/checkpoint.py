"""Load and save the reference under transformers' checkpoint names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitdeploy.errors import CheckpointError, shown
from vitdeploy.files.opened import OpenedFile
from vitdeploy.models.config import ViTConfig
from vitdeploy.models.families.family import Family
from vitdeploy.models.families.table import FAMILIES
from vitdeploy.models.families.weight_names import disk_name, our_names, part_names
from vitdeploy.models.layers.encoder import AttentionKind
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.models.weights import read_weights, write_weights
from vitdeploy.specs import ZERO_SHOT, Task
from vitdeploy.system.forks import with_threads

# Weights that only one task needs; a checkpoint may have those of tasks other than the loaded one.
_HEADS = {
    Task.CLASSIFICATION: re.compile(
        r"head\.((cls_|distillation_)?classifier|zero_shot|pooler\.layernorm)\.(weight|bias)"
    ),
    Task.FEATURES: re.compile(
        r"head\.(pooler\.(dense|layernorm|attention\.[qkvo]_proj|mlp\.fc[12])|visual_projection)\.(weight|bias)"
        r"|head\.pooler\.probe"
    ),
    Task.MASKED_IMAGE_MODELING: re.compile(
        r"head\.(decoder\.0|lm_head|layernorm)\.(weight|bias)|embeddings\.mask_token"
    ),
}
# Weights that a model may not need: a buffer of old BEiT checkpoints, computed here; MAE's training decoder; the
# projection, for a class without it; the text tower.
_UNUSED = re.compile(
    r".*\.relative_position_index|head\.decoder\.(decoder_.+|mask_token)|head\.visual_projection\.(weight|bias)"
    r"|text_model\..+|text_projection\.weight|logit_(scale|bias)"
)
_OPTIONAL_POOLERS = ("dense", "mean+norm")  # transformers' classes may omit them: `add_pooling_layer`
_TEACHER = "head.distillation_classifier."
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def task_of(config: Mapping[str, object]) -> Task:
    """The task in the `architectures` of a `config.json`, a zero-shot classifier's if it says so.

    CheckpointError if none is known.
    """
    if config.get(ZERO_SHOT):  # its architecture is its encoder's
        return Task.CLASSIFICATION
    model_type = str(config.get("model_type"))
    families = [FAMILIES[model_type]] if model_type in FAMILIES else FAMILIES.values()
    known = {name: task for family in families for name, task in family.architectures.items()}
    known |= {family.backbone: Task.FEATURES for family in families if family.backbone is not None}
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if isinstance(name, str) and name in known:
            return known[name]
    raise CheckpointError(
        f"config.json: architectures {shown(architectures)} names none of {', '.join(known)}",
        what="architectures", where="config.json", expected=tuple(known), found=architectures,
        hint="or give the task: --task",
    )  # fmt: skip


def architecture_of(model: VisionTransformer) -> str:
    """Name of transformers' class for a model; of a zero-shot classifier, for its encoder."""
    wanted = Task.FEATURES if model.config.zero_shot else model.task
    names = [name for name, task in model.config.family.architectures.items() if task is wanted]
    suffixes = {"WithTeacher": model.teacher, "WithProjection": model.config.projection_size is not None}
    fitting = (name for name in names if all(name.endswith(suffix) == has for suffix, has in suffixes.items()))
    return next(fitting, names[0])


def load_model(
    config: ViTConfig, weights: Iterable[Path | OpenedFile], task: Task, *, attention: AttentionKind = "sdpa"
) -> VisionTransformer:
    """`make_model` with weights copied from safetensors or torch files, so that the model may outlive them.

    Raises:
        CheckpointError: If a file cannot be read; or as `make_model`.
    """
    files = tuple(map(OpenedFile.of, weights))
    origin = ", ".join(str(file.path) for file in files)
    return make_model(config, read_weights(files, copied=True), task, origin=origin, attention=attention)


@with_threads
def make_model(
    config: ViTConfig, weights: Mapping[str, Tensor], task: Task, *, origin: str, attention: AttentionKind = "sdpa"
) -> VisionTransformer:
    """Create the reference model with a checkpoint's weights, in float32 and evaluation mode.

    A feature-extraction model has a pooler if the checkpoint has one; a distilled classifier has its teacher's head.
    Weights of other tasks' heads are ignored.

    Args:
        config: Hyper-parameters.
        weights: Tensors under transformers' names.
        task: Task of the head.
        origin: Their files, for errors.
        attention: See `VisionTransformer`.

    Raises:
        CheckpointError: If the family does not support the task, or names or shapes differ from the model's.
    """
    zero_shot = (Task.CLASSIFICATION,) if config.zero_shot else ()
    tasks = tuple(dict.fromkeys((*config.family.architectures.values(), *zero_shot)))
    if task not in tasks:
        message = f"a {config.model_type} model has no task {task}, only: {', '.join(tasks)}"
        raise CheckpointError(message, what="task", expected=tasks, found=task)
    tensors: dict[str, Tensor] = {}
    spelling: dict[str, str] = {}
    for name, ours in our_names(config.family, weights, projects=config.projection_size is not None).items():
        if weights[name].numel() == 0:  # transformers writes the registers of a model that has none
            continue
        if ours in tensors:
            message = f"{origin}: '{name}' and '{spelling[ours]}' are the same weight"
            raise CheckpointError(message, what=name, where=origin, found=spelling[ours], hint="keep one of them")
        parts = part_names(config.family, ours)
        for part, tensor in zip(parts, _split(weights[name], len(parts)), strict=True):
            tensors[part], spelling[part] = tensor, name
    if config.mask_token and "embeddings.mask_token" not in tensors:  # weights that no task here uses may be missing
        config = dataclasses.replace(config, mask_token=False)
    with torch.device("meta"):
        model = VisionTransformer(
            config,
            task,
            pooler=config.feature_pooler not in _OPTIONAL_POOLERS
            or any(name.startswith("head.pooler.") for name in tensors),
            teacher=config.distillation_token and any(name.startswith(_TEACHER) for name in tensors),
            attention=attention,
        )
    expected = model.state_dict()
    differences = _differences(model, expected, tensors, spelling)
    if differences:
        problems = "; ".join(f"{kind} {some(names)}" for kind, names in differences.items())
        of_head = filter(_HEADS[task].fullmatch, expected)
        head = [disk_name(config.family, name, beside_a_head=False) for name in of_head]
        hint = f"the checkpoint has no head for {task}, try another --task"
        raise CheckpointError(
            f"{origin}: weights do not fit config.json: {problems}",
            what="weights", where=origin, found=differences, hint=hint if differences.get("missing") == head else None,
        )  # fmt: skip
    model.load_state_dict(
        {name: tensors[name].to(torch.float32).reshape(tensor.shape) for name, tensor in expected.items()}, assign=True
    )
    return model.eval().requires_grad_(False)


@with_threads
def save_model(model: VisionTransformer, path: Path) -> None:
    """Write safetensors under transformers' names; the same weights give the same bytes."""
    write_weights({name: tensor.contiguous() for name, tensor in _on_disk(model).items()}, path)


@with_threads
def is_saved(model: VisionTransformer, path: Path) -> bool:
    """True if a file has the tensors that `save_model` would write; CheckpointError if it cannot be read."""
    saved = read_weights([path])
    tensors = _on_disk(model)
    return tensors.keys() == saved.keys() and all(torch.equal(tensor, saved[name]) for name, tensor in tensors.items())


def _on_disk(model: VisionTransformer) -> dict[str, Tensor]:
    """The model's weights as `disk_tensors`."""
    beside_a_head = model.task is not Task.FEATURES and not model.config.zero_shot
    return disk_tensors(model.config.family, model.state_dict(), beside_a_head=beside_a_head)


def disk_tensors(family: Family, tensors: Mapping[str, Tensor], *, beside_a_head: bool) -> dict[str, Tensor]:
    """A model's weights under the names of a checkpoint, stacked and with the axes that they have there."""
    stacks: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        on_disk = disk_name(family, name, beside_a_head=beside_a_head)
        stacks.setdefault(on_disk, []).append(tensor.reshape(_disk_shape(family, name, tensor)))
    return {name: torch.cat(parts) if len(parts) > 1 else parts[0] for name, parts in stacks.items()}


def _split(tensor: Tensor, parts: int) -> Sequence[Tensor]:
    """The parts of a stacked tensor; one that cannot be split is each of them, and has the wrong shape for all."""
    return torch.tensor_split(tensor, parts) if parts > 1 and tensor.ndim else [tensor] * parts


def _disk_shape(family: Family, name: str, tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)[-family.axes.get(name, 0) :]


def _differences(
    model: VisionTransformer, expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], spelling: Mapping[str, str]
) -> dict[str, list[str]]:
    """Weights that differ from the model's, by kind of difference."""
    differences: dict[str, list[str]] = {"missing": [], "unexpected": [], "wrong shape:": [], "no floats:": []}
    for name, tensor in expected.items():
        if name not in tensors:
            differences["missing"].append(disk_name(model.config.family, name, beside_a_head=False))
            continue
        want, got, dtype = (
            _disk_shape(model.config.family, name, tensor),
            tuple(tensors[name].shape),
            tensors[name].dtype,
        )
        if want != got:
            differences["wrong shape:"].append(f"{spelling[name]} must be {want}, is {got}")
        elif dtype not in _FLOATS:
            differences["no floats:"].append(f"{spelling[name]} is {dtype}")
    differences = {kind: list(dict.fromkeys(names)) for kind, names in differences.items()}  # stacked ones have one
    extra = [name for name in tensors if name not in expected and not _may_be_left_out(name, model.task)]
    differences["unexpected"] += dict.fromkeys(spelling[name] for name in extra)
    return {kind: names for kind, names in differences.items() if names}


def _may_be_left_out(name: str, task: Task) -> bool:
    others = [head for other, head in _HEADS.items() if other is not task]
    return any(pattern.fullmatch(name) for pattern in (*others, _UNUSED))


def some(names: Sequence[str], most: int = 4) -> str:
    """The first names, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
