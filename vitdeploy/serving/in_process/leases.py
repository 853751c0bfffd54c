"""Lend a predictor to a request, so that it stays open until the request is answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from vitdeploy.predictor import Predictor

if TYPE_CHECKING:
    from types import TracebackType


@dataclasses.dataclass(frozen=True)
class Lease:
    """A predictor that stays open until `release` is called, once; a context manager that gives the predictor."""

    predictor: Predictor
    release: Callable[[], None]

    def __enter__(self) -> Predictor:
        return self.predictor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class Lender(Protocol):
    """Something that opens, or replaces, its predictor by itself."""

    def lease(self) -> Lease:
        """The current predictor, open until the lease is released."""


def lease(source: Predictor | Lender) -> Lease:
    """A lease of a predictor; one that the caller opened stays open as long as the caller decides."""
    return Lease(source, lambda: None) if isinstance(source, Predictor) else source.lease()
