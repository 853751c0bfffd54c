"""Fields of option values: default, range and help, defined once for Python, the command line and the documentation."""

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
    """A user option: the metadata of a dataclass field.

    Attributes:
        help: Help text, one or two sentences.
        choices: Allowed texts.
        typed_choices: Allowed texts on the command line, if Python takes other types too.
        limits: Smallest and largest integer allowed.
        path: True for the path of a file or folder.
        names: True for a tuple of texts; a list becomes one.
        read: Parser of the command-line text, if the type does not define one.
        variants: Value classes, by their names on the command line.
        nested: Class of its value, whose fields are separate options.
        typed: Name on the command line, if different.
        shared: True if another class defines the command-line option of that name.
        off: Name of the flag that sets it to False.
        envvar: Environment variable that the command line reads if the option is not given.
        repeated: True if the option is repeated for each item, instead of a comma-separated list.
        metavar: Placeholder for the value in the command line's help.
        unset: Description of a default that is None or empty.
        hints: Remedies by invalid value.
        group: Heading in the command line's help. Default: the class's.
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
        """The valid values, if this one is invalid; else None."""
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
    """A dataclass field with a default, a help text and other attributes of `Option`; its repr omits a secret."""
    return dataclasses.field(default=default, repr=not secret, metadata={_KEY: Option(text, **settings)})


def options_in(kind: Any) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    """The user options of a class or value."""
    return ((field, field.metadata[_KEY]) for field in dataclasses.fields(kind) if _KEY in field.metadata)


def check_options(value: Any, *, skip: str | None = None) -> None:
    """Convert lists of names to tuples, and raise UsageError for the first invalid field, except the one to skip."""
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
    """Fields of an option value that differ from their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(value)}
    return {name: getattr(value, name) for name in defaults if getattr(value, name) != defaults[name]}


def default_text(field: dataclasses.Field[Any], details: Option) -> str | None:
    """Description of a field's default; None for an obvious one."""
    if details.unset is not None or field.default in (None, (), "", dataclasses.MISSING):
        return details.unset
    return "off" if field.default is False else "on" if field.default is True else str(field.default)


def described(kind: type[T]) -> type[T]:
    """Append the help of each field to the docstring of its class."""
    if kind.__doc__ is not None:
        texts = (f"{field.name}: {details.help}{_ending(field, details)}" for field, details in options_in(kind))
        kind.__doc__ = "\n        ".join([f"{kind.__doc__.rstrip()}\n\n    Attributes:", *texts]) + "\n"
    return kind


def _ending(field: dataclasses.Field[Any], details: Option) -> str:
    default = default_text(field, details)
    choices = f" One of {', '.join(details.choices)}." if len(details.choices) > 1 else ""
    return choices + ("" if default is None else f" Default: {default}.")
