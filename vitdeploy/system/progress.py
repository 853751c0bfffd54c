"""Report the progress of long work to whoever waits for it."""

from __future__ import annotations


class Progress:
    """Receives the steps of long work, and how far each has come; subclass it to show them. This one ignores both."""

    def step(self, text: str) -> None:
        """A step begins; `text` says which."""

    def advance(self, done: int, total: int) -> None:
        """`done` of `total` images, layers or parts of an engine's build are finished."""


SILENT = Progress()
