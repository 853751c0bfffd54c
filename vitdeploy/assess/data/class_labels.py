"""Label matcher: from a data set's labels to a model's classes."""

from __future__ import annotations

import collections
import difflib
import functools
import re
import unicodedata
from typing import TYPE_CHECKING

from vitdeploy.assess.data.imagenet import in_ilsvrc_order, is_wordnet_id, synset_of, synsets
from vitdeploy.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

BY_NAME, BY_SYNONYM, BY_INDEX, BY_POSITION = "by name", "by synonym", "by index", "by position"
BY_WORDNET_ID, BY_ILSVRC_ORDER = "by WordNet id", "by WordNet id, in the order of ILSVRC"
BY_NUMBER = "by number"
OWN = "its own"  # a data set's labels, for a model without classes
_NUMBERED = re.compile(r"(?P<name>.+?)[ _-]?[(]?[0-9]+[)]?")  # "crane2", "crane (2)"
_NUMBER = re.compile(r"[0-9]+(?:[.]0+)?(?![.]?[0-9])")  # "3", and "3.0" in a column of floats
_INSTEAD = "rename it, or list the images in a CSV file with class indices"


class Classes:
    """A model's classes, for matching with a data set's labels.

    1. A label matches the class with exactly that name.
    2. Else the class that has the whole label as a synonym. Synonyms are the comma-separated parts of a name, as in
       ImageNet's "tench, Tinca tinca".
    3. Else the class that has every part of the label as a synonym.
    4. Else, for an integer, the class that has the same number as a name or a synonym: "07" matches "7".
    5. Else, for the WordNet id of one of ILSVRC's 1,000 classes, the class with that synset, see `synset_of`. If the
       model has these classes in ILSVRC's order, or 1,000 classes without names, it is the class at the synset's
       position. A class named by its WordNet id has the synset's words as synonyms.

    Text is compared in Unicode form NFC without surrounding whitespace; letter case and underscores matter. A label
    that matches no class, or several, is refused.

    Attributes:
        names: Class names, in the order of the logits.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._exact: dict[str, list[int]] = {}
        self._synonyms: dict[str, list[int]] = {}
        self._parts = [_synonyms(name) for name in self.names]
        for index, (name, parts) in enumerate(zip(self.names, self._parts, strict=True)):
            self._exact.setdefault(_plain(name), []).append(index)
            for synonym in parts:
                self._synonyms.setdefault(synonym, []).append(index)

    def find(self, label: str) -> list[int]:
        """Indices of all classes that match a label."""
        return self._find(label)[0]

    def match(self, labels: Iterable[str], source: str) -> tuple[dict[str, int], str]:
        """The class index of each label, and the matching rule.

        Raises:
            InputError: If a label matches no class or several, or two labels match the same one.
        """
        index_of, rules = {}, set()
        for label in labels:
            indices, rule = self._find(label)
            if not indices:
                raise self._unknown(label, source)
            if len(indices) > 1:
                raise self._ambiguous(label, indices, source)
            index_of[label] = indices[0]
            rules.add(rule)
        self._check_one_label_a_class(index_of, source)
        order = (BY_ILSVRC_ORDER, BY_WORDNET_ID, BY_NUMBER, BY_SYNONYM)
        return index_of, next((rule for rule in order if rule in rules), BY_NAME)

    def match_any(self, labels: Sequence[str], source: str) -> tuple[dict[str, int], str]:
        """As `match`; but if no label matches a class and all are integers, they are indices.

        This does not apply if the class names are numbers, or the same words with a number, such as "grade 1" to "grade
        5": a label might mean that number.

        Raises:
            InputError: As `match`, or if a number is not a class index.
        """
        if (
            not all(_is_index(label) for label in labels)
            or any(self.find(label) for label in labels)
            or self._numbers
            or self._differently_numbered
        ):
            return self.match(labels, source)
        index_of = {label: int(label) for label in labels}
        self.check_indices(index_of.values(), source)
        self._check_one_label_a_class(index_of, source)
        return index_of, BY_INDEX

    def match_list(self, labels: Sequence[str], source: str) -> tuple[list[int], str]:
        """Match a data set's complete, ordered list of class names.

        If the labels do not match one class each, but the list has as many labels as the model has classes and each
        label may mean the class at its position, then it does. Such lists have two cranes, or the first word of both
        "maillot" and "maillot, tank suit".

        Raises:
            InputError: As `match`, or if two labels are equal and do not match by position.
        """
        try:
            most, count = collections.Counter(labels).most_common(1)[0] if labels else ("", 0)
            if count > 1:
                raise InputError(
                    f"{source}: {count} classes are named {most!r:.80}",
                    where=source, what="class names", found=most, hint="give each class its own name",
                )  # fmt: skip
            index_of, rule = self.match(labels, source)
        except InputError:
            if len(labels) != len(self.names) or not all(
                self._may_be_at(index, labels) for index in range(len(labels))
            ):
                raise
            return list(range(len(labels))), BY_POSITION
        return [index_of[label] for label in labels], rule

    def check_indices(self, indices: Iterable[int], source: str) -> None:
        """Raise InputError unless each is a class index."""
        for index in indices:
            if not 0 <= index < len(self.names):
                last = len(self.names) - 1
                raise InputError(
                    f"{source}: the label {index} is not a class index (0 to {last})",
                    where=source, what="label", expected=range(last + 1), found=index,
                )  # fmt: skip

    @functools.cached_property
    def _numbers(self) -> Mapping[int, list[int]]:
        """Indices of the classes that have an integer as a name or a synonym."""
        by_number: dict[int, list[int]] = {}
        for synonym in sorted({*self._exact, *self._synonyms}):
            if _is_index(synonym):
                indices = by_number.setdefault(int(synonym), [])
                same = self._exact.get(synonym) or self._synonyms[synonym]
                indices += [index for index in same if index not in indices]
        return by_number

    @functools.cached_property
    def _differently_numbered(self) -> bool:
        """True if all names are the same words with a number that is not the index."""
        numbers = [_NUMBER.findall(name) for name in self.names]
        if len({_NUMBER.sub("#", name) for name in self.names}) != 1 or any(len(group) != 1 for group in numbers):
            return False
        return any(float(number) != index for index, (number,) in enumerate(numbers))

    def match_indices(self, indices: Collection[int], source: str) -> None:
        """Check a data set's unnamed integers: InputError unless each is an index, and in no other class's name."""
        self.check_indices(indices, source)
        for index in indices:
            if self._differently_numbered or (self._numbers and self._numbers.get(index) != [index]):
                raise InputError(
                    f"{source}: the label {index} may be an index or a number in a class's name ({self})",
                    where=source, what="label", found=index, hint="use the names of the classes as labels",
                )  # fmt: skip

    def _find(self, label: str) -> tuple[list[int], str]:
        """Indices of all classes that match a label, and the rule."""
        name = _plain(label)
        if name in self._exact:
            same = [index for index in self._exact[name] if self.names[index] == label]
            return same or self._exact[name], BY_NAME
        if name in self._synonyms:
            return self._synonyms[name], BY_SYNONYM
        parts = _parts(label)
        if parts:
            indices = sorted(set.intersection(*(set(self._synonyms.get(part, ())) for part in parts)))
            if indices:
                return indices, BY_SYNONYM
        if _is_index(label):
            return self._numbers.get(int(name), []), BY_NUMBER
        if is_wordnet_id(name) and name in synsets():
            if self._ilsvrc_order is not None:
                return [list(synsets()).index(name)], self._ilsvrc_order
            return [index for index, parts in enumerate(self._parts) if synset_of(parts) == name], BY_WORDNET_ID
        return [], BY_NAME

    @functools.cached_property
    def _ilsvrc_order(self) -> str | None:
        """The rule by which a WordNet id gives a position; None if it does not."""
        if in_ilsvrc_order(self._parts):
            return BY_WORDNET_ID
        unnamed = tuple(f"LABEL_{index}" for index in range(len(synsets())))
        return BY_ILSVRC_ORDER if self.names == unnamed else None

    def _may_be_at(self, index: int, labels: Sequence[str]) -> bool:
        """True if the label at a position of a list may mean the class there.

        It may if all its parts are the class's synonyms, or all the class's synonyms are its parts; but not if it is
        the name of another class at whose position the list has another label. Libraries with unique names append a
        number to the second; after a synonym shared by several classes, that number is ignored.
        """
        label = labels[index]
        classes, same = self.find(label), self._exact.get(_plain(label), [])
        if index in classes:
            return True
        if any(labels[other] != label for other in same):
            return False
        parts = _parts(label)
        if parts and (parts <= self._parts[index] or self._parts[index] <= parts):
            return True
        numbered = None if classes else _NUMBERED.fullmatch(_plain(label))
        several = self._synonyms.get(numbered["name"], []) if numbered else []
        return len(several) > 1 and index in several

    def _check_one_label_a_class(self, index_of: Mapping[str, int], source: str) -> None:
        label_of: dict[int, str] = {}
        for label, index in index_of.items():
            if index in label_of:
                both, name = (label_of[index], label), self.names[index]
                raise InputError(
                    f"{source}: the labels {both[0]!r} and {label!r} both mean class {index} ({name!r:.80})",
                    where=source, what="labels", found=both, hint="use one of them",
                )  # fmt: skip
            label_of[index] = label

    def _unknown(self, label: str, source: str) -> InputError:
        name, near = _plain(label), []
        if is_wordnet_id(name):
            words = ", ".join(sorted(synsets().get(name, ()))) or "not in ILSVRC"
            problem, hint = f"the WordNet id {label!r} ({words}) is no class of the model ({self})", _INSTEAD
        else:
            spelled = {text.casefold(): text for text in (*self._synonyms, *self._exact)}
            near = [spelled[text] for text in difflib.get_close_matches(name.casefold(), spelled, n=3)]
            nearest = f"the nearest are {', '.join(map(repr, near))}" if near else f"it has {self}"
            problem, hint = f"{label!r:.80} is no class of the model; {nearest}", _INSTEAD
            if _is_index(label) and (self._numbers or self._differently_numbered):
                problem = f"{label!r:.80} may be an index or a number in a class's name; {nearest}"
                hint = "use the names of the classes as labels"
        return InputError(f"{source}: {problem}", where=source, what="label", expected=near, found=label, hint=hint)

    def _ambiguous(self, label: str, indices: Sequence[int], source: str) -> InputError:
        classes = " or ".join(f"{index} ({self.names[index]!r:.80})" for index in indices[:5])
        return InputError(
            f"{source}: {label!r:.80} may mean class {classes}",
            where=source, what="label", expected=indices, found=label, hint=_INSTEAD,
        )  # fmt: skip

    def __str__(self) -> str:
        return ", ".join(self.names[:5]) + (", ..." if len(self.names) > 5 else "")


def _plain(name: str) -> str:
    """The text without changes by file systems and editors: Unicode forms, surrounding whitespace, a BOM."""
    return unicodedata.normalize("NFC", name).strip().strip("\ufeff").strip()


def _parts(name: str) -> frozenset[str]:
    return frozenset(_plain(part) for part in name.split(",")) - {""}


def _synonyms(name: str) -> frozenset[str]:
    """Synonyms: the parts of a class's name, or the words of the synset with this WordNet id."""
    words = synsets().get(_plain(name)) if is_wordnet_id(_plain(name)) else None
    return _parts(name) if words is None else words | {_plain(name)}


def _is_index(label: str) -> bool:
    plain = _plain(label)
    return plain.isascii() and plain.isdigit() and len(plain) < 10
