"""The output folder of an export: its default, and the checks before it is used."""

from __future__ import annotations

import os
from pathlib import Path

from vitdeploy.bundle.manifest import MANIFEST
from vitdeploy.bundle.staging import check_target
from vitdeploy.errors import OutputError, UsageError, first_line
from vitdeploy.files.atomic import check_takes_files
from vitdeploy.sources.architectures.weights_options import WeightsFile
from vitdeploy.sources.hub import local_path

_SUFFIX = "-vitdeploy"


def place_of(
    output: str | os.PathLike[str] | None, model: str | Path | WeightsFile | None, random_weights: str | None, seed: int
) -> Path:
    """The bundle's folder as a checked absolute path.

    The default is named after the model, in the working directory. "-vitdeploy" is appended if that name is the
    checkpoint itself, is not a bundle, or would hide a Hub id without an organization.

    Args:
        output: The folder; None for the default.
        model: The model, as `vitdeploy.sources.hub.resolve` takes it; None for random weights or the bundle's model.
        random_weights: Preset name; None if a model is named.

    Raises:
        CheckpointError: If `model` is a path that does not exist.
        OutputError: If the folder cannot be written.
        UsageError: If the folder exists and is neither empty nor a bundle, is below a file, or contains the checkpoint
            or lies in it.
    """
    checkpoint = None if model is None else local_path(model)
    if output is not None:
        if not os.fspath(output):
            raise UsageError(
                "output has no name",
                what="output",
                found=output,
                hint="leave it out for a folder named after the model",
            )
        place = Path(output)
    else:
        place = Path(_default_name(model, checkpoint, random_weights, seed))
        hides_hub_id = checkpoint is None and str(model) == place.name  # since a folder wins over a Hub id
        if hides_hub_id or _is_taken(place, checkpoint):
            place = place.with_name(place.name + _SUFFIX)
        if checkpoint is not None and checkpoint.is_dir() and Path.cwd().is_relative_to(checkpoint.resolve()):
            raise UsageError(
                f"the working directory is in the checkpoint {checkpoint.resolve()}, which takes no bundle",
                what="output", where=checkpoint.resolve(), hint="give another folder with -o",
            )  # fmt: skip
    check_target(place)
    if checkpoint is not None:
        _check_apart(place.resolve(), checkpoint.resolve())
    place = place.resolve()
    _check_writable(place)
    return place


def _default_name(
    model: str | Path | WeightsFile | None, checkpoint: Path | None, random_weights: str | None, seed: int
) -> str:
    if random_weights is not None:
        return f"{random_weights}-random-{seed}"
    if model is None:
        raise UsageError("export needs a model, or random_weights", what="model")
    if isinstance(model, WeightsFile):
        name = model.name
    elif checkpoint is None:
        name = Path(model).name
    else:
        name = checkpoint.stem if checkpoint.is_file() else checkpoint.resolve().name
    if not name:
        raise UsageError(
            f"{model} has no name to call the bundle by", what="output", found=model, hint="choose an output"
        )
    return name


def _is_taken(place: Path, checkpoint: Path | None) -> bool:
    """True if the path holds something that a bundle must not replace."""
    try:
        if not os.path.lexists(place):
            return False
        is_checkpoint = checkpoint is not None and place.exists() and place.samefile(checkpoint)
        is_bundle = place.is_dir() and ((place / MANIFEST).exists() or not any(place.iterdir()))
    except OSError:
        return True
    return is_checkpoint or not is_bundle


def check_repository(repository: str | os.PathLike[str], model: str | Path | WeightsFile) -> None:
    """Raise UsageError if the Triton repository lies in the checkpoint, which must stay unchanged.

    Args:
        repository: Triton's model repository.
        model: The model, as `vitdeploy.sources.hub.resolve` takes it.
    """
    checkpoint = local_path(model)
    if (
        checkpoint is not None
        and checkpoint.is_dir()
        and Path(repository).resolve().is_relative_to(checkpoint.resolve())
    ):
        raise UsageError(
            f"{repository} lies in the checkpoint {checkpoint}", what="triton", where=checkpoint, found=repository,
            hint="choose a folder beside it for --triton",
        )  # fmt: skip


def _check_apart(place: Path, checkpoint: Path) -> None:
    """Raise UsageError if the bundle lies in the checkpoint, or the checkpoint in the bundle."""
    if place == checkpoint:
        return  # a bundle is a checkpoint too, and `check_target` takes nothing else
    inside = checkpoint.is_dir() and place.is_relative_to(checkpoint)
    if inside or checkpoint.is_relative_to(place):
        raise UsageError(
            f"the output {place} lies {'in' if inside else 'around'} the checkpoint {checkpoint}",
            what="output", where=checkpoint, found=place, hint="choose a folder beside it (-o)",
        )  # fmt: skip


def _check_writable(place: Path) -> None:
    """Raise OutputError if the folder cannot be created or replaced, UsageError if it is below a file."""
    try:
        parent = next(parent for parent in place.parents if parent.exists())
        if not parent.is_dir():
            raise UsageError(
                f"{place} cannot be a folder, since {parent} is a file",
                what="output", where=parent, found=place, hint="choose another output",
            )  # fmt: skip
        check_takes_files(parent)
    except OSError as exc:
        raise OutputError(
            f"{place} cannot be written: {first_line(exc)}", what="output", where=place, hint="choose another output"
        ) from exc
