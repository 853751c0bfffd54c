"""Refuse arguments and option values of a wrong type, by name, before anything runs."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vitdeploy.errors import UsageError, shown

F = TypeVar("F", bound=Callable[..., Any])

_NUMBERS = {int: numbers.Integral, float: numbers.Real}  # numpy's too
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a string",
    os.PathLike: "a path",
    Sequence: "a list",
    Mapping: "a dictionary",
    dict: "a dictionary",
}


def typed(function: F) -> F:
    """Check each call's arguments against the annotations; UsageError for the first that does not fit."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        hints = hints_of(function)
        try:
            arguments = signature.bind(*args, **kwargs).arguments
        except TypeError:
            return function(*args, **kwargs)  # raises it with the function's name
        for name, value in arguments.items():
            if name in hints:
                check_type(name, value, hints[name], secret=name == "token")
        return function(*args, **kwargs)

    return cast("F", checked)


@functools.cache
def hints_of(annotated: Any) -> dict[str, Any]:
    """Types in the annotations of a function or class."""
    return get_type_hints(annotated)


def check_type(name: str, value: object, hint: Any, *, secret: bool = False) -> None:
    """Raise UsageError unless the value fits the annotation; for a secret, the message has only its type."""
    if not _fits(value, hint):
        wrong = type(value) if secret else value
        expected = _in_words(hint)
        raise UsageError(f"{name} takes {expected}, got {shown(wrong, 80)}", what=name, expected=expected, found=wrong)


def check_fields(value: Any) -> None:
    """Raise UsageError for the first field of a dataclass's instance that does not fit its annotation."""
    kind: Any = type(value)
    hints = hints_of(kind)
    for field in dataclasses.fields(value):
        check_type(field.name, getattr(value, field.name), hints[field.name])


def _fits(value: object, hint: Any) -> bool:
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if kind is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if kind in _NUMBERS:
        return isinstance(value, _NUMBERS[kind]) and not isinstance(value, bool)
    if kind is Sequence:
        is_list = isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))
        return is_list and all(_fits(item, parts[0]) for item in cast("Sequence[object]", value))
    if kind is Mapping:
        return isinstance(value, Mapping) and all(_fits(item, parts[1]) for item in value.values())
    return kind is Any or isinstance(value, kind)


def _in_words(hint: Any) -> str:
    """The annotation as text, such as "a path or Quantization"."""
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    kinds = [get_origin(part) or part for part in parts if part is not type(None)]
    if os.PathLike in kinds and str in kinds:
        kinds.remove(str)
    words = [" or ".join(map(repr, get_args(part))) for part in parts if get_origin(part) is Literal]
    return " or ".join([*(_WORDS.get(kind, kind.__name__) for kind in kinds if kind is not Literal), *words])
