"""Match the labels of a data set with the classes of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vitdeploy.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

BY_NAME, BY_SYNONYM, BY_INDEX = "by name", "by synonym", "by index"


class Classes:
    """The classes of a model, found by what a data set calls them.

    1. A label means the class of exactly that name.
    2. Where there is none, names are taken for synonyms with commas between them, as in ImageNet's "tench, Tinca
       tinca", and a label means the one class that has a synonym in common with it.
    3. Letter case, underscores and WordNet ids are not interpreted.

    Attributes:
        names: in the order of the logits.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._exact: dict[str, list[int]] = {}
        self._synonyms: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            self._exact.setdefault(name, []).append(index)
            for synonym in _synonyms(name):
                self._synonyms.setdefault(synonym, []).append(index)

    def find(self, label: str) -> list[int]:
        """The indices of all classes that the label may mean."""
        if label in self._exact:
            return self._exact[label]
        return sorted({index for synonym in _synonyms(label) for index in self._synonyms.get(synonym, ())})

    def match(self, labels: Iterable[str], source: str) -> dict[str, int]:
        """The index of each label's class.

        Raises:
            InputError: a label means no class or several, or two labels mean the same one.
        """
        found = {}
        for label in labels:
            indices = self.find(label)
            if not indices:
                raise InputError(f"{source} must label images with the model's classes ({self}), has {label!r}")
            if len(indices) > 1:
                raise InputError(f"{source} must have labels that mean one class, {label!r} means those of {indices}")
            found[label] = indices[0]
        self.rule(found, source)
        return found

    def match_any(self, labels: Sequence[str], source: str) -> tuple[dict[str, int], str]:
        """As `match`, and by which rule; where no label means a class and all are numbers, they are indices."""
        if any(self.find(label) for label in labels) or not all(_is_index(label) for label in labels):
            found = self.match(labels, source)
            return found, self.rule(found, source)
        found = {label: int(label) for label in labels}
        self.check_indices(found.values(), source)
        return found, BY_INDEX

    def check_indices(self, indices: Iterable[int], source: str) -> None:
        """Raise InputError unless each is the index of a class."""
        for index in indices:
            if not 0 <= index < len(self.names):
                raise InputError(
                    f"{source} must have labels from 0 to {len(self.names) - 1}, the model's classes, has {index}"
                )

    def rule(self, found: Mapping[str, int], source: str) -> str:
        """By which rule labels were matched; InputError where two of them mean one class."""
        label_of: dict[int, str] = {}
        for label, index in found.items():
            if index in label_of:
                raise InputError(
                    f"{source} must have one label for a class, {label_of[index]!r} and {label!r} both mean "
                    f"{self.names[index]!r}"
                )
            label_of[index] = label
        return BY_NAME if all(self.names[index] == label for label, index in found.items()) else BY_SYNONYM

    def __str__(self) -> str:
        return ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")


def _synonyms(name: str) -> set[str]:
    return {part.strip() for part in name.split(",")} - {""}


def _is_index(label: str) -> bool:
    return label.isascii() and label.isdigit() and len(label) < 10
