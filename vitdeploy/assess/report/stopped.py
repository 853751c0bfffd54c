"""A command that ended with an error, as a result, so that a CI server always finds its files."""

from __future__ import annotations

import dataclasses

from vitdeploy.assess.metrics.status import Assessment, CheckResult


@dataclasses.dataclass(frozen=True, repr=False)
class Stopped(Assessment):
    """The result of a command that ended with an error.

    Attributes:
        command: Name, such as "gate".
        kind: Type of the error.
        message: Message of the error.
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
