"""`vitdeploy benchmark`: its table, its JSON and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import run
from schemas import validated

from vitdeploy.bundle.bundle import Bundle
from vitdeploy.system.cpu import session_threads


def test_table_and_json(single: Bundle, tmp_path: Path) -> None:
    arguments = (single.path, "--batch-sizes", "1, 2", "--rounds", 1, "--runs", 2)
    page, summary = tmp_path / "page.html", tmp_path / "summary.md"
    code, out, err = run("benchmark", *arguments, "--html", page, "--markdown", summary)
    assert page.read_text(encoding="utf-8").count("<svg") == 1
    timed, _, threads = summary.read_text(encoding="utf-8").partition("Threads")
    assert [line.count("|") for line in timed.splitlines() if "|" in line] == [14] * 6
    assert ([line.count("|") for line in threads.splitlines() if "|" in line], code, err) == ([4] * 4, 0, "")
    assert "\nwith --details also: p90 ms, p95 ms, from image files" in out
    short = _rows(out.partition("\nThreads")[0])
    out = run("benchmark", *arguments, "--details").out
    timed, _, threads = out.partition("\n\nThreads")
    note, _, threads = threads.partition("\n")
    rows = _rows(timed)
    assert [row[:3] for row in rows] == [[name, "fp32", size] for size in "12" for name in ("torch", "onnxruntime")]
    assert [len(row) for row in rows] == [11, 17] * 2  # "first", and "unclear", a ratio and why it has no interval
    assert [row[:3] for row in short] == [row[:3] for row in rows]
    assert [len(row) for row in short] == [6, 12] * 2
    default = session_threads()
    names, counts = zip(*((row[:2], row[2]) for row in map(str.split, threads.splitlines()[1:])), strict=True)
    assert (names, counts[1]) == ((["torch", "fp32"], ["onnxruntime", "fp32"]), str(default.count))
    assert bool(note) == (counts[0] != counts[1]), "the note on different numbers"
    assert threads.endswith(f"{default.reason}\n")
    code, out, _ = run("benchmark", *arguments, "--backend", "onnxruntime", "--json")
    found = validated("benchmark", out)
    assert (code, found["status"], found["settings"]["rounds"]) == (0, "passed", 1)
    assert [(item["backend"], item["batch_size"], item["ready_input"]["runs"]) for item in found["latencies"]] == [
        ("onnxruntime", 1, 2),
        ("onnxruntime", 2, 2),
    ]
    assert [item["threads"] for item in found["latencies"]] == [default.to_dict()] * 2
    assert 0 < found["latencies"][0]["ready_input"]["p50_ms"] < found["latencies"][0]["image_files"]["p50_ms"]
    assert found["latencies"][0]["image_files"]["p99_ms"] is None, "two runs do not tell it"


def test_what_could_not_be_measured_exits_with_3(single: Bundle) -> None:
    code, out, _ = run("benchmark", single.path, "--device", "cuda:9", "--batch-sizes", 1, "--rounds", 1, "--runs", 1)
    assert code == 3
    for name in ("torch fp32", "onnxruntime fp32"):
        assert f"\n{name} was not measured: " in out


@pytest.mark.parametrize("sizes", ["", "0", "1,,2", "-1", "1.5", "one", "1,2,", "9" * 5000, "1,²"])
def test_bad_batch_sizes_are_usage_errors(single: Bundle, sizes: str) -> None:
    code, _, err = run("benchmark", single.path, "--batch-sizes", sizes)
    assert code == 2
    assert "is not a list of batch sizes such as 1,8,32" in err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--threads", "1,,2"), ("--threads", "-1"), ("--threads", "1025"), ("--threads", "two"),
        ("--threads", "9" * 5000), ("--image-sizes", "224x"), ("--image-sizes", "1:2:3"), ("--image-sizes", "0"),
        ("--image-sizes", "224,,1"),
        ("--max-slowdown", "5"), ("--max-slowdown", "-5%"), ("--processes", "0"), ("--limit", "0"),
        ("--setting", "onnxruntime,intra_op_threads=x"), ("--setting", "abacus"),
    ],
)  # fmt: skip
def test_other_values_are_usage_errors(single: Bundle, option: str, value: str) -> None:
    assert run("benchmark", single.path, option, value).code == 2


def test_a_grid_of_settings_and_threads(single: Bundle) -> None:
    setting = "onnxruntime:fp32,allow_spinning=false"
    arguments = ("--threads", "1,2", "--batch-sizes", 1, "--rounds", 2, "--runs", 1, "--json")
    found = validated("benchmark", run("benchmark", single.path, "--setting", setting, *arguments).out)
    assert [item["changes"] for item in found["latencies"]] == [
        "threads=1,allow_spinning=false",
        "threads=2,allow_spinning=false",
    ]
    assert [item["threads"]["count"] for item in found["latencies"]] == [1, 2]
    assert (found["settings"]["threads"], found["settings"]["processes"]) == ([1, 2], 2)
    assert [len(item["processes_ms"]) for item in found["latencies"]] == [2, 2]


def _rows(text: str) -> list[list[str]]:
    """Words of the rows of a table of backends, without the notes below it."""
    words = [line.split() for line in text.splitlines()]
    return [row for row in words if row[1:2] == ["fp32"] and row[2].isdecimal()]
