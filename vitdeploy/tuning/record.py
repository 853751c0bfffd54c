"""Record a choice in its bundle: the artifact if it is new, the evidence, and the setting to open by default."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.kept_files import link
from vitdeploy.bundle.manifest import TUNING, FileRecord, TunedChoice
from vitdeploy.bundle.staging import commit
from vitdeploy.files.atomic import staged_folder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitdeploy.tuning.variant import Variant


def record_choice(
    bundle: Bundle,
    chosen: Variant,
    added: Sequence[Variant],
    *,
    backend: str,
    options: Mapping[str, Any],
    batch_size: int,
    machine: Mapping[str, str],
    evidence: Mapping[str, Any],
) -> Bundle:
    """Write a choice and its evidence into a bundle, in one commit.

    Args:
        chosen: The chosen artifact, of this bundle or among `added`.
        added: New artifacts, which the bundle lacks.
        backend, options, batch_size: The rest of the setting, see `TunedChoice`.
        machine: Machine that measured it, see `TunedChoice`.
        evidence: All measurements, as plain values.

    Raises:
        BundleError: If a file was altered, or the bundle no longer has the chosen artifact.
        UsageError: If the bundle is now of another model, or has a file of its own in the place of a new one.
        OutputError: If the bundle cannot be written; it is unchanged.
    """
    with staged_folder(bundle.path.resolve()) as staging:
        for made in added:
            for record in made.artifact.files:
                (staging / record.path).parent.mkdir(parents=True, exist_ok=True)
                link(made.bundle.path / record.path, staging / record.path)
            with Bundle(staging, made.bundle.manifest).opened_artifact(made.artifact):
                pass  # verified after it was linked, which changes a file's times
        (staging / TUNING).write_text(json.dumps(evidence, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        choice = TunedChoice(
            artifact=chosen.artifact.name,
            artifact_sha256=chosen.sha256,
            backend=backend,
            options=dict(options),
            batch_size=batch_size,
            machine=dict(machine),
            evidence=FileRecord.of(staging, TUNING),
        )
        artifacts = tuple(made.artifact for made in added)
        return commit(staging, bundle.path, dataclasses.replace(bundle.manifest, artifacts=artifacts, tuned=choice))
