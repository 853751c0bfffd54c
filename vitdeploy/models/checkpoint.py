"""Read and write the weights of a Vision Transformer under their Hugging Face names."""

from __future__ import annotations

import pickle
import re
import warnings
from typing import TYPE_CHECKING

import safetensors
import safetensors.torch
import torch

from vitdeploy.errors import CheckpointError
from vitdeploy.models.vit import VisionTransformer
from vitdeploy.specs import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from vitdeploy.models.config import ViTConfig
    from vitdeploy.models.layers import AttentionKind

# Names on the Hub -> names of our modules, applied in order. The Hub keeps transformers 4's names, which transformers 5
# still writes; its new module names (layers.0.attention.q_proj) are ours and pass through.
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vit\.", ""),
        (r"^encoder\.layer\.", "layers."),
        (r"\.attention\.attention\.query\.", ".attention.q_proj."),
        (r"\.attention\.attention\.key\.", ".attention.k_proj."),
        (r"\.attention\.attention\.value\.", ".attention.v_proj."),
        (r"\.attention\.output\.dense\.", ".attention.o_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"(layernorm\w*)\.gamma$", r"\1.weight"),
        (r"(layernorm\w*)\.beta$", r"\1.bias"),
        (r"^(classifier|pooler|decoder)\.", r"head.\1."),
    )
)
_HUB_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^layers\.", "encoder.layer."),
        (r"\.attention\.q_proj\.", ".attention.attention.query."),
        (r"\.attention\.k_proj\.", ".attention.attention.key."),
        (r"\.attention\.v_proj\.", ".attention.attention.value."),
        (r"\.attention\.o_proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc1\.", ".intermediate.dense."),
        (r"\.mlp\.fc2\.", ".output.dense."),
    )
)
# The weights that only one task needs; a checkpoint may hold those of other tasks than the one it is loaded for.
_HEADS = {
    Task.CLASSIFICATION: re.compile(r"head\.classifier\.(weight|bias)"),
    Task.FEATURES: re.compile(r"head\.pooler\.dense\.(weight|bias)"),
    Task.MASKED_IMAGE_MODELING: re.compile(r"head\.decoder\.0\.(weight|bias)|embeddings\.mask_token"),
}
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_ARCHITECTURES = {
    "ViTForImageClassification": Task.CLASSIFICATION,
    "ViTModel": Task.FEATURES,
    "ViTForMaskedImageModeling": Task.MASKED_IMAGE_MODELING,
}


def task_of(config: Mapping[str, object]) -> Task:
    """The task that the `architectures` of a `config.json` name.

    Raises:
        CheckpointError: they name none that is known here.
    """
    architectures = config.get("architectures")
    for name in architectures if isinstance(architectures, list) else ():
        if isinstance(name, str) and name in _ARCHITECTURES:
            return _ARCHITECTURES[name]
    raise CheckpointError(
        f"config.json: architectures must name one of {', '.join(_ARCHITECTURES)}, got {architectures!r:.80}; "
        f"or say the task yourself (--task)"
    )


def architecture_of(task: Task) -> str:
    """The name of transformers' class for `task`."""
    return next(name for name, its_task in _ARCHITECTURES.items() if its_task is task)


