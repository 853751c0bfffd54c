"""Expect an error by its type and fields, whatever its message says."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from vitdeploy.errors import VitDeployError

if TYPE_CHECKING:
    from collections.abc import Iterator

E = TypeVar("E", bound=VitDeployError)


@contextlib.contextmanager
def raises(error: type[E], **fields: object) -> Iterator[pytest.ExceptionInfo[E]]:
    """The block must raise exactly `error`, in a message of one line, with these fields.

    A path equals its text; a compiled pattern is searched for in the text of the field.
    """
    with pytest.raises(error) as caught:
        yield caught
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    found = {name: getattr(caught.value, name) for name in fields}
    assert {name: _comparable(value, fields[name]) for name, value in found.items()} == {
        name: _comparable(value, value) for name, value in fields.items()
    }


def _comparable(value: Any, expected: Any) -> Any:
    if isinstance(expected, re.Pattern):
        return expected if value is expected or expected.search(str(value)) else value
    return str(value) if isinstance(value, Path) else value
