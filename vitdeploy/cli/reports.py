"""Options of commands that also write their results to files."""

from __future__ import annotations

import functools
import importlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from vitdeploy.cli.annotations import annotate
from vitdeploy.cli.command import option
from vitdeploy.cli.output import PATH, print_json, print_left_out
from vitdeploy.cli.process import Interrupted, conclude, explained, print_error
from vitdeploy.errors import VitDeployError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Names of command arguments for inputs and output files; a baseline is either.
_INPUTS = ("data", "gallery", "images", "rules", "golden", "after")
_OUTPUTS = ("resume", "save_golden")
_REPORTS = {
    "html": ("vitdeploy.assess.report.page:write_html", "Write a self-contained HTML page."),
    "markdown": ("vitdeploy.assess.report.markdown:write_markdown", "Write a Markdown summary, for a CI job."),
    "junit": ("vitdeploy.assess.report.junit:write_junit", "Write JUnit XML, for a CI server."),
}


_TIMED = ("markdown", "junit")  # for CI; they have times and errors


def report_options(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Options for these files, passed to the command as `reports`.

    A missing library or an invalid path is reported before the command's work begins. If the work ends with an error,
    Markdown and JUnit files are still written, with the error.
    """

    def decorated(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_reports(**arguments: Any) -> Any:
            files = {name: arguments.pop(name) for name in names}
            reports = Reports(files, arguments)
            try:
                return command(reports=reports, **arguments)
            except (Exception, KeyboardInterrupt, Interrupted) as exc:
                reports.write_stopped(str(click.get_current_context().info_name), str(arguments.get("bundle")), exc)
                raise

        decorated: Callable[..., Any] = with_reports
        for name in reversed(names):
            add = option(f"--{name}", type=PATH, metavar="FILE", help=_REPORTS[name][1], group="Reports")
            decorated = add(decorated)
        return decorated

    return decorated


class Reports:
    """Files to write a result to, by the names of `report_options`.

    Args:
        files: Paths by name; None if not requested.
        arguments: The command's other arguments, whose files must not be overwritten.

    Raises:
        MissingDependencyError: If a file's writer needs a library that is not installed.
        OutputError: If a file's folder does not exist or is not writable.
        UsageError: If a file is another file of the command, or lies in the bundle or among the data.
    """

    def __init__(self, files: Mapping[str, str | None], arguments: Mapping[str, Any]) -> None:
        from vitdeploy.bundle.output_paths import check_outputs  # not needed for the help
        from vitdeploy.files.output_files import check_writable

        self.asked = {name: path for name, path in files.items() if path is not None}
        self._begin = time.monotonic()
        self._writers = {}
        check_outputs(*_files(self.asked, arguments), bundle=arguments.get("bundle"))
        for name, path in self.asked.items():
            check_writable(Path(path))
            module, function = _REPORTS[name][0].split(":")
            self._writers[name] = getattr(importlib.import_module(module), function)

    def writers(self, result: Any) -> list[Callable[[], None]]:
        """A writer for each file; each raises OutputError on failure."""
        times = {name: {"seconds": time.monotonic() - self._begin} for name in _TIMED}
        return [
            functools.partial(self._writers[name], path, result, **times.get(name, {}))
            for name, path in self.asked.items()
        ]

    def write_stopped(self, command: str, bundle: str, error: BaseException) -> None:
        """Write the files that can show an error instead of a result; failed writes are reported."""
        if not {*_TIMED}.intersection(self.asked):
            return
        from vitdeploy.assess.report.stopped import Stopped

        result = Stopped(bundle, command, type(error).__name__, explained(error)[0])
        for (name, _), write in zip(self.asked.items(), self.writers(result), strict=True):
            try:
                if name in _TIMED:
                    write()
            except VitDeployError as exc:
                print_error(exc)


def conclude_with(
    result: Any, print_result: Callable[[Any], None], as_json: bool, reports: Reports | None = None
) -> NoReturn:
    """Print a result, write its reports, and exit with the code of its status; see `conclude`."""
    for title, message in _not_passed(result):
        annotate(message, title)

    def show() -> None:
        if as_json:
            print_json(result.to_dict())
        else:
            print_result(result)
            print_left_out(result.left_out)

    conclude(result.status, show, *(() if reports is None else reports.writers(result)))


def _not_passed(result: Any) -> list[tuple[str, str]]:
    """Title and message of each check that did not pass, or of the whole if there are no checks."""
    if result.status == "passed":
        return []
    checks = [check for check in getattr(result, "check_results", ()) if check.status != "passed"]
    return [(f"{check.subject}: {check.name} {check.status}", check.message) for check in checks] or [
        (result.status, f"{result.bundle}: {result.status}")
    ]


def _files(reports: Mapping[str, str], arguments: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Outputs and inputs of a command, by user-facing name."""
    from vitdeploy.files.output_files import standard_output_file

    outputs = (*_OUTPUTS, *(["baseline"] if arguments.get("update") else []))
    inputs = (*_INPUTS, *([] if arguments.get("update") else ["baseline"]))
    written = {
        **{f"--{name}": path for name, path in reports.items()},
        **{_typed(name): arguments.get(name) for name in outputs},
        "standard output": standard_output_file() if reports else None,
    }
    return written, {_typed(name): arguments.get(name) for name in inputs}


def _typed(argument: str) -> str:
    return f"--{argument.replace('_', '-')}"
