"""Tables of exports: time, size, accuracy, and other tools."""

from __future__ import annotations

from typing import Any

import chart
from markdown_table import markdown

LEVEL = 0.02  # ratios this near to 1 are equal
Document = dict[str, Any]


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


def readme(document: Document) -> str:
    """The rows of the chart."""
    rows = []
    for name, (label, *_) in chart.POINTS.items():
        row = document["ways"][name]
        times = (f"{row['batch_sizes'][size]['ratio']:.2f}" for size in ("1", "8"))
        rows.append([label, *times, f"{row['mean_cosine']:.4f}", f"{row['p5_cosine']:.4f}"])
    return markdown(["", "time / vitdeploy fp32's, batch 1", "batch 8", "mean cosine", "5th percentile"], rows)


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
