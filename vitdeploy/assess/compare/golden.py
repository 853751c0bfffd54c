"""Golden outputs: the reference's outputs in a file, to compare with on a machine without torch."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import struct
import tokenize
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy._version import __version__
from vitdeploy.assess.runs.targets import artifacts
from vitdeploy.errors import InputError, NotFiniteError, UsageError, first_line, shown
from vitdeploy.files.json_text import strict_json
from vitdeploy.files.npz import array_header, read_array
from vitdeploy.files.output_files import write_output
from vitdeploy.files.regular_file import open_regular
from vitdeploy.system.exhaustion import check_exhaustion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vitdeploy.bundle.bundle import Bundle
    from vitdeploy.specs import TensorSpec

FORMAT = "vitdeploy golden 2"
_HEADER, _OUTPUT = "header", "output/"
# Exceptions that zipfile, numpy and json are known to raise on a damaged file.
_DAMAGES = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True, eq=False)
class Golden:
    """The reference's outputs, with their origin.

    Attributes:
        outputs: Arrays by name, (N, ...) float32.
        reference: SHA-256 of the model's weights and of config.json, by name.
        pixels_sha256: SHA-256 of the N preprocessed images, normalized float32.
        batch_size: Images per run.
        tools: Versions of vitdeploy and of the engine.
    """

    outputs: Mapping[str, np.ndarray]
    reference: Mapping[str, str]
    pixels_sha256: str
    batch_size: int
    tools: Mapping[str, str] = dataclasses.field(default_factory=lambda: {"vitdeploy": __version__})

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a .npz file atomically.

        Raises:
            NotFiniteError: If the reference's outputs are NaN or infinite, so that nothing can be compared with them.
            OutputError: If the file cannot be written; an existing one is unchanged.
        """
        names = self._not_finite()
        if names:
            raise NotFiniteError(
                f"the reference gives NaN or infinite values of {', '.join(names)}, so {path} was not written",
                what=names[0], where=path, hint="mend the weights, or the numbers of the image processor",
            )  # fmt: skip
        header = {
            "format": FORMAT,
            "reference": dict(self.reference),
            "pixels_sha256": self.pixels_sha256,
            "batch_size": self.batch_size,
            "tools": dict(self.tools),
        }
        arrays: dict[str, Any] = {f"{_OUTPUT}{name}": value for name, value in self.outputs.items()}
        arrays[_HEADER] = np.frombuffer(json.dumps(header, sort_keys=True).encode(), np.uint8)
        file = io.BytesIO()
        np.savez(file, **arrays)
        write_output(Path(path), file.getvalue())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Golden:
        """Read a file of `write` without executing anything; InputError if it is missing or has another form."""
        try:
            with open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
                if sum(info.file_size for info in archive.infolist()) > os.fstat(opened.fileno()).st_size:
                    raise ValueError("its arrays share bytes of the file, or are not in it")
                header: dict[str, Any] = strict_json(_array(archive, _HEADER, np.uint8).tobytes())
                if header["format"] != FORMAT:
                    raise ValueError(f"format is {header['format']!r:.40}, not {FORMAT!r}")
                names = [name.removesuffix(".npy") for name in archive.namelist() if name.startswith(_OUTPUT)]
                outputs = {name.removeprefix(_OUTPUT): _array(archive, name, np.float32) for name in names}
            counts = sorted({len(value) for value in outputs.values()})
            if len(counts) > 1:
                raise ValueError(f"outputs are of {' and '.join(map(str, counts))} images")
            if type(header["batch_size"]) is not int:
                raise TypeError(f"batch_size is {header['batch_size']!r:.40}, no integer")
            reference, tools = (
                {str(name): str(value) for name, value in header[key].items()} for key in ("reference", "tools")
            )
            golden = cls(outputs, reference, str(header["pixels_sha256"]), header["batch_size"], tools)
            if names := golden._not_finite():
                raise ValueError(f"{', '.join(names)} holds NaN or infinite values")
            return golden
        except (MemoryError, OSError) as exc:
            check_exhaustion(exc, f"reading {path}")
            reason = getattr(exc, "strerror", None) or exc
            raise InputError(f"{path} cannot be read: {reason}", where=path, found=reason) from exc
        except _DAMAGES as exc:
            raise InputError(
                f"{path} is not a file of golden outputs: {type(exc).__name__} {first_line(exc)}",
                where=path, expected=FORMAT, hint="save the outputs again with --save-golden",
            ) from exc  # fmt: skip

    def _not_finite(self) -> list[str]:
        return [name for name, value in self.outputs.items() if not np.isfinite(value).all()]

    def check(self, bundle: Bundle, pixels_sha256: str, count: int, batch_size: int) -> None:
        """Check that the outputs belong to this model, these `count` images and this batch size.

        Raises:
            UsageError: If they do not, or lack an output of an artifact.
            InputError: If an output's shape differs from the artifacts'.
        """
        wanted = bundle.manifest.reference
        changed = [name for name in sorted({*wanted, *self.reference}) if wanted.get(name) != self.reference.get(name)]
        if changed:
            raise _other("the model", changed[0], wanted.get(changed[0]), self.reference.get(changed[0]))
        if self.batch_size != batch_size:
            raise _other("the batch size", "batch_size", batch_size, self.batch_size)
        if self.pixels_sha256 != pixels_sha256:
            raise _other("the processed images (or Pillow)", "images", pixels_sha256, self.pixels_sha256)
        runnable = {selected.artifact for selected in artifacts(bundle) if selected.backend}
        specs = [artifact.outputs for artifact in bundle.manifest.artifacts if artifact.name in runnable]
        names = dict.fromkeys(spec.name for spec in itertools.chain(*specs))
        missing = [name for name in names if name not in self.outputs]
        if missing:
            raise _other("the set of outputs", missing[0], missing[0], None)
        for spec in itertools.chain(*specs):
            _check_shape(spec, self.outputs[spec.name].shape, count)


def _other(subject: str, what: str, expected: object, found: object) -> UsageError:
    return UsageError(
        f"golden outputs are of another state of {subject}: {what} is {shown(expected, 80)}, was {shown(found, 80)}",
        what=what, expected=expected, found=found, hint="restore it, or save them again",
    )  # fmt: skip


def _array(archive: zipfile.ZipFile, name: str, dtype: type[np.generic]) -> np.ndarray:
    """An uncompressed array as `write` stores it; for any other, ValueError or another exception of `_DAMAGES`."""
    shape, stored, _ = array_header(archive, name)
    if stored != dtype or not shape:
        raise ValueError(f"{name!r:.80} is {stored} of shape {shape}, not {np.dtype(dtype)} (N, ...)")
    return read_array(archive, name)


def _check_shape(spec: TensorSpec, shape: tuple[int, ...], count: int) -> None:
    wanted = (count, *spec.shape[1:])
    fits = len(shape) == len(wanted) and all(
        isinstance(axis, str) or axis == length for axis, length in zip(wanted, shape, strict=True)
    )
    if not fits:
        raise InputError(
            f"golden outputs have {spec.name} of shape {shape}, not {wanted}",
            what=spec.name, expected=wanted, found=shape, hint="save them again",
        )  # fmt: skip
