"""Tables and sentences from the results of `make gpu-check`."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

from markdown_table import markdown

from gpu.steps import ENDED

Document = dict[str, Any]
NOTHING = "Nothing of this has run on a GPU yet; `make gpu-check` is what a machine with one will run."
ENGINES = ("torch", "onnxruntime-gpu", "tensorrt-rtx", "tensorrt")  # packages whose versions are stated
_TOO_LONG = 160  # characters of a reason


def device(document: Document) -> str:
    machine = document["machine"]
    versions = ", ".join(f"{name} {machine[name]}" for name in ENGINES if name in machine)
    return (
        f"{document['device']}, compute capability {document['compute_capability']}, driver for CUDA "
        f"{document['driver_cuda']}, {versions}"
    )


def gpu_agreement(document: Document) -> str:
    rows = [
        [row["model"], row["backend"], row["precision"], row["output"], f"{row['max_abs']:.1e}",
         f"{row['max_relative']:.1e}{_beyond(row)}", _decimals(row["min_cosine"]), f"{row['tolerance']:g}"]
        for row in document["rows"]
    ]  # fmt: skip
    header = ["model", "backend", "precision", "output", "largest difference", "... / largest value", "lowest cosine",
              "tolerance"]  # fmt: skip
    return _with_others(markdown(header, rows), document)


def gpu_questions(document: Document) -> str:
    rows = [[row["question"], f"**{row['answer']}**", _cell(row["reason"])] for row in answers(document)]
    return markdown(["question", "answer", "reason"], rows)


def gpu_tests(document: Document) -> str:
    results = collections.Counter(attempt["result"] for attempt in document["attempts"].values())
    reasons = collections.Counter(
        (attempt["result"], attempt["reason"])
        for attempt in document["attempts"].values()
        if attempt["result"] in ("skipped", "not started")
    )
    failed = [
        [f"`{name}`", attempt["result"], _cell(attempt["reason"])]
        for name, attempt in document["attempts"].items()
        if attempt["result"] not in ("passed", "skipped", "not started")
    ]
    skipped = [[f"{count} of the tests", result, _cell(reason)] for (result, reason), count in reasons.items()]
    counts = ", ".join(f"{count} {result}" for result, count in results.items())
    return f"{counts}.\n\n{markdown(['test', 'result', 'reason'], [*failed, *skipped])}"


def gpu_check(document: Document) -> str:
    rows = [
        [step["step"], step["result"], f"{step['seconds']:.0f}", _cell(step["reason"])] for step in document["steps"]
    ]
    return markdown(["step", "result", "seconds", "reason"], rows)


def gpu_latency(document: Document) -> str:
    rows = []
    for row in document["rows"]:
        options = ", ".join(f"{name} {value}" for name, value in row["options"].items())
        share = "" if row["peak_share"] is None else f"{row['peak_share']:.0%}"
        rows.append([
            row["model"], row["backend"], row["precision"], options, str(row["batch_size"]), f"{row['ms']:.2f}",
            f"{row['ms_with_transfers']:.2f}", f"{row['images_per_second']:.0f}", share,
            f"{row['max_relative']:.1e}{_beyond(row)}", _decimals(row["min_cosine"]),
        ])  # fmt: skip
    header = ["model", "backend", "precision", "options", "batch", "without transfers (ms)", "with transfers (ms)",
              "images/s", "share of the peak", "largest difference", "lowest cosine"]  # fmt: skip
    peaks = ", ".join(f"{each / 1e12:.1f} in {precision}" for precision, each in document["peaks"].items())
    measured = f"{document['device']}; its own matrix products: {peaks} (10^12 operations a second)."
    return _with_others(f"{measured}\n\n{markdown(header, rows)}", document)


def answers(document: Document) -> list[dict[str, str]]:
    """Every question with its answer; not known unless a row says it."""
    known = {row["question"]: row for row in document["rows"]}
    found = []
    for question in document["questions"]:
        attempt = document["attempts"].get(question, {"reason": "it was not tried"})
        row = known.get(question, {"answer": "not known", "reason": attempt["reason"] or ENDED})
        found.append({"question": question, "answer": row["answer"], "reason": row["reason"]})
    return found


def gpu_status(results: Path) -> str:
    """Sentences for every page: which backends a GPU has run, and which not.

    Args:
        results: Folder of the recorded results.
    """
    file = results / "gpu_agreement.json"
    if not file.exists():
        return NOTHING
    document = json.loads(file.read_text(encoding="utf-8"))
    outcomes: dict[str, dict[str, list[str]]] = {}
    for name, attempt in document["attempts"].items():
        model, backend, precision = name.split()
        result = "begun" if attempt["reason"] == ENDED else attempt["result"]
        outcomes.setdefault(result, {}).setdefault(f"{backend} ({model})", []).append(precision)
    labels = {
        "passed": "Agrees with the reference",
        "failed": "Failed, or differs",
        "begun": "Ended by a crash or the time limit",
    }
    sentences = [f"Run by `make gpu-check` on {document['date']} on {document['device']}, compute capability "
                 f"{document['compute_capability']}."]  # fmt: skip
    sentences += [f"{label}: {_listed(outcomes[result])}." for result, label in labels.items() if result in outcomes]
    others = {name: each for result, names in outcomes.items() if result not in labels for name, each in names.items()}
    if others:
        sentences.append(f"Not run: {_listed(others)}.")
    return " ".join(sentences)


def _listed(names: dict[str, list[str]]) -> str:
    return "; ".join(f"{name} in {', '.join(precisions)}" for name, precisions in names.items())


def _with_others(table: str, document: Document) -> str:
    """A table, and the attempts that gave no rows or failed."""
    notes = [
        f"- {attempt['result']}: {name}: {_cell(attempt['reason'])}"
        for name, attempt in document["attempts"].items()
        if attempt["result"] != "passed"
    ]
    return "\n".join([table, *([""] if notes else []), *notes])


def _beyond(row: Document) -> str:
    return "" if row["passed"] else " (beyond its tolerance)"


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.5f}"


def _cell(text: str) -> str:
    """Text for a cell: one line, shortened, without bars."""
    line = " ".join(text.split()).replace("|", "/")
    return line if len(line) <= _TOO_LONG else f"{line[:_TOO_LONG]}..."
