"""What the reference gave, in a file: saved on one machine, compared with on another that needs no torch."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy import __version__
from vitdeploy.assess.selection import artifacts
from vitdeploy.atomic import write_file
from vitdeploy.errors import InputError, UsageError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from vitdeploy.bundle import Bundle

FORMAT = "vitdeploy golden 2"
_HEADER = "header"


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """The reference's outputs, and what they are of.

    Attributes:
        outputs: (N, ...) float32 by name.
        reference: the SHA-256 of the model's weights and of config.json, by name.
        pixels_sha256: of the N processed images, normalised float32.
        batch_size: how many ran together.
        tools: the versions of vitdeploy and of the engine.
    """

    outputs: Mapping[str, np.ndarray]
    reference: Mapping[str, str]
    pixels_sha256: str
    batch_size: int
    tools: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"vitdeploy": __version__})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a .npz file, whole or not at all.

        Raises:
            OutputError: it cannot be written; the one before is untouched.
        """
        header = {
            "format": FORMAT,
            "reference": dict(self.reference),
            "pixels_sha256": self.pixels_sha256,
            "batch_size": self.batch_size,
            "tools": dict(self.tools),
        }
        arrays: dict[str, Any] = {f"output/{name}": value for name, value in self.outputs.items()}
        arrays[_HEADER] = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        file = io.BytesIO()
        np.savez(file, **arrays)
        write_file(Path(path), file.getvalue())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Golden:
        """Read what `write` wrote; nothing in it is executed.

        Raises:
            InputError: there is no such file, or it is something else.
        """
        try:
            with Path(path).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                header: dict[str, Any] = json.loads(file[_HEADER].tobytes())
                if header["format"] != FORMAT:
                    raise ValueError(f"format is {header['format']!r:.40}, not {FORMAT!r}")
                outputs = {
                    name.removeprefix("output/"): file[name] for name in file.files if name.startswith("output/")
                }
                reference = {str(name): str(value) for name, value in header["reference"].items()}
                return cls(outputs, reference, str(header["pixels_sha256"]), int(header["batch_size"]), header["tools"])
        except OSError as exc:
            raise InputError(
                f"{path} must be a file of golden outputs that can be read: {exc.strerror or exc}"
            ) from exc
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as exc:
            raise InputError(
                f"{path} must be a file that compare --save-golden wrote: {type(exc).__name__} {exc}; save it again"
            ) from exc

    def check(self, bundle: Bundle, pixels_sha256: str, batch_size: int) -> None:
        """See that it is of this model, these images and this batch size.

        Raises:
            UsageError: it is of others, or lacks an output of an artifact.
        """
        wanted = bundle.manifest.reference
        changed = [name for name in sorted({*wanted, *self.reference}) if wanted.get(name) != self.reference.get(name)]
        if changed:
            raise UsageError(
                f"golden outputs must be of the model of {bundle.path}, they are of another {', '.join(changed)}; save "
                f"them again"
            )
        if self.batch_size != batch_size:
            raise UsageError(
                f"golden outputs must be of batches of the same size, they are of {self.batch_size}, not {batch_size}"
            )
        if self.pixels_sha256 != pixels_sha256:
            raise UsageError(
                "golden outputs must be of the same processed images, they are of others; give the images that they "
                "were saved with, and see that the image processor and Pillow are the same"
            )
        runnable = {each.artifact for each in artifacts(bundle) if each.backend}
        specs = [each.outputs for each in bundle.manifest.artifacts if each.name in runnable]
        names = dict.fromkeys(spec.name for spec in itertools.chain(*specs))
        missing = [name for name in names if name not in self.outputs]
        if missing:
            raise UsageError(f"golden outputs must hold {', '.join(missing)}, do not; save them again")
