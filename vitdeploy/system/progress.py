"""Report the progress of long work to the caller."""

from __future__ import annotations


class Progress:
    """Receives the steps and the progress of long work. Subclass it to show them; this class ignores both."""

    def step(self, text: str) -> None:
        """Called when a step begins; `text` describes it."""

    def advance(self, done: int, total: int) -> None:
        """Called with the progress: `done` of `total` images, layers or parts of an engine's build."""


SILENT = Progress()
