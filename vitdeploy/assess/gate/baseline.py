"""Baseline of a gate: an accepted evaluation, in a file that is reviewed like code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitdeploy._version import __version__
from vitdeploy.assess.gate.retrieval import FIGURE_TEXTS, RETRIEVAL_FIGURES, AcceptedRetrieval
from vitdeploy.assess.metrics.features import CLS, MEAN
from vitdeploy.bundle.manifest import CONFIG
from vitdeploy.errors import InputError
from vitdeploy.files.json_text import strict_json
from vitdeploy.files.output_files import write_output
from vitdeploy.files.regular_file import read_regular

if TYPE_CHECKING:
    import os
    from collections.abc import Collection, Iterable, Iterator, Mapping

    from vitdeploy.assess.compare.vector_run import VectorRun
    from vitdeploy.assess.evaluate.embeddings import EmbeddingEvaluation
    from vitdeploy.assess.evaluate.evaluate import Evaluation
    from vitdeploy.assess.metrics.features import Nearness
    from vitdeploy.bundle.bundle import Bundle

SCHEMA_VERSION = 1
_MOST_IMAGES = 2**31
_MOST_NAMED = 5
_RESTORE = "restore it, or remove it and create it again with --update"
FIGURES = ("mean_cosine", "p5_cosine", "min_cosine", "neighbour_agreement")


@dataclasses.dataclass(frozen=True)
class Baseline:
    """An accepted evaluation.

    Attributes:
        images: Number of images.
        data_sha256: SHA-256 of the images and their labels.
        labels_sha256: SHA-256 of the model's class names.
        processor: SHA-256 of each image processor file, by name.
        weights: SHA-256 of each weights file, by name.
        wrong: Misclassified images by backend ("onnxruntime fp32"), sorted.
        tools: Versions of the tools that ran, by name.
        nearness: Measured figures of `vitdeploy.assess.metrics.features.Nearness`, by backend and output.
        retrieval: The neighbours' classes; None for a classifier, or images without labels.
    """

    images: int
    data_sha256: str
    labels_sha256: str
    processor: Mapping[str, str]
    weights: Mapping[str, str]
    wrong: Mapping[str, tuple[str, ...]]
    tools: Mapping[str, str]
    nearness: Mapping[str, Mapping[str, Mapping[str, float]]] = dataclasses.field(default_factory=dict)
    retrieval: AcceptedRetrieval | None = None

    @classmethod
    def of_embeddings(cls, bundle: Bundle, evaluation: EmbeddingEvaluation, runs: Iterable[VectorRun]) -> Baseline:
        """The baseline of a model without classes on labelled images; skipped backends are omitted."""
        measured = cls.of_vectors(bundle, evaluation.data_sha256, len(evaluation.images), runs)
        ran = [result for result in evaluation.results if result.skipped is None]
        tools = {result.name: str(result.details["engine"]) for result in ran if "engine" in result.details}
        return dataclasses.replace(
            measured, tools={**tools, **measured.tools}, retrieval=AcceptedRetrieval.of(evaluation)
        )

    @classmethod
    def of_vectors(cls, bundle: Bundle, data_sha256: str, images: int, runs: Iterable[VectorRun]) -> Baseline:
        """The baseline of a model without classes; skipped backends are omitted."""
        ran = [run for run in runs if run.skipped is None]
        tools = {"vitdeploy": __version__, **{run.name: run.engine for run in ran}}
        labels, processor = labels_sha256(bundle), processor_sha256(bundle)
        return cls(images, data_sha256, labels, processor, bundle.manifest.weights, {}, tools).with_vectors(ran)

    def with_vectors(self, runs: Iterable[VectorRun]) -> Baseline:
        """The same baseline with these runs' figures."""
        return dataclasses.replace(
            self, nearness={run.name: {near.output: _figures(near) for near in run.nearness} for run in runs}
        )

    @property
    def subjects(self) -> list[str]:
        """Its backends, sorted."""
        return sorted({*self.wrong, *self.nearness, *(self.retrieval.wrong if self.retrieval else ())})

    @classmethod
    def of(cls, bundle: Bundle, evaluation: Evaluation) -> Baseline:
        """The baseline of an evaluation; skipped backends are omitted."""
        ran = [result for result in evaluation.results if result.skipped is None]
        tools = {result.name: str(result.details["engine"]) for result in ran if "engine" in result.details}
        return cls(
            images=len(evaluation.images),
            data_sha256=evaluation.data_sha256,
            labels_sha256=_sha256(list(bundle.read_config().labels)),
            processor=processor_sha256(bundle),
            weights=bundle.manifest.weights,
            wrong={result.name: tuple(sorted(evaluation.top1(result).wrong)) for result in ran},
            tools={"vitdeploy": __version__, **tools},
        )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Baseline:
        """Read a file of `write`; InputError if it is missing or not a baseline."""
        file = Path(path)
        try:
            data = strict_json(read_regular(file))
            _check_integer(data["schema_version"], SCHEMA_VERSION, SCHEMA_VERSION, "schema_version")
            images = data["data"]["images"]
            _check_integer(images, 1, _MOST_IMAGES, "images")
            baseline = cls(
                images=images,
                data_sha256=_digest(data["data"]["sha256"]),
                labels_sha256=_digest(data["model"]["labels_sha256"]),
                processor={str(name): _digest(value) for name, value in data["model"]["processor_sha256"].items()},
                weights={str(name): _digest(value) for name, value in data["model"]["weights_sha256"].items()},
                wrong={str(name): _wrong(row, images, name) for name, row in data["backends"].items()},
                tools={str(name): str(value) for name, value in data["tools"].items()},
                nearness={
                    str(name): {str(output): _cosines(row) for output, row in of.items()}
                    for name, of in data.get("nearness", {}).items()
                },
                retrieval=(
                    AcceptedRetrieval.from_dict(data["retrieval"], images, _wrong) if "retrieval" in data else None
                ),
            )
        except FileNotFoundError as exc:
            raise InputError(f"{file} not found", what="baseline", where=file, hint="create it with --update") from exc
        except OSError as exc:
            raise InputError(f"{file} cannot be read: {exc.strerror}", where=file, found=exc.strerror) from exc
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise InputError(
                f"{file} is not a valid baseline: {type(exc).__name__} {exc}", where=file, expected="a baseline",
                found=exc, hint=_RESTORE,
            ) from exc  # fmt: skip
        return baseline

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file atomically (OutputError); equal baselines give equal bytes."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False)
        write_output(Path(path), (text + "\n").encode("utf-8", "backslashreplace"))  # file names may not be UTF-8

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
            **({"nearness": {name: dict(of) for name, of in self.nearness.items()}} if self.nearness else {}),
            **({"retrieval": self.retrieval.to_dict(self.images)} if self.retrieval else {}),
        }

    def disagreement(self, first: str, second: str) -> float:
        """Share of images that exactly one of two backends classified correctly; 0 if one is missing."""
        if first not in self.wrong or second not in self.wrong:
            return 0.0
        return len({*self.wrong[first]} ^ {*self.wrong[second]}) / self.images

    def check_images(self, images: Collection[str], file: str | os.PathLike[str]) -> None:
        """Raise InputError if it names an image outside these, as a hand-edited file may."""
        figures = self.retrieval.wrong if self.retrieval else {}
        listed = [*self.wrong.items(), *((name, names) for name, of in figures.items() for names in of.values())]
        for backend, names in listed:
            unknown = sorted(set(names).difference(images))
            if unknown:
                raise InputError(
                    f"{file}: {backend} names {unknown[0]!r:.80}, which is not among the data",
                    what=backend, where=file, found=unknown[0], hint=_RESTORE,
                )  # fmt: skip

    def changes(self, new: Baseline) -> tuple[str, ...]:
        """Differences of `new` from this baseline, one line each."""
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
        lines += _changes_of(self.wrong, new.wrong, (self.images, new.images))
        if self.retrieval is not None and new.retrieval is not None:
            if self.retrieval.neighbours != new.retrieval.neighbours:
                lines.append(f"neighbours: {self.retrieval.neighbours} -> {new.retrieval.neighbours}")
            for figure in RETRIEVAL_FIGURES:
                old, now = (
                    {name: figures[figure] for name, figures in of.wrong.items()}
                    for of in (self.retrieval, new.retrieval)
                )
                lines += _changes_of(old, now, (self.images, new.images), f", {FIGURE_TEXTS[figure]}")
        elif (self.retrieval is None) != (new.retrieval is None):
            lines.append(f"kNN accuracy and recall: {'no longer ' if self.retrieval else ''}measured")
        for name in sorted({*self.nearness, *new.nearness}):
            lines.extend(self._changes_of_vectors(name, new))
        return tuple(lines)

    def _changes_of_vectors(self, name: str, new: Baseline) -> list[str]:
        if name not in self.nearness or name not in new.nearness:
            return [f"{name}: vectors {'no longer ' if name in self.nearness else ''}measured"]
        before, after = self.nearness[name], new.nearness[name]
        if CLS in before and MEAN in after:  # of a version that took the first patch for the class token
            return [f"{name}: the model has no class token and is judged by {MEAN} now; accept it with --update"]
        lines = []
        for output in sorted({*before, *after}):
            old, now = (of.get(output, {}) for of in (before, after))
            lines += [
                f"{name}: {output}: {figure} {old.get(figure, 'none')} -> {now.get(figure, 'none')}"
                for figure in FIGURES
                if old.get(figure) != now.get(figure)
            ]
        return lines


