"""Retry reading a bundle that another process replaced meanwhile."""

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

MOST_TRIES = 10  # attempts; beside concurrent exports, one read in 20 was repeated


def retry_if_changed(function: F) -> F:
    """Retry a function, up to `MOST_TRIES` calls, if the bundle that it reads was replaced meanwhile.

    So everything it reads is from one export. Its first argument is the bundle; for a `Bundle`, a state chosen by the
    caller, the function is called once.
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
    """A bundle with all files verified; BundleError as `Bundle.open` and `Bundle.verify`."""
    bundle = Bundle.open(path)
    bundle.verify()
    return bundle
