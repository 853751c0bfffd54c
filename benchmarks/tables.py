"""Write the documents' tables, between their markers, and README's chart from recorded results."""

from __future__ import annotations

import argparse
import functools
import json
import re
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chart
import gpu_tables
import gpu_times
import production_tables
from markdown_table import markdown

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
DOCUMENTS = (FOLDER / "README.md", ROOT / "README.md", *sorted((ROOT / "docs").glob("**/*.md")))
CHART = ROOT / "docs" / "images" / "latency.svg"
LEVEL = 0.02  # ratios this near to 1 are equal
_MARKED = re.compile(r"(?P<start><!-- (?P<table>\w+): (?P<file>\S+) -->\n).*?(?P<end><!-- end -->)", re.DOTALL)

Document = dict[str, Any]


def caption(document: Document) -> str:
    machine = document["machine"]
    device = f"{gpu_tables.device(document)}, " if "compute_capability" in document else ""
    return (
        f"`{document['command']}`, {document['date']}, {device}{machine['cores']} cores of {machine['cpu']} "
        f"({machine['cpu flags']}), load average {document['load_average'][0]}:"
    )


def export(document: Document) -> str:
    columns, differences = document["columns"], document["largest_difference"]
    tools = list(columns["wall_s"]["medians"])
    rows = [
        [label, *(_number(columns[key]["medians"].get(tool), digits) for tool in tools), *_against_best(columns[key])]
        for key, label, digits in (
            ("wall_s", "export, wall time (s)", 1),
            ("cpu_s", "export, processor time (s)", 1),
            ("peak_mb", "export, peak memory (MB)", 0),
            ("file_mb", "file (MB)", 2),
            ("nodes", "nodes", 0),
            ("batch_1_ms", "latency, batch 1 (ms)", 1),
            ("batch_8_ms", "latency, batch 8 (ms)", 1),
        )
    ]
    rows.append(["largest difference of logits", *(_power(differences.get(tool)) for tool in tools), "", "", ""])
    notes = [
        f"- {tool} fails at batch {batch_size}: {problem}"
        for batch_size, problems in document["problems"].items()
        for tool, problem in problems.items()
    ]
    table = markdown(["", *tools, "best peer", "ours / best (quartiles)", f"level: within {LEVEL:.0%}"], rows)
    return "\n".join([table, *([""] if notes else []), *notes])


def _against_best(column: Document) -> tuple[str, str, str]:
    ratio, p25, p75 = column["ratio"], column["ratio_p25"], column["ratio_p75"]
    verdict = "ahead" if ratio < 1 - LEVEL else "level" if ratio <= 1 + LEVEL else "behind"
    spread = f" ({p25:.3f} to {p75:.3f})" if p25 != p75 else ""
    return column["best_peer"], f"{ratio:.3f}{spread}", verdict


