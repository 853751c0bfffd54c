"""Fields of option values: default, range and help are stated once, for Python, the command line and the README."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from vitdeploy.errors import UsageError, shown
from vitdeploy.system.argument_types import check_type, hints_of

T = TypeVar("T")
_KEY = "option"


@dataclasses.dataclass(frozen=True)
class Option:
    """A field that users set.

    Attributes:
        help: One or two sentences.
        choices: The texts that it may have.
        typed_choices: The same on the command line, where Python has other forms too.
        limits: The smallest and the largest integer that it may be.
        path: Whether it is the path of a file or folder.
        names: Whether it is a tuple of texts; a list becomes one.
        read: Reads the text that was typed, where the type does not tell how.
        variants: Classes of its values by the name that each has on the command line.
        nested: The class of its value, whose fields are options of their own.
        typed: Its name on the command line, where it is another one.
        shared: Whether another class has the command line's option of that name.
        off: The name of a flag that makes it False.
        envvar: The environment variable that the command line reads instead.
        repeated: Whether it is given once for each item, not as a list with commas.
        metavar: Stands for its value in the command line's help.
        unset: The default in words, where that is None or empty.
        hints: What to do about a value that is no choice, by the value.
        group: Heading in the command line's help; by default the class's.
    """

    help: str
    choices: tuple[str, ...] = ()
    typed_choices: tuple[str, ...] = ()
    limits: tuple[int, int] | None = None
    path: bool = False
    names: bool = False
    read: Callable[[str], Any] | None = None
    variants: Mapping[str, Callable[[str], Any]] = dataclasses.field(default_factory=dict)
    nested: type | None = None
    typed: str | None = None
    shared: bool = False
    off: str | None = None
    envvar: str | None = None
    repeated: bool = False
    metavar: str | None = None
    unset: str | None = None
    hints: Mapping[str, str] = dataclasses.field(default_factory=dict)
    group: str | None = None

    def problem(self, value: Any) -> str | None:
        """The values that are right, where this one is not."""
        if self.choices and (not isinstance(value, str) or value not in self.choices):
            return f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else self.choices[0]
        if self.limits and not (type(value) is int and self.limits[0] <= value <= self.limits[1]):
            return f"an integer from {self.limits[0]} to {self.limits[1]}"
        if self.path and not (isinstance(value, (str, os.PathLike)) and os.fspath(value)):
            return "a path"
        if self.names and not (isinstance(value, tuple) and all(isinstance(item, str) for item in value)):
            return "a list of names"
        return None


def option(default: Any, text: str, *, secret: bool = False, **settings: Any) -> Any:
    """A dataclass field with its default, its help, and the other attributes of `Option`; no repr shows a secret."""
    return dataclasses.field(default=default, repr=not secret, metadata={_KEY: Option(text, **settings)})


def options_in(kind: Any) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """The fields of a class, or of a value, that users set."""
    return ((field, field.metadata[_KEY]) for field in dataclasses.fields(kind) if _KEY in field.metadata)


def check_options(value: Any, *, skip: str | None = None) -> None:
    """Make lists of names tuples, and raise UsageError for the first field that is wrong, but for the one to skip."""
    kind: Any = type(value)
    hints = hints_of(kind)
    for field, details in options_in(value):
        name, given = field.name, getattr(value, field.name)
        if details.names and isinstance(given, list):
            given = tuple(given)
            object.__setattr__(value, name, given)
        if name == skip or (given is None and field.default is None):
            continue
        problem = details.problem(given)
        if problem is not None:
            hint = details.hints.get(given) if isinstance(given, str) else None
            raise UsageError(f"{name} takes {problem}, got {shown(given, 80)}", what=name, found=given, hint=hint)
        if details.read is None and not (details.choices or details.variants):
            check_type(name, given, hints[name], secret=not field.repr)


def changed(value: Any) -> dict[str, Any]:
    """The fields of an option value that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(value)}
    return {name: getattr(value, name) for name in defaults if getattr(value, name) != defaults[name]}


def default_text(field: dataclasses.Field[Any], details: Option) -> str | None:
    """The default of a field in words; None where it is plain that there is none."""
    if details.unset is not None or field.default in (None, (), "", dataclasses.MISSING):
        return details.unset
    return "off" if field.default is False else "on" if field.default is True else str(field.default)


def described(kind: type[T]) -> type[T]:
    """Add the help of each field to the docstring of its class."""
    if kind.__doc__ is not None:
        texts = (f"{field.name}: {details.help}{_ending(field, details)}" for field, details in options_in(kind))
        kind.__doc__ = "\n        ".join([f"{kind.__doc__.rstrip()}\n\n    Attributes:", *texts]) + "\n"
    return kind


def _ending(field: dataclasses.Field[Any], details: Option) -> str:
    default = default_text(field, details)
    choices = f" One of {', '.join(details.choices)}." if len(details.choices) > 1 else ""
    return choices + ("" if default is None else f" Default: {default}.")
