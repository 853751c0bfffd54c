"""Choose the files of a checkpoint or an image processor, in a folder or in a Hub repository."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, NamedTuple

from vitdeploy.errors import CheckpointError
from vitdeploy.files.file_kinds import (
    PROCESSOR_CONFIGS,
    folder_names,
    is_lfs_pointer,
    is_license_name,
    lfs_advice,
    names_advice,
)
from vitdeploy.files.regular_file import read_regular
from vitdeploy.models.config import read_json
from vitdeploy.models.families.lookup import family_of
from vitdeploy.sources.license_files import CARD
from vitdeploy.sources.timm_layouts.parts import is_timm

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

CONFIG, ADAPTER_CONFIG, OPEN_CLIP_CONFIG = "config.json", "adapter_config.json", "open_clip_config.json"
OPEN_CLIP_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in order of preference
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")  # in order of preference
_INDEX_SUFFIX = ".index.json"
_WEIGHTS = (  # in order of preference
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True)
class Files:
    """The files of a folder or a repository.

    Attributes:
        label: Name for messages.
        locate: Maps a file name to its path, after a download if needed; None if there is no such file.
        names: Lists all files.
    """

    label: str
    locate: Callable[[str], Path | None]
    names: Callable[[], Collection[str]]

    @classmethod
    def of_folder(cls, folder: Path) -> Files:
        return cls(
            str(folder), lambda name: path if (path := folder / name).is_file() else None, lambda: folder_names(folder)
        )

    def get(self, name: str) -> Path | None:
        """As `locate`.

        Raises:
            CheckpointError: If the file is a Git LFS pointer.
        """
        path = self.locate(name)
        if path is not None and is_lfs_pointer(path):
            raise CheckpointError(lfs_advice(path), where=path)
        return path


class Choice(NamedTuple):
    """The files to use.

    Attributes:
        paths: Weights (one file or all shards), or an image processor's configurations.
        adapter: Configuration and weights of a PEFT adapter, if any.
    """

    paths: tuple[Path, ...]
    adapter: tuple[Path, ...] = ()


def choose_checkpoint(files: Files) -> Choice:
    """Locate the configurations, an adapter, the preferred form of weights, and the license.

    Raises:
        CheckpointError: If a file is missing, or an index is malformed.
    """
    choice = _choose_weights(files)
    for name in (CARD, *sorted(filter(is_license_name, files.names()))):
        files.locate(name)
    return choice


def _choose_weights(files: Files) -> Choice:
    """Everything that `choose_checkpoint` locates but the license."""
    config = files.get(CONFIG)
    adapter = _adapter(files)
    if config is None and not adapter:
        open_clip = _open_clip(files)
        if open_clip is not None:
            return open_clip
        raise _incomplete(files, f"has no {CONFIG}; expected a Hugging Face checkpoint", CONFIG)
    if config is not None and "model_type" in (data := read_json(config)) and not is_timm(data):
        family_of(data)  # a model of another family is refused before its weights are downloaded
    for name in PROCESSOR_CONFIGS:
        files.get(name)
    for name in _WEIGHTS if config is not None else ():
        path = files.get(name)
        if path is not None:
            return Choice(_shards(path, files) if name.endswith(_INDEX_SUFFIX) else (path,), adapter)
    if adapter:
        return Choice((), adapter)
    open_clip = _open_clip(files)
    if open_clip is not None:
        return open_clip
    raise _incomplete(files, f"has no weights; looked for {', '.join(_WEIGHTS)}", "weights")


def choose_processor(files: Files) -> Choice:
    """Locate the processor's configurations, and config.json, which may name the processor's class, or be timm's.

    Raises:
        CheckpointError: If there are none.
    """
    paths = tuple(path for path in map(files.locate, (*PROCESSOR_CONFIGS, CONFIG)) if path is not None)
    if not paths:
        raise CheckpointError(
            f"{files.label} has no image processor; looked for {', '.join(PROCESSOR_CONFIGS)}",
            what="image processor", where=files.label, expected=PROCESSOR_CONFIGS,
        )  # fmt: skip
    return Choice(paths)


def _incomplete(files: Files, problem: str, what: str) -> CheckpointError:
    advice = names_advice(files.label, files.names())
    return CheckpointError(advice or f"{files.label} {problem}", what=what, where=files.label)


def _open_clip(files: Files) -> Choice | None:
    """OpenCLIP's weights, with their configuration located; None without either."""
    names = files.names()
    weights = next((name for name in OPEN_CLIP_WEIGHTS if name in names), None)
    if weights is None or OPEN_CLIP_CONFIG not in names or files.get(OPEN_CLIP_CONFIG) is None:
        return None
    path = files.get(weights)
    return None if path is None else Choice((path,))


def _adapter(files: Files) -> tuple[Path, ...]:
    """Configuration and weights of an adapter, which transformers applies by default."""
    config = files.get(ADAPTER_CONFIG)
    weights = next((path for name in _ADAPTER_WEIGHTS if (path := files.get(name)) is not None), None)
    if config is not None and weights is not None:
        return config, weights
    if weights is None and files.get("pytorch_adapter.bin") is not None:
        raise CheckpointError(
            f"{files.label} is an adapter of the adapters library",
            where=files.label, found="pytorch_adapter.bin",
            hint="merge it there: model.merge_adapter(NAME), then model.save_pretrained(NEW_FOLDER)",
        )  # fmt: skip
    if config is None and weights is None:
        return ()
    missing = ADAPTER_CONFIG if config is None else _ADAPTER_WEIGHTS[0]
    raise CheckpointError(
        f"{files.label} has an adapter without {missing}",
        what=missing, where=files.label,
        hint="complete the adapter, or remove its files where the weights are to be used without it",
    )  # fmt: skip


def _shards(index: Path, files: Files) -> tuple[Path, ...]:
    """The shards named in an index."""
    try:
        content = json.loads(read_regular(index))
    except OSError as exc:
        raise CheckpointError(f"cannot read {index}: {exc.strerror}", where=index) from exc
    except (ValueError, RecursionError) as exc:
        raise CheckpointError(f"{index} is not valid JSON: {exc}", where=index) from exc
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no 'weight_map' of tensors and files", what="weight_map", where=index)
    suffix = Path(index.name.removesuffix(_INDEX_SUFFIX)).suffix
    first_key: dict[str, str] = {}
    for key, name in weight_map.items():
        # Windows' rules are stricter: they include both separators, and drives.
        if not isinstance(name, str) or PureWindowsPath(name).name != name or Path(name).suffix != suffix:
            raise CheckpointError(
                f"{index}: '{key}' names no *{suffix} file beside the index, but {name!r}",
                what=key, where=index, found=name,
            )  # fmt: skip
        first_key.setdefault(name, key)
    shards = {name: files.get(name) for name in sorted(first_key)}
    for name, path in shards.items():
        if path is None:
            raise CheckpointError(
                f"{index}: '{first_key[name]}' is in {name!r}, which does not exist",
                what=first_key[name], where=index, found=name,
            )  # fmt: skip
    return tuple(path for path in shards.values() if path is not None)