def _changes_of(
    before: Mapping[str, tuple[str, ...]], after: Mapping[str, tuple[str, ...]], images: tuple[int, int], what: str = ""
) -> Iterator[str]:
    """Changes of the images that each backend has wrong, one line each; `images` are the numbers before and after."""
    for name in sorted({*before, *after}):
        if name not in after or name not in before:
            yield f"{name}{what}: {'removed' if name in before else 'added'}"
            continue
        old, now = {*before[name]}, {*after[name]}
        if old == now:
            continue
        line = f"{name}{what}: {images[0] - len(old)} -> {images[1] - len(now)} correct"
        for word, names in (("now wrong", sorted(now - old)), ("now right", sorted(old - now))):
            if names:
                more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
                line += f"; {word}: {', '.join(names[:_MOST_NAMED])}{more}"
        yield line


def labels_sha256(bundle: Bundle) -> str:
    """SHA-256 of the class names, in the order of the logits."""
    return _sha256(list(bundle.read_config().labels))


def processor_sha256(bundle: Bundle) -> dict[str, str]:
    """SHA-256 of the parsed content of each image processor file."""
    files = bundle.read_config().files
    return {name: _sha256(json.loads(content)) for name, content in files.items() if name != CONFIG}


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _check_integer(value: Any, low: int, high: int, name: str) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} is {value!r:.40}, not an integer from {low} to {high}")


