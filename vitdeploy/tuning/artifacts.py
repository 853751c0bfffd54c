"""Make the artifacts of recipes in the working folder, each validated as by `vitdeploy export`."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING, Any

from vitdeploy.assess.environment.machine import PACKAGES, version_of
from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.kept_files import link
from vitdeploy.bundle.staging import check_same_model
from vitdeploy.errors import BundleError, CheckFailedError, UnavailableError, UsageError
from vitdeploy.exporting.options import Calibration, Quantization
from vitdeploy.exporting.workflow import export
from vitdeploy.specs import QUANTIZED
from vitdeploy.tuning.candidates import graph_like
from vitdeploy.tuning.variant import Variant

if TYPE_CHECKING:
    from pathlib import Path

    from vitdeploy.exporting.options import AccuracyBound
    from vitdeploy.system.progress import Progress
    from vitdeploy.tuning.candidates import Recipe
    from vitdeploy.tuning.working_folder import WorkingFolder


class NotMadeError(Exception):
    """An artifact could not be made; the message is the reason. Never leaves `vitdeploy.tuning`."""


class Maker:
    """Makes the artifacts of one bundle.

    Args:
        bundle: The bundle, with the reference's weights.
        work: The working folder.
        calibration: Folder of calibration images, apart from those that accuracy is measured on.
        calibration_sha256: Hash of these.
        bound: Accuracy bound for bounded recipes.
    """

    def __init__(
        self, bundle: Bundle, work: WorkingFolder, calibration: Path, calibration_sha256: str, bound: AccuracyBound
    ) -> None:
        self._bundle, self._work, self._calibration, self._bound = bundle, work, calibration, bound
        self._graph = graph_like(bundle.manifest.artifacts)
        versions = {name: version_of(name) for name in ("vitdeploy", *PACKAGES)}
        self._identity = [bundle.manifest.model_files, repr(self._graph), calibration_sha256, versions]

    def make(self, recipe: Recipe, progress: Progress) -> Variant:
        """The artifact, made now or by an earlier run.

        Raises:
            NotMadeError: If it cannot be made, or differs too much from the reference.
        """
        identity = [*self._identity, recipe.to_dict(), str(self._bound) if recipe.bounded else None]
        problem = self._work.recall("not made", identity)
        if problem is not None:
            raise NotMadeError(problem)
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        folder = self._work.path / "artifacts" / key
        with contextlib.suppress(BundleError):
            return self._opened(folder, recipe)
        try:
            progress.step(f"making {recipe.name}")
            export(
                self._bundle.path, to=recipe.format, precision=recipe.precision, output=folder, progress=progress,
                **self._options(recipe),
            )  # fmt: skip
            variant = self._opened(folder, recipe)
        except (CheckFailedError, UsageError) as exc:
            self._work.remember(str(exc), "not made", identity)
            raise NotMadeError(str(exc)) from exc
        except UnavailableError as exc:
            raise NotMadeError(str(exc)) from exc
        self._share_files(Bundle.open(folder))
        return variant

    def _options(self, recipe: Recipe) -> dict[str, Any]:
        graph = dataclasses.replace(self._graph, optimize=recipe.optimize)
        if recipe.precision not in QUANTIZED:
            return {"graph": graph}
        calibration = None
        if recipe.scheme != "dynamic":
            calibration = Calibration(self._calibration, cache=self._work.path / "ranges")
        bound = self._bound if recipe.bounded else None
        return {
            "graph": graph,
            "quantization": Quantization(calibration, scheme=recipe.scheme, rest=recipe.rest, accuracy=bound),
        }

    def _opened(self, folder: Path, recipe: Recipe) -> Variant:
        """The artifact in a folder; BundleError if there is none, or it was altered."""
        made = Bundle.open(folder)
        check_same_model(made, self._bundle.manifest.model_files, self._bundle.manifest.task)
        artifact = made.artifact(recipe.format, recipe.precision)
        with made.opened_artifact(artifact):
            return Variant.of(made, artifact, recipe.name)

    def _share_files(self, made: Bundle) -> None:
        """Replace copies of the bundle's files, such as the weights, by hard links to them."""
        there = {record.path: record.sha256 for record in self._bundle.manifest.files}
        for record in made.manifest.files:
            file, original = made.path / record.path, self._bundle.path / record.path
            if there.get(record.path) == record.sha256 and original.is_file():
                temporary = file.with_name(f"{file.name}.link")
                temporary.unlink(missing_ok=True)
                link(original, temporary)
                temporary.replace(file)
