"""Tables of the benchmarks of long-running applications and jobs: soak, memory, micro-batches, kills."""

from __future__ import annotations

from typing import Any

Document = dict[str, Any]
_ROWS = 12  # of a long run


def soak(document: Document) -> list[list[str]]:
    """Rows of some minutes, the first and the last among them."""
    points = document["results"]["points"][1:]
    step = max(1, len(points) // _ROWS)
    shown = [point for point in points if point is points[0] or point["minute"] % step == 0 or point is points[-1]]
    return [
        [
            f"{point['minute']} min", f"{point['calls']:,}", f"{point['resident_mb']:.1f}",
            f"{point['resident_peak_mb']:.1f}", f"{point['p50_ms']:.0f}",
            f"{point['p99_ms']:.0f}", f"{point['load_average']:.1f}", f"{max(0.0, point['others_share']):.0%}",
        ]
        for point in shown
    ]  # fmt: skip


def soak_verdict(document: Document) -> str:
    results = document["results"]
    judgement, calls = results["judgement"], sum(point["calls"] for point in results["points"][1:])
    flat = "flat" if judgement["flat"] else "not flat"
    problems = sum(results["problems"].values())
    quiet = " and ".join(map(str, judgement["quiet_minutes"]))
    return (
        f"{calls:,} calls, {problems} errors or wrong answers. Resident memory of the last half: {flat}, within "
        f"{judgement['resident_spread']:.2%}. 99th percentile: {_stability(judgement)} (quiet minutes of the third and "
        f"the last quarter: {quiet})."
    )


def _stability(judgement: dict[str, Any]) -> str:
    if judgement["p99_stable"] is None:
        return "not judged, the machine was busy with other work"
    stable = "stable" if judgement["p99_stable"] else "not stable"
    return f"{stable}, the last quarter's is {judgement['p99_ratio']:.2f} of the third's"


def memory(document: Document) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the settings, and of the processes that share a file."""
    found = document["results"]
    base = found["settings"]["default"]
    settings = [
        [
            name,
            *(f"{row[key]:.0f}" for key in ("mixed_mb", "threads_mb", "last_mb", "peak_mb")),
            f"{row['last_cpu_ms'] / base['last_cpu_ms']:.2f}", f"{row['mixed_cpu_s'] / base['mixed_cpu_s']:.2f}",
        ]
        for name, row in found["settings"].items()
    ]  # fmt: skip
    fastest = {row["precision"]: row["cpu_ms"] for row in reversed(found["sharing"]) if row["prepack"]}
    sharing = [
        [
            row["precision"], "beside the graph" if row["external"] else "in the file", str(row["prepack"]),
            *(f"{row[key]:.0f}" for key in ("resident_mb", "proportional_mb", "private_mb")),
            f"{row['cpu_ms'] / fastest[row['precision']]:.2f}",
        ]
        for row in found["sharing"]
    ]  # fmt: skip
    return settings, sharing


def open_close(document: Document) -> list[list[str]]:
    return [
        [
            f"{point['times']:,}", f"{point['resident_mb']:.1f}", f"{point['in_use_mb']:.1f}",
            f"{point['held_free_mb']:.1f}", f"{point['python_blocks']:,}", str(point["threads"]),
            str(point["descriptors"]),
        ]
        for point in document["results"]["points"]
    ]  # fmt: skip


def micro_batches(document: Document) -> list[list[str]]:
    """A row for each model, backend, number of clients and way to answer."""
    return [
        [
            each["model"], each["backend"], str(each["clients"]), way, f"{found['images_per_s']:.1f}",
            f"{each['ratios'][way]:.2f}", f"{found['p50_ms']:.1f}", f"{found['p99_ms']:.1f}",
            f"{found['cpu_ms']:.1f}", f"{found['batch']:.1f}",
        ]
        for each in document["results"]
        for way, found in each["ways"].items()
    ]  # fmt: skip


def killed_ray(document: Document) -> tuple[str, str]:
    """The seconds of each run until its kill, and the rows that had been written then."""
    times = [kill["after_s"] for kill in document["kills"]]
    rows = ", ".join(f"{kill['rows_after']:,}" for kill in document["kills"])
    return (f"{min(times):.1f} to {max(times):.1f} s" if times else "none"), rows
