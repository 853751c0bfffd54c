"""Results of a GPU machine: how they are recorded, and that every page tells of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tables
from gpu import results as gpu_results
from gpu import rows as gpu_rows
from gpu import steps as gpu_steps
from gpu import tables as gpu_tables

ABOUT: dict[str, Any] = {
    "command": "make gpu-check", "date": "2027-01-02", "load_average": [1.0, 1.0, 1.0], "device": "NVIDIA H200",
    "cuda": "13.0", "compute_capability": "9.0", "driver_cuda": "13.0",
    "machine": {"cores": "16", "cpu": "a processor", "cpu flags": "avx2", "torch": "2.11.0"},
}  # fmt: skip
PASSED = {"result": "passed", "reason": "", "seconds": 1.0}
SKIPPED = {"result": "skipped", "reason": "no package", "seconds": 0.0}
FAILED = {"result": "failed", "reason": "DeviceError: no kernel", "seconds": 1.0}
AGREEMENT_ROW = {
    "attempt": "embedded torch fp16", "model": "embedded", "backend": "torch", "precision": "fp16", "output": "logits",
    "engine": "torch 2.11.0", "max_abs": 0.01, "max_relative": 0.001, "min_cosine": 0.99999, "top1_agreement": 1.0,
    "tolerance": 0.01, "passed": True,
}  # fmt: skip
AGREEMENT = {
    **ABOUT,
    "attempts": {
        "embedded torch fp16": PASSED,
        "embedded tensorrt fp16": SKIPPED,
        "embedded tensorrt-rtx fp16": FAILED,
        "embedded torch bf16": {**FAILED, "reason": gpu_steps.ENDED},
    },
    "rows": [AGREEMENT_ROW],
}
CHECK = {
    "gpu": "NVIDIA H200, 580.1, 9.0", "python": "3.12.3", "missing": [], "seconds": 1.0, "questions": [], "models": {},
    "steps": [{"step": "agreement-torch", "result": "passed", "seconds": 9.0, "reason": ""}],
}  # fmt: skip
# A sentence that says whether a GPU has run something.
CLAIM = re.compile(
    r"(\b(no|nothing|none)\b[^.|]{0,80}\brun\b[^.|]{0,40}\bGPU|no GPU has|not run yet"
    r"|(not|never)( yet)? (been )?(run|ran|measured)[^.|]{0,60}\bGPU|GPU[^.|]{0,30}\bnever\b)",
    re.IGNORECASE,
)
OF_MANIFESTS = ('"not yet run on a GPU"', "engines that never ran on a GPU", "an engine that no GPU has run yet")
MARKED = re.compile(r"<!-- \w+: \S+ -->\n.*?<!-- end -->|<!--.*?-->", re.DOTALL)


@pytest.fixture
def returned(tmp_path: Path) -> Path:
    """A folder as it comes back from a GPU machine."""
    folder = tmp_path / "out"
    folder.mkdir()
    (tmp_path / "results").mkdir()
    for name, document in (("gpu_agreement", AGREEMENT), ("gpu_check", CHECK)):
        (folder / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


def test_results_are_recorded_and_every_marked_page_tells_of_them(returned: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    assert gpu_results.take(returned, results) == ["gpu_agreement.json", "gpu_check.json"]
    pages = {path: path.read_text(encoding="utf-8") for path in tables.DOCUMENTS}
    told = [path for path, text in pages.items() if "gpu_status" in text]
    assert len(told) >= 6
    for path in told:
        text = tables.render(pages[path], results)
        assert gpu_tables.NOTHING not in text
        assert "Agrees with the reference: torch (embedded) in fp16." in text
        assert "Failed, or differs: tensorrt-rtx (embedded) in fp16." in text
        assert "Not run: tensorrt (embedded) in fp16." in text
        assert "Ended by a crash or the time limit: torch (embedded) in bf16." in text
    text = tables.render(pages[tables.FOLDER / "README.md"], results)
    assert "NVIDIA H200, compute capability 9.0, driver for CUDA 13.0, torch 2.11.0" in text
    assert "- failed: embedded tensorrt-rtx fp16: DeviceError: no kernel" in text
    assert "| agreement-torch | passed | 9 |  |" in text


def test_without_results_every_page_says_that_nothing_has_run(tmp_path: Path) -> None:
    for path in tables.DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        if "gpu_status" in text:
            assert gpu_tables.NOTHING in tables.render(text, tmp_path)


@pytest.mark.parametrize("path", tables.DOCUMENTS, ids=lambda path: str(path.relative_to(tables.ROOT)))
def test_no_page_says_by_itself_what_a_gpu_has_run(path: Path) -> None:
    text = MARKED.sub("", path.read_text(encoding="utf-8"))
    for sentence in OF_MANIFESTS:
        text = text.replace(sentence, "")
    assert not [match[0] for match in CLAIM.finditer(text)], "write it between markers of gpu_status"


@pytest.mark.parametrize(
    "sentence",
    ["No GPU has run any of this yet.", "Nothing of it has run on a GPU yet.", "It was not yet run on a GPU",
     "A GPU was never measured here", "has not run on a GPU", "benchmarks for a GPU, not run yet"],
)  # fmt: skip
def test_such_sentences_are_found(sentence: str) -> None:
    assert CLAIM.search(sentence)


def test_a_second_run_adds_to_the_first(returned: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    gpu_results.take(returned, results)
    row = {**AGREEMENT_ROW, "attempt": "embedded tensorrt-rtx fp16", "backend": "tensorrt-rtx"}
    attempts = {"embedded torch fp16": {**SKIPPED, "result": "not started"}, "embedded tensorrt-rtx fp16": PASSED}
    second = {**AGREEMENT, "attempts": attempts, "rows": [row]}
    (returned / "gpu_agreement.json").write_text(json.dumps(second), encoding="utf-8")
    gpu_results.take(returned, results)
    found = json.loads((results / "gpu_agreement.json").read_text("utf-8"))
    assert {name: attempt["result"] for name, attempt in found["attempts"].items()} == {
        "embedded torch fp16": "passed", "embedded tensorrt fp16": "skipped", "embedded tensorrt-rtx fp16": "passed",
        "embedded torch bf16": "failed",
    }  # fmt: skip
    assert sorted(row["attempt"] for row in found["rows"]) == ["embedded tensorrt-rtx fp16", "embedded torch fp16"]

    for other in ({"device": "NVIDIA L4"}, {"machine": {**ABOUT["machine"], "torch": "2.12.0"}}):
        (returned / "gpu_agreement.json").write_text(json.dumps({**second, **other}), encoding="utf-8")
        gpu_results.take(returned, results)
        found = json.loads((results / "gpu_agreement.json").read_text("utf-8"))
        assert other.items() <= found.items()
        assert found["attempts"].keys() == attempts.keys(), "results of two devices or versions are not mixed"


def test_results_of_a_cpu_are_not_recorded(returned: Path, tmp_path: Path) -> None:
    (returned / "gpu_agreement.json").write_text(json.dumps({**AGREEMENT, "device": "cpu"}), encoding="utf-8")
    with pytest.raises(SystemExit):
        gpu_results.take(returned, tmp_path / "results")
    (returned / "gpu_agreement.json").unlink()
    with pytest.raises(SystemExit):
        gpu_results.take(returned, tmp_path / "results")
    assert list((tmp_path / "results").iterdir()) == []


def test_tests_that_did_not_run_are_counted() -> None:
    attempts = {"a": PASSED, "b": FAILED, "c": SKIPPED, **dict.fromkeys("de", gpu_rows.NOT_STARTED)}
    table = gpu_tables.gpu_tests({"attempts": attempts})
    assert table.startswith("1 passed, 1 failed, 1 skipped, 2 not started.")
    assert "| `b` | failed | DeviceError: no kernel |" in table
    assert "| 1 of the tests | skipped | no package |" in table
    assert "| 2 of the tests | not started |  |" in table


def test_a_question_without_an_answer_is_not_known() -> None:
    document = {
        "questions": ["a?", "b?", "c?", "d?"],
        "attempts": {"a?": PASSED, "b?": SKIPPED, "c?": {**FAILED, "reason": "", "result": "begun"}},
        "rows": [{"attempt": "a?", "question": "a?", "answer": "yes", "reason": "it runs"}],
    }
    answers = {answer["question"]: (answer["answer"], answer["reason"]) for answer in gpu_tables.answers(document)}
    assert answers == {
        "a?": ("yes", "it runs"),
        "b?": ("not known", "no package"),
        "c?": ("not known", gpu_steps.ENDED),
        "d?": ("not known", "it was not tried"),
    }
    assert "| a? | **yes** | it runs |" in gpu_tables.gpu_questions(document)
