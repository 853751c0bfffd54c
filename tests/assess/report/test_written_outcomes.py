"""Markdown and JUnit XML: what did not pass is seen, and no name of a file or class breaks the form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from raising import raises
from written_results import BENCHMARK, COMPARISON, EVALUATION, LAYERS, SENSITIVITY, gate_result

from vitdeploy.assess.data.folder_listing import LeftOut, Reason
from vitdeploy.assess.metrics.status import CheckResult
from vitdeploy.assess.report.junit import junit, write_junit
from vitdeploy.assess.report.markdown import markdown, write_markdown
from vitdeploy.errors import OutputError


@dataclasses.dataclass(frozen=True)
class Odd:
    """A result whose every text is hard to write."""

    text: str
    status: str = "failed"
    changes: tuple[str, ...] = ()
    left_out: LeftOut | None = None

    @property
    def processor(self) -> str:
        return self.text

    @property
    def bundle(self) -> str:
        return self.text

    @property
    def check_results(self) -> tuple[CheckResult, ...]:
        return (CheckResult(self.text, self.text, self.status, self.text),)


def test_junit_of_a_comparison() -> None:
    root = ET.fromstring(junit(COMPARISON))
    counts = {"tests": "3", "failures": "1", "errors": "1", "skipped": "0"}
    assert (root.tag, root.attrib) == ("testsuites", counts)
    (suite,) = root
    assert suite.attrib == {"name": "vitdeploy gone", **counts}
    cases = suite.findall("testcase")
    assert [(case.get("classname"), case.get("name"), [child.tag for child in case]) for case in cases] == [
        ("onnx-fp32 on onnxruntime", "logits", []),
        ("onnx-fp32 on onnxruntime", "pooler_output", ["failure"]),
        ("tensorrt-fp16 on no backend", "compare", ["error"]),
    ]
    assert cases[1][0].get("message") == "max relative difference 5.00e-01, 0.0001 allowed; 0.5 would pass"
    assert cases[2][0].attrib == {"message": "no backend runs it", "type": "skipped"}


def test_junit_tells_the_image_processor_and_the_files_left_out() -> None:
    left_out = LeftOut(1, (Reason("hidden", 1),))
    result = dataclasses.replace(COMPARISON, processor="preprocessor_config.json <of> the model", left_out=left_out)
    (suite,) = ET.fromstring(junit(result))
    assert suite[0].tag == "properties"
    assert {each.get("name"): each.get("value") for each in suite[0]} == {
        "image processor": "preprocessor_config.json <of> the model",
        "left out": "files left out: 1 (1 hidden)",
    }
    assert [case.tag for case in suite[1:]] == ["testcase"] * 3


def test_markdown_of_a_comparison_begins_with_what_failed() -> None:
    lines = markdown(COMPARISON).splitlines()
    assert lines[0] == "### ❌ failed: gone"
    assert lines[2] == "1 passed, 1 failed, 1 skipped"
    assert [line.split(" | ")[0] for line in lines[6:-2]] == ["| ❌ failed", "| ⚠️ skipped", "| ✅ passed"]
    assert len(lines) == 11


def test_layers_name_the_first_that_diverges() -> None:
    (suite,) = ET.fromstring(junit(LAYERS))
    failures = {case.get("name"): case[0].get("message") for case in suite.findall("testcase") if len(case)}
    assert failures == {
        "layers.1": "max relative difference inf, 0.0001 allowed; the first part that diverges",
        "head": "max relative difference 5.00e-01, 0.0001 allowed",
        "debug layers": "its layers cannot be told apart",
    }
    assert markdown(LAYERS).splitlines()[2] == "2 passed, 2 failed, 1 skipped"


def test_markdown_of_figures() -> None:
    lines = markdown(EVALUATION).splitlines()
    assert lines[0] == "### ⚠️ skipped: gone"
    assert lines[4].startswith("| reference | torch fp32 | 75.00% (30.06% to 95.44%, 3 of 4) | 100.00% |")
    assert lines[6] == "| y-fp16 | y fp16 | skipped |  |  |  |  |"
    assert lines[8] == "- y fp16 was skipped: no such device"
    lines = markdown(BENCHMARK).splitlines()
    assert lines[4].startswith("| torch fp32 | 1 | 5.500 | first |")
    assert lines[6] == ""
    assert lines[7] == "- x fp32 at batch size 1 was not steady when its timing began"
    assert lines[8].endswith(f"was not measured: {BENCHMARK.skipped[0].reason}")
    lines = markdown(SENSITIVITY).splitlines()
    assert lines[0] == "### Measured: gone"
    assert lines[2].startswith("block 0, MLP, fc1 is the most sensitive of 4 layers: relative error inf with it alone")
    assert lines[6] == "| block 0, MLP, fc1 | MatMul | inf |"
    for text in (markdown(EVALUATION), markdown(BENCHMARK)):
        tables = [line for line in text.splitlines() if line.startswith("|")]
        assert {line.count("|") for line in tables} <= {8, 16}
    for result in (COMPARISON, LAYERS, SENSITIVITY, EVALUATION, BENCHMARK, gate_result()):
        text = markdown(result).splitlines()[-1]
        assert text == ("files left out: 4 (3 hidden, 1 ending .&lt;b&gt;); folders without an image: 1 (newt\\|s)")


@pytest.mark.parametrize(
    "text", ["a|b", "<script>&", "two\nlines", "`code` *b* _i_ [l](u)", "nul\x00 esc\x1b", "\ud800", "é😀"]
)
def test_odd_texts(text: str, tmp_path: Path) -> None:
    (suite,) = ET.fromstring(junit(Odd(text)))
    assert ([child.tag for child in suite], suite[1][0].tag) == (["properties", "testcase"], "failure")
    rows = markdown(Odd(text, changes=(text,))).splitlines()
    assert (len(rows), rows[8].replace("\\|", "").count("|")) == (13, 5)
    assert "<" not in rows[2] + rows[8]
    assert "`" not in (rows[2] + rows[8]).replace("\\`", "")
    write_junit(tmp_path / "a.xml", Odd(text))
    write_markdown(tmp_path / "a.md", Odd(text))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.md", "a.xml"]


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for write in (write_junit, write_markdown):
        with raises(OutputError, where=tmp_path / "file" / "a"):
            write(tmp_path / "file" / "a", COMPARISON)
