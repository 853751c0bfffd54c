"""The configuration files of a bundle: of the model, and of the image processor."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitdeploy.bundle.labels import class_names
from vitdeploy.bundle.manifest import CONFIG
from vitdeploy.bundle.scores import ProblemType, problem_type_of
from vitdeploy.errors import BundleError
from vitdeploy.files.json_text import json_object
from vitdeploy.specs import Task


@dataclasses.dataclass(frozen=True)
class Configuration:
    """The configuration files of a bundle, as `Bundle.read_config` read and verified them.

    Attributes:
        files: The content of `config.json` and of the image processor's files, by name.
        model: The parsed content of `config.json`.
        task: Of the model.
    """

    files: Mapping[str, bytes]
    model: dict[str, Any]
    task: str

    @classmethod
    def of(cls, folder: Path, files: Mapping[str, bytes], task: str) -> Configuration:
        """Parse `config.json`; raises BundleError if it is not JSON."""
        model = json_object(folder / CONFIG, files[CONFIG], BundleError, hint="export the bundle again")
        return cls(files, model, task)

    @property
    def labels(self) -> tuple[str, ...]:
        """Class names in the order of the logits, if it is a classifier; CheckpointError for a wrong `id2label`."""
        return class_names(self.model) if self.task == Task.CLASSIFICATION else ()

    @property
    def problem_type(self) -> ProblemType:
        """One best class, independent classes or values, in `logits`; CheckpointError where that is unknown."""
        return problem_type_of(self.task, self.model)
