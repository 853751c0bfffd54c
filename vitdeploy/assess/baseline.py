"""What a gate compares with: an earlier evaluation, in a file that is reviewed like code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy import __version__
from vitdeploy.atomic import write_file
from vitdeploy.errors import InputError
from vitdeploy.manifest import CONFIG

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from vitdeploy.assess.evaluate import Evaluation
    from vitdeploy.bundle import Bundle

SCHEMA_VERSION = 1
_MOST_NAMED = 5


@dataclasses.dataclass(frozen=True)
class Baseline:
    """An evaluation that was accepted.

    Attributes:
        images: how many there were.
        data_sha256: of the images and their labels.
        labels_sha256: of the model's class names.
        processor: the SHA-256 of each of the image processor's files, by name.
        weights: the SHA-256 of each file of the model's weights, by name.
        wrong: by backend ("onnxruntime fp32"), the images that it did not classify correctly, sorted.
        tools: versions of what ran, by name.
    """

    images: int
    data_sha256: str
    labels_sha256: str
    processor: Mapping[str, str]
    weights: Mapping[str, str]
    wrong: Mapping[str, tuple[str, ...]]
    tools: Mapping[str, str]

    @classmethod
    def of(cls, bundle: Bundle, evaluation: Evaluation) -> Baseline:
        """What is kept of an evaluation; backends that were skipped are left out."""
        ran = [result for result in evaluation.results if result.skipped is None]
        tools = {result.name: str(result.details["engine"]) for result in ran if "engine" in result.details}
        return cls(
            images=len(evaluation.images),
            data_sha256=evaluation.data_sha256,
            labels_sha256=_sha256(list(bundle.labels)),
            processor=processor_sha256(bundle),
            weights=bundle.manifest.weights,
            wrong={result.name: tuple(sorted(evaluation.top1(result).wrong)) for result in ran},
            tools={"vitdeploy": __version__, **tools},
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Baseline:
        """Read what `write` wrote.

        Raises:
            InputError: there is no such file, or it is no baseline.
        """
        file = Path(path)
        try:
            data = json.loads(file.read_bytes())
            if data["schema_version"] != SCHEMA_VERSION:
                raise ValueError(f"schema_version is {data['schema_version']!r}, not {SCHEMA_VERSION}")
            wrong = {str(name): tuple(map(str, row["wrong"])) for name, row in data["backends"].items()}
            baseline = cls(
                images=int(data["data"]["images"]),
                data_sha256=_digest(data["data"]["sha256"]),
                labels_sha256=_digest(data["model"]["labels_sha256"]),
                processor={str(name): _digest(value) for name, value in data["model"]["processor_sha256"].items()},
                weights={str(name): _digest(value) for name, value in data["model"]["weights_sha256"].items()},
                wrong=wrong,
                tools={str(name): str(value) for name, value in data["tools"].items()},
            )
            for name, names in wrong.items():
                count = data["backends"][name]["correct"]
                if count != baseline.images - len(names) or len(set(names)) < len(names):
                    raise ValueError(f"{name} must have {baseline.images - len(names)} correct images, has {count}")
        except FileNotFoundError as exc:
            raise InputError(f"{file} must be a baseline, is not there; make it with --update") from exc
        except OSError as exc:
            raise InputError(f"{file} must be a baseline that can be read: {exc.strerror}") from exc
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise InputError(
                f"{file} must be a baseline: {type(exc).__name__} {exc}; restore it, or remove it and make it anew "
                f"with --update"
            ) from exc
        return baseline

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, whole or not at all; equal baselines give equal bytes.

        Raises:
            OutputError: it cannot be written.
        """
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False)
        write_file(Path(path), (text + "\n").encode("utf-8", "backslashreplace"))  # a file name may be no UTF-8

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema_version": SCHEMA_VERSION,
            "data": {"images": self.images, "sha256": self.data_sha256},
            "model": {
                "labels_sha256": self.labels_sha256,
                "processor_sha256": dict(self.processor),
                "weights_sha256": dict(self.weights),
            },
            "backends": {
                name: {"correct": self.images - len(names), "wrong": list(names)} for name, names in self.wrong.items()
            },
            "tools": dict(self.tools),
        }

    def disagreement(self, first: str, second: str) -> float:
        """The share of images that exactly one of two backends classified correctly; 0 where one is not there."""
        if first not in self.wrong or second not in self.wrong:
            return 0.0
        return len({*self.wrong[first]} ^ {*self.wrong[second]}) / self.images

    def changes(self, new: Baseline) -> tuple[str, ...]:
        """What is otherwise in `new`, a line each."""
        lines = []
        if (self.images, self.data_sha256) != (new.images, new.data_sha256):
            lines.append(f"data: {_short(self.data_sha256)} ({self.images} images) -> {_short(new.data_sha256)} "
                         f"({new.images} images)")  # fmt: skip
        if self.labels_sha256 != new.labels_sha256:
            lines.append(f"labels: {_short(self.labels_sha256)} -> {_short(new.labels_sha256)}")
        for what in ("processor", "weights", "tools"):
            old_values, new_values = getattr(self, what), getattr(new, what)
            for name in sorted({*old_values, *new_values}):
                old, now = (values.get(name, "none") for values in (old_values, new_values))
                if old != now:
                    lines.append(f"{what}: {name}: {_short(old)} -> {_short(now)}")
        for name in sorted({*self.wrong, *new.wrong}):
            lines.extend(self._changes_of(name, new))
        return tuple(lines)

    def _changes_of(self, name: str, new: Baseline) -> list[str]:
        if name not in new.wrong or name not in self.wrong:
            return [f"{name}: {'removed' if name in self.wrong else 'added'}"]
        old, now = {*self.wrong[name]}, {*new.wrong[name]}
        if old == now:
            return []
        line = f"{name}: {self.images - len(old)} -> {new.images - len(now)} correct"
        for word, names in (("now wrong", sorted(now - old)), ("now right", sorted(old - now))):
            if names:
                more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
                line += f"; {word}: {', '.join(names[:_MOST_NAMED])}{more}"
        return [line]


def labels_sha256(bundle: Bundle) -> str:
    """Of the class names, in the order of the logits."""
    return _sha256(list(bundle.labels))


def processor_sha256(bundle: Bundle) -> dict[str, str]:
    """Of the content of each of the image processor's files, however it is laid out."""
    files = bundle.verified_configs()
    return {name: _sha256(json.loads(path.read_bytes())) for name, path in files.items() if name != CONFIG}


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"expected a SHA-256 in hexadecimal, got {value!r:.80}")
    return value


def _short(value: str) -> str:
    return f"{value[:12]}…" if re.fullmatch("[0-9a-f]{64}", value) else value
