"""Options of a file of weights without a configuration. They need no torch."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from vitdeploy.errors import CheckpointError, typed_line
from vitdeploy.files.file_kinds import is_lfs_pointer, lfs_advice
from vitdeploy.system.option_fields import check_options, described, option

_MOST_CLASSES = 2**20
ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")  # of timm.models.load_state_dict, in its order


@described
@dataclasses.dataclass(frozen=True)
class WeightsFile:
    """Weights without a configuration, and what they do not say: the architecture and the class names.

    A file that names its architecture (the training output of timm's train.py) needs none. Its arguments, too, apply:
    those of the model, the image size, mean and std.

    Raises:
        UsageError: If an option is invalid.
    """

    path: str | os.PathLike[str] = option(
        dataclasses.MISSING,
        "Weights without a configuration: safetensors, a state_dict saved by torch, or timm's training output.",
        path=True,
        typed="weights",
    )
    arch: str | None = option(
        None,
        "Architecture of the weights: a name of timm (vit_base_patch16_224), torchvision (vit_b_16) or OpenCLIP "
        "(ViT-B-32).",
        metavar="NAME",
        unset="the one that the file names",
    )
    labels: str | os.PathLike[str] | None = option(
        None,
        "Class names of the weights: a text file with a line for each class, or JSON (a list, or names by index).",
        path=True,
        unset="LABEL_0, LABEL_1 ...",
    )
    num_classes: int | None = option(
        None, "Number of classes that the weights must have.", limits=(1, _MOST_CLASSES), unset="the head's"
    )
    entry: str | None = option(
        None,
        "Entry of a training checkpoint with the weights.",
        typed="weights_entry",
        metavar="KEY",
        unset=f"the first of {', '.join(ENTRIES)}",
    )

    def __post_init__(self) -> None:
        check_options(self)

    def __str__(self) -> str:
        return os.fspath(self.path)

    @property
    def name(self) -> str:
        """The file's name without its endings, such as "model_best" of "model_best.pth.tar"."""
        name = Path(self.path).name
        return name.partition(".pth")[0] or name if ".pth" in name else Path(name).stem

    def located(self) -> Path:
        """The file's path.

        Raises:
            CheckpointError: If there is no such file, or its content was not downloaded.
        """
        try:
            path = Path(self.path).expanduser()
            if path.is_dir():
                raise CheckpointError(
                    f"--weights names a file, and {self} is a folder",
                    what="weights", where=path,
                    hint=f"name a file in it, or export the folder itself: {typed_line('export', path)}",
                )  # fmt: skip
            if not path.exists():
                raise CheckpointError(f"no such file: {self}", what="weights", where=path, hint="check the path")
        except (OSError, RuntimeError, ValueError) as exc:  # the home of an unknown user; a null byte
            raise CheckpointError(f"cannot open {self}: {exc}", what="weights", where=self.path) from exc
        if is_lfs_pointer(path):
            raise CheckpointError(lfs_advice(path), what="weights", where=path)
        return path
