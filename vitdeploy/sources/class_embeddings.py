"""Read class embeddings, the text vectors of class names, from an `.npz` file."""

from __future__ import annotations

import collections
import dataclasses
import math
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np

from vitdeploy.bundle.labels import fits_a_line
from vitdeploy.bundle.manifest import FileRecord
from vitdeploy.bundle.scores import ProblemType
from vitdeploy.errors import InputError, first_line, shown
from vitdeploy.files.npz import array_header, open_archive, read_array
from vitdeploy.system.exhaustion import check_exhaustion

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

_NAMES, _VECTORS, _SCALE, _BIAS, _ACTIVATION = "names", "vectors", "logit_scale", "logit_bias", "activation"
_REQUIRED, _OPTIONAL = (_NAMES, _VECTORS, _SCALE), (_BIAS, _ACTIVATION)
_CODECS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # numpy.savez's, and numpy.savez_compressed's
_FLOATS = ("float16", "float32", "float64")
_MOST_BYTES = 2**30  # of an array; ImageNet-21k's classes take 90 MB in 1,024 values each
_MOST_CLASSES = 2**20
# CLIP clamps its factor to 100, ln 100 = 4.6, and SigLIP's trained ones are near 112. A factor of more than 1,000 is
# one that was saved instead of its logarithm; one of less than 1/1,000 makes all classes equal.
_LARGEST_SCALE = math.log(1000)
_ACTIVATIONS = {"softmax": ProblemType.SINGLE_LABEL, "sigmoid": ProblemType.PAIRWISE}


@dataclasses.dataclass(frozen=True, eq=False)
class ClassEmbeddings:
    """Vectors of C classes in the space of a model's image embeddings, as a linear layer.

    Attributes:
        names: Unique class names, in the order of the logits.
        weight: Unit vectors times the scale, (C, D) float32.
        bias: Bias of each logit, (C,) float32; zeros for CLIP.
        problem_type: Meaning of the logits.
        path: The file that they were read from.
        file: Its name and checksum.
    """

    names: tuple[str, ...]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    problem_type: ProblemType
    path: Path
    file: FileRecord

    @classmethod
    def read(cls, path: Path) -> ClassEmbeddings:
        """Read an `.npz` file; no Python objects are loaded.

        Its arrays are:

        - `names`: Unicode text, (C,).
        - `vectors`: Floating-point numbers, (C, D); normalized here.
        - `logit_scale`: The logarithm of the factor of the cosines, one number: transformers' parameter of that name.
        - `logit_bias`: Bias of the logits, one number; SigLIP's parameter of that name. Default: none.
        - `activation`: "softmax" or "sigmoid". Default: sigmoid with a `logit_bias`, else softmax.

        Raises:
            InputError: If the file cannot be read, lacks an array or has an unknown one, or a value is invalid.
        """

        def refusal(reason: str) -> InputError:
            message = f"{path} cannot be read as an .npz file of class embeddings: {reason}"
            return InputError(message, where=path, expected="an .npz file", found=reason)

        with open_archive(path, refusal) as archive:
            _check_names(path, archive.namelist())
            names = _class_names(path, _array(path, archive, _NAMES, ("U",)))
            vectors = _array(path, archive, _VECTORS, _FLOATS)
            scale = _number(path, archive, _SCALE)
            biased = f"{_BIAS}.npy" in archive.namelist()
            bias = _number(path, archive, _BIAS) if biased else 0.0
            activation = _activation(path, archive, biased=biased)
        if activation == "softmax" and len(names) == 1:
            raise _invalid(path, _NAMES, "the softmax of one class is always 1", names, "add classes, or use sigmoid")
        if abs(scale) > _LARGEST_SCALE:
            raise _invalid(
                path, _SCALE, f"{scale:g} is not between the logarithms of 1/1,000 and 1,000", scale,
                "save the logarithm of the factor, as model.logit_scale is",
            )  # fmt: skip
        unit = _unit(path, vectors, names)
        weight = (math.exp(scale) * unit).astype(np.float32)
        problem = _ACTIVATIONS[activation] if len(names) > 1 else ProblemType.MULTI_LABEL
        return cls(
            names, weight, np.full(len(names), bias, np.float32), problem, path, FileRecord.of(path.parent, path.name)
        )

    @property
    def width(self) -> int:
        return int(self.weight.shape[1])


