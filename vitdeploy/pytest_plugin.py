"""A gate in a product's own test suite: `pytest --vitdeploy-bundle DIR --vitdeploy-data DIR`, an item a check.

pytest loads this wherever vitdeploy is installed, so nothing else is imported until a bundle is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from vitdeploy.assess.gate.gate import Check

_LEFT_OUT = pytest.StashKey[str]()  # printed after the tests: a skipped image has passed nothing
_OPTIONS = {
    "bundle": "hold the artifacts of this bundle to rules, a test a check",
    "data": "labelled images, as for `vitdeploy evaluate`, or a folder of images for a model without classes",
    "baseline": "the JSON file that `vitdeploy gate --update` wrote",
    "rules": "a TOML file of rules",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vitdeploy", "a gate for the artifacts of a bundle")
    for name, text in _OPTIONS.items():
        group.addoption(f"--vitdeploy-{name}", metavar="PATH", help=text)


@pytest.hookimpl(tryfirst=True)  # so that -k and -m select these items too
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    given = {name: config.getoption(f"--vitdeploy-{name}") for name in _OPTIONS}
    options = {name: value for name, value in given.items() if value is not None}
    if not options:
        return
    if not {"bundle", "data"} <= options.keys():
        raise pytest.UsageError("--vitdeploy-bundle and --vitdeploy-data must both be given")
    from vitdeploy.errors import VitDeployError

    try:
        items.extend(
            GateCollector.from_parent(session, name="vitdeploy", nodeid="vitdeploy", options=options).collect()
        )
    except VitDeployError as exc:
        raise pytest.UsageError(f"vitdeploy: {exc}") from exc


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if _LEFT_OUT in config.stash:
        terminalreporter.write_line(f"vitdeploy: {config.stash[_LEFT_OUT]}")


class GateCollector(pytest.Collector):
    """The checks of one gate, which runs at the first of them."""

    def __init__(self, *, options: dict[str, Any], **node: Any) -> None:
        super().__init__(**node)
        self.options = options
        self._checks: dict[tuple[str, str], Check] | None = None
        self._error: Exception | None = None

    def collect(self) -> Iterator[GateItem]:
        from vitdeploy.assess.gate.gate import planned_checks

        for check in planned_checks(**self.options):
            yield GateItem.from_parent(
                self, name=f"{check.rule}[{check.subject}]", gate=self, key=(check.rule, check.subject)
            )

    def check(self, key: tuple[str, str]) -> Check:
        if self._error is not None:  # if the gate failed to run: it is not retried for each check
            raise self._error
        if self._checks is None:
            from vitdeploy.assess.gate.gate import gate
            from vitdeploy.errors import VitDeployError

            try:
                result = gate(**self.options)
                self._checks = {(check.rule, check.subject): check for check in result.checks}
                if result.left_out is not None:
                    self.config.stash[_LEFT_OUT] = str(result.left_out)
            except VitDeployError as exc:
                self._error = exc
                raise
        return self._checks[key]


class GateItem(pytest.Item):
    """One check. A skipped check fails: a backend that did not run has not passed."""

    def __init__(self, *, gate: GateCollector, key: tuple[str, str], **node: Any) -> None:
        super().__init__(**node)
        self.gate, self.key = gate, key

    def runtest(self) -> None:
        check = self.gate.check(self.key)
        if check.status != "passed":
            raise NotPassedError(f"{check.status}: {check.message}")

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        from vitdeploy.errors import VitDeployError

        if isinstance(excinfo.value, (NotPassedError, VitDeployError)):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Any, None, str]:
        return self.gate.options["bundle"], None, f"vitdeploy: {self.name}"


class NotPassedError(Exception):
    """A check that did not pass."""
