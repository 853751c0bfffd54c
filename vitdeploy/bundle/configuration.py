"""A bundle's configuration files: the model's and the image processor's."""

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
    """A bundle's configuration files, read and verified by `Bundle.read_config`.

    Attributes:
        files: Content of `config.json` and of the image processor's files, by name.
        model: Parsed content of `config.json`.
        task: The model's task.
    """

    files: Mapping[str, bytes]
    model: dict[str, Any]
    task: str

    @classmethod
    def of(cls, folder: Path, files: Mapping[str, bytes], task: str) -> Configuration:
        """Parse `config.json`; BundleError if it is not JSON."""
        model = json_object(folder / CONFIG, files[CONFIG], BundleError, hint="export the bundle again")
        return cls(files, model, task)

    @property
    def labels(self) -> tuple[str, ...]:
        """A classifier's class names, in the order of the logits; CheckpointError for an invalid `id2label`."""
        return class_names(self.model) if self.task == Task.CLASSIFICATION else ()

    @property
    def problem_type(self) -> ProblemType:
        """Meaning of `logits` (single-label, multi-label or regression); CheckpointError if it is unknown."""
        return problem_type_of(self.task, self.model)