def _check_names(path: Path, members: list[str]) -> None:
    arrays = [name.removesuffix(".npy") if name.endswith(".npy") else f"{name} (not .npy)" for name in members]
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise InputError(
            f"{path} has no array {missing[0]}; class embeddings have {', '.join(_REQUIRED)}",
            what=missing[0], where=path, expected=_REQUIRED, found=tuple(arrays),
        )  # fmt: skip
    unknown = [name for name in arrays if name not in (*_REQUIRED, *_OPTIONAL)]
    if unknown or len(set(arrays)) < len(arrays):
        name = unknown[0] if unknown else next(name for name in arrays if arrays.count(name) > 1)
        raise InputError(
            f"{path} has {'an unknown array' if unknown else 'two arrays named'} {shown(name)}; class embeddings have "
            f"{', '.join((*_REQUIRED, *_OPTIONAL))}",
            what=name, where=path, expected=(*_REQUIRED, *_OPTIONAL), found=tuple(arrays),
        )  # fmt: skip


def _array(path: Path, archive: zipfile.ZipFile, name: str, kinds: tuple[str, ...]) -> NDArray[Any]:
    """An array of these types ("U" for text), after its header."""
    try:
        _, dtype, size_bytes = array_header(archive, name, _CODECS)
        if size_bytes > _MOST_BYTES:
            raise ValueError(f"it has {size_bytes:,} bytes, at most {_MOST_BYTES:,} are read")
        array = read_array(archive, name)
    except Exception as exc:  # a damaged file raises almost anything: ValueError, struct.error, zlib.error ...
        check_exhaustion(exc, f"reading {path}")
        raise _invalid(path, name, first_line(exc) or type(exc).__name__, None) from exc
    if dtype.name not in kinds and dtype.kind not in kinds:
        wanted = "Unicode text" if kinds == ("U",) else ", ".join(kinds)
        raise _invalid(path, name, f"it has the type {dtype}, expected {wanted}", dtype.name, "convert it")
    return array


def _class_names(path: Path, array: NDArray[Any]) -> tuple[str, ...]:
    if array.ndim != 1 or not 1 <= len(array) <= _MOST_CLASSES:
        reason = f"it has the shape {array.shape}, expected one name a class, at most {_MOST_CLASSES:,}"
        raise _invalid(path, _NAMES, reason, array.shape)
    names = tuple(map(str, array.tolist()))
    wrong = next((name for name in names if not name.strip() or not fits_a_line(name)), None)
    if wrong is not None:
        raise _invalid(path, _NAMES, f"{shown(wrong)} is not one line of text", wrong)
    if len(set(names)) < len(names):
        twice = next(name for name, count in collections.Counter(names).items() if count > 1)
        raise _invalid(path, _NAMES, f"two classes are named {shown(twice)}", twice, "give each class its own name")
    return names


def _number(path: Path, archive: zipfile.ZipFile, name: str) -> float:
    """The finite number in an array of one element."""
    array = _array(path, archive, name, _FLOATS)
    if array.size != 1 or not (np.abs(array) <= np.finfo(np.float32).max).all():
        found = array.tolist()
        raise _invalid(path, name, f"it is {shown(found, 80)}, expected one finite number of float32", found)
    return float(array.reshape(()))


def _activation(path: Path, archive: zipfile.ZipFile, *, biased: bool) -> str:
    if f"{_ACTIVATION}.npy" not in archive.namelist():
        return "sigmoid" if biased else "softmax"
    array = _array(path, archive, _ACTIVATION, ("U",))
    name = str(array.reshape(-1)[0]) if array.size == 1 else ""
    if name not in _ACTIVATIONS:
        found = array.tolist()
        raise _invalid(path, _ACTIVATION, f"it is {shown(found, 80)}, expected {' or '.join(_ACTIVATIONS)}", found)
    return name


def _unit(path: Path, vectors: NDArray[Any], names: tuple[str, ...]) -> NDArray[np.float64]:
    """The vectors divided by their lengths, (C, D)."""
    if vectors.ndim != 2 or len(vectors) != len(names):
        reason = f"they have the shape {vectors.shape}, expected a row for each of {len(names)} names"
        raise _invalid(path, _VECTORS, reason, vectors.shape)
    values = vectors.astype(np.float64)
    largest = np.abs(values).max(axis=1, initial=0.0, keepdims=True)
    for wrong, what in ((~np.isfinite(largest), "values that are not finite"), (largest == 0, "zeros alone")):
        if wrong.any():
            name = names[int(wrong.argmax())]
            raise _invalid(path, _VECTORS, f"the vector of {shown(name)} has {what}", name)
    values /= largest  # squares of float64 values could overflow
    unit: NDArray[np.float64] = values / np.linalg.norm(values, axis=1, keepdims=True)
    return unit


def _invalid(path: Path, name: str, reason: str, found: object, hint: str | None = None) -> InputError:
    return InputError(f"{path}, {name}: {reason}", what=name, where=path, found=found, hint=hint)
