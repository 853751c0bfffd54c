"""A comparison or gate as JUnit XML, which CI servers show."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET  # only written, never parsed

from vitdeploy.assess.metrics.status import Judged, writable
from vitdeploy.assess.report.written import write_result

if TYPE_CHECKING:
    import os


def junit(result: Judged, *, seconds: float | None = None) -> bytes:
    """One test case per check, in UTF-8; the image processor's origin and the files left out are properties.

    A check that was skipped, or that the baseline lacks, is an error, not a skipped test, which CI servers count as a
    pass.

    Args:
        result: Result with an outcome.
        seconds: Total duration, in seconds. Default: not written.
    """
    checks = result.check_results
    counts = {
        "tests": len(checks),
        "failures": sum(check.status == "failed" for check in checks),
        "errors": sum(check.status not in ("passed", "failed") for check in checks),
        "skipped": 0,
    }
    attributes = {**{name: str(count) for name, count in counts.items()}, **_time(seconds)}
    root = ET.Element("testsuites", attributes)
    suite = ET.SubElement(root, "testsuite", {"name": writable(f"vitdeploy {result.bundle}"), **attributes})
    told = {"image processor": result.processor, "left out": None if result.left_out is None else str(result.left_out)}
    stated = {name: writable(value) for name, value in told.items() if value is not None}
    if stated:
        properties = ET.SubElement(suite, "properties")
        for name, value in stated.items():
            ET.SubElement(properties, "property", {"name": name, "value": value})
    for check in checks:
        names = {"classname": writable(check.subject), "name": writable(check.name)}
        case = ET.SubElement(suite, "testcase", {**names, **_time(check.seconds)})
        if check.status != "passed":
            kind = "failure" if check.status == "failed" else "error"
            ET.SubElement(case, kind, {"message": writable(check.message), "type": check.status})
    ET.indent(root)
    return bytes(ET.tostring(root, "utf-8", xml_declaration=True)) + b"\n"


def write_junit(path: str | os.PathLike[str], result: Judged, *, seconds: float | None = None) -> None:
    """Write `junit` atomically; replaces an existing file. Raises as `write_result`."""
    write_result(path, junit(result, seconds=seconds), result)


def _time(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"time": f"{seconds:.3f}"}
