"""A variant: an artifact that is tried, of the bundle or newly made."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from vitdeploy.bundle.manifest import sha256_of
from vitdeploy.runtimes import BACKENDS

if TYPE_CHECKING:
    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.bundle.manifest import Artifact

DYNAMIC = "dynamic"  # the scheme that quantizes each batch with a single range


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
    """An artifact, and the bundle with its files; equal to itself alone.

    Attributes:
        name: Unique name, such as "onnx-int8 dynamic"; the artifact's name if it is of the tuned bundle.
        bundle: A bundle with this artifact and those that it needs.
        artifact: The artifact.
        is_new: True if it lies in the working folder.
    """

    name: str
    bundle: Bundle
    artifact: Artifact
    is_new: bool

    @classmethod
    def of(cls, bundle: Bundle, artifact: Artifact, name: str | None = None) -> Variant:
        """An artifact of the tuned bundle; with a name, one of the working folder."""
        return cls(name or artifact.name, bundle.with_only(artifact), artifact, is_new=name is not None)

    @property
    def sha256(self) -> tuple[str, ...]:
        """SHA-256 of each file."""
        return sha256_of(self.artifact)

    @property
    def depends_on_batch(self) -> bool:
        """True if an image's outputs depend on the others in its batch."""
        return self.artifact.options.get("scheme") == DYNAMIC

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.artifact.files)


def backends_for(artifact: Artifact) -> tuple[str, ...]:
    """Backends that run an artifact's format on a CPU, installed or not."""
    return tuple(
        name for name, row in BACKENDS.items() if artifact.format in row.artifact_formats and row.device == "cpu"
    )
