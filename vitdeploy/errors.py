"""Exceptions that vitdeploy raises, and their exit codes on the command line.

The tree, with the codes::

    VitDeployError                     1
    ├── CheckFailedError               1  a check ran and did not pass
    ├── NotFiniteError                 1  a model gave NaN or infinite values for an image
    ├── UsageError                     2  an option, argument or input tensor is not valid
    ├── UnavailableError               3  something this machine or network does not have
    │   ├── MissingDependencyError     3
    │   ├── DeviceError                3
    │   │   └── OtherHardwareError     3  an engine was built for another GPU
    │   ├── HubError                   3
    │   ├── ExhaustedError             3  memory, threads or open files ran out
    │   ├── OverloadedError            3  the queue of requests is full; later it may not be
    │   └── OutputError                3  the result could not be written (full disk, no permission)
    └── InputError                     4  absent, unreadable or corrupt input
        ├── CheckpointError            4
        ├── BundleError                4
        │   ├── BundleChangedError     4  it was replaced, or written to, while it was read
        │   └── NoReferenceError       4  it was packed without the reference's weights
        └── ImageError                 4

A message is one line: the problem and the remedy. Programs read an error's fields instead; see `VitDeployError`. Any
other exception is a bug; the command line exits with 70, see `vitdeploy.cli.process`.
"""

from __future__ import annotations

import contextlib
import copy
import numbers
import os
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from typing_extensions import Self


E = TypeVar("E", bound="VitDeployError")


class VitDeployError(Exception):
    """Base class. `exit_code` is the command line's exit code.

    Args:
        message: The problem, one line.
        what: Name of the invalid option, argument, key, tensor or field, as the user knows it.
        where: File or folder that has it.
        expected: Valid value or values.
        found: Invalid value.
        hint: Remedy, appended to the message.

    The attributes are the arguments; None if not given.
    """

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        what: str | None = None,
        where: str | os.PathLike[str] | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(f"{message}; {hint}" if hint else message)
        self.what, self.where, self.expected, self.found, self.hint = what, where, expected, found, hint

    def at(self, where: str | os.PathLike[str]) -> Self:
        """The same error with the path of the affected file in front of its message."""
        error = self.with_message(f"{where}: {self}")
        error.where = where
        return error

    def as_type(self, kind: type[E]) -> E:
        """An error of another type, with the same message and fields."""
        error = kind(str(self))
        error.__dict__.update(self.__dict__)
        return error

    def with_message(self, message: str) -> Self:
        """The same error with another message, for example one that adds the progress so far."""
        error = copy.copy(self)
        error.args = (message,)
        if isinstance(error, ImportError):
            error.msg = message  # which it prints
        return error


class CheckFailedError(VitDeployError):
    """A comparison or validation ran, and its result is outside the tolerance."""


class NotFiniteError(VitDeployError):
    """A model returned NaN or infinite values for an image."""


class UsageError(VitDeployError, ValueError):
    """An option, an argument or an input tensor is invalid."""

    exit_code = 2


class UnavailableError(VitDeployError):
    """This machine or network lacks something that is required."""

    exit_code = 3


class MissingDependencyError(UnavailableError, ImportError):
    """An optional package is not installed.

    Args:
        what: Feature that needs it, such as "the torch backend".
        extra: vitdeploy extra that installs it.
        instead: Alternative to installing it.
    """

    what: str

    def __init__(self, what: str, extra: str, instead: str = "") -> None:
        hint = f"run: pip install 'vitdeploy[{extra}]'"
        super().__init__(
            f"{what} needs a package that is not installed",
            what=what, hint=f"{hint}, {instead}" if instead else hint,
        )  # fmt: skip
        self.extra, self.instead = extra, instead

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.extra, self.instead), {**vars(self), "args": self.args, "msg": self.msg}


class DeviceError(UnavailableError):
    """A requested device or execution provider is not available."""


class OtherHardwareError(DeviceError):
    """An engine was built for another GPU; it may work there."""


class HubError(UnavailableError):
    """The Hugging Face Hub cannot be reached, or refuses the request."""


class ExhaustedError(UnavailableError):
    """This machine ran out of memory, threads or open files; the input may be valid."""


class OverloadedError(UnavailableError):
    """The queue of requests is full; nothing of the refused request was computed."""


class OutputError(UnavailableError):
    """A result could not be written; existing files are unchanged."""


class InputError(VitDeployError):
    """An input is absent, unreadable or corrupt."""

    exit_code = 4


class CheckpointError(InputError):
    """A checkpoint's configuration or weights cannot be used."""


class BundleError(InputError):
    """A bundle's manifest or files are absent, corrupt or altered."""


class BundleChangedError(BundleError):
    """A bundle was replaced, or one of its files written to, while it was read; opening it again may succeed."""


class NoReferenceError(BundleError):
    """The reference's weights are required, but the bundle was packed without them."""


class ImageError(InputError):
    """An image cannot be read."""


@contextlib.contextmanager
def readable(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Raise InputError if the system refuses a path in this block; `what` names it, such as "a folder"."""
    try:
        yield
    except OSError as exc:
        other = f": {exc.filename!s:.200}" if exc.filename is not None and str(exc.filename) != str(path) else ""
        message = f"{path!s:.400} cannot be read as {what}: {exc.strerror or first_line(exc)}{other}"
        raise InputError(message, where=path, expected=what, found=exc.strerror) from exc


def check_utf_8(library: str, path: str | os.PathLike[str]) -> None:
    """Raise UsageError if a library that takes UTF-8 paths cannot take this one."""
    try:
        str(path).encode()
    except UnicodeEncodeError as exc:
        message = f"{library} cannot open {str(path)!r}, which is not in UTF-8"
        raise UsageError(message, what=library, where=path, hint="rename the folder") from exc


def first_line(exc: BaseException) -> str:
    """First line of another library's message."""
    return str(exc).strip().partition("\n")[0]


def shown(value: object, most: int = 40) -> str:
    """A value for a message: the first `most` characters of its repr."""
    try:
        return f"{value!r:.{most}}".replace("\n", " ")
    except (ValueError, RecursionError):  # integers of thousands of digits, nested lists
        return f"{type(value).__name__} that is too large to show"


def check_count(name: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise UsageError unless an argument is an integer (Python's or numpy's) within limits."""
    number = int(value) if isinstance(value, numbers.Integral) and not isinstance(value, bool) else None
    if number is None or number < least or (most is not None and number > most):
        limits = f"from {least} {'up' if most is None else f'to {most}'}"
        raise UsageError(f"{name} takes a whole number {limits}, got {shown(value)}", what=name, found=value)


def typed_line(command: str, *words: object) -> str:
    """A shell command for a message, with real names and quoting: `vitdeploy` with a command and its arguments."""
    return shlex.join(["vitdeploy", *command.split(), *map(str, words)])