def attention(document: Document) -> str:
    """In the form of the table in transformers' documentation of ViT."""
    header = [
        "Batch size",
        "Average inference time (ms), eager mode",
        "Average inference time (ms), sdpa model",
        "Speed up, Sdpa / Eager (x)",
    ]
    parts = []
    for measured in document["measured"]:
        rows = [
            [str(row["batch_size"]), *(f"{row[key]:.1f}" for key in ("eager_ms", "sdpa_ms")), f"{row['speedup']:.2f}"]
            for row in measured["rows"]
        ]
        parts.append(f"{measured['device']}, {measured['precision']}:\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def dynamic_size(document: Document) -> str:
    rows: list[list[str]] = []
    notes: list[str] = []
    sizes = next(list(row["sizes"]) for row in document["rows"] if "sizes" in row)
    for row in document["rows"]:
        label = f"{row['model']}: {row['exporter']}"
        if "error" in row:
            rows.append([label, *["not exported"] * len(sizes)])
            notes.append(f"- {label}: `{row['error']}`")
            continue
        cells = row["sizes"]
        if row["exporter"] == "vitdeploy":
            rows.append([f"**{row['model']}**", *("x".join(map(str, cells[size]["pixels"])) for size in sizes)])
        rows.append([row["exporter"], *(_cell(cells[size]) for size in sizes)])
        errors = [cells[size]["error"] for size in sizes if cells[size]["result"] == "fails"]
        notes += [f"- {label}: `{error}`" for error in errors[:1]]
    return "\n".join([markdown(["", *sizes], rows), "", *notes])


def _cell(found: Document) -> str:
    if found["result"] == "fails":
        return "fails" if found["batch_size"] == 1 else f"fails at batch {found['batch_size']}"
    wrong = "wrong: " if found["result"] == "wrong" else ""
    return f"{wrong}{_power(found['max_relative'])}, {_power(found['max_abs'])}"


def predict_overhead(document: Document) -> str:
    results = document["results"]
    rows = [["the session alone", f"{results['session_ms']:.1f}", "", ""]]
    for key, label in (("predict_ready_image", "`predict` on a ready image"), ("predict_jpeg", "`predict` on a JPEG")):
        row = results[key]
        rows.append([label, f"{row['ms']:.1f}", f"{row['added_ms']:.2f}", f"{row['overhead']:+.1%}"])
    alone = {"image_processing_ms": "the image processor alone", "batch_new_threads_ms": "... on 4, with new threads",
             "batch_kept_threads_ms": "... on 4, with kept threads"}  # fmt: skip
    rows += [[label, f"{results[key]:.2f}", "", ""] for key, label in alone.items() if key in results]
    return markdown(["", "ms", "added ms", "overhead"], rows)


def pixels(document: Document) -> str:
    rows = []
    for name, found in document["formats"].items():
        low, middle, high = found["speedup"]
        rows.append(
            [
                name,
                f"{found['images_per_s']:.2f}",
                f"{middle:.3f} ({low:.3f} to {high:.3f})",
                f"{found['image_bytes']:,}",
            ]
        )
    return markdown(["into the runtime", "images/s", "throughput / float32's (quartiles)", "bytes an image"], rows)


def large(document: Document) -> str:
    found = document["results"]
    aligned = f"{found['large_weights_aligned']} of {found['large_weights']} large weights aligned to 64 KiB"
    rows = [
        ["peak memory of the export", f"{found['peak_mb']:,.0f} MB", f"{found['peak_ratio']:.2f} times the weights"],
        ["beside the model", f"{len(found['data_files'])} file", aligned],
        [
            "loaded by ONNX Runtime, without its packed copies",
            f"{found['loaded_mapped_mb']:,.0f} MB mapped",
            f"{found['loaded_in_memory_mb']:,.0f} MB in memory",
        ],
    ]
    return markdown(["", "", ""], rows)


def engines(document: Document) -> str:
    rows = [
        [row["precision"], row["size"], row["batch"], f"{row['seconds']:.1f}", f"{row['engine_mb']:.0f}",
         f"{row['onnx_mb']:.0f}", row["validation"]]
        for row in document["rows"]
    ]  # fmt: skip
    header = ["precision", "image size", "batch", "built in (s)", "engine (MB)", "ONNX (MB)", "validation"]
    return markdown(header, rows)


def evaluate(document: Document) -> str:
    rows = []
    for preset, found in document["presets"].items():
        speed, busy = found["images_per_s"], found["busy"]
        ratios = []
        for key in ("of_slower", "of_one_after_the_other"):
            low, middle, high = found[key]
            ratios.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        cells = (f"{speed[name]:.1f} ({busy[name]:.0%})" for name in ("decoding", "inference", "both"))
        rows.append([preset, *cells, *ratios])
    header = ["images/s (cores busy)", "decoding alone", "inference alone", "`evaluate`", "... / the slower alone",
              "... / one after the other"]  # fmt: skip
    return markdown(header, rows)


def batch_predict(document: Document) -> str:
    rows = []
    for model, found in document["models"].items():
        speed, cpu = found["images_per_s"], found["cpu_ms_per_image"]
        cells = (f"{speed[name]:.1f} ({cpu[name]:.2f})" for name in ("decoding", "inference", "job"))
        ratios = []
        for key in ("of_slower", "of_bound"):
            low, middle, high = found[key]
            ratios.append(f"{middle:.2f} ({low:.2f} to {high:.2f})")
        rows.append([model, *cells, f"{found['bound_images_per_s']:.1f}", *ratios])
    header = ["images/s (processor ms an image)", "decoding alone", "inference alone", "the job", "bound",
              "job / the slower alone", "job / the bound"]  # fmt: skip
    return markdown(header, rows)


def killed_jobs(document: Document) -> str:
    rows = []
    for ending, found in document["formats"].items():
        kills = found["kills"]
        times = [kill["after_s"] for kill in kills]
        rows.append([
            ending, f"{found['images']:,}", f"{found['uninterrupted_s']:.0f}",
            f"{len(kills)} (after {min(times):.1f} to {max(times):.1f} s)",
            f"{sum(kill['wrote'] for kill in kills)}", f"{found['last_run_s']:.0f}", f"{found['bytes']:,}",
            "equal" if found["equal"] else "different",
        ])  # fmt: skip
    header = ["output", "images", "uninterrupted (s)", "kills", "of them while the file was written", "last run (s)",
              "bytes", "bytes / those of the uninterrupted run"]  # fmt: skip
    return markdown(header, rows)


def processor(document: Document) -> str:
    found = document["processes"]
    peers = ["transformers_pil", "hf_processors_rs"]

    def row(title: str, kind: str, *keys: str, name: str = "vitdeploy") -> list[str]:
        """Our time, and for each peer that was measured, its time and ours as a share of it."""
        times = [functools.reduce(dict.__getitem__, keys, process[kind]) for process in found]
        cells = [title, _range([of_one[name] for of_one in times])]
        for peer in peers:
            measured = [of_one for of_one in times if peer in of_one]
            cells += [
                _range([of_one[peer] for of_one in measured]) if measured else "",
                _range([of_one[name] / of_one[peer] for of_one in measured]) if measured else "",
            ]
        return cells

    rows = [
        row(f"one image from {source}", "image_ms", name=f"vitdeploy_{name}")
        for name, source in (("file", "a file"), ("bytes", "bytes"), ("uint8", "a file, to bytes"))
    ]
    for threads in found[0]["batch16_ms"]:
        for name, form in (("vitdeploy", ""), ("vitdeploy_uint8", ", to bytes")):
            rows.append(row(f"16 images, threads: {threads}{form}", "batch16_ms", threads, name=name))
    rows += [row(f"one image, {setting}", "settings_ms", setting) for setting in found[0]["settings_ms"]]
    header = ["ms, median of processes (lowest to highest)", "vitdeploy", "transformers' PIL backend", "ours / its",
              "hf-processors-rs", "ours / its"]  # fmt: skip
    return markdown(header, rows)


def intervals(document: Document) -> str:
    """A row with and without the burner: intervals of equal settings with 1, and of a slower one without it."""
    rows = []
    for burning in (False, True):
        found = [row for row in document["experiments"] if row["burner"] == burning]
        if not found:
            continue
        contained = sum(row["identical"]["low"] <= 1 <= row["identical"]["high"] for row in found)
        seen = sum(row["slowed"]["low"] > 1 for row in found)
        widths = [(row["identical"]["high"] - row["identical"]["low"]) / 2 for row in found]
        ratios = [row["slowed"]["ratio"] for row in found]
        rows.append(
            [
                "beside a busy process" if burning else "alone",
                f"{statistics.median(row['p50_ms'] for row in found):.2f}",
                f"{contained} of {len(found)}",
                f"±{statistics.median(widths):.1%}",
                f"{seen} of {len(found)}",
                f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
            ]
        )
    share = f"{document['slowdown']:.0%}"
    header = [
        "",
        "ms a run",
        "identical: interval has 1",
        "half its width, median",
        f"{share} slower: seen",
        "its ratio, median (lowest to highest)",
    ]
    return markdown(header, rows)


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _number(value: float | None, digits: int) -> str:
    return "fails" if value is None else f"{value:,.{digits}f}"


def _power(value: float | None) -> str:
    return "fails" if value is None else f"{value:.1e}"


def int8(document: Document) -> str:
    rows = []
    for batch_size, measured in document["batch_sizes"].items():
        for name, row in measured.items():
            ratios = (
                "1" if name == base else f"{ratio:.3f} ({p25:.3f} to {p75:.3f})"
                for base, (p25, ratio, p75) in row["ratios"].items()
            )
            differs = f"{row['max_relative']:.1e}", f"{row['min_cosine']:.5f}"
            rows.append([batch_size, name, f"{row['median_ms']:.1f}", *ratios, f"{row['file_mb']:.1f}", *differs])
    bases = (f"time / {base}'s (quartiles)" for base in row["ratios"])
    header = ["batch", "", "ms", *bases, "MB", "largest difference of logits", "lowest cosine"]
    versions = ", ".join(f"{package} {version}" for package, version in document["peers"].items())
    return f"{markdown(header, rows)}\n\nPeers: {versions or 'none'}."


def onnxruntime_floor(document: Document) -> str:
    rows = []
    for precision, loads in document["precisions"].items():
        for load, sizes in loads.items():
            for size, found in sizes.items():
                ratios = [
                    "{1:.2f} ({0:.2f} to {2:.2f})".format(*row["ratio"])
                    for name, row in found.items()
                    if name != "all tokens"
                ]
                base = found["all tokens"]["median_ms"] / int(size)
                rows.append([precision, load, size, f"{base:.1f}", *ratios])
    first = next(iter(document["precisions"].values()))["alone"]
    names = [name for name in next(iter(first.values())) if name != "all tokens"]
    return markdown(["", "", "batch", "all tokens, ms an image", *names], rows)


def accuracy_bound(document: Document) -> str:
    accuracy = document["accuracy"]
    rows = [
        (
            name,
            "" if found["agreement_seen"] is None else f"{found['agreement_seen']:.2%}",
            f"{found['agreement']:.2%}",
            "" if found["layers"] is None else f"{len(found['float32_layers'])} of {found['layers']}",
            f"{found['smooth_quant']:g}" if found.get("smooth_quant") is not None else "",
        )
        for name, found in document["ways"].items()
    ]
    header = (
        "",
        "the reference's class: images that it was made on",
        "held-out images",
        "layers in float32",
        "smooth_quant",
    )
    title = f"Accuracy of the reference after {document['epochs']} epochs: {accuracy['accuracy']:.2%}."
    return f"{title}\n\n{markdown(header, rows)}"


def trained(document: Document) -> str:
    sizes = sorted({size for row in document["ways"].values() for size in row.get("batch_sizes", {})}, key=int)
    rows = []
    for name, row in document["ways"].items():
        timed = [row.get("batch_sizes", {}).get(size) for size in sizes]
        times = ("" if each is None else f"{each['median_ms']:.1f} ({each['ratio']:.2f})" for each in timed)
        cosines = (f"{row[key]:.5f}" for key in ("mean_cosine", "p5_cosine", "min_cosine"))
        seconds = f"{row['processor_s']:.0f}" if "processor_s" in row else ""
        rows.append([name, *cosines, f"{row['same_neighbour']:.1%}", *times, seconds])
    header = ["", "mean cosine", "5th percentile", "lowest", "same nearest neighbour"]
    header += [*(f"ms, batch {size} (/ fp32's)" for size in sizes), "export, processor s"]
    versions = ", ".join(f"{package} {version}" for package, version in document["peers"].items())
    images = document["images"]
    counts = f"{images['calibration']} photographs to calibrate on, {images['held-out']} held out."
    return f"{counts} Peers: {versions}.\n\n{markdown(header, rows)}"


def peer_comparison(document: Document) -> str:
    """The tools of one model, the fastest from JPEG files in the first batch size first."""
    found = document["rows"]
    sizes = list(next(iter(found.values())).get("batch_sizes", {}))
    names = sorted(found, key=lambda name: found[name]["batch_sizes"][sizes[0]]["jpeg_ratio"][0] if sizes else 0)
    rows = []
    for name in names:
        row = found[name]
        timed = [row["batch_sizes"][size] for size in sizes]
        times = [f"{each['jpeg_ms']:.1f} ({_interval(each['jpeg_ratio'])})" for each in timed] + [
            f"{each['ready_ms']:.1f} ({_interval(each['ready_ratio'])})" for each in timed
        ]
        accuracy = [f"{row['mean_cosine']:.5f}", f"{row['p5_cosine']:.5f}"]
        same = row.get("same_class", row["same_neighbour"])
        rows.append([name, row["precision"], *times, *accuracy, f"{same:.1%}"])
    header = ["", "products in"]
    header += [
        f"ms an image from {what}, batch {size} (/ the pipeline's)" for what in ("JPEG", "pixels") for size in sizes
    ]
    classifies = any("same_class" in row for row in found.values())
    header += ["mean cosine", "5th percentile", "same class" if classifies else "same nearest neighbour"]
    versions = "; ".join(
        f"{place}: {', '.join(f'{package} {version}' for package, version in packages.items())}"
        for place, packages in document["peers"].items()
    )
    return f"Environments: {versions}.\n\n{markdown(header, rows)}"


def _interval(values: list[float]) -> str:
    estimate, low, high = values
    return f"{estimate:.3f}, {low:.3f} to {high:.3f}"


def capacity(document: Document) -> str:
    """Throughput from JPEG files in the largest batch size, the highest first; all cores of the machine worked."""
    cores, found = int(document["machine"]["cores"]), document["rows"]
    size = max(next(iter(found.values()))["batch_sizes"], key=int)
    rows = []
    for name in sorted(found, key=lambda name: found[name]["batch_sizes"][size]["jpeg_ms"]):
        per_second = 1e3 / found[name]["batch_sizes"][size]["jpeg_ms"]
        hours = (images / per_second / 3600 for images in (1e6, 1e9))
        rows.append([name, f"{per_second:.1f}", f"{per_second / cores:.1f}", *(f"{number:,.1f}" for number in hours)])
    header = [f"from JPEG, batch {size}", "images/s", "images/s a core"]
    return markdown([*header, "1,000,000 images, machine hours", "1,000,000,000 images, machine hours"], rows)


def readme(document: Document) -> str:
    """The rows of the chart."""
    rows = []
    for name, (label, *_) in chart.POINTS.items():
        row = document["ways"][name]
        times = (f"{row['batch_sizes'][size]['ratio']:.2f}" for size in ("1", "8"))
        rows.append([label, *times, f"{row['mean_cosine']:.4f}", f"{row['p5_cosine']:.4f}"])
    return markdown(["", "time / vitdeploy fp32's, batch 1", "batch 8", "mean cosine", "5th percentile"], rows)


def server_replay(document: Document) -> str:
    rows = []
    for name, found in document["models"].items():
        search, replays = found["search"], found["replays"]
        percentiles = sorted(replay["p99_ms"] for replay in replays)
        rows.append([
            name, f"{search['bound_ms']:g}",
            "none" if search["queries_per_second"] is None else f"{search['queries_per_second']:.4g}",
            "" if search["invalid_queries_per_second"] is None else f"{search['invalid_queries_per_second']:.4g}",
            str(search["replays_measured"]),
            f"{sum(replay['held'] for replay in replays)} of {len(replays)}",
            f"{statistics.median(percentiles):.1f} ({percentiles[0]:.1f} to {percentiles[-1]:.1f})" if replays else "",
            f"{max(replay['lateness_p99_ms'] for replay in replays):.2f}" if replays else "",
        ])  # fmt: skip
    header = ["", "bound (ms)", "rate found (queries/s)", "not valid at", "replays of the search", "later replays held",
              "their 99th percentile (ms, median and range)", "load late by at most (ms)"]  # fmt: skip
    return markdown(header, rows)


def serve_load(document: Document) -> str:
    loads, kills = [], []
    for model, found in document["models"].items():
        for protocol, row in found["protocols"].items():
            same, overload, recovered = row["same_rate"], row["overload"], row["recovered"]
            served = row["served_rate"]
            loads.append([
                f"{model}, {protocol}", f"{found['bound_ms']:g}", f"{found['in_process']['queries_per_second']:.4g}",
                f"{same['p99_ms']:.1f}" + ("" if same["held"] else f" ({_others(same)})"),
                "none" if served is None else f"{served:.4g}",
                _spread_ms([replay["p99_ms"] for replay in row["replays"]]),
                f"{overload['rate']:.4g}", f"{overload['answered_per_second']:.4g}",
                f"{overload['p99_ms']:.0f}", f"{overload['refused_p99_ms']:.0f}" if overload["refused_p99_ms"] else "",
                f"{overload['memory_first_quarter_mb']:.0f} to {overload['memory_last_quarter_mb']:.0f}",
                _spread_ms([replay["p99_ms"] for replay in recovered]),
            ])  # fmt: skip
            kills += [
                [
                    f"{model}, {protocol}, {kill['killed']}", f"{kill['rate']:.4g}",
                    *(str(kill["outcomes"].get(outcome, 0)) for outcome in ("answered", "refused", "lost", "failed")),
                    *(str(kill["outcomes"].get(outcome, 0)) for outcome in ("wrong", "hung")),
                    f"{kill['seconds_without_answers']:.1f}",
                ]
                for kill in row["killed"]
            ]  # fmt: skip
    header = ["", "bound (ms)", "rate in one process (/s)", "p99 at it, served (ms)", "highest served rate (/s)",
              "its p99 (ms)", "overload (/s)", "answered (/s)", "p99 of answers (ms)", "p99 of refusals (ms)",
              "memory meanwhile (MB)", "p99 afterwards at the served rate (ms)"]  # fmt: skip
    killed = ["killed", "rate (/s)", "answered", "refused", "connection lost", "failed", "wrong", "hung",
              "until all are answered (s)"]  # fmt: skip
    return f"{markdown(header, loads)}\n\n{markdown(killed, kills)}"


def _others(load: Document) -> str:
    """Outcomes of a load that are not answers, or that it missed its bound."""
    others = [f"{count} {outcome}" for outcome, count in load["outcomes"].items() if outcome != "answered"]
    return ", ".join(others) or "missed"


def _spread_ms(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


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
    header = ["minute", "calls", "resident (MB)", "its peak (MB)", "p50 (ms)", "p99 (ms)", "load average"]
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


def trips(document: Document) -> str:
    commits = list(document["trees"])
    figures = {
        "functions": "functions entered",
        "files": "files with one of these",
        "deepest_stack": "deepest stack",
        "calls_between_rooms": "calls between rooms",
        "calls_upward": "calls upward",
        "calls_upward_from_exporters": "... from `exporters`",
        "sessions": "ONNX Runtime sessions opened",
        "references": "reference models built",
        "bundle_files_opened": "files of the bundle opened",
    }
    rows = []
    for trip, command in document["commands"].items():
        counts = [document["trees"][commit][trip] for commit in commits]
        rows.append([f"`{command}`", *[""] * len(commits)])
        rows += [[label, *(f"{count[key]:,}" for count in counts)] for key, label in figures.items()]
    return markdown(["", *commits], rows)


def tune(document: Document) -> str:
    rows = [
        [str(place), row["setting"], f"{row['ms']:.3f}", f"{row['ratio']:.3f}", "chosen" if row["chosen"] else ""]
        for place, row in enumerate(document["settings"], 1)
    ]
    ratio, seconds = document["chosen_over_fastest"], document["seconds"]
    text = (
        f"tune took {seconds:.0f} s; time of its choice / the fastest: {ratio['estimate']:.3f} "
        f"({ratio['low']:.3f} to {ratio['high']:.3f})"
    )
    header = ("place", "setting", "ms an image", "time / the fastest's", "")
    return f"{markdown(header, rows)}\n\n{text}"


TABLES: dict[str, Callable[[Document], str]] = {
    of_one.__name__: of_one
    for of_one in (
        accuracy_bound,
        export,
        attention,
        batch_predict,
        capacity,
        dynamic_size,
        engines,
        evaluate,
        gpu_tables.gpu_agreement,
        gpu_tables.gpu_check,
        gpu_tables.gpu_latency,
        gpu_tables.gpu_questions,
        gpu_tables.gpu_tests,
        gpu_times.gpu_rehearsal,
        gpu_times.gpu_wheels,
        growth,
        int8,
        killed_jobs,
        killed_ray,
        large,
        memory,
        micro_batches,
        onnxruntime_floor,
        open_close,
        pixels,
        predict_overhead,
        processor,
        intervals,
        readme,
        serve_load,
        server_replay,
        soak,
        peer_comparison,
        trained,
        trips,
        tune,
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
