"""Tables of jobs and servers under load."""

from __future__ import annotations

import statistics
from typing import Any

from markdown_table import markdown

Document = dict[str, Any]


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
