"""Time table of a run on a GPU machine: transfers, installation, and the steps of `check.py`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from markdown_table import markdown

Row = dict[str, Any]


class Times:
    """Times that outlast a command: a file of rows, one a step, which grows as the steps end.

    Args:
        folder: Folder of the file.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "times.jsonl"

    @contextmanager
    def step(self, name: str, **values: Any) -> Iterator[Row]:
        """Record the time of the body; its row takes further values."""
        start = time.time()
        row: Row = {"step": name, "result": "failed", **values}
        try:
            yield row
            if row["result"] == "failed":
                row["result"] = "passed"
        finally:
            self.add({**row, "seconds": round(time.time() - start, 1)})

    def add(self, row: Row) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**row, "ended": time.time()}) + "\n")

    def rows(self) -> list[Row]:
        """The rows in order of their end; of a step that ran again, the last."""
        if not self._file.exists():
            return []
        rows = [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines()]
        last = {row["step"]: index for index, row in enumerate(rows)}
        return [row for index, row in enumerate(rows) if last[row["step"]] == index]

    def since_last(self) -> float | None:
        """Seconds since the last row, here the time of a transfer; None before any."""
        rows = self.rows()
        return round(time.time() - rows[-1]["ended"], 1) if rows else None


def write(times: Times, out: Path) -> Row:
    """Write the rows, and then those of `gpu_check.json` where it is, to `out/gpu_times.json`; return its content."""
    check = out / "gpu_check.json"
    steps = json.loads(check.read_text(encoding="utf-8"))["steps"] if check.exists() else []
    rows = [{key: value for key, value in row.items() if key != "ended"} for row in times.rows()]
    document = {"rows": [*rows, *({**step, "step": f"check: {step['step']}"} for step in steps)]}
    part = out / "gpu_times.json.part"
    part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    part.replace(out / "gpu_times.json")
    return document


def table(document: Row) -> str:
    """Markdown of the rows: step, 10^6 bytes, seconds, result; a time that is not known is left blank."""
    rows = []
    for row in document["rows"]:
        size = f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else ""
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        result = f"{row['result']}: {row['reason']}" if row.get("reason") else str(row["result"])
        rows.append([row["step"], size, seconds, " ".join(result.split()).replace("|", "/")])
    rows.append(["all", "", f"{sum(row['seconds'] or 0 for row in document['rows']):.1f}", ""])
    return markdown(["step", "MB", "seconds", "result"], rows)


def wheels_table(wheels: list[Row]) -> str:
    """Markdown of `bundle.contents`."""
    rows = []
    for wheel in wheels:
        numbers = [name.split("-")[1] for name in wheel["slices"]]
        span = numbers[0] if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
        rows.append([f"`{wheel['wheel']}`", f"{wheel['bytes'] / 1e6:.2f}", span, wheel["reason"]])
    rows.append(["all", f"{sum(wheel['bytes'] for wheel in wheels) / 1e6:.2f}", "", ""])
    return markdown(["wheel", "MB", "slice", "why it travels"], rows)


def gpu_wheels(document: Row) -> str:
    """The wheels for the first machine of `rehearsal.py`."""
    return wheels_table(document["machines"][0]["wheels"])


def gpu_rehearsal(document: Row) -> str:
    """The tables of the machines of `rehearsal.py`."""
    return "\n\n".join(_rehearsed(machine) for machine in document["machines"])


def _rehearsed(machine: Row) -> str:
    versions = machine["versions"]
    torch = "without torch" if "torch" in machine["missing"] else "with torch for the CPU"
    text = (
        f"Python {versions['python']}, {torch}; "
        f"installed: TensorRT-RTX {versions['tensorrt_rtx']}, ONNX Runtime {versions['onnxruntime']} with "
        f"{', '.join(versions['providers'])}. A call sent {machine['largest_transfer_bytes'] / 1e6:.1f} MB at most, a "
        f"command took {machine['longest_command_seconds']:.0f} s at most, {len(machine['files'])} files came back; "
        f"network: `{machine['network']}`; exit code {machine['exit_code']}."
    )
    results = {name: name for name in ("passed", "skipped", "failed", "not started")} | {"begun": "ended at the limit"}
    tried = [
        [row["step"], f"{row['seconds']:.0f}", *(str(row.get(result, 0)) for result in results)]
        for row in machine["on_cpu"]
    ]
    made = [f"{row['model']} ({row['seconds']:.0f} s)" for row in machine["models"] if row["result"] == "passed"]
    parts = [text, table(machine)]
    if made:
        parts.append(f"Models made there beside the steps, until the last step ended: {', '.join(made)}.")
    if tried:
        parts += [
            "The scripts of the steps, tried on its CPU afterwards:",
            markdown(["script", "seconds", *results.values()], tried),
        ]
    return "\n\n".join(parts)
