"""Write the documents' tables, between their markers, and README's chart from recorded results."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chart
import export_tables
import load_tables
import production_tables
import runtime_tables
from gpu import tables as gpu_tables
from gpu import times as gpu_times
from markdown_table import markdown

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
DOCUMENTS = (
    FOLDER / "README.md",
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").glob("**/*.md")),
)
CHART = ROOT / "docs" / "images" / "latency.svg"
_MARKED = re.compile(r"(?P<start><!-- (?P<table>\w+): (?P<file>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)

Document = dict[str, Any]


def caption(document: Document) -> str:
    machine = document["machine"]
    device = f"{gpu_tables.device(document)}, " if "compute_capability" in document else ""
    return (
        f"`{document['command']}`, {document['date']}, {device}{machine['cores']} cores of {machine['cpu']} "
        f"({machine['cpu flags']}), load average {document['load_average'][0]}:"
    )


def growth(document: Document) -> str:
    results = document["results"]
    points = [(f"{each['minute']:g} min", each) for each in results["points"]]
    rows = [
        [
            when, f"{each['calls']:,}", f"{each['resident_mb']:.1f}", f"{each['in_use_mb']:.1f}",
            f"{each['held_free_mb']:.1f}", f"{each['python_blocks']:,}",
        ]
        for when, each in [*points, ("closed and trimmed", results["closed_and_trimmed"])]
    ]  # fmt: skip
    header = ["after", "calls", "resident (MB)", "in use by malloc (MB)", "held free by malloc (MB)", "Python's blocks"]
    return markdown(header, rows)


def soak(document: Document) -> str:
    header = [
        "minute",
        "calls",
        "resident (MB)",
        "its peak (MB)",
        "p50 (ms)",
        "p99 (ms)",
        "load average",
        "others' CPU share",
    ]
    return f"{markdown(header, production_tables.soak(document))}\n\n{production_tables.soak_verdict(document)}"


def memory(document: Document) -> str:
    settings, sharing = production_tables.memory(document)
    of_settings = ["", "MB after mixed shapes", "... by threads at a time", "... and single images again", "peak MB",
                   "CPU time of an image / default's", "... of mixed shapes"]  # fmt: skip
    of_sharing = ["ViT-B", "weights", "prepack", "resident MB", "proportional MB", "private MB",
                  "CPU time of an image / prepacked"]  # fmt: skip
    return f"{markdown(of_settings, settings)}\n\n{markdown(of_sharing, sharing)}"


def open_close(document: Document) -> str:
    header = ["times opened and closed", "resident (MB)", "in use by malloc (MB)", "held free by malloc (MB)",
              "Python's blocks", "threads", "descriptors"]  # fmt: skip
    return markdown(header, production_tables.open_close(document))


def micro_batches(document: Document) -> str:
    header = ["model", "backend", "clients", "answered by", "images/s", "/ predict's", "p50 (ms)", "p99 (ms)",
              "CPU ms an image", "images a run"]  # fmt: skip
    return markdown(header, production_tables.micro_batches(document))


def killed_ray(document: Document) -> str:
    times, lost = production_tables.killed_ray(document)
    header = ["images", "uninterrupted (s)", "kills", "rows written at each kill", "last run (s)", "rows"]
    row = [
        f"{document['images']:,}", f"{document['uninterrupted_s']:.0f}", f"{len(document['kills'])} (after {times})",
        lost, f"{document['last_run_s']:.0f}", "equal" if document["equal"] else "different",
    ]  # fmt: skip
    return markdown(header, [row])


TABLES: dict[str, Callable[[Document], str]] = {
    of_one.__name__: of_one
    for of_one in (
        export_tables.accuracy_bound,
        export_tables.export,
        runtime_tables.attention,
        load_tables.batch_predict,
        runtime_tables.capacity,
        export_tables.dynamic_size,
        export_tables.engines,
        load_tables.evaluate,
        gpu_tables.gpu_agreement,
        gpu_tables.gpu_check,
        gpu_tables.gpu_latency,
        gpu_tables.gpu_questions,
        gpu_tables.gpu_tests,
        gpu_times.gpu_rehearsal,
        gpu_times.gpu_wheels,
        growth,
        export_tables.int8,
        load_tables.killed_jobs,
        killed_ray,
        export_tables.large,
        memory,
        micro_batches,
        runtime_tables.onnxruntime_floor,
        open_close,
        runtime_tables.pixels,
        runtime_tables.predict_overhead,
        runtime_tables.processor,
        runtime_tables.intervals,
        export_tables.readme,
        load_tables.serve_load,
        load_tables.server_replay,
        soak,
        export_tables.peer_comparison,
        export_tables.trained,
        runtime_tables.trips,
        export_tables.tune,
    )
}


def render(text: str, results: Path = FOLDER / "results") -> str:
    """`text` with every marked table regenerated; a marker names the table and its results file.

    Text between markers without recorded results is kept, except that of `gpu_status`.
    """

    def section(match: re.Match[str]) -> str:
        path = results / Path(match["file"]).name
        if match["table"] == "gpu_status":
            return f"{match['start']}{gpu_tables.gpu_status(results)}\n{match['end']}"
        if not path.exists():
            return match[0]
        document = json.loads(path.read_text(encoding="utf-8"))
        return f"{match['start']}{caption(document)}\n\n{TABLES[match['table']](document).strip()}\n{match['end']}"

    return _MARKED.sub(section, text)


def rendered() -> dict[Path, str]:
    """The documents and the chart, as the results say."""
    pages = {path: render(path.read_text(encoding="utf-8")) for path in DOCUMENTS}
    pages[CHART] = chart.svg(json.loads((FOLDER / "results" / "trained.json").read_text(encoding="utf-8")))
    return pages


def write() -> None:
    for path, text in rendered().items():
        path.write_text(text, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if a table or the chart is not what the results say")
    if not parser.parse_args().check:
        write()
        return
    for path, text in rendered().items():
        if path.read_text(encoding="utf-8") != text:
            sys.exit(f"{path.relative_to(ROOT)} does not hold the recorded results; run: python benchmarks/tables.py")


if __name__ == "__main__":
    main()
