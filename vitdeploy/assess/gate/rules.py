"""Rules of a gate, from a TOML file or from flags."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vitdeploy.errors import InputError, UsageError, first_line, shown
from vitdeploy.files.regular_file import read_regular
from vitdeploy.system.argument_types import check_fields
from vitdeploy.system.shares import read_drop, read_share

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_UNITS = {"bytes": 1, "kB": 1_000, "MB": 1_000_000, "GB": 1_000_000_000}


def _cosine(value: Any, name: str) -> float:
    if value in (1, "1", "100%"):
        raise UsageError(
            f"{name} of 1 cannot be reached: no two computations round alike",
            what=name, found=value, hint="give less, such as 0.999",
        )  # fmt: skip
    expected = "a cosine above 0 and below 1, such as 0.99 or 99%"
    return read_share(value, name, expected, lambda share: 0 < share < 1)


def _drop(value: Any, name: str) -> float:
    return read_drop(value, name, none=False)


def _difference(value: Any, name: str) -> float:
    expected = "a share of the output's largest value, from 0 up, such as 1e-4 or 0.01%"
    return read_share(value, name, expected, lambda share: share >= 0)


def _ratio(value: Any, name: str) -> float:
    if isinstance(value, str) and value.endswith("%"):
        raise UsageError(
            f"{name} {shown(value)} is a percentage, and a ratio is needed", what=name, found=value, hint="write 0.8"
        )
    return read_share(value, name, "a ratio above 0, such as 0.8", lambda ratio: ratio > 0)


def _backend(value: Any, name: str) -> str:
    if not isinstance(value, str) or not re.fullmatch("[a-z-]+:[a-z0-9]+", value):
        raise UsageError(
            f'{name} names a backend and a precision, such as "torch:fp32", got {shown(value)}',
            what=name, found=value,
        )  # fmt: skip
    return value


def _bytes(value: Any, name: str) -> int:
    match = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?) ?({'|'.join(_UNITS)})?", value) if isinstance(value, str) else None
    if match is not None:
        value = float(match[1]) * _UNITS[match[2] or "bytes"]
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 1 <= value <= 2.0**63:
        raise UsageError(
            f'{name} takes a number of bytes, or a string such as "12.5 MB", got {shown(value)}', what=name, found=value
        )
    return round(value)


_READ: dict[str, Callable[[Any, str], Any]] = {
    "min_accuracy": read_share,
    "max_drop": _drop,
    "min_knn_accuracy": read_share,
    "min_recall_at_1": read_share,
    "min_recall_at_5": read_share,
    "min_recall_at_10": read_share,
    "max_recall_drop": _drop,
    "min_agreement": read_share,
    "min_cosine": _cosine,
    "min_neighbour_agreement": read_share,
    "max_difference": _difference,
    "max_layer_difference": _difference,
    "max_latency_ratio": _ratio,
    "latency_against": _backend,
    "max_size": _bytes,
}


@dataclasses.dataclass(frozen=True)
class Rules:
    """Bounds of one artifact; None for no bound. Shares are 0.99 or "99%"; a number such as 99 is refused.

    Attributes:
        min_accuracy: Smallest top-1 accuracy, a share above 0 and up to 1.
        max_drop: Largest loss of top-1 accuracy, or of embeddings' kNN accuracy, against the baseline, a share above 0
            and below 1, such as 0.01 or "1%"; from 0.1 up only with a percent sign. Default with a baseline: the
            smallest drop of which the images detect twice the size.
        min_knn_accuracy: Smallest accuracy of the nearest neighbours' vote, for labelled images and a model that
            extracts features; see `evaluate_embeddings`.
        min_recall_at_1, min_recall_at_5, min_recall_at_10: Smallest share of images with an image of their class among
            as many nearest neighbours.
        max_recall_drop: Largest loss of any of these recalls against the baseline. Default: as for `max_drop`.
        min_agreement: Smallest share of images with the reference's top-1 class.
        min_cosine: Smallest 5th percentile, over images, of the cosine similarity with the reference, above 0 and below
            1; for the vectors that it covers, see `vitdeploy.assess.metrics.features.vectors`.
        min_neighbour_agreement: Smallest share of images with the reference's nearest neighbour, for a model without
            classes.
        max_difference: Largest difference of an output from the reference's, relative to its largest value. Default:
            the precision's tolerance, except for a quantized artifact of a model without classes, which is judged by
            cosine.
        max_layer_difference: Largest difference of a layer's result from the reference's on the same input, see
            `compare_layers`. Default: `LAYER_TOLERANCES` for half precision, none for others.
        max_latency_ratio: Median time of one image over that of `latency_against`.
        latency_against: Backend and precision, such as "torch:fp32".
        max_size: Largest total size of an artifact's files, in bytes.
    """

    min_accuracy: float | None = None
    max_drop: float | None = None
    min_knn_accuracy: float | None = None
    min_recall_at_1: float | None = None
    min_recall_at_5: float | None = None
    min_recall_at_10: float | None = None
    max_recall_drop: float | None = None
    min_agreement: float | None = None
    min_cosine: float | None = None
    min_neighbour_agreement: float | None = None
    max_difference: float | None = None
    max_layer_difference: float | None = None
    max_latency_ratio: float | None = None
    latency_against: str | None = None
    max_size: int | None = None

    def __post_init__(self) -> None:
        for name, read in _READ.items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, read(getattr(self, name), name))

    def with_(self, other: Rules) -> Rules:
        """These rules, overridden by the other's bounds."""
        given = {key: value for key, value in dataclasses.asdict(other).items() if value is not None}
        return dataclasses.replace(self, **given)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> Rules:
        """Read values from parsed TOML; `max_size` may be a text such as "12.5 MB".

        Raises:
            UsageError: If a key is unknown, or a value is invalid.
        """
        _check_keys(data, [field.name for field in dataclasses.fields(cls)], where)
        try:
            return cls(**data)
        except UsageError as exc:
            error = exc.with_message(f"{where}: {exc}")
            error.where = where
            raise error from exc


