"""A command that stopped with an error, as a result: what a CI server reads is there whatever happens."""

from __future__ import annotations

import dataclasses

from vitdeploy.assess.metrics.status import Assessment, CheckResult


@dataclasses.dataclass(frozen=True, repr=False)
class Stopped(Assessment):
    """The outcome of a command that has none.

    Attributes:
        command: Such as "gate".
        kind: The type of the error.
        message: What it says.
    """

    command: str
    kind: str
    message: str

    @property
    def brief(self) -> str:
        return f"{self.command} ended with {self.kind}"

    @property
    def status(self) -> str:
        return "error"

    @property
    def check_results(self) -> tuple[CheckResult, ...]:
        return (CheckResult(self.command, self.kind, "error", self.message),)

    @property
    def changes(self) -> tuple[str, ...]:
        return ()
