"""Figures under load in tables, Markdown and on the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from pages import Page, written
from written_results import OFFLINE_RUN, SERVER_RUN, STREAM

from vitdeploy.assess.benchmark.scenarios.results import ScenarioBenchmark
from vitdeploy.assess.benchmark.scenarios.server_result import ServerResult
from vitdeploy.assess.report.markdown import markdown
from vitdeploy.assess.report.report import report_of
from vitdeploy.assess.report.tables import tables


def rows(result: ScenarioBenchmark) -> list[dict[str, str]]:
    (table,) = tables(result)
    assert all(len(row) == len(table.columns) for row in table.rows)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_rows_of_streams() -> None:
    enough, few = rows(STREAM)
    assert (enough["backend"], enough["images/query"], enough["p99 ms"]) == ("x fp32", "8", "990.000")
    assert enough["95 % interval of p99"] == "983.000 to 997.000"
    assert (enough["p99 ms, early stopping"], enough["images/s"]) == ("999.000", "400.0")
    assert (few["backend"], few["95 % interval of p99"]) == ("x fp32 threads=1", "4.000 to too few queries")
    assert (few["p99 ms, early stopping"], few["queries"], few["queries needed"]) == ("too few queries", "2", "662")


def test_rows_of_offline() -> None:
    assert rows(OFFLINE_RUN) == [
        {"backend": "x fp32", "batch": "4", "images/s": "200.0", "images": "800", "seconds": "4.0", "sessions": "2"}
    ]
    assert OFFLINE_RUN.status == "passed"


def test_rows_and_outcomes_of_servers() -> None:
    assert [result.status for result in SERVER_RUN.results] == ["passed", "failed", "failed", "skipped"]
    found, missed, none, late = rows(SERVER_RUN)
    assert (found["queries/s"], found["not valid at"], found["replays that held"]) == ("40", "41", "2 of 2")
    assert (found["p99 ms"], found["bound ms"], found["late"], found["queries"]) == ("10.00", "50", "0.22%", "918")
    assert (missed["queries/s"], missed["not valid at"], missed["replays that held"]) == ("40", "", "0 of 1")
    assert missed["late"] == "5.01%"
    assert (none["queries/s"], none["not valid at"], none["holds"]) == ("none", "2.5", "")
    assert late["load late by, p99 ms"] == "0.100"
    reasons = [result.reason for result in SERVER_RUN.results]
    assert reasons[0] == ""
    assert "5.0% of the queries were late, stopped early, 1% allowed" in reasons[1]
    assert "no rate" in reasons[2]
    assert "0.10 ms" in reasons[3]


def test_a_queue_that_grows_without_end_fails_however_short_the_run_was() -> None:
    held = SERVER_RUN.results[0]
    assert isinstance(held, ServerResult)
    assert held.status == "passed"
    assert held.utilization == pytest.approx(0.4, rel=0.02)
    flooded = dataclasses.replace(held, rate=110.0)
    assert (flooded.held, flooded.status) == (2, "failed")
    assert "1.1" in flooded.reason
    assert dataclasses.replace(flooded, sessions=2).status == "passed"


@pytest.mark.parametrize("result", [STREAM, OFFLINE_RUN, SERVER_RUN], ids=lambda result: result.scenario.name)
def test_every_row_and_note_is_written(result: ScenarioBenchmark, tmp_path: Path) -> None:
    (table,) = tables(result)
    lines = markdown(result).splitlines()
    assert sum(line.startswith("| ") for line in lines) == 2 + len(table.rows)
    assert {line.count("|") for line in lines if line.startswith("| ")} == {len(table.columns) + 1}
    assert sum(line.startswith("- ") for line in lines) == len(table.notes) >= 2
    page: Page = written(tmp_path / "page.html", report_of(result))
    assert f"Load: {result.scenario.name}" in page.text["h2"]
    assert {cell for row in table.rows for cell in row[1:] if cell} <= set(page.text["td"])
    shown = " ".join(text for tag, text in page.ordered if tag == "p")
    assert all(note[1:] in shown for note in table.notes)
    assert [item.figure[0] in page.text["strong"] for item in result.results] == [True] * len(result.results)
