"""A runtime of a test's own: only `_run` is left to write."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitdeploy.runtimes.base import Runtime

if TYPE_CHECKING:
    from typing_extensions import Self

    from vitdeploy.bundle.bundle import Bundle


class StubRuntime(Runtime):
    """It is made by the test, never opened from a bundle or probed, and has nothing to close."""

    backend = "test"

    def _close(self) -> None:
        pass

    @classmethod
    def from_bundle(cls, bundle: Bundle, options: Any, *, precision: str, device: str) -> Self:
        raise NotImplementedError

    @classmethod
    def probe(cls) -> dict[str, str | None]:
        raise NotImplementedError
