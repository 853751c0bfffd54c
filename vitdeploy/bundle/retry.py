"""Retry reading a bundle that another process replaced meanwhile."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, TypeVar, cast

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.bundle.signature import check_nothing_beside
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
def open_verified(path: str | os.PathLike[str], *, public_key: str | os.PathLike[str] | None = None) -> Bundle:
    """A bundle with all files verified; with a public key, signed by it and without further files.

    Raises:
        BundleError: As `Bundle.open`, `Bundle.verify` and `check_nothing_beside`.
    """
    bundle = Bundle.open(path, public_key=public_key)
    bundle.verify()
    if public_key is not None:
        check_nothing_beside(bundle.path, bundle.manifest)
    return bundle