@dataclasses.dataclass(frozen=True)
class GateRules:
    """Rules of every artifact, and overrides by artifact name ("onnx-fp16", "reference")."""

    every: Rules = Rules()
    artifacts: Mapping[str, Rules] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)

    def with_(self, rules: Rules) -> GateRules:
        """These rules, overridden by the bounds in `rules`, also for single artifacts."""
        of_each = {name: held.with_(rules) for name, held in self.artifacts.items()}
        return GateRules(self.every.with_(rules), of_each)

    def of(self, artifact: str) -> Rules:
        return self.every.with_(self.artifacts.get(artifact, Rules()))

    def check_names(self, names: Iterable[str]) -> None:
        """Raise UsageError unless each artifact with rules is among `names`."""
        _check_keys(self.artifacts, list(names), "the rules' artifacts")


def read_rules(path: str | os.PathLike[str]) -> GateRules:
    """Read a TOML file of rules: general ones at the top, overrides in tables such as [artifacts."onnx-fp16"].

    Raises:
        InputError: If the file cannot be read, or is not UTF-8 TOML of at most 16 MiB.
        UsageError: If a key is unknown, or a value is invalid.
    """
    file = Path(path)
    try:
        text = read_regular(file).decode("utf-8-sig")
    except OSError as exc:
        raise InputError(f"{file} cannot be read: {exc.strerror}", where=file, found=exc.strerror) from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{file} is not in UTF-8: {exc}", where=file, expected="UTF-8") from exc
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:  # tomllib's own, an integer of thousands of digits, deep nesting
        raise InputError(f"{file} is not TOML: {first_line(exc)}", where=file, expected="TOML") from exc
    artifacts = data.pop("artifacts", {})
    if not isinstance(artifacts, dict) or not all(isinstance(table, dict) for table in artifacts.values()):
        raise UsageError(
            f'artifacts in {file} are tables such as [artifacts."onnx-fp16"], got {shown(artifacts)}',
            what="artifacts", where=file, found=artifacts,
        )  # fmt: skip
    _check_keys(data, [*(field.name for field in dataclasses.fields(Rules)), "artifacts"], str(file))
    of_each = {name: Rules.from_dict(table, f"{name} in {file}") for name, table in artifacts.items()}
    return GateRules(Rules.from_dict(data, str(file)), of_each)


def _check_keys(data: Iterable[str], known: list[str], where: str) -> None:
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
            raise UsageError(f"unknown key {shown(key, 80)} in {where}", what=key, where=where, hint=hint)