def _wrong(row: Mapping[str, Any], images: int, backend: str) -> tuple[str, ...]:
    """Misclassified images of a backend, from its row in the file."""
    names = row["wrong"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"wrong of {backend} is {names!r:.40}, not a list of names")
    if len(set(names)) < len(names) or len(names) > images:
        raise ValueError(f"{backend} names an image twice, or more than {images} images")
    _check_integer(row["correct"], images - len(names), images - len(names), f"correct of {backend}")
    return tuple(names)


def _figures(near: Nearness) -> dict[str, float]:
    """Figures rounded to six digits, on which two machines agree."""
    figures = {name: getattr(near, name) for name in FIGURES}
    return {name: round(value, 6) for name, value in figures.items() if value is not None}


def _cosines(row: Mapping[str, Any]) -> dict[str, float]:
    for name, value in row.items():
        if (
            name not in FIGURES
            or not isinstance(value, (int, float))
            or isinstance(value, bool)
            or not -1 <= value <= 1
        ):
            raise ValueError(f"expected {', '.join(FIGURES)} from -1 to 1, got {name!r:.40} {value!r:.40}")
    return {name: float(value) for name, value in row.items()}


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise ValueError(f"expected a SHA-256 in hexadecimal, got {value!r:.80}")
    return value


def _short(value: str) -> str:
    return f"{value[:12]}…" if re.fullmatch("[0-9a-f]{64}", value) else value
