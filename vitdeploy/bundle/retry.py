"""Read a bundle again where another process replaced it meanwhile."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.errors import BundleChangedError

F = TypeVar("F", bound="Callable[..., Any]")

MOST_TRIES = 10  # to read a bundle that is replaced meanwhile; beside exports one in 20 had to be read again


def retry_if_changed(function: F) -> F:
    """Call a function again, `MOST_TRIES` times in all, where the bundle that it reads was replaced meanwhile.

    Everything that it reads is then of one export. Its first argument is the bundle; where that is a `Bundle`, a state
    that the caller has chosen, the function is called once.
    """
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def retrying(*args: Any, **kwargs: Any) -> Any:
        is_state = isinstance(args[0] if args else kwargs.get(first), Bundle)
        for _ in range(0 if is_state else MOST_TRIES - 1):
            with contextlib.suppress(BundleChangedError):
                return function(*args, **kwargs)
        return function(*args, **kwargs)

    return cast("F", retrying)


@retry_if_changed
def open_verified(path: str | os.PathLike[str]) -> Bundle:
    """A bundle whose files were all checked; raises BundleError as `Bundle.open` and `Bundle.verify`."""
    bundle = Bundle.open(path)
    bundle.verify()
    return bundle