def load_model(
    config: ViTConfig, weights: Iterable[Path], task: Task, *, attention: AttentionKind = "sdpa"
) -> VisionTransformer:
    """The reference model with the weights of a checkpoint, in float32 and evaluation mode.

    A feature-extraction model has a pooler where the checkpoint has one. Weights of other tasks' heads are left out.

    Args:
        config: the hyper-parameters.
        weights: safetensors files, or torch files, which are opened with `weights_only=True`.
        task: the head.
        attention: see `VisionTransformer`.

    Raises:
        CheckpointError: a file cannot be read, or its names and shapes are not those of the model.
    """
    files = tuple(weights)
    tensors: dict[str, Tensor] = {}
    spelling: dict[str, str] = {}
    for path in files:
        for name, tensor in _read_tensors(path):
            ours = _our_name(name)
            if ours in tensors:
                raise CheckpointError(f"{path}: '{name}' and '{spelling[ours]}' are the same weight; keep one of them")
            tensors[ours], spelling[ours] = tensor, name
    pooler = any(name.startswith("head.pooler.") for name in tensors)
    with torch.device("meta"):
        model = VisionTransformer(config, task, pooler=pooler, attention=attention)
    expected = model.state_dict()
    problems = _differences(expected, tensors, spelling, task)
    if problems:
        raise CheckpointError(f"{', '.join(map(str, files))}: weights do not fit config.json: {'; '.join(problems)}")
    model.load_state_dict({name: tensors[name].to(torch.float32) for name in expected}, assign=True)
    return model.eval().requires_grad_(False)


def save_model(model: VisionTransformer, path: Path) -> None:
    """Write the weights as safetensors under the names that transformers reads; the same weights give the same bytes.

    Raises:
        OSError: the file cannot be written.
    """
    prefix = "" if model.task is Task.FEATURES else "vit."
    state = {_hub_name(name, prefix): tensor.contiguous() for name, tensor in model.state_dict().items()}
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    except safetensors.SafetensorError as exc:
        raise OSError(f"{path}: {exc}") from exc
    path.chmod(mode)  # safetensors makes files that only their owner can read


def _our_name(name: str) -> str:
    for pattern, replacement in _RENAMES:
        name = pattern.sub(replacement, name)
    return name


def _hub_name(name: str, prefix: str) -> str:
    if name.startswith("head."):
        return name.removeprefix("head.")
    for pattern, replacement in _HUB_NAMES:
        name = pattern.sub(replacement, name)
    return prefix + name


def _read_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return _read_torch(path)


def _read_safetensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a dict)
                yield name, file.get_tensor(name)
    except (OSError, safetensors.SafetensorError) as exc:
        raise _unreadable(path, str(exc)) from exc


def _read_torch(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice about files that are refused below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:  # its text advises to open the file without the protection
        raise _unreadable(path, "it is corrupt, or holds more than tensors and could run code") from exc
    except Exception as exc:  # a corrupt pickle raises almost anything: KeyError, struct.error, AssertionError ...
        raise _unreadable(path, str(exc)) from exc
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CheckpointError(f"{path} must hold named tensors and nothing else")
    for name, tensor in state.items():
        yield name, tensor.clone()  # tied weights share their memory, which safetensors refuses to write


def _unreadable(path: Path, reason: str) -> CheckpointError:
    first, *_ = [*reason.strip().splitlines(), ""]
    return CheckpointError(f"{path} must be a readable checkpoint: {first or 'it is corrupt'}")


def _differences(
    expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], spelling: Mapping[str, str], task: Task
) -> list[str]:
    missing = [name for name in expected if name not in tensors]
    extra = [name for name in tensors if name not in expected and not _of_another_head(name, task)]
    shapes, dtypes = [], []
    for name in [name for name in expected if name in tensors]:
        want, got = tuple(expected[name].shape), tuple(tensors[name].shape)
        if want != got:
            shapes.append(f"{spelling[name]} must be {want}, is {got}")
        elif tensors[name].dtype not in _FLOATS:
            dtypes.append(f"{spelling[name]} must be float16, bfloat16, float32 or float64, is {tensors[name].dtype}")
    problems = []
    if missing:
        problems.append(f"missing {_some([_hub_name(name, '') for name in missing])}")
        if missing == [name for name in expected if _HEADS[task].fullmatch(name)]:
            problems.append(f"the checkpoint has no head for {task}, try another --task")
    if extra:
        problems.append(f"unexpected {_some([spelling[name] for name in extra])}")
    return problems + [_some(found) for found in (shapes, dtypes) if found]


def _of_another_head(name: str, task: Task) -> bool:
    return any(head.fullmatch(name) for other, head in _HEADS.items() if other is not task)


def _some(names: list[str], most: int = 4) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
