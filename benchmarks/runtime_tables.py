"""Tables of runs: attention, sizes, preprocessing, sessions, measuring."""

from __future__ import annotations

import functools
import statistics
from typing import Any

from markdown_table import markdown

Document = dict[str, Any]


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
