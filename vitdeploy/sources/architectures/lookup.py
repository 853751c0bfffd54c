"""From a file of weights and its architecture's name to the configuration that their library would write."""

from __future__ import annotations

import dataclasses
import difflib
from typing import TYPE_CHECKING, Any

from vitdeploy.errors import CheckpointError, InputError, UsageError, shown
from vitdeploy.sources.architectures.class_names_file import read_class_names
from vitdeploy.sources.architectures.open_clip_table import open_clip_models, open_clip_named
from vitdeploy.sources.architectures.timm_named import timm_named
from vitdeploy.sources.architectures.timm_table import is_timm_name, timm_names
from vitdeploy.sources.architectures.training_file import TrainingFile, read_training_file
from vitdeploy.sources.layouts import torchvision_layout

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from vitdeploy.sources.architectures.weights_options import WeightsFile

_TIMM, _TORCHVISION, _OPEN_CLIP = "timm", "torchvision", "OpenCLIP"
# The beginning of a name that weights of a library alone have.
_SIGNS = {
    "blocks.0.": _TIMM,
    "encoder.layers.encoder_layer_0.": _TORCHVISION,
    "visual.": _OPEN_CLIP,
    "vision_model.": "transformers",
    "embeddings.": "transformers",
    "vit.embeddings.": "transformers",
}
_WRAPPERS = ("model.", "net.", "network.", "backbone.")  # of the module that trained the model, such as Lightning's


@dataclasses.dataclass(frozen=True)
class NamedWeights:
    """Weights with the configuration of their architecture.

    Attributes:
        architecture: The architecture's name.
        config: Content of the configuration that the library writes; see `vitdeploy.sources.layouts.lookup`.
        tensors: The weights under the library's names.
        note: What was chosen of the file; empty without a choice.
    """

    architecture: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    note: str


def read_named_weights(weights: WeightsFile, image_size: tuple[int, int] | None = None) -> NamedWeights:
    """Read a file of weights, and configure the architecture that is named for it, or that it names itself.

    Args:
        weights: The file and its options.
        image_size: (height, width) in pixels that the weights are for, if it is not the architecture's and fits them.

    Raises:
        CheckpointError: If the file cannot be read, or is not of the architecture, or has another number of classes.
        InputError: If the file of class names cannot be read.
        UsageError: If the architecture is unknown, or not named.
    """
    file = read_training_file(weights)
    name = _name(weights, file)
    tensors = _unwrapped(file.tensors)
    _check_library(file, name, tensors)
    if library_of(name) == _OPEN_CLIP:
        if weights.labels is not None or weights.num_classes is not None:
            raise UsageError(
                f"{name} is an OpenCLIP model, which has no classes",
                what="labels" if weights.labels is not None else "num_classes", found=name, hint="leave them out",
            )  # fmt: skip
        return NamedWeights(name, open_clip_named(name, tensors), tensors, file.note)
    if is_timm_name(name):
        config, head = timm_named(name, file.arguments, tensors, image_size), "head"
    else:
        config = torchvision_layout.torchvision_config(name, tensors, file.path.name)
        head = torchvision_layout.classifier_of(tensors) or "heads.head"
    rows = tensors[f"{head}.weight"].shape[:1] if f"{head}.weight" in tensors else (0,)
    config |= _classes(weights, file, head, rows[0] if rows else 0)
    return NamedWeights(name, config, tensors, file.note)


def _name(weights: WeightsFile, file: TrainingFile) -> str:
    """The architecture's name: the option's, or the file's with the tag of the weights that it was trained from."""
    stated = None if file.arch is None else file.arch.rpartition("/")[2].rpartition(":")[2]
    if weights.arch is None:
        if stated is None or (not file.arguments and not _is_known(stated)):
            raise UsageError(
                f"{file.path} does not name its architecture",
                what="arch", where=file.path, hint="name it with --arch, such as vit_base_patch16_224",
            )  # fmt: skip
        if not _is_known(stated):
            raise _unknown(stated, f"{file.path} is of an architecture that is not supported: ", CheckpointError)
        return stated
    if not _is_known(weights.arch):
        raise _unknown(weights.arch, "", UsageError)
    if stated is not None and _is_known(stated):
        if stated.partition(".")[0] != weights.arch.partition(".")[0]:
            raise CheckpointError(
                f"{file.path} was trained as {stated}, not as {weights.arch}",
                what="arch", where=file.path, expected=stated, found=weights.arch, hint=f"use --arch {stated}",
            )  # fmt: skip
        return stated if weights.arch == stated.partition(".")[0] else weights.arch
    return weights.arch


def library_of(name: str) -> str | None:
    """The library of an architecture; None for an unknown one."""
    if is_timm_name(name):
        return _TIMM
    return _TORCHVISION if name in torchvision_layout.MODELS else _OPEN_CLIP if name in open_clip_models() else None


def _is_known(name: str) -> bool:
    return library_of(name) is not None


def _unknown(name: str, problem: str, error: type[UsageError | CheckpointError]) -> UsageError | CheckpointError:
    names = (*timm_names(), *torchvision_layout.MODELS, *open_clip_models())
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.7)
    hint = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "for example vit_base_patch16_224 (timm), vit_b_16 or ViT-B-32"
    )
    message = f"{problem}{shown(name, 80)} is no Vision Transformer of timm, torchvision or OpenCLIP"
    return error(message, what="arch", expected=tuple(near), found=name, hint=hint)


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without the prefix of a module that holds the model, if all have one."""
    for prefix in _WRAPPERS:
        if all(name.startswith(prefix) for name in tensors):
            return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _check_library(file: TrainingFile, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if the weights have the names of another library than the architecture."""
    wanted = library_of(name)
    found = {library for sign, library in _SIGNS.items() if any(key.startswith(sign) for key in tensors)}
    if found and wanted not in found:
        library = found.pop()
        remedy = f"give the architecture's name in {library}"
        raise CheckpointError(
            f"{file.path} has the names of {library}, and {name} is an architecture of {wanted}",
            what="arch", where=file.path, expected=library, found=name,
            hint="name the folder with its config.json instead" if library == "transformers" else remedy,
        )  # fmt: skip


def _classes(weights: WeightsFile, file: TrainingFile, head: str, classes: int) -> dict[str, Any]:
    """Number and names of the classes, as timm's config.json has them."""
    if weights.num_classes not in (None, classes):
        raise CheckpointError(
            f"{file.path} has {_count(classes, head)}, not {weights.num_classes}",
            what="num_classes", where=file.path, expected=weights.num_classes, found=classes,
            hint="leave --num-classes out, or check the file",
        )  # fmt: skip
    if weights.labels is None:
        return {"num_classes": classes}
    names = read_class_names(weights.labels)
    if len(names) != classes:
        raise InputError(
            f"{weights.labels} names {len(names)} classes, but {file.path} has {_count(classes, head)}",
            what="labels", where=weights.labels, expected=classes, found=len(names),
        )  # fmt: skip
    return {"num_classes": classes, "label_names": list(names)}


def _count(classes: int, head: str) -> str:
    return f"{classes} classes" if classes else f"no classifier ({head}.weight)"
