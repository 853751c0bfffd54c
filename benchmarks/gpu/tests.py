"""The tests that need a GPU (`pytest -m gpu`), each a row: a crash or a hang ends that test alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from common import document, parser

from gpu.device import about, check_device
from gpu.rows import Ledger

ROOT = Path(__file__).parents[2]
LIMIT_S = 60.0  # of one test
_MARKED = re.compile(r"mark\.gpu|gpu_marks")


def files() -> list[Path]:
    """Test files with GPU tests, the runtimes' first; no other is imported, which may need more packages."""
    found = [path for path in sorted(ROOT.glob("tests/**/test_*.py")) if _MARKED.search(path.read_text("utf-8"))]
    return sorted(
        found, key=lambda path: ("runtimes" not in path.parts, "engine" in path.parts, path.name != "test_gpu.py")
    )


class Recorder:
    """A pytest plugin that records each test in a ledger, and leaves out those that are there already."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._result, self._reason, self._seconds = "passed", "", 0.0

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self._ledger.is_due(report.nodeid):
            self._ledger.finish(report.nodeid, "failed", _last_line(report.longreprtext))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if item.get_closest_marker("gpu") and self._ledger.is_due(item.nodeid)]

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._result, self._reason, self._seconds = "passed", "", 0.0
        self._ledger.begin(nodeid, LIMIT_S)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds += report.duration
        if report.skipped and self._result == "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._result, self._reason = "skipped", reason.removeprefix("Skipped: ")
        elif report.failed:
            self._result, self._reason = "failed", _last_line(report.longreprtext)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._ledger.finish(nodeid, self._result, self._reason, self._seconds)


def _last_line(text: str) -> str:
    """The error of a traceback as pytest writes it."""
    errors = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    return (errors or text.strip().splitlines() or [""])[0][:300]


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--device", default="cuda", help="cpu to try this script without a GPU")
    arguments = options.parse_args()
    check_device(arguments.device)
    ledger = Ledger(arguments.json, document(arguments, about(arguments.device)))
    # Other versions of libraries than the pinned ones may emit deprecation warnings.
    command = ["-q", "-p", "no:cacheprovider", "-W", "default", "--continue-on-collection-errors", *map(str, files())]
    code = pytest.main(command, plugins=[Recorder(ledger)])
    if code in (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR) or not ledger.attempts:
        raise SystemExit(f"pytest ended with {code!r}, see its output")
    raise SystemExit(ledger.exit_code())


if __name__ == "__main__":
    main()
